//! The command line: which commands there are, and their exit status.
//!
//! One file a command. A command prints to `out`, reads state through the library's modules and changes maps only through
//! them. Exit status: 0, 1 failed, 2 wrong usage or configuration.

mod backends;
mod check;
mod cleanup;
mod flows;
mod migrate;
mod output;
mod prepare;
mod run;
mod services;
mod settings;
mod status;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{ConfigErrors, Places, process_variable};

/// The Service load balancer of a Kubernetes node.
///
/// One agent a node turns Services into forwarding by BPF programs. The programs stay in the kernel while the agent is
/// stopped, restarted or upgraded.
#[derive(Debug, Parser)]
#[command(
    name = "steerway",
    version,
    disable_help_subcommand = false,
    arg_required_else_help = true,
    max_term_width = 120
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Options),
    Check(check::Options),
    Prepare(prepare::Options),
    Status(status::Options),
    Services(services::Options),
    Backends(backends::Options),
    Flows(flows::Options),
    Migrate(migrate::Options),
    Cleanup(cleanup::Options),
    /// Print the version
    Version,
}

/// How a command ended that did not fail by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Success,
    Failure,
}

/// Parses arguments, runs the command and returns the exit status.
pub fn main(arguments: impl IntoIterator<Item = OsString>, out: &mut dyn Write, errors: &mut dyn Write) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(usage) => {
            let to_out = !usage.use_stderr();
            let text = usage.render();
            let written = if to_out {
                write!(out, "{text}")
            } else {
                write!(errors, "{text}")
            };
            return if to_out && written.is_ok() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(2)
            };
        }
    };
    match dispatch(&cli.command, out) {
        Ok(Outcome::Success) => ExitCode::SUCCESS,
        Ok(Outcome::Failure) => ExitCode::from(1),
        // The reader of a pipe went away: it has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = error.downcast_ref::<ConfigErrors>().is_some();
            // Nowhere is left to tell of a broken standard error.
            let _untold = writeln!(errors, "error: {error:#}");
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn dispatch(command: &Command, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    match command {
        Command::Run(options) => run::run(options, out),
        Command::Check(options) => check::run(options, out),
        Command::Prepare(options) => prepare::run(options, out),
        Command::Status(options) => status::run(options, out),
        Command::Services(options) => services::run(options, out),
        Command::Backends(options) => backends::run(options, out),
        Command::Flows(options) => flows::run(options, out),
        Command::Migrate(options) => migrate::run(options, out),
        Command::Cleanup(options) => cleanup::run(options, out),
        Command::Version => {
            writeln!(out, "steerway {}", env!("CARGO_PKG_VERSION"))?;
            Ok(Outcome::Success)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|e| e.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// The folders that a command which only reads needs.
fn places(given: &settings::Given<false>) -> Result<Places, ConfigErrors> {
    Places::validate(&given.gather(process_variable)?)
}
