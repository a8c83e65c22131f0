//! `steerway services`: the service ports with frontends, policies and endpoints.

use std::io::{self, Write};

use anyhow::Context as _;

use super::output::{Format, Table, json};
use super::settings::Given;
use super::{Outcome, places};
use crate::status::protocol::{Item, Request};
use crate::status::report::{EndpointItem, FrontendItem, ServiceFilter, ServiceItem};
use crate::status::{ClientError, ask, services_from_pins};

/// List Services with their frontends, policies and endpoints
///
/// While no agent runs, lists what its pins hold: endpoints that nothing uses are not known then.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0; 1 when nothing could be read, or NAME was not found; 2 for wrong usage.")]
pub(super) struct Options {
    /// Only this Service
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Form of the output; `wide` has one line for each endpoint
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    given: Given<false>,
}

/// Runs the command.
pub(super) fn run(options: &Options, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let places = places(&options.given)?;
    let (namespace, name) = match options.name.as_deref().and_then(|n| n.split_once('/')) {
        Some((namespace, name)) => (Some(namespace.to_owned()), Some(name.to_owned())),
        None => (options.namespace.clone(), options.name.clone()),
    };
    let filter = ServiceFilter { namespace, name };
    let mut services = Vec::new();
    match ask(&places.run_dir, &Request::Services(filter.clone()), |item| {
        if let Item::Service(service) = item {
            services.push(*service);
        }
    }) {
        Ok(()) => {}
        Err(ClientError::NoAgent { .. }) => {
            services = services_from_pins(&places.pin_dir, &filter)
                .with_context(|| format!("no agent runs, and {} tells nothing", places.pin_dir.display()))?;
        }
        Err(error) => return Err(error.into()),
    }
    match options.output {
        Format::Json => json(out, &services)?,
        Format::Table => print(out, &services)?,
        Format::Wide => print_wide(out, &services)?,
    }
    let missing = services.is_empty() && filter.name.is_some();
    Ok(if missing { Outcome::Failure } else { Outcome::Success })
}

/// One line a service port.
pub(super) fn print(out: &mut dyn Write, services: &[ServiceItem]) -> io::Result<()> {
    let mut table = Table::new(&["NAMESPACE", "NAME", "PORT", "FRONTENDS", "POLICY", "ENDPOINTS"]);
    for s in services {
        let used = s.endpoints.iter().filter(|e| e.used).count();
        table.row([
            s.namespace.clone(),
            s.name.clone(),
            port(s),
            s.frontends.iter().map(frontend).collect::<Vec<_>>().join(","),
            policies(s),
            format!("{used}/{}", s.endpoints.len()),
        ]);
    }
    table.print(out)
}

/// One line an endpoint.
pub(super) fn print_wide(out: &mut dyn Write, services: &[ServiceItem]) -> io::Result<()> {
    let headers = [
        "NAMESPACE",
        "NAME",
        "PORT",
        "FRONTENDS",
        "POLICY",
        "AFFINITY",
        "RANGES",
        "ENDPOINT",
        "NODE",
        "STATE",
        "USED",
        "WHY",
    ];
    let mut table = Table::new(&headers);
    for s in services {
        let head = [
            s.namespace.clone(),
            s.name.clone(),
            port(s),
            s.frontends.iter().map(frontend).collect::<Vec<_>>().join(","),
            policies(s),
            s.affinity_seconds
                .map_or_else(|| "None".to_owned(), |seconds| format!("ClientIP({seconds}s)")),
            s.source_ranges.join(","),
        ];
        let with = |tail: [String; 5]| head.iter().cloned().chain(tail).collect();
        if s.endpoints.is_empty() {
            table.push(with([const { String::new() }; 5]));
        }
        for e in &s.endpoints {
            table.push(with(endpoint(e)));
        }
    }
    table.print(out)
}

fn endpoint(e: &EndpointItem) -> [String; 5] {
    let node = e.node.clone().unwrap_or_default();
    let node = if e.local { format!("{node} (this)") } else { node };
    let used = if e.used { "yes" } else { "no" };
    [
        address(&e.address, e.port),
        node.trim_start().to_owned(),
        e.state.clone(),
        used.to_owned(),
        e.why.clone(),
    ]
}

fn port(s: &ServiceItem) -> String {
    let name = if s.port_name.is_empty() {
        String::new()
    } else {
        format!("{} ", s.port_name)
    };
    format!("{name}{}/{}", s.protocol, s.family)
}

fn frontend(f: &FrontendItem) -> String {
    match &f.address {
        Some(found) => address(found, f.port),
        None => format!("*:{}", f.port),
    }
}

fn address(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

fn policies(s: &ServiceItem) -> String {
    match (&s.internal_traffic_policy, &s.external_traffic_policy) {
        (None, None) => "<unknown>".to_owned(),
        (internal, external) => {
            let word = |policy: &Option<String>| policy.clone().unwrap_or_else(|| "<unknown>".to_owned());
            format!("{}/{}", word(internal), word(external))
        }
    }
}
