//! Runs the pipeline for a hook and a family that are known at run time only.

use std::net::IpAddr;

use super::{Buffer, Frame, HostTables, address};
use crate::access::TableFamily;
use crate::family::{V4, V6};
use crate::pipeline::{self, Hook};
use crate::verdict::{Action, Reason, Verdict};

/// What the pipeline decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the hook has to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// The device, for the actions that name one.
    pub ifindex: u32,
    /// The next hop, for [`Action::Neighbour`].
    pub next_hop: IpAddr,
}

/// Runs all stages for a packet of IPv6 or IPv4 whose IP header stands at `l3`; a hook that does not exist passes it. None of its
/// bytes are reached directly before a stage asks for them.
pub fn run(tables: &HostTables, hook: u8, v6: bool, l3: usize, packet: &mut Buffer) -> Outcome {
    packet.linear = 0;
    if v6 {
        family::<V6>(tables, hook, l3, packet)
    } else {
        family::<V4>(tables, hook, l3, packet)
    }
}

/// As [`run`], for a frame at an uplink's XDP hook.
pub fn run_early(tables: &HostTables, v6: bool, frame: &mut Frame) -> Outcome {
    if v6 {
        early::<V6>(tables, frame)
    } else {
        early::<V4>(tables, frame)
    }
}

/// Length of an Ethernet header.
const ETHERNET: usize = 14;

fn early<F: TableFamily>(tables: &HostTables, frame: &mut Frame) -> Outcome {
    outcome::<F>(&pipeline::process::<F, _, _, { Hook::UPLINK_IN }>(
        frame, &tables, ETHERNET,
    ))
}

fn family<F: TableFamily>(tables: &HostTables, hook: u8, l3: usize, packet: &mut Buffer) -> Outcome {
    let tables = &tables;
    let verdict = match hook {
        Hook::POD_IN => pipeline::process::<F, _, _, { Hook::POD_IN }>(packet, tables, l3),
        Hook::POD_OUT => pipeline::process::<F, _, _, { Hook::POD_OUT }>(packet, tables, l3),
        Hook::UPLINK_IN => pipeline::process::<F, _, _, { Hook::UPLINK_IN }>(packet, tables, l3),
        Hook::UPLINK_OUT => pipeline::process::<F, _, _, { Hook::UPLINK_OUT }>(packet, tables, l3),
        Hook::STEER_OUT => pipeline::process::<F, _, _, { Hook::STEER_OUT }>(packet, tables, l3),
        Hook::LO_OUT => pipeline::process::<F, _, _, { Hook::LO_OUT }>(packet, tables, l3),
        _ => Verdict::pass(Reason::NotOurs),
    };
    outcome::<F>(&verdict)
}

fn outcome<F: TableFamily>(verdict: &Verdict<F::Addr>) -> Outcome {
    Outcome {
        action: verdict.action,
        reason: verdict.reason,
        ifindex: verdict.ifindex,
        next_hop: address(F::V6, F::to_words(verdict.next_hop)),
    }
}
