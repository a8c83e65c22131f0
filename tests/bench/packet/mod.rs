//! `packet`: nanoseconds a packet inside the kernel, as ratios to what the kernel's own hash costs at that moment.
//!
//! In: the agent's own programs on its own tables, in a world of its own. Each round makes a million flows from nothing, opens them,
//! and sends packets of one to a million of them, forward and back; the yardsticks are taken in the same round:
//! `L(n)`, one look-up in a kernel LRU hash among n keys of 16 bytes, and `I`, one insertion there, a million of them.
//!
//! At XDP the same flows are met by the same tables; what it costs a frame is measured by a loop of its own.
//! Of a row the loop around it is taken off (writing the frame, measured with a target that does nothing, at the same number of
//! frames) and the yardsticks' bare loop is put on, so that both sides of a ratio hold the same loop.

mod flood;
mod rows;
mod scene;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use steerway::flows::Flow;

use self::scene::{BACKEND_PORT, MOST_FLOWS, Scene, TABLE_FLOWS, client, frontend};
use crate::figures::Figures;
use crate::frames::{Frames, Kind};
use crate::programs::{Place, Programs, Sign, Target, agents};
use crate::report::Report;

/// Numbers of flows that rows are taken at.
pub(crate) const SIZES: [usize; 4] = [1, 1_000, 64_000, MOST_FLOWS];
/// Packets of a row.
const PACKETS: u32 = 1 << 20;
/// Refusals of a row: fewer than a second may have.
const REFUSALS: u32 = 1 << 17;
/// Bytes of a frame.
const LENGTH: usize = 96;
/// Services beside the one that is measured.
const FEW: u16 = 9;
const MANY: u16 = 9_999;
/// Flows of the comparison between few and many Services.
const HOT: usize = 1_000;

/// Hooks that see what is no Service's.
const HOOKS: [&str; 5] = ["uplink_xdp", "uplink_in", "uplink_out", "pod_in", "pod_out"];

/// Figures by name.
type All = BTreeMap<String, Figures>;

/// Measures.
pub(crate) fn run(rounds: usize) -> Result<Report> {
    let floods = flood::run()?;
    let few = Scene::new(FEW, TABLE_FLOWS)?;
    let many = Scene::new(MANY, TABLE_FLOWS)?;
    let mut all = All::new();
    for round in 1..=rounds {
        eprintln!("packet: round {round} of {rounds}");
        in_scene(&few, |ifindex| one_round(&few, ifindex, &mut all))?;
        in_scene(&many, |ifindex| hot_flows(&many, ifindex, "10,000 Services", &mut all))?;
        in_scene(&few, |ifindex| hot_flows(&few, ifindex, "10 Services", &mut all))?;
    }
    let mut report = rows::report(&all);
    report.rows.extend(floods);
    Ok(report)
}

/// In the first node's namespace, on one processor; the index is its uplink's.
fn in_scene<T: Send>(scene: &Scene, work: impl FnOnce(u32) -> Result<T> + Send) -> Result<T> {
    let node = scene.world.node(1);
    let ifindex = node.ns.ifindex(&node.uplink).context("the node's uplink")?;
    node.ns.run(|| {
        let mut one = CpuSet::new();
        one.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        work(ifindex)
    })
}

/// What is sent and where it shows that it was translated.
#[derive(Clone, Copy)]
struct Traffic {
    v6: bool,
    kind: Kind,
}

impl Traffic {
    fn name(self) -> &'static str {
        match (self.kind, self.v6) {
            (Kind::Tcp(_), false) => "TCP v4",
            (Kind::Tcp(_), true) => "TCP v6",
            (Kind::Udp, false) => "UDP v4",
            (Kind::Udp, true) => "UDP v6",
        }
    }

    /// The same flows' packets with these flags; datagrams have none.
    fn flags(self, flags: &'static str) -> Kind {
        match self.kind {
            Kind::Tcp(_) => Kind::Tcp(flags),
            Kind::Udp => Kind::Udp,
        }
    }

    /// A port of the packet, as it must be.
    fn port(self, offset: usize, port: u16) -> Sign {
        let (mut mask, mut value) = ([0; 8], [0; 8]);
        mask[offset..offset + 2].fill(0xff);
        value[offset..offset + 2].copy_from_slice(&port.to_be_bytes());
        Sign {
            offset: if self.v6 { 50 } else { 30 },
            mask,
            value,
        }
    }

    fn source_port(self, port: u16) -> Sign {
        self.port(4, port)
    }

    fn destination_port(self, port: u16) -> Sign {
        self.port(6, port)
    }

    /// The destination's port is a backend's.
    fn to_a_backend(self) -> Sign {
        let mut sign = self.destination_port(BACKEND_PORT);
        sign.mask[7] = 0xf0;
        sign
    }
}

/// The ends of every flow's packets: forward and back.
type Ends = Vec<(SocketAddr, SocketAddr)>;

fn lay_out(programs: &Programs, frames: &Frames, ends: &[(SocketAddr, SocketAddr)]) {
    for (number, (from, to)) in ends.iter().enumerate() {
        programs.put(number, &frames.between(*from, *to));
    }
}

/// Packets of a row: each flow at least once.
fn repeat(flows: usize) -> u32 {
    PACKETS.max(flows as u32)
}

fn one_round(scene: &Scene, ifindex: u32, all: &mut All) -> Result<()> {
    let mut note = |name: String, figure: f64| all.entry(name).or_default().push(figure);
    let mut programs = Programs::load(ifindex)?;
    note(
        "I".to_owned(),
        programs.yardstick("lru_insert", MOST_FLOWS as u64, PACKETS)?,
    );
    for flows in SIZES {
        note(
            format!("L({flows})"),
            programs.yardstick("lru_lookup", flows as u64, PACKETS)?,
        );
    }
    note(
        "loop".to_owned(),
        programs.yardstick("bare_loop", MOST_FLOWS as u64, PACKETS)?,
    );
    note(
        "checksums".to_owned(),
        programs.yardstick("checksums", MOST_FLOWS as u64, PACKETS)?,
    );
    for kind in [Kind::Tcp("S"), Kind::Udp] {
        for v6 in [false, true] {
            let traffic = Traffic { v6, kind };
            let name = traffic.name();
            let table = scene.table_id(v6)?;
            let incoming = Incoming {
                tc: agents("uplink_in", table)?,
                xdp: agents("uplink_xdp", table)?,
            };
            let forward: Ends = (0..MOST_FLOWS)
                .map(|number| (client(v6, number), frontend(v6)))
                .collect();
            let frames = Frames::new(v6, kind, LENGTH);
            let first = frames.first();

            lay_out(&programs, &frames, &forward);
            let out = traffic.to_a_backend();
            for (place, target) in incoming.both() {
                let nothing = programs.nothing(place)?;
                for flows in SIZES {
                    let empty = programs.packets(&nothing, &first, flows as u64, repeat(flows), None)?;
                    note(format!("{place:?} empty {name} {flows}"), empty);
                }
                scene.clear();
                let new = programs.packets(target, &first, MOST_FLOWS as u64, PACKETS, Some(out))?;
                note(format!("{place:?} new {name}"), new);
            }

            let started = Instant::now();
            let flows = scene.flows();
            let took = started.elapsed().as_secs_f64() * 1e3;
            note(format!("dump {name}"), took);
            ensure!(
                flows.len() >= MOST_FLOWS - MOST_FLOWS / 2000,
                "{} of {MOST_FLOWS} flows stand",
                flows.len()
            );
            let (forward, back) = standing(&flows)?;
            drop(flows);

            let restored = traffic.source_port(frontend(v6).port());
            for (ends, sign, flags) in [(&back, restored, "SA"), (&forward, out, "A")] {
                let frames = Frames::new(v6, traffic.flags(flags), LENGTH);
                lay_out(&programs, &frames, ends);
                programs.packets(&incoming.tc, &frames.first(), MOST_FLOWS as u64, PACKETS, Some(sign))?;
            }
            let established = Frames::new(v6, traffic.flags("A"), LENGTH);
            let first = established.first();
            for (direction, ends, sign) in [("forward", &forward, out), ("reply", &back, restored)] {
                lay_out(&programs, &established, ends);
                for flows in SIZES {
                    for (place, target) in incoming.both() {
                        // What a second without packets leaves to be noted is noted first.
                        programs.packets(target, &first, flows as u64, flows as u32, Some(sign))?;
                        let cost = programs.packets(target, &first, flows as u64, repeat(flows), Some(sign))?;
                        note(format!("{place:?} {direction} {name} {flows}"), cost);
                    }
                }
            }
            note(format!("sweep {name}"), scene.sweep()?);
            if kind != Kind::Udp {
                strangers(&mut programs, scene, traffic, &mut note)?;
                for (place, target) in incoming.both() {
                    refused(&mut programs, place, target, traffic, &mut note)?;
                }
            }
        }
    }
    Ok(())
}

/// The programs at an uplink's ingress.
struct Incoming {
    tc: Target,
    xdp: Target,
}

impl Incoming {
    fn both(&self) -> [(Place, &Target); 2] {
        [(Place::Tc, &self.tc), (Place::Xdp, &self.xdp)]
    }
}

/// The ends of the packets of flows and of their replies, in the order of their clients' numbers. Where a flow was displaced, its
/// neighbour stands: a packet of it would begin it anew.
fn standing(flows: &[Flow]) -> Result<(Ends, Ends)> {
    let mut places = vec![None; MOST_FLOWS];
    for flow in flows {
        *places.get_mut(number(flow.client)).context("a client of ours")? = Some(flow);
    }
    let mut neighbour = *flows.first().context("no flow stands")?;
    let (mut forward, mut back) = (Ends::with_capacity(MOST_FLOWS), Ends::with_capacity(MOST_FLOWS));
    for place in places {
        neighbour = *place.unwrap_or(&neighbour);
        forward.push((neighbour.client, neighbour.frontend));
        back.push((neighbour.backend, neighbour.source));
    }
    Ok((forward, back))
}

/// The number of a client.
fn number(client: SocketAddr) -> usize {
    let host = match client.ip() {
        IpAddr::V4(address) => u16::from_be_bytes([address.octets()[2], address.octets()[3]]),
        IpAddr::V6(address) => address.segments()[7],
    };
    usize::from(host) * 1024 + usize::from(client.port()) - 1024
}

/// Packets that are no Service's.
fn strangers(
    programs: &mut Programs,
    scene: &Scene,
    traffic: Traffic,
    note: &mut impl FnMut(String, f64),
) -> Result<()> {
    const PORT: u16 = 443;
    let frames = Frames::new(traffic.v6, traffic.flags("A"), LENGTH);
    let to = SocketAddr::new(scene.world.node(2).ip_like(frontend(traffic.v6).ip()), PORT);
    lay_out(programs, &frames, &[(client(traffic.v6, 0), to)]);
    for hook in HOOKS {
        let target = agents(hook, scene.table_id(traffic.v6)?)?;
        let sign = traffic.destination_port(PORT);
        let cost = programs.packets(&target, &frames.first(), 1, PACKETS, Some(sign))?;
        note(format!("stranger {} {hook}", traffic.name()), cost);
    }
    Ok(())
}

/// Connections to a port that a ClusterIP does not have.
fn refused(
    programs: &mut Programs,
    place: Place,
    incoming: &Target,
    traffic: Traffic,
    note: &mut impl FnMut(String, f64),
) -> Result<()> {
    const PORT: u16 = 81;
    // As long as the reset is.
    let frames = Frames::new(traffic.v6, Kind::Tcp("S"), if traffic.v6 { 74 } else { 54 });
    let cluster: IpAddr = if traffic.v6 { "fd00:10:96::10" } else { "10.96.0.10" }.parse()?;
    lay_out(
        programs,
        &frames,
        &[(client(traffic.v6, 0), SocketAddr::new(cluster, PORT))],
    );
    let sign = traffic.source_port(PORT);
    let cost = programs.packets(incoming, &frames.first(), 1, REFUSALS, Some(sign))?;
    note(format!("{place:?} refused {}", traffic.name()), cost);
    Ok(())
}

/// The same hot flows, over however many Services the scene has; new and established.
fn hot_flows(scene: &Scene, ifindex: u32, label: &str, all: &mut All) -> Result<()> {
    let mut note = |name: String, figure: f64| all.entry(name).or_default().push(figure);
    let mut programs = Programs::load(ifindex)?;
    let traffic = Traffic {
        v6: false,
        kind: Kind::Tcp("S"),
    };
    let incoming = agents("uplink_in", scene.table_id(false)?)?;
    scene.clear();
    let ends: Ends = (0..HOT)
        .map(|number| (client(false, number), frontend(false)))
        .collect();
    let sign = traffic.to_a_backend();
    for (flags, name) in [("S", "opened"), ("A", "hot")] {
        let frames = Frames::new(false, Kind::Tcp(flags), LENGTH);
        lay_out(&programs, &frames, &ends);
        programs.packets(&incoming, &frames.first(), HOT as u64, HOT as u32, Some(sign))?;
        let cost = programs.packets(&incoming, &frames.first(), HOT as u64, PACKETS, Some(sign))?;
        note(format!("{name} {label}"), cost);
    }
    Ok(())
}
