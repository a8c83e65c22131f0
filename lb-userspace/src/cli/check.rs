//! `steerway check`: what this kernel, these rights and this node allow, and what to do about each lack.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;

use super::Outcome;
use super::output::{Format, Table, json};
use super::settings::Given;
use crate::config::Unused;
use crate::datapath::attach::{self, Finding, Hook};
use crate::datapath::checks::{self, Check, CheckInput, Verdict};
use crate::datapath::interfaces::{self, Rules};
use crate::datapath::load;
use crate::datapath::pins::PinDir;
use crate::status::ask;
use crate::status::protocol::{Item, Request};

/// Check the kernel, rights and settings of this node, and say what to do about each lack
///
/// Takes the settings of `run`, and changes nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0; 1 when something is missing that Steerway cannot work without; 2 for wrong usage."
)]
pub(super) struct Options {
    /// Form of the output
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    given: Given<true>,
}

/// Runs the command.
pub(super) fn run(options: &Options, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let config = options.given.of_the_node()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let rules = Rules {
        patterns: config.interfaces.clone(),
        ..Rules::default()
    };
    let table = runtime.block_on(interfaces::snapshot(&rules))?;
    let sizes = load::flow_sizes([config.flow_entries; 2]);
    let tables = load::wanted_shapes(load::OBJECT, &sizes).unwrap_or_default();
    let pins = PinDir::new(&config.places.pin_dir);
    let mut xdp = runtime.block_on(attach::survey(&table, config.xdp, &pins))?;
    explain(&mut xdp, &config.places.run_dir);
    let checks = checks::run(&CheckInput {
        snat_ports: config.snat_ports.clone(),
        tables,
        interfaces: &table,
        xdp,
        xdp_insists: config.xdp.insists(),
    });
    let checks: Vec<Check> = checks.into_iter().chain(config.unused.iter().map(unused)).collect();
    match options.output {
        Format::Json => json(out, &checks)?,
        Format::Table | Format::Wide => print(out, &checks)?,
    }
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { Outcome::Failure } else { Outcome::Success })
}

/// Puts in what the running agent says of uplinks that lack the XDP they want. Where none answers, nobody has asked their drivers.
fn explain(findings: &mut [(String, Finding)], run_dir: &Path) {
    let mut told = Vec::new();
    let answer = ask(run_dir, &Request::Status, |item| {
        if let Item::Report(report) = item {
            told = report.attachments;
        }
    });
    if answer.is_err() {
        return;
    }
    for (name, finding) in findings {
        let row = told
            .iter()
            .find(|row| row.interface == *name && row.direction == Hook::Xdp.name());
        if let Finding::Wanted(_) = finding
            && let Some(why) = row.and_then(|row| row.error.clone())
        {
            *finding = Finding::Told(why);
        }
    }
}

/// A setting that has no effect, as a check.
fn unused(unused: &Unused) -> Check {
    let found = format!("{}: {} has no effect", unused.place, unused.value);
    Check {
        name: "setting",
        verdict: if unused.wrong { Verdict::Warn } else { Verdict::Ok },
        detail: if unused.wrong {
            found
        } else {
            format!("{found}: {}", unused.reason)
        },
        remedy: if unused.wrong {
            unused.reason.clone()
        } else {
            String::new()
        },
    }
}

/// One line a check, and what to do below those that need it.
pub(super) fn print(out: &mut dyn Write, checks: &[Check]) -> io::Result<()> {
    let mut table = Table::new(&["CHECK", "RESULT", "FOUND", "WHAT TO DO"]);
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        table.push(vec![
            check.name.to_owned(),
            verdict.to_owned(),
            check.detail.clone(),
            check.remedy.clone(),
        ]);
    }
    table.print(out)
}
