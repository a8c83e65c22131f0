//! A cluster for the sections on objects: a real API server, objects as many as are asked for, and on two nodes the two that serve
//! them: Steerway on the first, the real kube-proxy (nftables mode) on the second. One of them runs at a time.
//!
//! Among the other Services, whose endpoints nobody answers at, is the probe: its only endpoint is the one pod or the other, and a
//! pod of the serving node that connects to it learns which. So forwarding is seen, not concluded.

mod sides;

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lb_tests::kubernetes::{Connection, ControlPlane, Requests};
use lb_tests::netns::Netns;
use lb_tests::objects::{Manifest as _, NodeObject, service, slice};
use lb_tests::traffic::Server;
use lb_tests::world::World;
use serde_json::Value;

pub(crate) use self::sides::{Running, SIDES};

/// Where the probe is served: last of the range, so that who writes in order writes it last.
const PROBE: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 254);
/// The first of the other ClusterIPs.
const FIRST: u32 = u32::from_be_bytes([10, 96, 2, 0]);
/// Ports of the Services and of the endpoints.
const PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;
/// Endpoints of a slice, as the real controller makes them.
const SLICE: u16 = 100;
/// How long an attempt on the probe may take.
const ATTEMPT: Duration = Duration::from_millis(100);
/// Between two attempts.
const PAUSE: Duration = Duration::from_micros(200);
/// When to give up.
const LIMIT: Duration = Duration::from_mins(2);
/// The pods behind the probe.
pub(crate) const PODS: [&str; 2] = ["pod1-2", "pod2-2"];

/// The cluster. Servers and control plane go before the world.
pub(crate) struct Cluster {
    pub(crate) requests: Requests,
    control: ControlPlane,
    _servers: Vec<Server>,
    pub(crate) world: World,
    services: usize,
}

impl Cluster {
    /// A cluster with the probe alone.
    pub(crate) fn new() -> Self {
        let world = World::builder().build();
        let servers = PODS.map(|name| {
            let pod = world.pod(name);
            Server::tcp(pod, name, (pod.ip4, TARGET_PORT))
        });
        let control = ControlPlane::start(&world, &[]);
        for node in world.nodes() {
            control.create(&NodeObject::from(node));
        }
        let requests = control.requests();
        let cluster = Self {
            requests,
            control,
            _servers: servers.into(),
            world,
            services: 0,
        };
        cluster.requests.create_all(&[service_object("probe", PROBE)]);
        cluster.requests.create_all(&[cluster.probe_slice(PODS[0])]);
        cluster
    }

    /// Adds Services until there are as many as asked for, with so many endpoints each.
    pub(crate) fn fill(&mut self, services: usize, endpoints: u16) {
        let objects: Vec<Value> = (self.services..services)
            .flat_map(|number| {
                let address = Ipv4Addr::from_bits(FIRST + number as u32);
                let name = format!("s{number}");
                let slices = (0..endpoints.div_ceil(SLICE)).map(move |part| {
                    let last = endpoints.min((part + 1) * SLICE);
                    other_slice(number, part, (part * SLICE..last).map(|host| endpoint(number, host)))
                });
                slices.chain([service_object(&name, address)]).collect::<Vec<_>>()
            })
            .collect();
        self.requests.create_all(&objects);
        self.services = self.services.max(services);
    }

    /// The slice of another Service with one endpoint less or all of ten, in turn: one change of many.
    pub(crate) fn changed(number: usize, turn: usize) -> Value {
        other_slice(
            number,
            0,
            (0..10 - (turn % 2) as u16).map(|host| endpoint(number, host)),
        )
    }

    /// The probe's slice, with one of the pods.
    fn probe_slice(&self, pod: &str) -> Value {
        let (pod, node) = (self.world.pod(pod), self.world.pod(pod).node);
        let object = slice("default", "probe-1", "probe").port("http", TARGET_PORT);
        let object = object.endpoint(pod.ip4).node(&format!("node{node}")).ready(true);
        object.to_json()
    }

    /// Who asks on the node of a number.
    fn client(&self, node: usize) -> Netns {
        self.world.pod(&format!("pod{node}-1")).ns.clone()
    }

    /// Waits until a client of a node reaches this pod by the probe; when that was.
    pub(crate) fn await_probe(&self, node: usize, pod: &str) -> Result<Instant> {
        watch(&self.client(node), pod)
    }

    /// Moves the probe to a pod. Gives the time from the API server's answer until a client of the node reaches the pod.
    pub(crate) fn move_probe(&self, connection: &mut Connection, node: usize, pod: &str) -> Result<Duration> {
        let (client, object) = (self.client(node), self.probe_slice(pod));
        thread::scope(|scope| {
            let watching = scope.spawn(|| watch(&client, pod));
            connection.replace(&object);
            let answered = Instant::now();
            let seen = watching
                .join()
                .unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
            Ok(seen.saturating_duration_since(answered))
        })
    }
}

/// Connects to the probe again and again until a server of this name answers.
fn watch(client: &Netns, name: &str) -> Result<Instant> {
    let started = Instant::now();
    client.run(|| {
        while started.elapsed() < LIMIT {
            if asked().is_ok_and(|said| said.contains(&format!("backend={name} "))) {
                return Ok(Instant::now());
            }
            thread::sleep(PAUSE);
        }
        bail!("{name} did not answer at the probe in {LIMIT:?}")
    })
}

/// What the server behind the probe says first, in the calling thread's namespace.
fn asked() -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(IpAddr::V4(PROBE), PORT), ATTEMPT)?;
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

fn other_slice(number: usize, part: u16, endpoints: impl Iterator<Item = Ipv4Addr>) -> Value {
    let object = slice("default", &format!("s{number}-{part}"), &format!("s{number}")).port("http", TARGET_PORT);
    endpoints
        .fold(object, |object, address| {
            object.endpoint(address).node("node2").ready(true)
        })
        .to_json()
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
