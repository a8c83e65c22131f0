//! `build`: the kernel programs, then the agent that carries them, as one file that needs nothing else at run time.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::Result;
use clap::Args;

use crate::{build_ebpf, exec, phases::Phases, test, workspace::Workspace};

/// Build the agent with the kernel programs inside, target/release/steerway.
#[derive(Debug, Args)]
pub(crate) struct Options {}

pub(crate) fn run(_options: &Options, workspace: &Workspace, phases: &mut Phases) -> Result<ExitCode> {
    println!("{}", build(workspace, phases)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds kernel object and agent and returns the agent's path.
pub(crate) fn build(workspace: &Workspace, phases: &mut Phases) -> Result<PathBuf> {
    let object = build_ebpf::build(workspace, phases)?;
    agent(workspace, phases, &object)?;
    Ok(workspace.agent())
}

/// Builds the agent around a kernel object that is there.
pub(crate) fn agent(workspace: &Workspace, phases: &mut Phases, object: &Path) -> Result<()> {
    phases.time("build the agent", || {
        let mut command = cargo_with_object(workspace, object);
        exec::run(command.args(["build", "--release", "--locked", "-p", "steerway", "--bin", "steerway"]))
    })
}

/// Builds the agent that tests run, and returns its path: compiled as the tests are, with which it shares all but its last step.
pub(crate) fn agent_of_tests(workspace: &Workspace, phases: &mut Phases, object: &Path) -> Result<PathBuf> {
    phases.time("build the agent of the tests", || {
        as_tests(workspace, object, "steerway")
    })
}

/// Builds a program with the dependencies of the tests, and returns its path.
pub(crate) fn as_tests(workspace: &Workspace, object: &Path, program: &str) -> Result<PathBuf> {
    let mut command = cargo_with_object(workspace, object);
    command.args(["build", "--locked"]);
    command.args(test::PACKAGES.iter().flat_map(|package| ["-p", package]));
    exec::run(command.args(["--bin", program]))?;
    Ok(workspace.target.join("debug").join(program))
}

/// Cargo, told which kernel object the agent's build script embeds.
pub(crate) fn cargo_with_object(workspace: &Workspace, object: &Path) -> Command {
    let mut command = exec::cargo(&workspace.root);
    command.env("STEERWAY_EBPF", object).env_remove("STEERWAY_NO_EBPF");
    command
}
