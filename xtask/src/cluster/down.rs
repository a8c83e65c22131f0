//! Takes the cluster away: processes, namespaces, cgroups, state.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{
    layout::{Folders, MAX_WORKERS, Worker},
    network, process, worker,
};
use crate::phases::Phases;

/// Takes everything away; nothing there is no error.
pub(super) fn run(folders: &Folders, phases: &mut Phases) -> Result<()> {
    phases.time("processes", || {
        for worker in Worker::all(MAX_WORKERS) {
            // The outer process takes along all that is inside.
            process::end(folders, &worker.name())?;
        }
        process::names(folders)
            .iter()
            .try_for_each(|name| process::end(folders, name))
    })?;
    phases.time("namespaces", network::remove)?;
    phases.time("cgroups", worker::remove_cgroups)?;
    phases.time("state", || {
        if folders.state.exists() {
            fs::remove_dir_all(&folders.state).with_context(|| format!("cannot remove {}", folders.state.display()))?;
        }
        ensure!(!folders.state.exists(), "{} is still there", folders.state.display());
        Ok(())
    })
}
