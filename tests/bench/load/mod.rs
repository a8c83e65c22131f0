//! `http` and `connect`: what applications see of a Service, by well-known load tools.
//!
//! In: a pod that asks and a pod that answers, both on one node, in a world of its own for each side: plain routing to the pod's
//! address without anybody in between, a ClusterIP by a DNAT map of nftables, and a ClusterIP by Steerway. Out: requests a second
//! on 32 kept connections and new connections a second (wrk), their latency, and one bulk stream (iperf3). The sides are taken in
//! turn in every round, and each round begins with another side. The client has one processor, the server the other.
//!
//! Each round has a port of its own: a port that was asked before has closed connections that new ones would wait for.

mod server;
mod tools;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use lb_tests::agent::Agent;
use lb_tests::objects::{Folder, NodeObject, service, slice};
use lb_tests::world::World;

use self::server::Server;
use self::tools::{StreamServer, stream, wrk};
use crate::figures::Figures;
use crate::report::{Bound, Report, Row};

/// The ClusterIP.
const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
/// Port of the bulk stream; those of the rounds begin here too.
const STREAM_PORT: u16 = 5201;
const FIRST_PORT: u16 = 8001;
/// Seconds of one measurement.
const SECONDS: u32 = 2;
/// Where clients and servers run.
const CLIENT: usize = 1;
const SERVER: usize = 0;

/// Who is between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Direct,
    Nft,
    Ours,
}

const SIDES: [Side; 3] = [Side::Direct, Side::Nft, Side::Ours];

/// A client and a server with what is between. What is here goes before the world.
struct Stand {
    side: Side,
    _agent: Option<Agent>,
    _folder: Folder,
    _server: Server,
    _stream_server: StreamServer,
    world: World,
}

/// What is measured of every side, by round.
#[derive(Clone, Default)]
struct Taken {
    rate: Figures,
    median: Figures,
    tail: Figures,
    stream: Figures,
}

/// Measures requests on kept connections, and the bulk stream.
pub(crate) fn http(rounds: usize) -> Result<Report> {
    let taken = measure("http", rounds, false)?;
    let [direct, _, ours] = &taken;
    let mut rows = compared(
        "requests/s, 32 kept connections",
        "/s",
        &taken,
        |taken| &taken.rate,
        0.98,
    );
    rows.extend(latencies(&taken));
    rows.extend(compared(
        "one bulk stream",
        "Gbit/s",
        &taken,
        |taken| &taken.stream,
        1.0,
    ));
    // Of the stream the median alone is asked for.
    if let Some(last) = rows.last_mut() {
        *last = Row::ratio(
            "one bulk stream, Steerway",
            "Gbit/s",
            &ours.stream,
            "direct",
            &direct.stream,
            Bound::AtLeast(1.0),
        );
    }
    Ok(Report {
        section: "http",
        about: "Pod to pod on one node: directly, or through a ClusterIP. Ratios with their 95 % interval over paired rounds.",
        rows,
    })
}

/// Measures new connections.
pub(crate) fn connect(rounds: usize) -> Result<Report> {
    let taken = measure("connect", rounds, true)?;
    let mut rows = compared("new connections/s", "/s", &taken, |taken| &taken.rate, 0.98);
    rows.extend(latencies(&taken));
    Ok(Report {
        section: "connect",
        about: "As http, one request a connection. Ratios with their 95 % interval over paired rounds.",
        rows,
    })
}

fn measure(name: &str, rounds: usize, each_connects: bool) -> Result<[Taken; 3]> {
    let ports = u16::try_from(rounds + 1).context("fewer rounds")?;
    let stands = SIDES.into_iter().map(|side| Stand::new(side, ports));
    let stands = stands.collect::<Result<Vec<_>>>()?;
    let mut taken = <[Taken; 3]>::default();
    for round in 0..=rounds {
        eprintln!("{name}: round {round} of {rounds}");
        for turn in 0..SIDES.len() {
            let at = (round + turn) % SIDES.len();
            let (stand, taken) = (&stands[at], &mut taken[at]);
            let client = &stand.world.pod("pod1-1").ns;
            let to = stand.at(FIRST_PORT + round as u16);
            // The first round only warms up.
            let seconds = if round == 0 { 1 } else { SECONDS };
            let load = wrk(client, to, seconds, each_connects, CLIENT)?;
            let bulk = if each_connects {
                0.0
            } else {
                stream(client, stand.at(STREAM_PORT), seconds, CLIENT)?
            };
            if round > 0 {
                taken.rate.push(load.rate);
                taken.median.push(load.median);
                taken.tail.push(load.tail);
                taken.stream.push(bulk);
            }
        }
    }
    Ok(taken)
}

/// A row a side; ours must reach a part of the direct one.
fn compared(
    name: &str,
    unit: &'static str,
    taken: &[Taken; 3],
    of: impl Fn(&Taken) -> &Figures,
    least: f64,
) -> Vec<Row> {
    let [direct, nft, ours] = taken.each_ref().map(of);
    vec![
        Row::plain(&format!("{name}, direct"), unit, direct),
        Row::beside(&format!("{name}, nft"), unit, nft, "direct", direct),
        Row::ratio(
            &format!("{name}, Steerway"),
            unit,
            ours,
            "direct",
            direct,
            Bound::AtLeast(least),
        )
        .with_lower_end(0.95),
    ]
}

fn latencies(taken: &[Taken; 3]) -> Vec<Row> {
    let [direct, nft, ours] = taken;
    let mut rows = Vec::new();
    for (name, side) in [("direct", direct), ("nft", nft), ("Steerway", ours)] {
        rows.push(Row::plain(&format!("latency p50, {name}"), "µs", &side.median));
        rows.push(Row::plain(&format!("latency p99, {name}"), "µs", &side.tail));
    }
    rows
}

impl Stand {
    fn new(side: Side, ports: u16) -> Result<Self> {
        let world = World::builder().nodes(1).build();
        let (client, pod) = (world.pod("pod1-1"), world.pod("pod1-2"));
        client.ns.sysctl("net.ipv4.ip_local_port_range", "1024 65000");
        let address = IpAddr::V4(pod.ip4);
        let server = Server::start(&pod.ns, address, FIRST_PORT, ports, SERVER)?;
        let stream_server = StreamServer::start(&pod.ns, address, STREAM_PORT, SERVER)?;
        let served = || (FIRST_PORT..FIRST_PORT + ports).chain([STREAM_PORT]);
        let folder = Folder::new();
        let cluster_ip = IpAddr::from(CLUSTER_IP);
        let agent = match side {
            Side::Direct => None,
            Side::Nft => {
                let elements: Vec<String> = served()
                    .map(|port| format!("{cluster_ip} . {port} : {address} . {port}"))
                    .collect();
                world.node(1).ns.nft(&nft_rules(&elements.join(", ")));
                None
            }
            Side::Ours => {
                folder.put(&NodeObject::from(world.node(1)));
                let object = service("default", "bench").cluster_ip(&cluster_ip.to_string());
                folder.put(&served().fold(object, |object, port| object.port(&format!("p{port}"), port, "TCP")));
                let object = served().fold(slice("default", "bench-1", "bench"), |object, port| {
                    object.port(&format!("p{port}"), port)
                });
                folder.put(&object.endpoint(pod.ip4).node("node1"));
                let mut agent = Agent::start(world.node(1), &folder, &[]);
                agent.wait_ready();
                Some(agent)
            }
        };
        Ok(Self {
            side,
            _agent: agent,
            _folder: folder,
            _server: server,
            _stream_server: stream_server,
            world,
        })
    }

    /// Where the client asks.
    fn at(&self, port: u16) -> SocketAddr {
        let address = match self.side {
            Side::Direct => IpAddr::V4(self.world.pod("pod1-2").ip4),
            Side::Nft | Side::Ours => CLUSTER_IP.into(),
        };
        SocketAddr::new(address, port)
    }
}

/// The Service as rules: one look-up, and the masquerade that clients outside would need.
fn nft_rules(elements: &str) -> String {
    format!(
        "table ip bench {{\nmap services {{\ntype ipv4_addr . inet_service : ipv4_addr . inet_service;\nelements = {{ {elements} }}\n}}\n\
         chain pre {{\ntype nat hook prerouting priority dstnat;\ndnat ip to ip daddr . tcp dport map @services\n}}\n\
         chain post {{\ntype nat hook postrouting priority srcnat;\nct status dnat ip saddr != 10.244.0.0/16 masquerade\n}}\n}}\n"
    )
}
