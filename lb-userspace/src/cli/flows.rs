//! `steerway flows`: what is being translated, from the flow tables.

use std::io::{self, Write};

use clap::ValueEnum;

use super::output::{Format, Table, age, json};
use super::settings::Given;
use super::{Outcome, places};
use crate::flows::FlowState;
use crate::status::{Endpoint, FlowFilter, FlowItem, flows_from_pins};

/// List flows with their translation, state and age
///
/// Reads the pinned tables, with or without a running agent. A busy table holds hundreds of thousands of flows: filter, or
/// pipe the output.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0; 1 when the tables cannot be read; 2 for wrong usage.")]
pub(super) struct Options {
    /// Only flows of this Service, as NAME or NAMESPACE/NAME
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only flows of Services in this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only flows from this address, or address and port
    #[arg(long, value_name = "ADDRESS")]
    client: Option<Endpoint>,
    /// Only flows to this frontend
    #[arg(long, value_name = "ADDRESS")]
    frontend: Option<Endpoint>,
    /// Only flows to this backend
    #[arg(long, value_name = "ADDRESS")]
    backend: Option<Endpoint>,
    /// Only flows of this protocol
    #[arg(long, value_name = "PROTOCOL", value_enum)]
    protocol: Option<Protocol>,
    /// Only flows in this state
    #[arg(long, value_name = "STATE", value_parser = STATES)]
    state: Option<String>,
    /// At most this many flows
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
    /// Form of the output
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    given: Given<false>,
}

const STATES: [&str; 5] = [
    FlowState::Unanswered.name(),
    FlowState::Answered.name(),
    FlowState::Established.name(),
    FlowState::Closing.name(),
    FlowState::Closed.name(),
];

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
}

/// Runs the command.
pub(super) fn run(options: &Options, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let places = places(&options.given)?;
    let mut flows = flows_from_pins(&places.pin_dir, &filter(options))?;
    flows.sort_by(|a, b| (a.client, a.frontend, &a.protocol).cmp(&(b.client, b.frontend, &b.protocol)));
    flows.truncate(options.limit.unwrap_or(usize::MAX));
    match options.output {
        Format::Json => json(out, &flows)?,
        Format::Table => print(out, &flows, false)?,
        Format::Wide => print(out, &flows, true)?,
    }
    Ok(Outcome::Success)
}

fn filter(options: &Options) -> FlowFilter {
    let (namespace, service) = match options.service.as_deref().and_then(|name| name.split_once('/')) {
        Some((namespace, name)) => (Some(namespace.to_owned()), Some(name.to_owned())),
        None => (options.namespace.clone(), options.service.clone()),
    };
    FlowFilter {
        protocol: options.protocol.map(|protocol| match protocol {
            Protocol::Tcp => "TCP".to_owned(),
            Protocol::Udp => "UDP".to_owned(),
        }),
        state: options.state.clone(),
        namespace,
        service,
        client: options.client,
        frontend: options.frontend,
        backend: options.backend,
    }
}

/// One line a flow; `wide` adds the source that the backend sees, the time-out and the backend's id.
pub(super) fn print(out: &mut dyn Write, flows: &[FlowItem], wide: bool) -> io::Result<()> {
    let mut headers = vec!["PROTOCOL", "CLIENT", "FRONTEND", "BACKEND", "STATE", "IDLE", "SERVICE"];
    if wide {
        headers.extend(["SOURCE", "TIMEOUT", "BACKEND-ID"]);
    }
    let mut table = Table::new(&headers);
    for flow in flows {
        let mut cells = vec![
            flow.protocol.clone(),
            flow.client.to_string(),
            flow.frontend.to_string(),
            flow.backend.to_string(),
            flow.state.clone(),
            age(flow.idle_seconds),
            service(flow),
        ];
        if wide {
            cells.extend([
                flow.source.to_string(),
                age(flow.timeout_seconds),
                flow.backend_id.to_string(),
            ]);
        }
        table.push(cells);
    }
    table.print(out)
}

fn service(flow: &FlowItem) -> String {
    match (flow.service.as_str(), flow.port_name.as_str()) {
        ("", _) => String::new(),
        (name, "") => format!("{}/{name}", flow.namespace),
        (name, port) => format!("{}/{name}:{port}", flow.namespace),
    }
}
