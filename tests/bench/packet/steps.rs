//! Where the time of an established packet goes: packets that the agent's own programs let go of after some of their steps.
//!
//! Parsing and the two bit-sets are what a packet costs that is no Service's. A reply that applies at another hook (its backend is on
//! this node, and it comes in by the uplink) is let go after the flow look-up. At tc a packet to a backend of this node is
//! rewritten and given to the stack: all but the way out. At XDP a frame that was sent to another host's address is left to tc once
//! the way out is known: all but the rewrite. That they end there, and not earlier, the reasons' counters tell.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_common::verdict::Reason;
use steerway::maps::MapStore as _;

use super::sample::{by_bare_loop, packets};
use super::scene::{BACKEND_PORT, Scene, client, near, to_clients};
use super::{All, Ends, Incoming, LENGTH, SIZES, before, from_a_frontend, lay_out, settled};
use crate::frames::{Frames, Kind};
use crate::programs::{End, Programs, Sign, Target, agents};

/// The traffic that is taken apart.
pub(super) const TRAFFIC: &str = "TCP v4";
/// Numbers of flows.
pub(super) const FLOWS: [usize; 2] = [SIZES[0], SIZES[2]];

/// `far`: the ends of forward packets of flows that stand; afterwards others stand.
pub(super) fn measure(
    programs: &mut Programs,
    scene: &Scene,
    incoming: &Incoming,
    far: &Ends,
    all: &mut All,
) -> Result<()> {
    let most = FLOWS[1];
    let clients = to_clients(false);
    let mut part = |programs: &mut Programs, part: &Part<'_>| part.measure(programs, scene, all);
    part(
        programs,
        &Part {
            name: "Xdp way out",
            frames: &Frames::of_others(false, Kind::Tcp("A"), LENGTH),
            ends: &far[..most],
            target: &incoming.xdp,
            sign: Sign::between(clients, End::exactly(far[0].1)),
            reason: Reason::HandedOver,
        },
    )?;

    scene.clear();
    let frontend = near(false);
    let pod = End::within(scene.world.node(1).pods[0].ip_like(frontend.ip()), 32, BACKEND_PORT, 16);
    let forward: Ends = (0..most).map(|number| (client(false, number), frontend)).collect();
    let arrived = Sign::between(clients, pod);
    send(programs, &incoming.tc, "S", &forward, arrived)?;
    let flows = scene.flows();
    ensure!(
        flows.len() == most,
        "{} of {most} flows to this node stand",
        flows.len()
    );
    let back: Ends = flows.iter().map(|flow| (flow.backend, flow.source)).collect();
    let way_back = agents("pod_out", scene.table_id(false)?)?;
    send(programs, &way_back, "SA", &back, from_a_frontend(frontend))?;
    send(programs, &incoming.tc, "A", &forward, arrived)?;
    let frames = &Frames::new(false, Kind::Tcp("A"), LENGTH);
    for (name, target) in [("Tc look-up", &incoming.tc), ("Xdp look-up", &incoming.xdp)] {
        part(
            programs,
            &Part {
                name,
                frames,
                ends: &back,
                target,
                sign: Sign::between(pod, clients),
                reason: Reason::OtherHook,
            },
        )?;
    }
    part(
        programs,
        &Part {
            name: "Tc rewrite",
            frames,
            ends: &forward,
            target: &incoming.tc,
            sign: arrived,
            reason: Reason::Forward,
        },
    )
}

/// Packets that end after some of the steps, with a sign and by a reason.
struct Part<'a> {
    name: &'static str,
    frames: &'a Frames,
    ends: &'a [(SocketAddr, SocketAddr)],
    target: &'a Target,
    sign: Sign,
    reason: Reason,
}

impl Part<'_> {
    fn measure(&self, programs: &mut Programs, scene: &Scene, all: &mut All) -> Result<()> {
        let counted = || -> Result<u64> { Ok(scene.store.reasons()?[self.reason as usize]) };
        lay_out(programs, self.frames, self.ends);
        for flows in FLOWS {
            let first = self.frames.first();
            let already = counted()?;
            let cost = by_bare_loop(programs, self.target.place(), &first, flows, |programs| {
                settled(programs, self.target, &first, flows, self.sign)
            })?;
            let (ended, sent) = (counted()? - already, u64::from(before(flows) + packets(flows)));
            ensure!(
                ended >= sent,
                "{}: of {sent} packets {ended} ended by {:?}",
                self.name,
                self.reason
            );
            all.note(format!("{} {TRAFFIC} {flows}", self.name), cost);
        }
        Ok(())
    }
}

/// Sends one packet of each flow.
fn send(programs: &mut Programs, target: &Target, flags: &'static str, ends: &Ends, sign: Sign) -> Result<()> {
    let frames = Frames::new(false, Kind::Tcp(flags), LENGTH);
    lay_out(programs, &frames, ends);
    let count = ends.len();
    programs.packets(target, &frames.first(), count as u64, count as u32, Some(sign))?;
    Ok(())
}
