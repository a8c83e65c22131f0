//! `cargo xtask`: the project's own commands, one file (or folder) each.
//!
//! Every command is a clap `Options` struct and a `run` function. Progress goes to standard error, results to
//! standard output. Exit codes: 0 done, 1 failed, 2 wrong usage. Nothing here depends on another crate of the
//! workspace, so that the commands work while those crates do not compile.
#![forbid(unsafe_code)]

mod bench;
mod build;
mod build_ebpf;
mod ci;
mod cluster;
mod demo;
mod exec;
mod phases;
mod run;
mod setup;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

use crate::{phases::Phases, workspace::Workspace};

/// The project's own commands: set up, build, run, show, test, check.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
enum Command {
    Setup(setup::Options),
    BuildEbpf(build_ebpf::Options),
    Build(build::Options),
    Run(run::Options),
    Demo(demo::Options),
    Bench(bench::Options),
    Cluster(cluster::Options),
    Test(test::Options),
    Tidy(tidy::Options),
    Ci(ci::Options),
}

fn main() -> ExitCode {
    let command = Command::parse();
    let result = Workspace::locate().and_then(|workspace| {
        let mut phases = Phases::default();
        match command {
            Command::Setup(options) => setup::run(&options, &workspace, &mut phases),
            Command::BuildEbpf(options) => build_ebpf::run(&options, &workspace, &mut phases),
            Command::Build(options) => build::run(&options, &workspace, &mut phases),
            Command::Run(options) => run::run(&options, &workspace, &mut phases),
            Command::Demo(options) => demo::run(&options, &workspace, &mut phases),
            Command::Bench(options) => bench::run(&options, &workspace, &mut phases),
            Command::Cluster(options) => cluster::run(&options, &workspace, &mut phases),
            Command::Test(options) => Ok(test::run(&options, &workspace, phases)),
            Command::Tidy(options) => tidy::run(&options, &workspace),
            Command::Ci(options) => Ok(ci::run(&options, &workspace, phases)),
        }
    });
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, error::ErrorKind};

    use super::*;

    #[test]
    fn every_command_has_a_help_that_says_something() {
        let mut command = Command::command();
        command.build();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands() {
            let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(about.len() > 20, "{}: {about}", subcommand.get_name());
        }
    }

    #[test]
    fn the_agents_arguments_come_after_two_dashes() {
        let parse = |words: &[&str]| Command::try_parse_from(["cargo xtask", "run"].iter().chain(words));
        assert!(matches!(
            parse(&["--", "status", "-o", "json"]).unwrap(),
            Command::Run(_)
        ));
        assert_eq!(parse(&["status"]).err().unwrap().kind(), ErrorKind::UnknownArgument);
    }

    #[test]
    fn the_list_of_names_is_rewritten_by_a_full_run_only() {
        let parse =
            |words: &[&str]| Command::try_parse_from(["cargo xtask", "test", "--bless-names"].iter().chain(words));
        assert!(parse(&[]).is_ok());
        assert_eq!(
            parse(&["--filter", "x"]).err().unwrap().kind(),
            ErrorKind::ArgumentConflict
        );
        assert_eq!(
            parse(&["--tier", "host"]).err().unwrap().kind(),
            ErrorKind::ArgumentConflict
        );
    }
}
