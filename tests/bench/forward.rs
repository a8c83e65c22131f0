//! `forward`: packets a second through a node: in by its uplink, out by it again, to a backend on another node.
//!
//! In: live frames (BPF_PROG_TEST_RUN) of many UDP flows, sent out of the uplink's far end on one processor, which does all of the way
//! too: generator, the node, and the sink at XDP of that far end, which counts what comes back translated. Out: counted packets
//! over the time. Nodes stand side by side, each in a world of its own, and are taken in turn in every round: plain routing to
//! the backends, a DNAT map of nftables with masquerade, the same one Service as rules of iptables where the kernel has that, and
//! Steerway at tc and at XDP.
//!
//! A frame that is lost on the way counts as time and not as packet, so that a node is not flattered by what it drops.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_tests::agent::Agent;
use lb_tests::objects::{Folder, NodeObject, service, slice};
use lb_tests::world::World;

use crate::figures::Figures;
use crate::frames::{Frames, Kind};
use crate::iptables::{self, Frontend};
use crate::processors;
use crate::programs::{End, Programs, Sign};
use crate::report::{Bound, Report, Row};

/// Flows.
const FLOWS: usize = 32_768;
/// Packets of one measurement; of each flow as many.
const PACKETS: u32 = 48 * FLOWS as u32;
/// Bytes of a frame.
const LENGTH: usize = 96;
/// Where the frames go to.
const FRONTEND: ([u8; 4], u16) = ([203, 0, 113, 10], 80);
/// Backends, and their port.
const BACKENDS: u8 = 10;
const BACKEND_PORT: u16 = 8080;

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Plain,
    Nft,
    Iptables,
    Tc,
    Xdp,
}

impl Side {
    const ALL: [Self; 5] = [Self::Plain, Self::Nft, Self::Iptables, Self::Tc, Self::Xdp];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain routing",
            Self::Nft => "nft: DNAT map, masquerade",
            Self::Iptables => "iptables: DNAT, masquerade",
            Self::Tc => "Steerway, tc",
            Self::Xdp => "Steerway, XDP",
        }
    }
}

/// A node with its surroundings. The agent goes before the world.
struct Stand {
    side: Side,
    _agent: Option<Agent>,
    _folder: Folder,
    world: World,
    /// Index and name of the uplink's far end.
    device: (u32, String),
}

/// Measures.
pub(crate) fn run(rounds: usize) -> Result<Report> {
    let lacking = iptables::missing();
    let sides = Side::ALL
        .into_iter()
        .filter(|side| lacking.is_none() || *side != Side::Iptables);
    let stands = sides.map(Stand::new).collect::<Result<Vec<_>>>()?;
    let mut programs = Programs::load(0)?;
    for stand in &stands {
        stand
            .world
            .fabric
            .run(|| programs.place_sink(&stand.device.1))
            .context("the sink")?;
    }
    let mut figures = vec![Figures::default(); stands.len()];
    for round in 0..=rounds {
        eprintln!("forward: round {round} of {rounds}");
        for (stand, figures) in stands.iter().zip(&mut figures) {
            // The first round opens the flows.
            let packets = if round == 0 { 2 * FLOWS as u32 } else { PACKETS };
            let rate = stand.send(&mut programs, packets)?;
            if round > 0 {
                figures.push(rate);
            }
        }
    }
    let of = |side: Side| {
        stands
            .iter()
            .position(|stand| stand.side == side)
            .map(|at| &figures[at])
    };
    let nft = of(Side::Nft).context("nft")?;
    let mut rows = Vec::new();
    for side in Side::ALL {
        let name = format!("{}, {FLOWS} flows", side.name());
        let row = match (side, of(side)) {
            (_, None) => Row::missing(&name, lacking.as_deref().unwrap_or_default()),
            (Side::Plain | Side::Nft, Some(figures)) => Row::plain(&name, "Mpps", figures),
            (Side::Iptables, Some(figures)) => Row::beside(&name, "Mpps", figures, "nft", nft),
            (Side::Tc, Some(figures)) => Row::ratio(&name, "Mpps", figures, "nft", nft, Bound::AtLeast(1.35)),
            (Side::Xdp, Some(figures)) => Row::ratio(&name, "Mpps", figures, "nft", nft, Bound::AtLeast(4.0)),
        };
        rows.push(row);
    }
    Ok(Report {
        section: "forward",
        about: "Packets a second through a node of one uplink, UDP of 96 bytes, on one processor, generator and sink included. One Service of \
                ten backends; that of iptables has the chains that kube-proxy would give it, in the nat table alone.",
        rows,
    })
}

impl Stand {
    fn new(side: Side) -> Result<Self> {
        let world = World::builder().pods_per_node(0).build();
        let node = world.node(1);
        let port = format!("p-{}", node.name);
        // Frames of XDP are not to meet sums that are yet to be computed, and nobody is told of a shorter way.
        world.fabric.tx_checksum(&port, false);
        // Only a veth that polls takes frames without socket buffers; XDP alone would switch it on by itself.
        node.ns.ok(&["ethtool", "-K", &node.uplink, "gro", "on"]);
        node.ns.sysctls(&[
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.eth0.send_redirects", "0"),
        ]);
        let other = world.node(2);
        node.ns.ip(&format!(
            "neigh replace {} lladdr 02:31:00:00:00:0c dev eth0 nud permanent",
            other.ip4
        ));
        let folder = Folder::new();
        let agent = match side {
            Side::Plain => None,
            Side::Nft => {
                node.ns.nft(&nft_rules());
                None
            }
            Side::Iptables => {
                let backends = (0..usize::from(BACKENDS)).map(backend).collect();
                let frontend = Frontend {
                    protocol: "udp",
                    at: SocketAddr::from(FRONTEND),
                    backends,
                };
                iptables::put(&node.ns, &[frontend])?;
                None
            }
            Side::Tc => Some("off"),
            Side::Xdp => Some("native"),
        };
        let agent = agent.map(|xdp| {
            world
                .nodes()
                .iter()
                .for_each(|node| folder.put(&NodeObject::from(node)));
            put_service(&folder);
            let mut agent = Agent::start(node, &folder, &["--xdp", xdp]);
            agent.wait_ready();
            agent
        });
        let index = world.fabric.ifindex(&port).context("the uplink's far end")?;
        Ok(Self {
            side,
            _agent: agent,
            _folder: folder,
            world,
            device: (index, port),
        })
    }

    /// Sends packets, the flows in turn; a million packets a second that came back as they should.
    fn send(&self, programs: &mut Programs, packets: u32) -> Result<f64> {
        let frames = Frames::new(false, Kind::Udp, LENGTH);
        for flow in 0..FLOWS {
            let to = match self.side {
                Side::Plain => backend(flow),
                Side::Nft | Side::Iptables | Side::Tc | Side::Xdp => SocketAddr::from(FRONTEND),
            };
            programs.put(flow, &frames.between(client(flow), to));
        }
        let (nanoseconds, arrived) = self.world.fabric.run(|| -> Result<_> {
            processors::pin(0..1)?;
            programs.send(self.device.0, &frames.first(), FLOWS as u64, packets, to_a_backend())
        })?;
        ensure!(
            arrived * 10 >= u64::from(packets) * 9,
            "{}: of {packets} packets only {arrived} came back translated",
            self.side.name()
        );
        Ok(arrived as f64 * 1e3 / nanoseconds)
    }
}

/// A packet to a backend, whoever it is said to come from.
fn to_a_backend() -> Sign {
    let anyone = End::within(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0, 0, 0);
    Sign::between(anyone, End::within(backend(0).ip(), 24, BACKEND_PORT, 16))
}

/// An outside client of its own for each flow: 1,024 ports an address.
fn client(flow: usize) -> SocketAddr {
    let [high, low] = ((flow / 1024) as u16).to_be_bytes();
    SocketAddr::from(([198, 18, high, low], 1024 + (flow % 1024) as u16))
}

fn backend(flow: usize) -> SocketAddr {
    SocketAddr::from(([10, 244, 2, 10 + (flow % usize::from(BACKENDS)) as u8], BACKEND_PORT))
}

fn put_service(folder: &Folder) {
    let (address, port) = (SocketAddr::from(FRONTEND).ip().to_string(), FRONTEND.1);
    folder.put(
        &service("default", "bench")
            .cluster_ip("10.96.0.10")
            .port("udp", port, "UDP")
            .target_port(BACKEND_PORT)
            .load_balancer_ip(&address),
    );
    let object = slice("default", "bench-1", "bench").port_of("udp", BACKEND_PORT, "UDP");
    let backends = (0..usize::from(BACKENDS)).map(|number| backend(number).ip());
    folder.put(&backends.fold(object, |object, backend| object.endpoint(backend).node("node2")));
}

/// The same Service as rules: no more than it takes, and no more than one look-up.
fn nft_rules() -> String {
    let (frontend, port) = (SocketAddr::from(FRONTEND).ip(), FRONTEND.1);
    let backends: Vec<String> = (0..usize::from(BACKENDS))
        .map(|number| format!("{number} : {} . {BACKEND_PORT}", backend(number).ip()))
        .collect();
    format!(
        "table ip bench {{\nchain pre {{\ntype nat hook prerouting priority dstnat;\n\
         ip daddr {frontend} udp dport {port} dnat ip to numgen random mod {BACKENDS} map {{ {} }}\n}}\n\
         chain post {{\ntype nat hook postrouting priority srcnat;\nct status dnat masquerade\n}}\n}}\n",
        backends.join(", ")
    )
}
