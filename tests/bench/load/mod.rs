//! `http` and `connect`: what applications see of a Service, by well-known load tools.
//!
//! In: a pod that asks and a pod that answers, both on one node, in a world of its own for each side: plain routing to the pod's
//! address without anybody in between, the same with programs that do nothing at the hooks at which ours are (what no Service proxy at tc can
//! go below), a ClusterIP by a DNAT map of nftables, by rules of iptables where the kernel has that, and by Steerway, with the host's routing and with its own. Out: requests a second on 32 kept connections and new connections a second (wrk), their latency, and one bulk stream
//! (iperf3; the median of a few, since one alone differs by as much as the sides do). The sides are taken in turn in every round, and each round begins with another side. The client has one processor, the
//! server the other. After the rounds of new connections some runs apart tell what our programs in the kernel take of one: the
//! kernel's statistics, which cost time themselves, are on for those alone.
//!
//! Each round and run has a port of its own: a port that was asked before has closed connections that new ones would wait for.

mod programs;
mod server;
mod tools;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use lb_tests::agent::Agent;
use lb_tests::netns::Netns;
use lb_tests::objects::{Folder, NodeObject, service, slice};
use lb_tests::world::World;

use self::programs::{Spent, spent_while};
use self::server::Server;
use self::tools::{Load, StreamServer, stream, wrk};
use crate::figures::Figures;
use crate::iptables::{self, Frontend};
use crate::programs::Programs;
use crate::report::{Bound, Report, Row};

/// The ClusterIP.
const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
/// Port of the bulk stream; those of the rounds begin here too.
const STREAM_PORT: u16 = 5201;
const FIRST_PORT: u16 = 8001;
/// Seconds of one measurement.
const SECONDS: u32 = 2;
/// Bulk streams of a side in a round, of which the median counts.
const STREAMS: usize = 3;
/// Runs that tell what our programs take, and seconds of each.
const RUNS_APART: usize = 5;
const SECONDS_APART: u32 = 1;
/// Where clients and servers run.
const CLIENT: usize = 1;
const SERVER: usize = 0;

/// Who is between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Direct,
    Hooked,
    Nft,
    Iptables,
    Ours,
    /// Ours with host routing by BPF.
    OursRouted,
}

const SIDES: [Side; 6] = [
    Side::Direct,
    Side::Hooked,
    Side::Nft,
    Side::Iptables,
    Side::Ours,
    Side::OursRouted,
];

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Hooked => "programs that do nothing",
            Self::Nft => "nft",
            Self::Iptables => "iptables",
            Self::Ours => "Steerway",
            Self::OursRouted => "Steerway with --host-routing bpf",
        }
    }
}

/// A client and a server with what is between. What is here goes before the world.
struct Stand {
    side: Side,
    agent: Option<Agent>,
    _hooks: Option<Programs>,
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
    sender: Figures,
    receiver: Figures,
}

/// What was measured.
struct Measured {
    /// Of each side that there is.
    sides: Vec<(Side, Taken)>,
    /// Why iptables is none of them.
    lacking: Option<String>,
    /// What our programs take of one connection: microseconds, and how often they run.
    time: Figures,
    runs: Figures,
}

/// Measures requests on kept connections, and the bulk stream.
pub(crate) fn http(rounds: usize) -> Result<Report> {
    let measured = measure("http", rounds, false)?;
    let mut rows = measured.compared(
        "requests/s, 32 kept connections",
        "/s",
        |taken| &taken.rate,
        |row| row(0.98).with_lower_end(0.95),
    )?;
    rows.extend(measured.latencies());
    // Of the stream the median alone is asked for.
    rows.extend(measured.compared("one bulk stream", "Gbit/s", |taken| &taken.stream, |row| row(1.0))?);
    rows.extend(measured.of_each("one bulk stream, processor of the sender", "%", |taken| &taken.sender));
    rows.extend(
        measured.of_each("one bulk stream, processor of the receiver", "%", |taken| {
            &taken.receiver
        }),
    );
    Ok(Report {
        section: "http",
        about: "Pod to pod on one node: directly, or through a ClusterIP. Ratios with their 95 % interval over paired rounds.",
        rows,
    })
}

/// Measures new connections.
pub(crate) fn connect(rounds: usize) -> Result<Report> {
    let measured = measure("connect", rounds, true)?;
    let mut rows = measured.compared(
        "new connections/s",
        "/s",
        |taken| &taken.rate,
        |row| row(0.98).with_lower_end(0.95),
    )?;
    rows.extend(measured.latencies());
    rows.push(Row::plain(
        "Steerway's programs, of one connection",
        "µs",
        &measured.time,
    ));
    rows.push(Row::plain(
        "Steerway's programs, of one connection",
        "runs",
        &measured.runs,
    ));
    Ok(Report {
        section: "connect",
        about: "As http, one request a connection. Ratios with their 95 % interval over paired rounds. What Steerway's programs take is told \
                by the kernel's statistics in five runs apart, the statistics' own time included.",
        rows,
    })
}

fn measure(name: &str, rounds: usize, each_connects: bool) -> Result<Measured> {
    let apart = if each_connects { RUNS_APART } else { 0 };
    let ports = u16::try_from(rounds + 1 + apart).context("fewer rounds")?;
    let lacking = iptables::missing();
    let stands = SIDES
        .into_iter()
        .filter(|side| lacking.is_none() || *side != Side::Iptables)
        .map(|side| Stand::new(side, ports));
    let stands = stands.collect::<Result<Vec<_>>>()?;
    let mut taken = vec![Taken::default(); stands.len()];
    let port = |run: usize| FIRST_PORT + run as u16;
    for round in 0..=rounds {
        eprintln!("{name}: round {round} of {rounds}");
        // The first round only warms up.
        let seconds = if round == 0 { 1 } else { SECONDS };
        let count = stands.len();
        let in_turn = |pass: usize| (0..count).map(move |turn| (round + pass + turn) % count);
        for at in in_turn(0) {
            let load = stands[at].ask(port(round), seconds, each_connects)?;
            if round > 0 {
                taken[at].rate.push(load.rate);
                taken[at].median.push(load.median);
                taken[at].tail.push(load.tail);
            }
        }
        if each_connects {
            continue;
        }
        let mut streams = vec![<[Figures; 3]>::default(); count];
        for at in (0..STREAMS).flat_map(in_turn) {
            let bulk = stream(stands[at].client(), stands[at].at(STREAM_PORT), seconds, CLIENT)?;
            for (figures, figure) in streams[at].iter_mut().zip([bulk.rate, bulk.sender, bulk.receiver]) {
                figures.push(figure);
            }
        }
        if round > 0 {
            for (taken, [rate, sender, receiver]) in taken.iter_mut().zip(&streams) {
                taken.stream.push(rate.median());
                taken.sender.push(sender.median());
                taken.receiver.push(receiver.median());
            }
        }
    }
    let (mut time, mut runs) = <(Figures, Figures)>::default();
    let ours = stands.iter().find_map(|stand| Some((stand, stand.agent.as_ref()?)));
    let (stand, agent) = ours.context("a side of ours")?;
    for run in rounds + 1..=rounds + apart {
        eprintln!("{name}: run {} of {apart} apart", run - rounds);
        let pid = agent.pid().context("an agent that runs")?;
        let (load, Spent { nanoseconds, times }) =
            spent_while(pid, || stand.ask(port(run), SECONDS_APART, each_connects))?;
        let connections = load?.requests;
        time.push(nanoseconds / 1e3 / connections);
        runs.push(times / connections);
    }
    let sides = stands.iter().map(|stand| stand.side).zip(taken).collect();
    Ok(Measured {
        sides,
        lacking,
        time,
        runs,
    })
}

impl Measured {
    fn of(&self, side: Side) -> Option<&Taken> {
        let found = self.sides.iter().find(|(one, _)| *one == side);
        found.map(|(_, taken)| taken)
    }

    /// A row a side; `goal` makes ours of one that must reach a part of the direct one.
    fn compared(
        &self,
        what: &str,
        unit: &'static str,
        of: impl Fn(&Taken) -> &Figures,
        goal: impl Fn(&dyn Fn(f64) -> Row) -> Row,
    ) -> Result<Vec<Row>> {
        let direct = of(self.of(Side::Direct).context("a direct side")?);
        let rows = SIDES.map(|side| {
            let name = format!("{what}, {}", side.name());
            let Some(figures) = self.of(side).map(&of) else {
                return Row::missing(&name, self.lacking.as_deref().unwrap_or_default());
            };
            match side {
                Side::Direct => Row::plain(&name, unit, figures),
                Side::Hooked | Side::Nft | Side::Iptables => Row::beside(&name, unit, figures, "direct", direct),
                Side::Ours | Side::OursRouted => {
                    goal(&|least| Row::ratio(&name, unit, figures, "direct", direct, Bound::AtLeast(least)))
                }
            }
        });
        Ok(rows.into())
    }

    fn latencies(&self) -> Vec<Row> {
        let median = self.of_each("latency p50", "µs", |taken| &taken.median);
        median
            .chain(self.of_each("latency p99", "µs", |taken| &taken.tail))
            .collect()
    }

    /// A row of each side that nothing is compared with.
    fn of_each(&self, what: &str, unit: &'static str, of: impl Fn(&Taken) -> &Figures) -> impl Iterator<Item = Row> {
        self.sides
            .iter()
            .map(move |(side, taken)| Row::plain(&format!("{what}, {}", side.name()), unit, of(taken)))
    }
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
            Side::Direct | Side::Hooked => None,
            Side::Nft => {
                let elements: Vec<String> = served()
                    .map(|port| format!("{cluster_ip} . {port} : {address} . {port}"))
                    .collect();
                world.node(1).ns.nft(&nft_rules(&elements.join(", ")));
                None
            }
            Side::Iptables => {
                let frontends: Vec<Frontend> = served()
                    .map(|port| Frontend {
                        protocol: "tcp",
                        at: SocketAddr::new(cluster_ip, port),
                        backends: vec![SocketAddr::new(address, port)],
                    })
                    .collect();
                iptables::put(&world.node(1).ns, &frontends)?;
                None
            }
            Side::Ours | Side::OursRouted => {
                folder.put(&NodeObject::from(world.node(1)));
                let object = service("default", "bench").cluster_ip(&cluster_ip.to_string());
                folder.put(&served().fold(object, |object, port| object.port(&format!("p{port}"), port, "TCP")));
                let object = served().fold(slice("default", "bench-1", "bench"), |object, port| {
                    object.port(&format!("p{port}"), port)
                });
                folder.put(&object.endpoint(pod.ip4).node("node1"));
                let arguments: &[&str] = if side == Side::OursRouted {
                    &["--host-routing", "bpf"]
                } else {
                    &[]
                };
                let mut agent = Agent::start(world.node(1), &folder, arguments);
                agent.wait_ready();
                Some(agent)
            }
        };
        let hooks = match side {
            Side::Hooked => Some(hooked(&world)?),
            Side::Direct | Side::Nft | Side::Iptables | Side::Ours | Side::OursRouted => None,
        };
        Ok(Self {
            side,
            agent,
            _hooks: hooks,
            _folder: folder,
            _server: server,
            _stream_server: stream_server,
            world,
        })
    }

    fn client(&self) -> &Netns {
        &self.world.pod("pod1-1").ns
    }

    /// Asks at a port for some seconds.
    fn ask(&self, port: u16, seconds: u32, each_connects: bool) -> Result<Load> {
        wrk(self.client(), self.at(port), seconds, each_connects, CLIENT)
    }

    /// Where the client asks.
    fn at(&self, port: u16) -> SocketAddr {
        let address = match self.side {
            Side::Direct | Side::Hooked => IpAddr::V4(self.world.pod("pod1-2").ip4),
            Side::Nft | Side::Iptables | Side::Ours | Side::OursRouted => CLUSTER_IP.into(),
        };
        SocketAddr::new(address, port)
    }
}

/// Programs that do nothing at all hooks of both pods' devices, for as long as the value lives.
fn hooked(world: &World) -> Result<Programs> {
    let devices = ["pod1-1", "pod1-2"].map(|pod| world.pod(pod).veth.clone());
    let mut programs = Programs::load(0)?;
    world.node(1).ns.run(|| programs.place_nothing(&devices))?;
    Ok(programs)
}

/// The Service as rules: one look-up, and the masquerade that clients outside would need.
fn nft_rules(elements: &str) -> String {
    format!(
        "table ip bench {{\nmap services {{\ntype ipv4_addr . inet_service : ipv4_addr . inet_service;\nelements = {{ {elements} }}\n}}\n\
         chain pre {{\ntype nat hook prerouting priority dstnat;\ndnat ip to ip daddr . tcp dport map @services\n}}\n\
         chain post {{\ntype nat hook postrouting priority srcnat;\nct status dnat ip saddr != 10.244.0.0/16 masquerade\n}}\n}}\n"
    )
}
