//! The program array through which the attached programs reach their later stages by tail calls.
//!
//! Each load makes its own array and pins it as `<pin-dir>/stages/new-<map id>`, without the `new-` from the moment when the
//! first hook may use it: programs of two loads never share one, so the stages that a packet passes are of one build.
//! An array that still is new when another agent loads was never used and goes at once, however often agents die there. The pin is what keeps it alive, not the programs: the kernel empties a
//! program array when the last file descriptor and pin are gone (`bpf_fd_array_map_clear`, kernel/bpf/arraymap.c), and then
//! every packet that needs a later stage is dropped. Arrays of former loads are therefore removed only after every hook has
//! been switched, and a while later, when no packet can still be on its way through them.

use std::fs;
use std::io;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Map, ProgramArray};
use aya::programs::SchedClassifier;
use lb_common::layout::{map, stage};

use super::LoadError;
use crate::datapath::pins::{PinDir, PinError, remove_if_there};

/// A program runs for microseconds; this is for a machine that pauses.
const DRAIN: Duration = Duration::from_secs(1);

const NEW: &str = "new-";

/// Loads the stages, fills the array and pins it. Returns the name that the pin will have.
///
/// The caller owns the pin directory: new arrays in it are of agents that have ended.
pub(super) fn install(ebpf: &mut Ebpf, pins: &PinDir) -> Result<String, LoadError> {
    for name in stage::PROGRAMS {
        super::verify(ebpf, name)?;
    }
    let failed = |source| LoadError::Stages { source };
    let map = ebpf
        .take_map(map::STAGES)
        .ok_or(LoadError::MissingProgram(map::STAGES))?;
    let Map::ProgramArray(data) = &map else {
        return Err(LoadError::MissingProgram(map::STAGES));
    };
    let id = data.info().map_err(failed)?.id();
    let mut array = ProgramArray::try_from(map).map_err(failed)?;
    for (index, name) in (0..).zip(stage::PROGRAMS) {
        let program = ebpf.program(name).ok_or(LoadError::MissingProgram(name))?;
        let program: &SchedClassifier = program
            .try_into()
            .map_err(|source| LoadError::Program { name, source })?;
        let fd = program.fd().map_err(|source| LoadError::Program { name, source })?;
        array.set(index, fd, 0).map_err(failed)?;
    }
    for name in pins.stage_names().map_err(PinError::io("list", &pins.stages()))? {
        if name.starts_with(NEW) {
            let path = pins.stages().join(name);
            remove_if_there(&path).map_err(PinError::io("remove", &path))?;
        }
    }
    let path = pins.stages().join(format!("{NEW}{id}"));
    array.pin(&path).map_err(|source| LoadError::Pin { path, source })?;
    Ok(id.to_string())
}

/// Notes that hooks may use the array from now on.
pub(in crate::datapath) fn begin_use(pins: &PinDir, current: &str) -> io::Result<()> {
    let (new, used) = (
        pins.stages().join(format!("{NEW}{current}")),
        pins.stages().join(current),
    );
    if used.exists() { Ok(()) } else { fs::rename(new, used) }
}

/// Removes the arrays of all loads but `current` from the pin directory, after a while. Call when every hook runs programs of
/// `current`. What a stop in between leaves is removed by the next agent.
pub(in crate::datapath) fn retire_others(pins: &PinDir, current: &str) -> io::Result<()> {
    let old: Vec<_> = pins.stage_names()?.into_iter().filter(|name| name != current).collect();
    if old.is_empty() {
        return Ok(());
    }
    let folder = pins.stages();
    tokio::spawn(async move {
        tokio::time::sleep(DRAIN).await;
        for name in old {
            let path = folder.join(name);
            if let Err(error) = remove_if_there(&path) {
                tracing::warn!(path = %path.display(), %error, "stages of a former load cannot be removed");
            }
        }
    });
    Ok(())
}
