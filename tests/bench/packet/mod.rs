//! `packet`: nanoseconds per packet inside the kernel, as ratios to what the kernel's own hash costs at that moment.
//!
//! In: the agent's own programs on its own tables, in worlds of their own. Each round makes a million flows from nothing, opens them,
//! and sends packets of one to a million of them, forward and back, for each kind of traffic; the yardsticks are taken beside each kind:
//! `L(n)`, one look-up in a kernel LRU hash among n keys of 16 bytes, spread over a million that stand there, and `I`, one insertion there,
//! a million of them. (Look-ups in the order of insertion walk through the kernel's memory, which a processor foresees; packets do not come
//! so. Nor does a processor begin the next packet before it has done with this one, as it does with bare look-ups. Both are shown beside it.) What no design can go below is measured too: one of n lines of memory that a hash picks, and, for sweep and dump, a word of each slot of the tables.
//!
//! At XDP the same flows are met by the same tables; what it costs a frame is measured by a loop of its own.
//! Of a row the loop around it is taken off (writing the frame, measured with a target that does nothing, at the same number of
//! frames) and the yardsticks' bare loop is put on, so that both sides of a ratio hold the same loop. Every packet but the last of a
//! row is looked at: addresses and ports must be those of a translated one. Rows are taken several times a round, one after the other, each time
//! beside their yardstick (`sample`). Flows that stand have been noted just before.

mod flood;
mod programs;
mod rows;
mod sample;
mod scene;
mod services;
mod steps;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use steerway::flows::Flow;

use self::sample::{SAMPLES, Sampled, Samples, around, by_bare_loop, packets};
use self::scene::{MOST_FLOWS, OTHERS_HOSTS, Scene, TABLE_FLOWS, client, cluster, frontend, to_backends, to_clients};
use crate::figures::Figures;
use crate::frames::{Frames, Kind};
use crate::processors;
use crate::programs::{End, Place, Programs, Sign, Target, agents};
use crate::report::Report;

pub(crate) use self::rows::{established_row, services_row, yardstick_row};
pub(crate) use self::services::NUMBERS as SERVICES;

/// Numbers of flows that rows are taken at.
pub(crate) const SIZES: [usize; 4] = [1, 1_000, 64_000, MOST_FLOWS];
/// Packets that begin as many flows.
const PACKETS: u32 = MOST_FLOWS as u32;
/// Refusals of a row: fewer than a second may have.
const REFUSALS: u32 = 1 << 17;
/// Bytes of a frame.
const LENGTH: usize = 96;
/// Services beside the one that is measured, where their number is not what is asked.
const FEW: u16 = 9;

/// Threads that read the tables at once, to see what sweep and dump cannot go below.
const READERS: [usize; 2] = [1, 2];

/// Hooks that see what is no Service's.
const HOOKS: [&str; 5] = ["uplink_xdp", "uplink_in", "uplink_out", "pod_in", "pod_out"];

/// Figures by name.
#[derive(Default)]
struct All(BTreeMap<String, Figures>);

impl All {
    fn note(&mut self, name: String, figure: f64) {
        self.0.entry(name).or_default().push(figure);
    }

    fn of(&self, name: &str) -> &Figures {
        self.0.get(name).unwrap_or_else(|| panic!("no figures of {name}"))
    }
}

/// Measures.
pub(crate) fn run(rounds: usize) -> Result<Report> {
    let costs = programs::rows();
    let floods = flood::run()?;
    let scene = Scene::new(FEW, OTHERS_HOSTS, TABLE_FLOWS)?;
    let snug = Scene::new(FEW, OTHERS_HOSTS, MOST_FLOWS)?;
    let services = services::scenes()?;
    let mut all = All::default();
    for round in 1..=rounds {
        eprintln!("packet: round {round} of {rounds}");
        let mut programs = Programs::load(0)?;
        in_scene(&scene, |ifindex| {
            programs.on(ifindex);
            one_round(&mut programs, &scene, &mut all)
        })?;
        in_scene(&snug, |ifindex| {
            programs.on(ifindex);
            [false, true]
                .into_iter()
                .try_for_each(|v6| full_table(&mut programs, &snug, v6, &mut all))
        })?;
        services::measure(&mut programs, &services, &mut all)?;
    }
    let mut report = rows::report(&all);
    report.rows.extend(costs);
    report.rows.extend(floods);
    Ok(report)
}

/// In the first node's namespace, on one processor; the index is its uplink's.
fn in_scene<T: Send>(scene: &Scene, work: impl FnOnce(u32) -> Result<T> + Send) -> Result<T> {
    let node = scene.world.node(1);
    let ifindex = node.ns.ifindex(&node.uplink).context("the node's uplink")?;
    node.ns.run(|| {
        processors::pin(0..1)?;
        work(ifindex)
    })
}

/// Works in a thread that may run on any processor, as the agent's threads do and those that they start.
fn by_all_processors<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    processors::on(processors::all()?, work)?
}

/// What is sent.
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
}

/// The ends of every flow's packets: forward and back.
type Ends = Vec<(SocketAddr, SocketAddr)>;

fn lay_out(programs: &Programs, frames: &Frames, ends: &[(SocketAddr, SocketAddr)]) {
    for (number, (from, to)) in ends.iter().enumerate() {
        programs.put(number, &frames.between(*from, *to));
    }
}

/// A packet of a client that goes to a backend of `bench`.
fn to_a_backend(scene: &Scene, v6: bool) -> Sign {
    Sign::between(scene.own_source(v6), to_backends(v6))
}

/// A packet that goes back to a client from a frontend.
fn from_a_frontend(frontend: SocketAddr) -> Sign {
    Sign::between(End::exactly(frontend), to_clients(frontend.is_ipv6()))
}

/// What the kernel's hash costs at this moment: a million insertions into an empty one.
fn insertions(programs: &mut Programs) -> Result<f64> {
    programs.yardstick("lru_delete", MOST_FLOWS as u64, PACKETS)?;
    programs.yardstick("lru_insert", MOST_FLOWS as u64, PACKETS)
}

/// What look-ups there cost beside a kind of traffic, the bare loop, and the helpers that mend checksums at tc.
fn look_ups(programs: &mut Programs, traffic: Traffic, all: &mut All) -> Result<()> {
    let name = traffic.name();
    for flows in SIZES {
        for (what, program) in [
            ("L", "lru_lookup"),
            ("in turn", "lru_lookup_in_turn"),
            ("in order", "lru_lookup_in_order"),
            ("line", "line"),
        ] {
            let cost = programs.yardstick(program, flows as u64, PACKETS)?;
            all.note(format!("{what}({flows}) {name}"), cost);
        }
    }
    let entering = if traffic.v6 { "two_entries_v6" } else { "two_entries_v4" };
    let entries = programs.yardstick(entering, MOST_FLOWS as u64, PACKETS)?;
    all.note(format!("entries {name}"), entries);
    all.note(format!("loop {name}"), sample::bare_loop(programs)?);
    all.note(format!("checksums {name}"), sample::checksums(programs)?);
    Ok(())
}

fn one_round(programs: &mut Programs, scene: &Scene, all: &mut All) -> Result<()> {
    for kind in [Kind::Tcp("S"), Kind::Udp] {
        for v6 in [false, true] {
            one_kind(programs, scene, Traffic { v6, kind }, all)?;
        }
    }
    Ok(())
}

/// All rows of a kind of traffic.
fn one_kind(programs: &mut Programs, scene: &Scene, traffic: Traffic, all: &mut All) -> Result<()> {
    let Traffic { v6, kind } = traffic;
    let name = traffic.name();
    let incoming = Incoming::of(scene, v6)?;
    let forward: Ends = (0..MOST_FLOWS)
        .map(|number| (client(v6, number), frontend(v6)))
        .collect();
    let frames = Frames::new(v6, kind, LENGTH);
    let first = frames.first();

    lay_out(programs, &frames, &forward);
    let out = to_a_backend(scene, v6);
    for (place, target) in incoming.both() {
        for flows in SIZES {
            let empty = around(programs, place, &first, flows)?;
            all.note(format!("{place:?} empty {name} {flows}"), empty);
        }
        scene.clear();
        let insertion = insertions(programs)?;
        let new = by_bare_loop(programs, place, &first, MOST_FLOWS, |programs| {
            programs.packets(target, &first, MOST_FLOWS as u64, PACKETS, Some(out))
        })?;
        all.note(format!("{place:?} I {name}"), insertion);
        all.note(format!("{place:?} new {name}"), new);
    }

    all.note(format!("dump {name}"), by_all_processors(|| Ok(scene.dump()))?);
    let flows = scene.flows();
    ensure!(
        flows.len() >= MOST_FLOWS - MOST_FLOWS / 2000,
        "{} of {MOST_FLOWS} flows stand",
        flows.len()
    );
    let (forward, back) = standing(&flows)?;
    drop(flows);

    let restored = from_a_frontend(frontend(v6));
    for (ends, sign, flags) in [(&back, restored, "SA"), (&forward, out, "A")] {
        let frames = Frames::new(v6, traffic.flags(flags), LENGTH);
        lay_out(programs, &frames, ends);
        programs.packets(&incoming.tc, &frames.first(), MOST_FLOWS as u64, PACKETS, Some(sign))?;
    }
    look_ups(programs, traffic, all)?;
    let established = Frames::new(v6, traffic.flags("A"), LENGTH);
    let first = established.first();
    let mut samples = Samples::default();
    for _ in 0..SAMPLES {
        for (direction, ends, sign) in [("forward", &forward, out), ("reply", &back, restored)] {
            lay_out(programs, &established, ends);
            for flows in SIZES {
                scene.note_all()?;
                for (place, target) in incoming.both() {
                    let row = Sampled {
                        name: format!("{place:?} {direction} {name} {flows}"),
                        place,
                        first: &first,
                        flows,
                        mends: true,
                    };
                    row.sample(programs, &mut samples, |programs| {
                        settled(programs, target, &first, flows, sign)
                    })?;
                }
            }
        }
    }
    samples.note(all);
    all.note(format!("sweep {name}"), by_all_processors(|| scene.sweep())?);
    for threads in READERS {
        all.note(format!("words {name} {threads}"), scene.words(threads)?);
    }
    for (place, target) in incoming.both() {
        let cost = refused(programs, target, traffic)?;
        all.note(format!("{place:?} refused {name}"), cost);
    }
    if kind != Kind::Udp {
        strangers(programs, scene, traffic, all)?;
    }
    if name == steps::TRAFFIC {
        steps::measure(programs, scene, &incoming, &forward, all)?;
    }
    Ok(())
}

/// Dump and sweep of a table that was made for the flows it holds, and a word of each of its slots.
fn full_table(programs: &mut Programs, scene: &Scene, v6: bool, all: &mut All) -> Result<()> {
    let frames = Frames::new(v6, Kind::Tcp("S"), LENGTH);
    let ends: Ends = (0..MOST_FLOWS)
        .map(|number| (client(v6, number), frontend(v6)))
        .collect();
    lay_out(programs, &frames, &ends);
    scene.clear();
    let incoming = Incoming::of(scene, v6)?;
    let sign = to_a_backend(scene, v6);
    programs.count(&incoming.tc, &frames.first(), MOST_FLOWS as u64, PACKETS, sign)?;
    let flows = by_all_processors(|| Ok(scene.flows().len()))?;
    ensure!(
        flows >= MOST_FLOWS - MOST_FLOWS / 50,
        "{flows} of {MOST_FLOWS} flows stand in a table for as many"
    );
    let name = services::family(v6);
    all.note(format!("full dump {name}"), by_all_processors(|| Ok(scene.dump()))?);
    all.note(format!("full sweep {name}"), by_all_processors(|| scene.sweep())?);
    for threads in READERS {
        all.note(format!("full words {name} {threads}"), scene.words(threads)?);
    }
    Ok(())
}

/// Packets that flows have had just before a row, so that their backends' ways out are known.
fn before(flows: usize) -> u32 {
    const MOST: usize = 4_000;
    flows.min(MOST) as u32
}

/// Packets of flows that stand: [`before`], then those that are measured.
fn settled(programs: &mut Programs, target: &Target, first: &[u8], flows: usize, sign: Sign) -> Result<f64> {
    programs.packets(target, first, flows as u64, before(flows), Some(sign))?;
    programs.packets(target, first, flows as u64, packets(flows), Some(sign))
}

/// The programs at an uplink's ingress.
struct Incoming {
    tc: Target,
    xdp: Target,
}

impl Incoming {
    fn of(scene: &Scene, v6: bool) -> Result<Self> {
        let table = scene.table_id(v6)?;
        Ok(Self {
            tc: agents("uplink_in", table)?,
            xdp: agents("uplink_xdp", table)?,
        })
    }

    fn at(&self, place: Place) -> &Target {
        match place {
            Place::Tc => &self.tc,
            Place::Xdp => &self.xdp,
        }
    }

    fn both(&self) -> [(Place, &Target); 2] {
        [Place::Tc, Place::Xdp].map(|place| (place, self.at(place)))
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
fn strangers(programs: &mut Programs, scene: &Scene, traffic: Traffic, all: &mut All) -> Result<()> {
    const PORT: u16 = 443;
    let frames = Frames::new(traffic.v6, traffic.flags("A"), LENGTH);
    let from = client(traffic.v6, 0);
    let to = SocketAddr::new(scene.world.node(2).ip_like(frontend(traffic.v6).ip()), PORT);
    lay_out(programs, &frames, &[(from, to)]);
    let untouched = Sign::between(End::exactly(from), End::exactly(to));
    let first = frames.first();
    let table = scene.table_id(traffic.v6)?;
    let targets: Vec<_> = HOOKS.iter().map(|hook| agents(hook, table)).collect::<Result<_>>()?;
    let mut samples = Samples::default();
    for _ in 0..SAMPLES {
        for (hook, target) in HOOKS.iter().zip(&targets) {
            let row = Sampled {
                name: format!("stranger {} {hook}", traffic.name()),
                place: target.place(),
                first: &first,
                flows: 1,
                mends: false,
            };
            row.sample(programs, &mut samples, |programs| {
                programs.packets(target, &first, 1, packets(1), Some(untouched))
            })?;
        }
    }
    samples.note(all);
    Ok(())
}

/// Packets to a port that a ClusterIP does not have: a reset answers a segment, an ICMP error a datagram.
fn refused(programs: &mut Programs, incoming: &Target, traffic: Traffic) -> Result<f64> {
    const PORT: u16 = 81;
    let v6 = traffic.v6;
    // As long as the reset is.
    let frames = Frames::new(v6, traffic.kind, if v6 { 74 } else { 54 });
    let (from, to) = (client(v6, 0), SocketAddr::new(cluster(v6), PORT));
    lay_out(programs, &frames, &[(from, to)]);
    let first = frames.first();
    by_bare_loop(programs, incoming.place(), &first, 1, |programs| {
        if traffic.kind == Kind::Udp {
            // Type and code stand where a port would; an IP and an ICMP header come in front of what is quoted.
            let (unreachable, grown) = if v6 { (0x0104, 48) } else { (0x0303, 28) };
            let answered = Sign::between(
                End::within(to.ip(), 128, unreachable, 16),
                End::within(from.ip(), 128, 0, 0),
            );
            programs.answered(incoming, &first, grown, REFUSALS, answered)
        } else {
            let reset = Sign::between(End::exactly(to), End::exactly(from));
            programs.packets(incoming, &first, 1, REFUSALS, Some(reset))
        }
    })
}
