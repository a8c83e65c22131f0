//! `steerway status`: the agent's state from its socket, or what the pins tell while none runs; and waiting for it.

use std::io::{self, Write};

use anyhow::Context as _;

use super::output::{Format, Table, age, bytes, json};
use super::settings::Given;
use super::{Outcome, places};
use crate::config::Places;
use crate::status::protocol::{Item, Request};
use crate::status::report::{Attachment, Report};
use crate::status::{ClientError, ask, report_from_pins};

/// Show the state of the agent, its interfaces, tables and counters
///
/// While no agent runs, shows what it left: forwarding goes on without it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0; 1 when there are neither agent nor pins, or when the time of --wait has passed; 2 for wrong usage."
)]
pub(super) struct Options {
    /// Return as soon as every object that the source holds now is programmed or rejected; fail after this many seconds
    #[arg(long, value_name = "SECONDS", conflicts_with = "output")]
    wait: Option<u64>,
    /// Form of the output
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    given: Given<false>,
}

/// Runs the command.
pub(super) fn run(options: &Options, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let places = places(&options.given)?;
    if let Some(seconds) = options.wait {
        ask(&places.run_dir, &Request::Wait { seconds }, |_| {})?;
        return Ok(Outcome::Success);
    }
    let mut report = None;
    let asked = ask(&places.run_dir, &Request::Status, |item| {
        if let Item::Report(found) = item {
            report = Some(*found);
        }
    });
    let report = match (asked, report) {
        (Ok(()), Some(report)) => report,
        (Ok(()), None) => anyhow::bail!("the agent answered without a report"),
        (Err(ClientError::NoAgent { .. }), _) => from_pins(&places)
            .with_context(|| format!("no agent runs, and {} tells nothing", places.pin_dir.display()))?,
        (Err(error), _) => return Err(error.into()),
    };
    match options.output {
        Format::Json => json(out, &report)?,
        Format::Table => print(out, &report, false)?,
        Format::Wide => print(out, &report, true)?,
    }
    Ok(Outcome::Success)
}

/// What is told while no agent runs.
fn from_pins(places: &Places) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot start a runtime")?;
    Ok(runtime.block_on(report_from_pins(places))?)
}

/// Prints a report; `wide` shows counters and tables that are zero, too.
pub(super) fn print(out: &mut dyn Write, report: &Report, wide: bool) -> io::Result<()> {
    head(out, report)?;
    for warning in &report.warnings {
        writeln!(out, "Warning:     {warning}")?;
    }
    section(out, &unused_settings(report, wide))?;
    section(out, &rejections(report))?;
    section(out, &file_errors(report))?;
    section(out, &attachments(&report.attachments))?;
    section(out, &tables(report, wide))?;
    section(out, &flows(report))?;
    section(out, &reasons(report, wide))
}

fn section(out: &mut dyn Write, table: &Table) -> io::Result<()> {
    if !table.is_empty() {
        writeln!(out)?;
    }
    table.print(out)
}

fn head(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    match &report.agent {
        Some(a) => writeln!(
            out,
            "Agent:       running, version {}, node {}, process {}, for {}",
            a.version,
            a.node_name,
            a.pid,
            age(a.age_seconds)
        )?,
        None => writeln!(out, "Agent:       not running; what it programmed goes on forwarding")?,
    }
    writeln!(out, "Ready:       {}", if report.ready { "yes" } else { "no" })?;
    for cause in &report.not_ready {
        writeln!(out, "             {}: {}", cause.cause.name(), cause.message)?;
    }
    if let Some(source) = &report.source {
        let synced = if source.synced { "" } else { ", not complete yet" };
        let changed = source
            .change_age_seconds
            .map_or_else(String::new, |s| format!(", changed {} ago", age(s)));
        writeln!(
            out,
            "Source:      {} {}: {} Services, {} EndpointSlices{changed}{synced}",
            source.kind, source.location, source.services, source.endpoint_slices
        )?;
        writeln!(
            out,
            "Generation:  {} seen, {} programmed",
            source.generation_seen, source.generation_programmed
        )?;
    }
    if let Some(loop_state) = &report.reconcile {
        let success = loop_state
            .success_age_seconds
            .map_or_else(String::new, |s| format!(", last {} ago", age(s)));
        writeln!(
            out,
            "Cycles:      {} good{success}; {} failed",
            loop_state.cycles, loop_state.failures
        )?;
        writeln!(
            out,
            "Operations:  {} since start; the last cycle with any wrote {} in {} ms",
            loop_state.operations, loop_state.last_operations, loop_state.last_milliseconds
        )?;
        if let Some(error) = &loop_state.error {
            writeln!(out, "Error:       {error} (retried)")?;
        }
    }
    Ok(())
}

/// Settings without effect: those that should be corrected, `wide` all.
fn unused_settings(report: &Report, wide: bool) -> Table {
    let mut table = Table::new(&["SETTING WITHOUT EFFECT", "VALUE", "WHY"]);
    for s in report.unused_settings.iter().filter(|s| wide || s.wrong) {
        table.row([s.setting.clone(), s.value.clone(), s.reason.clone()]);
    }
    table
}

fn rejections(report: &Report) -> Table {
    let mut table = Table::new(&["REJECTED OBJECT", "FIELD", "REASON"]);
    for r in &report.rejections.items {
        table.row([r.object.to_string(), r.field.clone(), r.reason.clone()]);
    }
    more(&mut table, report.rejections.total - report.rejections.items.len());
    table
}

fn file_errors(report: &Report) -> Table {
    let mut table = Table::new(&["FILE", "LINE", "ERROR"]);
    for e in &report.file_errors.items {
        table.row([
            e.file.clone(),
            e.line.map_or_else(String::new, |l| l.to_string()),
            e.reason.clone(),
        ]);
    }
    more(&mut table, report.file_errors.total - report.file_errors.items.len());
    table
}

fn more(table: &mut Table, count: usize) {
    if count > 0 {
        table.push(vec![format!("... and {count} more")]);
    }
}

fn attachments(attachments: &[Attachment]) -> Table {
    let mut table = Table::new(&["INTERFACE", "INDEX", "ROLE", "HOOK", "METHOD", "STATE"]);
    for a in attachments {
        let state = a.error.clone().unwrap_or_else(|| "attached".to_owned());
        let cells = [
            a.interface.clone(),
            a.ifindex.to_string(),
            a.role.clone(),
            a.direction.clone(),
            a.method.clone(),
            state,
        ];
        table.row(cells);
    }
    table
}

fn tables(report: &Report, wide: bool) -> Table {
    let mut table = Table::new(&["TABLE", "USED", "CAPACITY", "FILL", "MEMORY"]);
    for t in report.tables.iter().filter(|t| wide || t.used > 0) {
        let percent = t.used.saturating_mul(100).checked_div(t.capacity).unwrap_or(0);
        table.row([
            t.name.clone(),
            t.used.to_string(),
            t.capacity.to_string(),
            format!("{percent}%"),
            bytes(t.bytes),
        ]);
    }
    table
}

fn flows(report: &Report) -> Table {
    let mut table = Table::new(&["FLOWS", "CLASS", "COUNT"]);
    for summary in &report.flows {
        for (class, count) in summary.classes.iter().filter(|(_, count)| **count > 0) {
            table.row([summary.family.clone(), class.clone(), count.to_string()]);
        }
    }
    table
}

fn reasons(report: &Report, wide: bool) -> Table {
    let mut table = Table::new(&["REASON", "PACKETS"]);
    for (name, packets) in report.reasons.iter().filter(|(_, packets)| wide || **packets > 0) {
        table.row([name.clone(), packets.to_string()]);
    }
    table
}
