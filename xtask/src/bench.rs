//! `bench`: sets up and builds what is missing, then runs the program `bench` of package lb-tests, as root.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    build, build_ebpf, exec,
    phases::Phases,
    setup::{self, Scope},
    workspace::Workspace,
};

/// Measure what Steerway costs, beside what the kernel costs on the same machine in the same run.
///
/// Makes network namespaces of its own and measures in them; only the measuring itself is run as root (by sudo where the
/// caller is not root). Prints a table; goals stand beside the figures.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What is measured.
    #[arg(default_value = "all", value_parser = SECTIONS)]
    sections: Vec<String>,
    /// Rounds of each comparison.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Write the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the table of each section (SECTION.md), and its plot (SECTION.svg), into this folder.
    #[arg(long)]
    docs: Option<PathBuf>,
}

/// What can be asked for.
const SECTIONS: [&str; 7] = ["packet", "forward", "http", "connect", "publish", "agent", "all"];

/// What a section needs.
fn scope(section: &str) -> Scope {
    match section {
        "packet" | "forward" => Scope::Demo,
        "http" | "connect" => Scope::Load,
        _ => Scope::Bench,
    }
}

pub(crate) fn run(options: &Options, workspace: &Workspace, phases: &mut Phases) -> Result<ExitCode> {
    let scopes = options.sections.iter().map(|section| scope(section));
    let scope = scopes.fold(Scope::Demo, Scope::max);
    setup::ensure(scope, workspace, phases)?;
    let object = build_ebpf::build(workspace, phases)?;
    let programs = build_ebpf::build_bench(workspace, phases)?;
    build::agent(workspace, phases, &object)?;
    phases.time("build the bench", || {
        let mut command = build::cargo_with_object(workspace, &object);
        exec::run(command.args(["build", "--release", "--locked", "-p", "lb-tests", "--bin", "bench"]))
    })?;
    let agent = workspace.agent();
    let mut environment = vec![
        ("STEERWAY_BIN", agent.as_os_str()),
        ("STEERWAY_BENCH_EBPF", programs.as_os_str()),
    ];
    let kubernetes = setup::kubernetes::folder(workspace)?;
    if scope >= Scope::Bench {
        environment.push((setup::kubernetes::VARIABLE, kubernetes.as_os_str()));
    }
    let mut command = exec::as_root(
        workspace.target.join("release/bench"),
        &environment,
        "make network namespaces",
    )?;
    command.args(arguments(options));
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", exec::describe(&command)))
}

fn arguments(options: &Options) -> Vec<String> {
    let mut arguments = options.sections.clone();
    arguments.push(format!("--rounds={}", options.rounds));
    if let Some(path) = &options.json {
        arguments.push(format!("--json={}", path.display()));
    }
    if let Some(folder) = &options.docs {
        arguments.push(format!("--docs={}", folder.display()));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bench_is_told_what_was_asked_for() {
        let options = Options {
            sections: vec!["packet".to_owned(), "http".to_owned()],
            rounds: 3,
            json: Some("/tmp/figures.json".into()),
            docs: Some("docs".into()),
        };
        assert_eq!(
            arguments(&options),
            [
                "packet",
                "http",
                "--rounds=3",
                "--json=/tmp/figures.json",
                "--docs=docs"
            ]
        );
    }

    #[test]
    fn a_section_brings_no_more_than_it_needs() {
        assert_eq!(
            SECTIONS.map(scope),
            [
                Scope::Demo,
                Scope::Demo,
                Scope::Load,
                Scope::Load,
                Scope::Bench,
                Scope::Bench,
                Scope::Bench
            ]
        );
    }
}
