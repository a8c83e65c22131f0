//! `steerway migrate`: takes a node over from kube-proxy without breaking established TCP connections.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::linux::fs::MetadataExt as _;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::settings::Given;
use super::{Outcome, places};
use crate::clock::now;
use crate::config::Places;
use crate::datapath::netfilter::{connections, iptables, nftables};
use crate::status::protocol::{Item, Request};
use crate::status::report::{Report, ServiceFilter, ServiceItem};
use crate::status::{ClientError, ask};

/// Between two looks at netfilter's connections.
const LOOK: Duration = Duration::from_secs(1);

/// Take the node over from kube-proxy: connections go on, its rules go
///
/// First let an agent run with --takeover, beside kube-proxy: new connections are Steerway's from then on, those that netfilter
/// translates stay with it. Then end kube-proxy and run this. It empties kube-proxy's tables, waits until netfilter carries no
/// TCP connection to a Service any more, and removes the tables. Chains of kube-proxy's iptables mode are removed by the programs of
/// iptables, which have to be installed where this runs: all at once but one, which goes last. It may be ended and run again at any time.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0; 1 when no agent is ready to take over, kube-proxy still runs, something could not be removed, or \
    connections are left after --wait; 2 for wrong usage.\n\nThe way back: run the agent with --drain, start kube-proxy, wait until `steerway \
    status` shows no flow, end the agent, run `steerway cleanup`."
)]
pub(super) struct Options {
    /// Wait this many seconds for netfilter's connections to end
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    wait: u64,
    #[command(flatten)]
    given: Given<false>,
}

/// Runs the command.
pub(super) fn run(options: &Options, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let places = places(&options.given)?;
    may_begin(&places)?;
    let chains = iptables::empty();
    tell(&chains, out)?;
    let mut tables = Vec::new();
    for (family, name) in nftables::FAMILIES {
        if nftables::exists(family)? {
            nftables::empty(family)?;
            writeln!(
                out,
                "emptied the table {name} {}: new connections are Steerway's alone",
                nftables::TABLE
            )?;
            tables.push((family, name));
        }
    }
    let translates = chains.kept || !tables.is_empty();
    if translates && !ended(&places, options.wait, out)? {
        writeln!(
            out,
            "what is left of kube-proxy's rules stays: while it does, netfilter goes on with its connections; run this again"
        )?;
        return Ok(Outcome::Failure);
    }
    let mut complete = chains.failed.is_empty();
    if chains.kept {
        let mut rest = iptables::remove();
        complete = rest.failed.is_empty();
        rest.failed.retain(|what| !chains.failed.contains(what));
        tell(&rest, out)?;
    }
    for (family, name) in &tables {
        nftables::remove(*family)?;
        writeln!(out, "removed the table {name} {}", nftables::TABLE)?;
    }
    if !translates && complete {
        writeln!(out, "nothing of kube-proxy is left in netfilter")?;
    }
    Ok(if complete { Outcome::Success } else { Outcome::Failure })
}

/// Tells what became of chains.
fn tell(chains: &iptables::Outcome, out: &mut dyn Write) -> std::io::Result<()> {
    for what in &chains.done {
        writeln!(out, "removed {what}")?;
    }
    for what in &chains.failed {
        writeln!(out, "LEFT {what}")?;
    }
    Ok(())
}

/// Whether the node can be taken over now; the error says what to do first.
fn may_begin(places: &Places) -> anyhow::Result<()> {
    let mut report: Option<Report> = None;
    let asked = ask(&places.run_dir, &Request::Status, |item| {
        if let Item::Report(found) = item {
            report = Some(*found);
        }
    });
    match asked {
        Err(ClientError::NoAgent { .. }) => {
            bail!("no agent runs here to take over from kube-proxy: start `steerway run --takeover` first")
        }
        asked => asked?,
    }
    let report = report.context("the agent answered without a report")?;
    ensure!(
        report.agent.as_ref().is_some_and(|agent| agent.takeover),
        "the agent runs without --takeover: connections that netfilter translates would break. Start it anew with --takeover"
    );
    let causes: Vec<&str> = report.not_ready.iter().map(|cause| cause.message.as_str()).collect();
    ensure!(
        report.ready,
        "the agent is not ready to take over: {}",
        causes.join("; ")
    );
    if let Some(process) = kube_proxy() {
        bail!(
            "kube-proxy still runs here as process {process} and would write its rules anew: end it (delete its DaemonSet) first"
        );
    }
    Ok(())
}

/// A process of kube-proxy in this network namespace, as far as /proc shows it.
fn kube_proxy() -> Option<String> {
    let netns = |process: &str| Some(fs::metadata(format!("/proc/{process}/ns/net")).ok()?.st_ino());
    let own = netns("self")?;
    let entries = fs::read_dir("/proc").ok()?;
    let mut processes = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    processes.find(|process| {
        let name = fs::read_to_string(PathBuf::from("/proc").join(process).join("comm"));
        name.is_ok_and(|name| name.trim() == "kube-proxy") && netns(process) == Some(own)
    })
}

/// Waits until netfilter carries no connection to a Service; false when the time is over first.
fn ended(places: &Places, seconds: u64, out: &mut dyn Write) -> anyhow::Result<bool> {
    let until = now() + Duration::from_secs(seconds);
    let mut told = None;
    loop {
        let frontends = Frontends::ask(places)?;
        let carried = connections::translated()?;
        let left = carried.iter().filter(|to| frontends.have(**to)).count();
        if told != Some(left) {
            writeln!(out, "{left} TCP connections to Services go on through netfilter")?;
            told = Some(left);
        }
        if left == 0 {
            return Ok(true);
        }
        if now() >= until {
            return Ok(false);
        }
        sleep(LOOK);
    }
}

/// What Services are reached by.
#[derive(Debug, Default)]
struct Frontends {
    addresses: BTreeSet<SocketAddr>,
    node_ports: BTreeSet<u16>,
}

impl Frontends {
    fn ask(places: &Places) -> anyhow::Result<Self> {
        let mut frontends = Self::default();
        ask(&places.run_dir, &Request::Services(ServiceFilter::default()), |item| {
            if let Item::Service(service) = item {
                frontends.add(&service);
            }
        })?;
        Ok(frontends)
    }

    fn add(&mut self, service: &ServiceItem) {
        if service.protocol != "TCP" {
            return;
        }
        for frontend in &service.frontends {
            match frontend.address.as_deref().map(str::parse::<IpAddr>) {
                Some(Ok(address)) => {
                    self.addresses.insert(SocketAddr::new(address, frontend.port));
                }
                Some(Err(_)) => {}
                None => {
                    self.node_ports.insert(frontend.port);
                }
            }
        }
    }

    fn have(&self, destination: SocketAddr) -> bool {
        self.addresses.contains(&destination) || self.node_ports.contains(&destination.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::report::FrontendItem;

    #[test]
    fn a_connection_counts_by_what_its_client_wrote() {
        let frontend = |address: Option<&str>, port| FrontendItem {
            kind: String::new(),
            address: address.map(str::to_owned),
            port,
        };
        let mut frontends = Frontends::default();
        frontends.add(&ServiceItem {
            protocol: "TCP".to_owned(),
            frontends: vec![frontend(Some("fd00::1"), 80), frontend(None, 30080)],
            ..ServiceItem::default()
        });
        let have = ["[fd00::1]:80", "192.0.2.1:30080", "[fd00::1]:81", "192.0.2.1:80"]
            .map(|to| frontends.have(to.parse().unwrap()));
        assert_eq!(have, [true, true, false, false]);
    }
}
