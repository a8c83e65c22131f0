//! `build`: the kernel programs, then the agent that carries them, as one file that needs nothing else at run time.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::Result;
use clap::Args;

use crate::{
    build_ebpf,
    exec::{self, Meanwhile},
    phases::Phases,
    workspace::Workspace,
};

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
    phases.time("build the agent", || exec::run(&mut agent_command(workspace, object)))
}

/// [`agent`] beside what its starter does: much of that build keeps one processor busy and no other.
pub(crate) fn agent_meanwhile(workspace: &Workspace, object: &Path) -> Result<Meanwhile> {
    Meanwhile::start(agent_command(workspace, object).arg("--quiet"))
}

fn agent_command(workspace: &Workspace, object: &Path) -> Command {
    let mut command = cargo_with_object(workspace, object);
    command.args(["build", "--release", "--locked", "-p", "steerway", "--bin", "steerway"]);
    command
}

/// Cargo, told which kernel object the agent's build script embeds.
pub(crate) fn cargo_with_object(workspace: &Workspace, object: &Path) -> Command {
    let mut command = exec::cargo(&workspace.root);
    command.env("STEERWAY_EBPF", object).env_remove("STEERWAY_NO_EBPF");
    command
}
