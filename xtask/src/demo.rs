//! `demo`: sets up and builds what is missing, then runs the program `demo` of package lb-tests, as root.
//!
//! xtask depends on no crate of the workspace; the demo reuses the harness of the tests. It is built as the tests are,
//! so that dependencies compiled for one serve the other.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    build, build_ebpf, exec,
    phases::Phases,
    setup::{self, Scope},
    workspace::Workspace,
};

/// Show a small cluster at work: requests without pause, while backends and agents come and go.
///
/// Makes network namespaces (a client, two nodes, pods), runs one agent a node on deploy/examples and sends HTTP and
/// UDP requests all the while. Sets up and builds what is missing; only the demo itself is run as root (by sudo where
/// the caller is not root). Exit status 0 if nothing was lost; everything is taken down at the end, and on Ctrl-C.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Leave the cluster up; print commands to try, and the one that takes it down.
    #[arg(long)]
    keep: bool,
    /// How long requests are sent, over all phases.
    #[arg(long, default_value_t = Self::SECONDS, value_parser = clap::value_parser!(u32).range(6..=3600))]
    seconds: u32,
}

impl Options {
    const SECONDS: u32 = 24;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keep: false,
            seconds: Self::SECONDS,
        }
    }
}

pub(crate) fn run(options: &Options, workspace: &Workspace, phases: &mut Phases) -> Result<ExitCode> {
    let mut command = prepare(options, workspace, phases)?;
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", exec::describe(&command)))
}

/// Sets up and builds what the demo needs, and returns the command that shows it.
pub(crate) fn prepare(options: &Options, workspace: &Workspace, phases: &mut Phases) -> Result<Command> {
    setup::ensure(Scope::Demo, workspace, phases)?;
    let object = build_ebpf::build(workspace, phases)?;
    build::agent(workspace, phases, &object)?;
    let demo = phases.time("build the demo", || build::as_tests(workspace, &object, "demo"))?;
    let agent = workspace.agent();
    let mut command = exec::as_root(&demo, &[("STEERWAY_BIN", agent.as_os_str())], "make network namespaces")?;
    command.args(arguments(options));
    Ok(command)
}

fn arguments(options: &Options) -> Vec<String> {
    let mut arguments = vec![format!("--seconds={}", options.seconds)];
    if options.keep {
        arguments.push("--keep".to_owned());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_is_told_what_was_asked_for() {
        let arguments = |keep, seconds| arguments(&Options { keep, seconds });
        assert_eq!(arguments(false, 24), ["--seconds=24"]);
        assert_eq!(arguments(true, 60), ["--seconds=60", "--keep"]);
    }
}
