//! `run`: builds the agent and becomes it, as root.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{build, exec, phases::Phases, workspace::Workspace};

/// Build the agent and run it with the given arguments, as root.
///
/// Builds as the caller; only the agent is started by sudo, where the caller is not root.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The agent's arguments, after `--`.
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

pub(crate) fn run(options: &Options, workspace: &Workspace, phases: &mut Phases) -> Result<ExitCode> {
    let agent = build::build(workspace, phases)?;
    let mut command = exec::as_root(&agent, &[], "run the agent")?;
    command.args(&options.arguments);
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", exec::describe(&command)))
}
