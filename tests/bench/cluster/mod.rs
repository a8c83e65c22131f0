//! A cluster for the sections on objects: a real API server, objects as many as are asked for, and on two nodes the two that serve
//! them: Steerway on the first, the real kube-proxy (nftables mode) on the second. One of them runs at a time.
//!
//! Among the other Services, whose endpoints nobody answers at, is the probe, which has as many endpoints as they have. One of them is
//! a pod of the serving node, the one or the other; the rest are of a node that is not there. Its ClusterIP draws among all. Its
//! external address keeps to endpoints of the serving node (externalTrafficPolicy Local): to that pod alone, so that a client outside
//! that connects again and again learns of a change by its first connection after it and not, as by the ClusterIP, by chance in one
//! of so many. Either side writes both in one step. So forwarding is seen, not concluded.

mod sides;

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lb_tests::kubernetes::{Connection, ControlPlane, Requests};
use lb_tests::netns::Netns;
use lb_tests::objects::{Manifest as _, NodeObject, SliceObject, service, slice};
use lb_tests::traffic::Server;
use lb_tests::world::World;
use serde_json::Value;

pub(crate) use self::sides::{Running, SIDES};

/// The probe's ClusterIP and the address that it is asked at: last of all, so that who writes in order writes it last.
const PROBE: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 254);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);
/// The probe's number, which its further endpoints have their addresses by.
const PROBE_NUMBER: usize = 0x7fff;
/// The first of the other ClusterIPs.
const FIRST: u32 = u32::from_be_bytes([10, 96, 2, 0]);
/// Ports of the Services and of the endpoints.
const PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;
/// Endpoints of a slice, as the real controller makes them.
const SLICE: u16 = 100;
/// How long an attempt on the probe may take.
const ATTEMPT: Duration = Duration::from_millis(100);
/// Between two attempts: after an answer, and after none, of which a node tells a thousand times a second at most.
const PAUSE: Duration = Duration::from_micros(200);
const PAUSE_UNANSWERED: Duration = Duration::from_millis(2);
/// When to give up.
const LIMIT: Duration = Duration::from_mins(2);
/// How many pods of a node the probe moves between.
const PODS: usize = 2;

/// The cluster. Servers and control plane go before the world.
pub(crate) struct Cluster {
    pub(crate) requests: Requests,
    control: ControlPlane,
    _servers: Vec<Server>,
    pub(crate) world: World,
    services: usize,
    endpoints: u16,
}

impl Cluster {
    /// A cluster of Services with so many endpoints each; there is the probe alone.
    pub(crate) fn new(endpoints: u16) -> Self {
        let world = World::builder().pods_per_node(PODS).build();
        let servers = world
            .pods()
            .map(|pod| Server::tcp(pod, &pod.name, (pod.ip4, TARGET_PORT)))
            .collect();
        for node in world.nodes() {
            // Who asks before it is served is told at once.
            node.ns.ip(&format!("route add unreachable {OUTSIDE}"));
            node.ns.sysctl("net.ipv4.icmp_ratelimit", "0");
        }
        let control = ControlPlane::start(&world, &[]);
        for node in world.nodes() {
            control.create(&NodeObject::from(node));
        }
        let requests = control.requests();
        let cluster = Self {
            requests,
            control,
            _servers: servers,
            world,
            services: 0,
            endpoints,
        };
        let probe = service("default", "probe")
            .cluster_ip(&PROBE.to_string())
            .port("http", PORT, "TCP")
            .target_port(TARGET_PORT)
            .external_ip(&OUTSIDE.to_string())
            .external_local();
        cluster.requests.create_all(&[probe.to_json()]);
        let rest = slices(endpoints).skip(1).map(|(part, hosts)| {
            let further = hosts.map(|host| endpoint(PROBE_NUMBER, host));
            part_of("probe", part, "node3", further).to_json()
        });
        let slices: Vec<Value> = rest.chain([cluster.probe_slice(1, 0)]).collect();
        cluster.requests.create_all(&slices);
        cluster
    }

    /// How many endpoints each of its Services has.
    pub(crate) fn endpoints(&self) -> u16 {
        self.endpoints
    }

    /// Adds Services until there are as many as asked for.
    pub(crate) fn fill(&mut self, services: usize) {
        let endpoints = self.endpoints;
        let objects: Vec<Value> = (self.services..services)
            .flat_map(|number| {
                let address = Ipv4Addr::from_bits(FIRST + number as u32);
                let name = format!("s{number}");
                let slices = slices(endpoints).map(move |(part, hosts)| other_slice(number, part, hosts));
                slices.chain([service_object(&name, address)]).collect::<Vec<_>>()
            })
            .collect();
        self.requests.create_all(&objects);
        self.services = self.services.max(services);
    }

    /// The slice of another Service with one endpoint less or all of ten, in turn: one change of many.
    pub(crate) fn changed(number: usize, turn: usize) -> Value {
        other_slice(number, 0, 0..10 - (turn % 2) as u16)
    }

    /// The probe's first slice, with one of the pods of a node, by its number there.
    fn probe_slice(&self, node: usize, pod: usize) -> Value {
        let further = (1..self.endpoints.min(SLICE)).map(|host| endpoint(PROBE_NUMBER, host));
        part_of("probe", 0, "node3", further)
            .endpoint(self.world.pod(&pod_name(node, pod)).ip4)
            .node(&format!("node{node}"))
            .ready(true)
            .to_json()
    }

    /// Makes a node the one that serves the probe, by the first of its pods. It is not to serve yet.
    fn prepare(&self, node: usize) {
        self.world.route_to_node(&format!("{OUTSIDE}/32"), node);
        self.requests.connect().replace(&self.probe_slice(node, 0));
    }

    /// Waits until a client reaches the first pod of the serving node by the probe; when that was.
    pub(crate) fn await_probe(&self, node: usize) -> Result<Instant> {
        watch(&self.world.client().ns, &pod_name(node, 0))
    }

    /// Moves the probe to another pod of the serving node, by its number there. Gives the time from the API server's answer until a
    /// client reaches the pod.
    pub(crate) fn move_probe(&self, connection: &mut Connection, node: usize, pod: usize) -> Result<Duration> {
        let (pod, object) = (pod_name(node, pod % PODS), self.probe_slice(node, pod % PODS));
        thread::scope(|scope| {
            let watching = scope.spawn(|| watch(&self.world.client().ns, &pod));
            connection.replace(&object);
            let answered = Instant::now();
            let seen = watching
                .join()
                .unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
            Ok(seen.saturating_duration_since(answered))
        })
    }
}

/// The name of a pod of a node in the world.
fn pod_name(node: usize, pod: usize) -> String {
    format!("pod{node}-{}", pod + 1)
}

/// Connects to the probe again and again until a server of this name answers.
fn watch(client: &Netns, name: &str) -> Result<Instant> {
    let started = Instant::now();
    client.run(|| {
        while started.elapsed() < LIMIT {
            match asked() {
                Ok(said) if said.contains(&format!("backend={name} ")) => return Ok(Instant::now()),
                Ok(_) => thread::sleep(PAUSE),
                Err(_) => thread::sleep(PAUSE_UNANSWERED),
            }
        }
        bail!("{name} did not answer at the probe in {LIMIT:?}")
    })
}

/// What the server behind the probe says first, in the calling thread's namespace.
fn asked() -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(IpAddr::V4(OUTSIDE), PORT), ATTEMPT)?;
    stream.set_read_timeout(Some(ATTEMPT))?;
    let mut said = [0; 256];
    let read = stream.read(&mut said)?;
    Ok(String::from_utf8_lossy(&said[..read]).into_owned())
}

fn service_object(name: &str, address: Ipv4Addr) -> Value {
    service("default", name)
        .cluster_ip(&address.to_string())
        .port("http", PORT, "TCP")
        .target_port(TARGET_PORT)
        .to_json()
}

/// The slices that so many endpoints take, by number, and the endpoints of each.
fn slices(endpoints: u16) -> impl Iterator<Item = (u16, Range<u16>)> {
    (0..endpoints.div_ceil(SLICE)).map(move |part| (part, part * SLICE..endpoints.min((part + 1) * SLICE)))
}

fn other_slice(number: usize, part: u16, hosts: Range<u16>) -> Value {
    let endpoints = hosts.map(|host| endpoint(number, host));
    part_of(&format!("s{number}"), part, "node2", endpoints).to_json()
}

/// A slice of a Service with these endpoints of a node.
fn part_of(service: &str, part: u16, node: &str, endpoints: impl Iterator<Item = Ipv4Addr>) -> SliceObject {
    let object = slice("default", &format!("{service}-{part}"), service).port("http", TARGET_PORT);
    endpoints.fold(object, |object, address| {
        object.endpoint(address).node(node).ready(true)
    })
}

/// An address that nobody has.
fn endpoint(number: usize, host: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from_be_bytes([10, 128, 0, 0]) + number as u32 * 256 + u32::from(host))
}

/// The value of the first series of a name, of IPv4 where there are families.
fn series(metrics: &str, name: &str) -> Result<f64> {
    let line = metrics.lines().find(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(' ') || rest.starts_with("{ip_family=\"IPv4\"}"))
    });
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.with_context(|| format!("no series {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_of_a_name_and_a_family_is_found() {
        let text = "# HELP a x\na_count 7\na{ip_family=\"IPv6\"} 2\na{ip_family=\"IPv4\"} 1.5e+00\n";
        assert!((series(text, "a").unwrap() - 1.5).abs() < 1e-9);
        assert!((series(text, "a_count").unwrap() - 7.0).abs() < 1e-9);
        assert!(series(text, "b").is_err());
    }
}
