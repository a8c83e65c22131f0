//! One case: objects, then packets, and what has to become of each; and the comparison of the two sides.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use lb_common::layout::config;
use lb_common::testing::Summed;
use lb_common::verdict::{Action, Reason};
use lb_tests::packet::{Checksum, Decoded, Packet, diff};
use lb_tests::prog_run::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use steerway::datapath::load::ProgramName;

use super::node::{BACKEND_VETH, CLIENT_VETH, LO, STEER, UPLINK};
use super::objects::Objects;
use super::{ETHERNET, Given, World};

/// How a program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// On to the next program.
    Next,
    /// Dropped.
    Drop,
    /// Out of a device, or into its receive path. The kernel does not tell the device, the host's pipeline does.
    Redirect(u32),
}

/// One packet of a case and what has to become of it.
#[derive(Clone, Debug)]
pub(super) struct Step {
    program: ProgramName,
    given: Given,
    end: End,
    becomes: Option<Vec<u8>>,
    counts: BTreeMap<Reason, u64>,
    new_objects: Option<Objects>,
}

/// A packet at a hook, which passes uncounted and untouched unless more is said.
pub(super) fn at(program: ProgramName, packet: &Packet) -> Step {
    let packet = if is_bare(program) {
        packet.clone().bare()
    } else {
        packet.clone()
    };
    at_frame(program, packet.build())
}

/// As [`at`], for bytes.
pub(super) fn at_frame(program: ProgramName, frame: Vec<u8>) -> Step {
    let (ifindex, ingress_ifindex) = match program {
        ProgramName::PodIn => (CLIENT_VETH, CLIENT_VETH),
        ProgramName::PodOut => (CLIENT_VETH, BACKEND_VETH),
        ProgramName::UplinkIn | ProgramName::L3In => (UPLINK, UPLINK),
        ProgramName::UplinkOut | ProgramName::L3Out => (UPLINK, BACKEND_VETH),
        ProgramName::SteerOut => (STEER, 0),
        ProgramName::LoOut => (LO, 0),
    };
    Step {
        program,
        given: Given {
            frame,
            ifindex,
            ingress_ifindex,
            segment_payload: 0,
            summed: false,
        },
        end: End::Next,
        becomes: None,
        counts: BTreeMap::new(),
        new_objects: None,
    }
}

fn is_bare(program: ProgramName) -> bool {
    matches!(program, ProgramName::L3In | ProgramName::L3Out)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decoded = if is_bare(self.program) {
            Decoded::ip(&self.given.frame)
        } else {
            Decoded::frame(&self.given.frame)
        };
        write!(f, "{}: {decoded:?}", self.program.name())
    }
}

impl Step {
    /// The packet is on another device than the one that its hook is usually on.
    pub(super) fn on(mut self, ifindex: u32) -> Self {
        self.given.ifindex = ifindex;
        self
    }

    /// The packet came in by this device; 0: a process of the host sent it.
    pub(super) fn from_device(mut self, ifindex: u32) -> Self {
        self.given.ingress_ifindex = ifindex;
        self
    }

    /// Payload bytes of each segment that the packet becomes on the wire.
    pub(super) fn in_segments_of(mut self, payload: u32) -> Self {
        self.given.segment_payload = payload;
        self
    }

    /// Before the packet comes, these objects take the place of those there were.
    pub(super) fn after(mut self, objects: Objects) -> Self {
        self.new_objects = Some(objects);
        self
    }

    pub(super) fn new_objects(&self) -> Option<&Objects> {
        self.new_objects.as_ref()
    }

    /// The packet goes on, as it was.
    pub(super) fn passes(mut self, counts: &[Reason]) -> Self {
        self.counts = counted(counts);
        self
    }

    /// The packet goes on to the stack as `packet`.
    pub(super) fn passes_as(self, packet: &Packet, counts: &[Reason]) -> Self {
        self.ends(End::Next, packet, counts)
    }

    /// The packet goes out of, or into, a device as `packet`.
    pub(super) fn redirected_as(self, ifindex: u32, packet: &Packet, counts: &[Reason]) -> Self {
        self.ends(End::Redirect(ifindex), packet, counts)
    }

    /// As [`Self::redirected_as`], for bytes.
    pub(super) fn redirected_as_frame(mut self, ifindex: u32, frame: Vec<u8>, counts: &[Reason]) -> Self {
        self.end = End::Redirect(ifindex);
        self.becomes = Some(frame);
        self.counts = counted(counts);
        self
    }

    /// As [`Self::passes_as`], for bytes.
    pub(super) fn passes_as_frame(mut self, frame: Vec<u8>, counts: &[Reason]) -> Self {
        self.becomes = Some(frame);
        self.counts = counted(counts);
        self
    }

    /// The packet is dropped, and was not touched.
    pub(super) fn dropped(mut self, counts: &[Reason]) -> Self {
        self.end = End::Drop;
        self.counts = counted(counts);
        self
    }

    fn ends(mut self, end: End, packet: &Packet, counts: &[Reason]) -> Self {
        let packet = if is_bare(self.program) {
            packet.clone().bare()
        } else {
            packet.clone()
        };
        self.end = end;
        self.becomes = Some(packet.build());
        self.counts = counted(counts);
        self
    }
}

fn counted(reasons: &[Reason]) -> BTreeMap<Reason, u64> {
    reasons.iter().fold(BTreeMap::new(), |mut all, reason| {
        *all.entry(*reason).or_default() += 1;
        all
    })
}

/// Objects, configuration and packets in order.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) objects: Objects,
    /// Configuration words that differ from [`super::node::tables`].
    pub(super) words: Vec<(usize, u64)>,
    pub(super) steps: Vec<Step>,
}

impl Case {
    pub(super) fn new(name: &str, objects: Objects, steps: Vec<Step>) -> Self {
        Self {
            name: name.to_owned(),
            objects,
            words: Vec::new(),
            steps,
        }
    }

    /// Whether some packet has no Ethernet header. The kernel's test run cannot tell where such a packet's sum begins.
    pub(super) fn is_without_link(&self) -> bool {
        self.steps.iter().any(|step| is_bare(step.program))
    }

    /// Sets flags of the configuration besides [`config::FLAG_ECHO`].
    pub(super) fn flags(self, flags: u64) -> Self {
        self.word(config::FLAGS, config::FLAG_ECHO | flags)
    }

    /// Sets a configuration word.
    pub(super) fn word(mut self, index: usize, value: u64) -> Self {
        self.words.push((index, value));
        self
    }
}

/// Runs a step on both sides; says what differs from the step or between the sides. `summed`: a device has summed the packet.
pub(super) fn check(world: &World, step: &Step, summed: bool) -> Result<(), String> {
    let mut wrong = String::new();
    let before = [world.kernel_counts(), world.host_counts()];
    let given = Given {
        summed,
        ..step.given.clone()
    };
    let (buffer, decision) = world.host.run(step.program, &given);
    // A trim makes the kernel give up the sum (`__skb_trim_rcsum`), but its test run compares the bytes with it all the same.
    let keeps_sum = matches!(buffer.summed(), Summed::Complete { .. });
    let output = world.kernel.run(
        step.program,
        &Given {
            summed: keeps_sum,
            ..given
        },
    )?;
    let [by_kernel, by_host] = [world.kernel_counts(), world.host_counts()];
    let counts = [delta(&before[0], &by_kernel), delta(&before[1], &by_host)];

    if let Some(text) = diff(buffer.bytes(), &output.frame) {
        _ = writeln!(wrong, "the kernel's packet is not the host's:\n{text}");
    }
    let expected = step.becomes.as_ref().unwrap_or(&step.given.frame);
    if let Some(text) = difference(step.program, expected, &output.frame) {
        _ = writeln!(wrong, "the kernel's packet is not the expected one:\n{text}");
    }
    let host_return = match decision.action {
        Action::Pass => TC_ACT_UNSPEC,
        Action::Drop | Action::Answer => TC_ACT_SHOT,
        Action::Transmit | Action::Receive | Action::Neighbour => TC_ACT_REDIRECT,
    };
    let expected_return = match step.end {
        End::Next => TC_ACT_UNSPEC,
        End::Drop => TC_ACT_SHOT,
        End::Redirect(_) => TC_ACT_REDIRECT,
    };
    if [output.verdict, host_return] != [expected_return; 2] {
        _ = writeln!(
            wrong,
            "kernel returned {}, host {decision:?}, expected {:?}",
            output.verdict, step.end
        );
    }
    if let End::Redirect(ifindex) = step.end
        && decision.ifindex != ifindex
    {
        _ = writeln!(wrong, "redirected to device {}, not {ifindex}", decision.ifindex);
    }
    if counts != [step.counts.clone(), step.counts.clone()] {
        _ = writeln!(
            wrong,
            "counted {:?} by the kernel, {:?} by the host, expected {:?}",
            counts[0], counts[1], step.counts
        );
    }
    if !buffer.sum_is_right() {
        _ = writeln!(wrong, "the host's sum over the whole packet is not that of its bytes");
    }
    if summed && !keeps_sum && buffer.bytes().len() == step.given.frame.len() {
        _ = writeln!(wrong, "the host gave up the sum of a packet that it did not trim");
    }
    if step.end != End::Drop {
        wrong += &sums(step.program, &output.frame);
    }
    if let Some(text) = world.flow_difference() {
        _ = writeln!(wrong, "{text}");
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
        Ok(decoded) if decoded.sums_are_good() || decoded.transport_sum == Checksum::Unverifiable => String::new(),
        Ok(decoded) => format!("wrong checksums: {decoded:?}\n"),
        Err(error) => format!("not a packet: {error}\n"),
    }
}

fn delta(before: &[u64], after: &[u64]) -> BTreeMap<Reason, u64> {
    Reason::ALL
        .iter()
        .map(|reason| (*reason, after[*reason as usize] - before[*reason as usize]))
        .filter(|(_, count)| *count > 0)
        .collect()
}
