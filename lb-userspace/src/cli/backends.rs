//! `steerway backends`: the endpoints of service ports, with their state and why each is or is not used on this node.

use std::io::{self, Write};

use super::Outcome;
use super::output::Table;
use super::services::{Listing, address, frontend, name_and_port, protocol};
use crate::status::report::{EndpointItem, ServiceItem};

/// List endpoints with their state, and why each is or is not used on this node
///
/// While no agent runs, lists what its pins hold: endpoints that nothing uses are not known then.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0; 1 when nothing could be read, or NAME was not found; 2 for wrong usage.")]
pub(super) struct Options {
    #[command(flatten)]
    listing: Listing,
}

/// Runs the command. In JSON endpoints stand in their service ports, which say what they serve.
pub(super) fn run(options: &Options, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    options.listing.run(out, print)
}

/// One line an endpoint.
pub(super) fn print(out: &mut dyn Write, services: &[ServiceItem], wide: bool) -> io::Result<()> {
    let mut headers = vec![
        "NAMESPACE",
        "SERVICE",
        "PROTOCOL",
        "ENDPOINT",
        "NODE",
        "STATE",
        "USED",
        "WHY",
    ];
    if wide {
        headers.extend(["ZONE", "FRONTENDS"]);
    }
    let mut table = Table::new(&headers);
    for s in services {
        for e in &s.endpoints {
            let mut row = vec![
                s.namespace.clone(),
                name_and_port(s),
                protocol(s),
                address(&e.address, e.port),
            ];
            row.extend([node(e), e.state.clone(), used(e), e.why.clone()]);
            if wide {
                let frontends: Vec<String> = s.frontends.iter().map(frontend).collect();
                row.extend([e.zone.clone().unwrap_or_default(), frontends.join(",")]);
            }
            table.push(row);
        }
    }
    table.print(out)
}

fn node(e: &EndpointItem) -> String {
    let name = e.node.clone().unwrap_or_default();
    let node = if e.local { format!("{name} (this)") } else { name };
    node.trim_start().to_owned()
}

fn used(e: &EndpointItem) -> String {
    if e.used { "yes" } else { "no" }.to_owned()
}
