//! Where the time of an established packet goes: packets that the agent's own programs let go of after some of their steps.
//!
//! Parsing and the two bit-sets are what a packet costs that is no Service's. A reply that applies at another hook (its backend is on
//! this node, and it comes in by the uplink) is let go after the flow look-up. At tc a packet to a backend of this node is
//! rewritten and given to the stack: all but the way out. At XDP a frame that was sent to another host's address is left to tc once
//! the way out is known: all but the rewrite. That they end there, and not earlier, the reasons' counters tell.

use anyhow::{Result, ensure};
use lb_common::verdict::Reason;
use steerway::maps::MapStore as _;

use super::scene::{BACKEND_PORT, Scene, client, near, to_clients};
use super::{All, Ends, Incoming, LENGTH, SIZES, from_a_frontend, lay_out, repeat, settled};
use crate::frames::{Frames, Kind};
use crate::programs::{End, Programs, Sign, Target, agents};

/// The traffic that is taken apart.
pub(super) const TRAFFIC: &str = "TCP v4";
/// Numbers of flows.
pub(super) const FLOWS: [usize; 2] = [SIZES[0], SIZES[2]];

/// `far`: the ends of forward packets of flows that stand.
pub(super) fn measure(
    programs: &mut Programs,
    scene: &Scene,
    incoming: &Incoming,
    far: &Ends,
    all: &mut All,
) -> Result<()> {
    let most = FLOWS[1];
    let frontend = near(false);
    let pod = scene.world.node(1).pods[0].ip_like(frontend.ip());
    let forward: Ends = (0..most).map(|number| (client(false, number), frontend)).collect();
    let clients = to_clients(false);
    let arrived = Sign::between(clients, End::within(pod, 32, BACKEND_PORT, 16));
    send(programs, &incoming.tc, "S", &forward, arrived)?;
    let flows = scene.flows();
    let ours = flows.iter().filter(|flow| flow.frontend == frontend);
    let back: Ends = ours.map(|flow| (flow.backend, flow.source)).collect();
    drop(flows);
    ensure!(back.len() == most, "{} of {most} flows to this node stand", back.len());
    let restored = from_a_frontend(frontend);
    let way_back = agents("pod_out", scene.table_id(false)?)?;
    send(programs, &way_back, "SA", &back, restored)?;
    send(programs, &incoming.tc, "A", &forward, arrived)?;

    let own = Frames::new(false, Kind::Tcp("A"), LENGTH);
    let others = Frames::of_others(false, Kind::Tcp("A"), LENGTH);
    let reply = Sign::between(End::within(pod, 32, BACKEND_PORT, 16), clients);
    let passed = Sign::between(clients, End::exactly(far[0].1));
    let parts: [(&str, &Frames, &Ends, &Target, Sign, Reason); 4] = [
        ("Tc look-up", &own, &back, &incoming.tc, reply, Reason::OtherHook),
        ("Xdp look-up", &own, &back, &incoming.xdp, reply, Reason::OtherHook),
        ("Tc rewrite", &own, &forward, &incoming.tc, arrived, Reason::Forward),
        ("Xdp way out", &others, far, &incoming.xdp, passed, Reason::HandedOver),
    ];
    for (name, frames, ends, target, sign, reason) in parts {
        lay_out(programs, frames, &ends[..most]);
        for flows in FLOWS {
            let before = counted(scene, reason)?;
            let cost = settled(programs, target, &frames.first(), flows, sign)?;
            let ended = counted(scene, reason)? - before;
            let sent = u64::from(repeat(flows)) + flows as u64;
            ensure!(ended >= sent, "{name}: of {sent} packets {ended} ended by {reason:?}");
            all.note(format!("{name} {TRAFFIC} {flows}"), cost);
        }
    }
    Ok(())
}

/// Sends one packet of each flow.
fn send(programs: &mut Programs, target: &Target, flags: &'static str, ends: &Ends, sign: Sign) -> Result<()> {
    let frames = Frames::new(false, Kind::Tcp(flags), LENGTH);
    lay_out(programs, &frames, ends);
    let count = ends.len();
    programs.packets(target, &frames.first(), count as u64, count as u32, Some(sign))?;
    Ok(())
}

/// Packets that ended by a reason so far.
fn counted(scene: &Scene, reason: Reason) -> Result<u64> {
    Ok(scene.store.reasons()?[reason as usize])
}
