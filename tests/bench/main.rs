//! The bench: what Steerway costs, beside what the kernel and its rivals cost on the same machine in the same run.
//!
//! In: `$STEERWAY_BIN` (the agent), `$STEERWAY_BENCH_EBPF` (the bench's own programs), for the sections on objects
//! `$KUBEBUILDER_ASSETS` (the real Kubernetes programs), root. Out: tables on standard output, a JSON file, and a document. Every comparison is taken within a round, sides in turn; medians and the distance between quartiles are shown.

#![expect(clippy::cast_precision_loss, reason = "figures of a few digits")]

mod agent;
mod cluster;
mod document;
mod figures;
mod forward;
mod frames;
mod iptables;
mod load;
mod packet;
mod plot;
mod processors;
mod programs;
mod publish;
mod report;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use serde_json::json;

use crate::report::Report;

/// Measure what Steerway costs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", max_term_width = 100)]
struct Options {
    /// What is measured.
    #[arg(default_value = "all")]
    sections: Vec<Section>,
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

/// A part of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Nanoseconds a packet inside the kernel.
    Packet,
    /// Packets a second through a node.
    Forward,
    /// Requests on kept connections, and one bulk stream.
    Http,
    /// New connections.
    Connect,
    /// Objects to forwarding.
    Publish,
    /// Memory and processor time of the agent.
    Agent,
    /// All of it.
    All,
}

/// Measures a section, in as many rounds.
type Measure = fn(usize) -> Result<Report>;

fn main() -> Result<()> {
    let options = Options::parse();
    let rounds = options.rounds as usize;
    let sections: [(Section, Measure); 6] = [
        (Section::Packet, packet::run),
        (Section::Forward, forward::run),
        (Section::Http, load::http),
        (Section::Connect, load::connect),
        (Section::Publish, publish::run),
        (Section::Agent, agent::run),
    ];
    let asked = |section| {
        options
            .sections
            .iter()
            .any(|asked| [section, Section::All].contains(asked))
    };
    // Written after each section: a later one may fail, or be ended.
    let mut sections_done = Vec::new();
    for (_, run) in sections.into_iter().filter(|(section, _)| asked(*section)) {
        let report = run(rounds)?;
        println!("{report}");
        sections_done.push(report.json());
        if let Some(path) = &options.json {
            let text = serde_json::to_string_pretty(&json!({ "rounds": rounds, "sections": sections_done }))?;
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(folder) = &options.docs {
            document::write(folder, &report, rounds)?;
        }
    }
    Ok(())
}
