//! The bench: what Steerway costs, beside what the kernel and its rivals cost on the same machine in the same run.
//!
//! In: `$STEERWAY_BIN` (the agent), `$STEERWAY_BENCH_EBPF` (the bench's own programs), root. Out: a table on standard output and
//! a JSON file. Every comparison is taken within a round, sides in turn; medians and the distance between quartiles are shown.

#![expect(clippy::cast_precision_loss, reason = "figures of a few digits")]

mod figures;
mod packet;
mod report;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use serde_json::json;

/// Measure what Steerway costs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", max_term_width = 100)]
struct Options {
    /// What is measured.
    #[arg(default_value = "all")]
    section: Section,
    /// Rounds of each comparison.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Write the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A part of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Nanoseconds a packet inside the kernel.
    Packet,
    /// All of it.
    All,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let rounds = options.rounds as usize;
    let reports = match options.section {
        Section::Packet | Section::All => vec![packet::run(rounds)?],
    };
    for report in &reports {
        println!("{report}");
    }
    if let Some(path) = &options.json {
        let sections: Vec<_> = reports.iter().map(report::Report::json).collect();
        let text = serde_json::to_string_pretty(&json!({ "rounds": rounds, "sections": sections }))?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
