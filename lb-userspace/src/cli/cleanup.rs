//! `steerway cleanup`: removes every trace of an agent that has ended.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context as _;

use super::output::{Format, json};
use super::settings::Given;
use super::{Outcome, places};
use crate::config::Places;
use crate::datapath::cleanup::{CleanupReport, cleanup};
use crate::datapath::pins::PinDir;
use crate::datapath::run_dir::RunDir;

/// Remove programs, pins, our interfaces, routes and settings
///
/// Ends forwarding of Services on this node, also for connections that exist. Refused while an agent runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0; 1 when an agent runs or something could not be removed; 2 for wrong usage.")]
pub(super) struct Options {
    /// Wait this many seconds for the agent to end
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    wait: u64,
    /// Form of the output
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    given: Given<false>,
}

/// Runs the command.
pub(super) fn run(options: &Options, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let wait = Duration::from_secs(options.wait);
    clean(&places(&options.given)?, wait, options.output, out)
}

/// Removes all that an agent of these folders left.
pub(super) fn clean(places: &Places, wait: Duration, format: Format, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let (pins, run_dir) = (PinDir::new(&places.pin_dir), RunDir::new(&places.run_dir));
    let report = runtime.block_on(cleanup(&pins, &run_dir, wait))?;
    match format {
        Format::Json => json(out, &report)?,
        Format::Table | Format::Wide => print(out, &report)?,
    }
    Ok(if report.left.is_empty() {
        Outcome::Success
    } else {
        Outcome::Failure
    })
}

fn print(out: &mut dyn Write, report: &CleanupReport) -> io::Result<()> {
    for what in &report.removed {
        writeln!(out, "removed {what}")?;
    }
    for what in &report.left {
        writeln!(out, "LEFT {what}")?;
    }
    if report.removed.is_empty() && report.left.is_empty() {
        writeln!(out, "nothing to remove")?;
    }
    Ok(())
}
