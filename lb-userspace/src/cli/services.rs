//! `steerway services`: the service ports with type, frontends and policies, and how many of their endpoints are used here.

use std::io::{self, Write};

use anyhow::Context as _;

use super::output::{Format, Table, json};
use super::settings::Given;
use super::{Outcome, places};
use crate::status::protocol::{Item, Request};
use crate::status::report::{FrontendItem, ServiceFilter, ServiceItem};
use crate::status::{ClientError, ask, services_from_pins};

/// List Services with their type, frontends and policies
///
/// While no agent runs, lists what its pins hold. `steerway backends` lists their endpoints.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0; 1 when nothing could be read, or NAME was not found; 2 for wrong usage.")]
pub(super) struct Options {
    #[command(flatten)]
    listing: Listing,
}

/// Which Services to list, and how.
#[derive(Debug, clap::Args)]
pub(super) struct Listing {
    /// Form of the output
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
    /// Only this Service; NAMESPACE/NAME names its namespace, too
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Only this namespace [default: all]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// All namespaces, as without this flag
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    #[command(flatten)]
    given: Given<false>,
}

/// Writes a table of service ports; the flag asks for the wide form.
type Print = fn(&mut dyn Write, &[ServiceItem], bool) -> io::Result<()>;

impl Listing {
    /// Lists the service ports as JSON, or by `print`. A Service that was named and is not there is a failure.
    pub(super) fn run(&self, out: &mut dyn Write, print: Print) -> anyhow::Result<Outcome> {
        let found = self.read()?;
        match self.output {
            Format::Json => json(out, &found)?,
            Format::Table => print(out, &found, false)?,
            Format::Wide => print(out, &found, true)?,
        }
        Ok(if found.is_empty() && self.name.is_some() {
            Outcome::Failure
        } else {
            Outcome::Success
        })
    }

    fn filter(&self) -> ServiceFilter {
        let (namespace, name) = match self.name.as_deref().and_then(|n| n.split_once('/')) {
            Some((namespace, name)) => (Some(namespace.to_owned()), Some(name.to_owned())),
            None => (self.namespace.clone(), self.name.clone()),
        };
        ServiceFilter { namespace, name }
    }

    /// The service ports: of the agent, or of its pins while none runs.
    fn read(&self) -> anyhow::Result<Vec<ServiceItem>> {
        let (places, filter) = (places(&self.given)?, self.filter());
        let mut services = Vec::new();
        let asked = ask(&places.run_dir, &Request::Services(filter.clone()), |item| {
            if let Item::Service(service) = item {
                services.push(*service);
            }
        });
        match asked {
            Ok(()) => Ok(services),
            Err(ClientError::NoAgent { .. }) => services_from_pins(&places.pin_dir, &filter)
                .with_context(|| format!("no agent runs, and {} tells nothing", places.pin_dir.display())),
            Err(error) => Err(error.into()),
        }
    }
}

/// Runs the command.
pub(super) fn run(options: &Options, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    options.listing.run(out, print)
}

/// One line a service port.
pub(super) fn print(out: &mut dyn Write, services: &[ServiceItem], wide: bool) -> io::Result<()> {
    let mut headers = vec![
        "NAMESPACE",
        "NAME",
        "TYPE",
        "PROTOCOL",
        "FRONTENDS",
        "POLICY",
        "ENDPOINTS",
    ];
    if wide {
        headers.extend(["AFFINITY", "RANGES", "TOPOLOGY", "FLOWS"]);
    }
    let mut table = Table::new(&headers);
    for s in services {
        let used = s.endpoints.iter().filter(|e| e.used).count();
        let frontends: Vec<String> = s.frontends.iter().map(frontend).collect();
        let mut row = vec![
            s.namespace.clone(),
            name_and_port(s),
            s.service_type.clone().unwrap_or_else(unknown),
        ];
        row.extend([
            protocol(s),
            frontends.join(","),
            policies(s),
            format!("{used}/{}", s.endpoints.len()),
        ]);
        if wide {
            let affinity = s.affinity_seconds.map(|seconds| format!("ClientIP({seconds}s)"));
            let topology = s.topology.clone().unwrap_or_default();
            let flows = s.flows.map_or_else(unknown, |flows| flows.to_string());
            row.extend([affinity.unwrap_or_default(), s.source_ranges.join(","), topology, flows]);
        }
        table.push(row);
    }
    table.print(out)
}

/// A Service and its port, which may have no name.
pub(super) fn name_and_port(s: &ServiceItem) -> String {
    let colon = if s.port_name.is_empty() { "" } else { ":" };
    format!("{}{colon}{}", s.name, s.port_name)
}

pub(super) fn protocol(s: &ServiceItem) -> String {
    format!("{}/{}", s.protocol, s.family)
}

pub(super) fn frontend(f: &FrontendItem) -> String {
    match &f.address {
        Some(found) => address(found, f.port),
        None => format!("*:{}", f.port),
    }
}

pub(super) fn address(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

fn unknown() -> String {
    "<unknown>".to_owned()
}

fn policies(s: &ServiceItem) -> String {
    match (&s.internal_traffic_policy, &s.external_traffic_policy) {
        (None, None) => unknown(),
        (internal, external) => {
            let word = |policy: &Option<String>| policy.clone().unwrap_or_else(unknown);
            format!("{}/{}", word(internal), word(external))
        }
    }
}
