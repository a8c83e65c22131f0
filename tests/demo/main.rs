//! The demo: a small cluster in namespaces, requests without pause, and a node's life happening to them.
//!
//! In: `$STEERWAY_BIN` (the agent), the objects of `deploy/examples`, root. Out: on a terminal a live table, otherwise
//! lines; at the end one table. Exit status: 0 when every request was answered as it should be, 1 when one was not or
//! something failed, 130 when interrupted.
//!
//! Two processes: the [`front`] stays with the terminal and passes on its signals; the [`stage`], in a session of its
//! own, holds the cluster. When the front goes away, however, the stage takes everything down, unless the cluster was
//! to be kept and is complete.
#![expect(
    clippy::assigning_clones,
    clippy::duration_suboptimal_units,
    clippy::format_push_string,
    clippy::wildcard_enum_match_arm,
    reason = "a program to look at; its few states are all shown"
)]

mod checks;
mod examples;
mod front;
mod keep;
mod lane;
mod phases;
mod screen;
mod show;
mod stage;
mod stop;
mod summary;
mod table;
mod traffic;
mod udp_flow;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// Let a small cluster in namespaces serve requests while backends and agents come and go.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo", max_term_width = 100)]
struct Options {
    /// Leave the cluster up and print commands to try, and the one that takes it down.
    #[arg(long)]
    keep: bool,
    /// How long requests are sent, over all phases.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(6..=3600))]
    seconds: u64,
    /// Be the process that holds the cluster; standard input is the socket to the front.
    #[arg(long, hide = true)]
    stage: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = if options.stage {
        show::main(Duration::from_secs(options.seconds), options.keep)
    } else {
        front::main()
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
