//! What a change costs the agent's loop, without a kernel: `cycle [SERVICES [ENDPOINTS]]`, 10,000 and 10 by default.
//!
//! First the steps alone, then the whole loop on a folder, tables in memory and a host that has nothing to do. Times are in
//! milliseconds: of the first round, and the median of one endpoint changed. The bench measures all of it, kernel included.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use steerway::clock::{Instant, now};
use steerway::config::{Config, Layer, Place, gather};
use steerway::datapath::attach::{Attachment, Left, Trust};
use steerway::datapath::interfaces::{Interface, InterfaceTable};
use steerway::datapath::steer::{RouteNeeds, RouteReport, SteerDevice};
use steerway::maps::{Dump, MapStore, MemoryStore, Referred, Table};
use steerway::model::{Model, ModelConfig};
use steerway::plan::{NodeTables, Planner};
use steerway::reconcile::{Host, HostError, Parts, Reconciler, Sweep, Swept};
use steerway::source::{Source, folder};
use steerway::status::State;
use tokio::sync::watch;

const NODE: &str = "node";
/// Services of a file.
const FILE: usize = 20;
const CHANGES: usize = 31;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let services = arguments.next().transpose()?.unwrap_or(10_000);
    let endpoints = arguments.next().transpose()?.unwrap_or(10);
    let folder = tempfile::tempdir()?;
    for first in (0..services).step_by(FILE) {
        write(folder.path(), first..services.min(first + FILE), endpoints, 0)?;
    }
    steps(folder.path(), services, endpoints).await?;
    cycles(folder.path(), services, endpoints).await
}

/// Writes a file of Services, each with a slice. The first one's first endpoint is the `moved`th of its place.
fn write(folder: &Path, services: std::ops::Range<usize>, endpoints: usize, moved: usize) -> anyhow::Result<()> {
    let mut items = Vec::new();
    for number in services.clone() {
        let name = format!("service-{number:05}");
        let address = |from: u32, place: usize| Ipv4Addr::from(from + place as u32).to_string();
        let cluster_ip = address(0x0a60_0001, number);
        let endpoint = |place: usize| {
            let moved = if (number, place) == (services.start, 0) {
                moved << 22
            } else {
                0
            };
            json!({ "addresses": [address(0x0b00_0001, number * endpoints + place + moved)], "nodeName": "elsewhere" })
        };
        items.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"], "selector": { "app": name },
                "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
            },
        }));
        items.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": format!("{name}-1"), "namespace": "default", "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4", "endpoints": (0..endpoints).map(endpoint).collect::<Vec<Value>>(),
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        }));
    }
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    let place = folder.join(format!("{:05}.json", services.start));
    std::fs::write(&place, serde_json::to_vec(&list)?)?;
    Ok(())
}

fn ms(from: Instant) -> f64 {
    from.elapsed().as_secs_f64() * 1e3
}

fn show(what: &str, mut times: Vec<f64>) -> io::Result<()> {
    let first = times.remove(0);
    times.sort_by(f64::total_cmp);
    writeln!(io::stdout(), "{what:>8} {first:9.3} {:9.3}", times[times.len() / 2])
}

/// Model, plan and write of each state of the folder.
async fn steps(place: &Path, services: usize, endpoints: usize) -> anyhow::Result<()> {
    let source = folder::start(place.to_owned(), NODE.into());
    let store = MemoryStore::default();
    let mut model = Model::new(ModelConfig::new(NODE));
    let mut planner = Planner::adopt(Dump::of(&store)?, 1);
    let mut times: [Vec<f64>; 3] = Default::default();
    for moved in 0..=CHANGES {
        write(place, 0..services.min(FILE), endpoints, moved % 2)?;
        let state = source.handle().refresh().await?;
        let began = now();
        let desired = model.build(&state.snapshot);
        times[0].push(ms(began));
        let began = now();
        let plan = planner.plan(&desired, &NodeTables::default());
        times[1].push(ms(began));
        let began = now();
        plan.apply(&store)?;
        times[2].push(ms(began));
        planner.grace_passed(planner.mark());
    }
    writeln!(
        io::stdout(),
        "{services} Services of {endpoints} endpoints, ms: first, one endpoint changed"
    )?;
    for (what, times) in ["model", "plan", "write"].into_iter().zip(times) {
        show(what, times)?;
    }
    Ok(())
}

/// From a state of the source seen to the tables written and told.
async fn cycles(place: &Path, services: usize, endpoints: usize) -> anyhow::Result<()> {
    let values = [
        ("folder", place.to_string_lossy().into_owned()),
        ("node-name", NODE.to_owned()),
    ];
    let layer: Layer = values
        .into_iter()
        .map(|(flag, value)| (flag, (Place::Flag(flag), vec![value])))
        .collect();
    let source: Source = folder::start(place.to_owned(), NODE.into());
    let handle = source.handle();
    let (state, mut told) = watch::channel(State::starting());
    let reconciler = Reconciler::new(Parts {
        config: Config::validate(&gather(layer, None, |_| None)?, None)?,
        source,
        store: Arc::new(MemoryStore::default()),
        host: Idle::default(),
        sweep: Arc::new(Idle::default()),
        hz: 250,
        state,
        random: 1,
    });
    tokio::spawn(reconciler.run(std::future::pending::<()>()));
    let mut times = Vec::new();
    for moved in 0..=CHANGES {
        write(place, 0..services.min(FILE), endpoints, moved % 2 + 2)?;
        let generation = handle.refresh().await?.generation;
        let state = told.wait_for(|state| state.programmed >= generation).await?.clone();
        if let (Some(seen), Some(programmed)) = (state.queued_at, state.programmed_at) {
            times.push(programmed.duration_since(seen)?.as_secs_f64() * 1e3);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    show("cycle", times)?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    for line in status.lines().filter(|line| line.starts_with("RssAnon")) {
        writeln!(io::stdout(), "{line}, with the tables and the first steps' objects")?;
    }
    Ok(())
}

/// A host and flow tables without anything.
#[derive(Default)]
struct Idle(watch::Sender<Arc<InterfaceTable>>);

impl Host for Idle {
    fn tables(&self) -> watch::Receiver<Arc<InterfaceTable>> {
        self.0.subscribe()
    }

    fn set_node_addresses(&mut self, _: BTreeSet<IpAddr>) -> bool {
        false
    }

    async fn ensure_device(&mut self, _: Option<u32>) -> Result<SteerDevice, HostError> {
        Ok(SteerDevice {
            ifindex: 9,
            mac: [2, 0, 0, 0, 0, 9],
            mtu: 1500,
        })
    }

    async fn attach(&mut self, _: &InterfaceTable, _: Trust) -> Vec<HostError> {
        Vec::new()
    }

    fn attached(&self) -> Vec<Attachment> {
        Vec::new()
    }

    fn without_xdp(&self) -> Vec<(Interface, Left)> {
        Vec::new()
    }

    fn route(&mut self, _: RouteNeeds, _: Trust) -> impl Future<Output = Result<RouteReport, HostError>> + Send {
        std::future::ready(Ok(RouteReport::default()))
    }
}

impl Sweep for Idle {
    fn sweep(&self, store: &dyn MapStore) -> Result<Swept, String> {
        let backends = store.words(Table::Backends).len();
        Ok(Swept {
            referred: Referred::none(backends),
            fill: Vec::new(),
            flows: Vec::new(),
            services: Vec::new(),
        })
    }
}
