//! One packet on both sides: what they say, and whether it is the same and the expected.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use lb_common::testing::Summed;
use lb_common::verdict::{Action, Reason};
use lb_tests::packet::{Decoded, diff};
use lb_tests::prog_run::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use steerway::datapath::load::ProgramName;

use super::case::{End, Step, is_bare};
use super::{ETHERNET, Given, World};

/// What both sides made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) frame: Vec<u8>,
    pub(super) end: End,
    pub(super) counts: BTreeMap<Reason, u64>,
}

/// Runs a program on one packet on both sides. The error says in what they differ.
pub(super) fn both(world: &World, program: ProgramName, given: &Given) -> Result<Outcome, String> {
    let mut wrong = String::new();
    let before = [world.kernel_counts(), world.host_counts()];
    let (buffer, decision) = world.host.run(program, given);
    // A trim makes the kernel give up the sum (`__skb_trim_rcsum`), but its test run compares the bytes with it all the same.
    let keeps_sum = matches!(buffer.summed(), Summed::Complete { .. });
    let mut output = world.kernel.run(
        program,
        &Given {
            summed: keeps_sum,
            ..given.clone()
        },
    )?;
    let counts = counted_since(world, &before, &mut wrong);

    if is_bare(program) && decision.action == Action::Neighbour {
        // The kernel wants a link header to take off before it makes the neighbour's.
        let (link, packet) = output.frame.split_at(ETHERNET.min(output.frame.len()));
        if link == [0; ETHERNET] {
            output.frame = packet.to_vec();
        } else {
            _ = writeln!(wrong, "no room for a link header: {link:02x?}");
        }
    }
    if let Some(text) = difference(program, buffer.bytes(), &output.frame) {
        _ = writeln!(wrong, "the kernel's packet is not the host's:\n{text}");
    }
    let (end, returned) = match decision.action {
        Action::Pass => (End::Next, TC_ACT_UNSPEC),
        Action::Drop | Action::Answer => (End::Drop, TC_ACT_SHOT),
        Action::Transmit | Action::Receive | Action::Deliver | Action::Neighbour => {
            (End::Redirect(decision.ifindex), TC_ACT_REDIRECT)
        }
    };
    if output.verdict != returned {
        _ = writeln!(wrong, "the kernel returned {}, the host {decision:?}", output.verdict);
    }
    if !buffer.sum_is_right() {
        _ = writeln!(wrong, "the host's sum over the whole packet is not that of its bytes");
    }
    if given.summed && !keeps_sum && buffer.bytes().len() == given.frame.len() {
        _ = writeln!(wrong, "the host gave up the sum of a packet that it did not trim");
    }
    if let Some(text) = world.flow_difference(&given.frame) {
        _ = writeln!(wrong, "{text}");
    }
    if wrong.is_empty() {
        Ok(Outcome {
            frame: output.frame,
            end,
            counts,
        })
    } else {
        Err(wrong)
    }
}

/// What the kernel has counted since `before`; says where the host has counted something else.
pub(super) fn counted_since(world: &World, before: &[Vec<u64>; 2], wrong: &mut String) -> BTreeMap<Reason, u64> {
    let kernel = delta(&before[0], &world.kernel_counts());
    let host = delta(&before[1], &world.host_counts());
    if kernel != host {
        _ = writeln!(wrong, "counted {kernel:?} by the kernel, {host:?} by the host");
    }
    kernel
}

/// Runs a step on both sides; says what differs from the step or between the sides. `summed`: a device has summed the packet.
pub(super) fn check(world: &World, step: &Step, summed: bool) -> Result<(), String> {
    let given = Given {
        summed,
        ..step.given.clone()
    };
    let outcome = both(world, step.program, &given)?;
    let mut wrong = String::new();
    let expected = step.becomes.as_ref().unwrap_or(&step.given.frame);
    if let Some(text) = difference(step.program, expected, &outcome.frame) {
        _ = writeln!(wrong, "not the expected packet:\n{text}");
    }
    if outcome.end != step.end {
        _ = writeln!(wrong, "ended in {:?}, not in {:?}", outcome.end, step.end);
    }
    if outcome.counts != step.counts {
        _ = writeln!(wrong, "counted {:?}, not {:?}", outcome.counts, step.counts);
    }
    if step.becomes.is_some() {
        wrong += &sums(step.program, &outcome.frame);
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// [`diff`] for a program's packets: where there is no Ethernet header, one is put before both.
fn difference(program: ProgramName, expected: &[u8], got: &[u8]) -> Option<String> {
    let framed = |bytes: &[u8]| {
        let ether_type: [u8; 2] = if bytes[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        [&[0; ETHERNET - 2], ether_type.as_slice(), bytes].concat()
    };
    if is_bare(program) {
        diff(&framed(expected), &framed(got))
    } else {
        diff(expected, got)
    }
}

/// Which checksums of a packet are wrong, by a parser that is not ours.
fn sums(program: ProgramName, bytes: &[u8]) -> String {
    let decoded = if is_bare(program) {
        Decoded::ip(bytes)
    } else {
        Decoded::frame(bytes)
    };
    match decoded {
        Ok(decoded) if decoded.sums_are_good() => String::new(),
        Ok(decoded) => format!("wrong checksums: {decoded:?}\n"),
        Err(error) => format!("not a packet: {error}\n"),
    }
}

pub(super) fn delta(before: &[u64], after: &[u64]) -> BTreeMap<Reason, u64> {
    Reason::ALL
        .iter()
        .map(|reason| (*reason, after[*reason as usize] - before[*reason as usize]))
        .filter(|(_, count)| *count > 0)
        .collect()
}
