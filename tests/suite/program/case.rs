//! One case: objects, then packets, and what has to become of each.

use std::collections::BTreeMap;
use std::fmt;

use lb_common::layout::config;
use lb_common::verdict::Reason;
use lb_tests::packet::{Decoded, Packet};
use steerway::datapath::load::ProgramName;

use super::Given;
use super::node::{BACKEND_VETH, CLIENT_VETH, LO, STEER, UPLINK};
use super::objects::Objects;

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
    pub(super) program: ProgramName,
    pub(super) given: Given,
    pub(super) end: End,
    pub(super) becomes: Option<Vec<u8>>,
    pub(super) counts: BTreeMap<Reason, u64>,
    /// XDP leaves the packet to tc, untouched.
    pub(super) handed_over: bool,
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
        handed_over: false,
        new_objects: None,
    }
}

/// Whether packets have no Ethernet header there.
pub(super) fn is_bare(program: ProgramName) -> bool {
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
    pub(super) fn received_by(mut self, ifindex: u32) -> Self {
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

    /// XDP leaves this packet to tc, untouched; of all others the same becomes at XDP.
    pub(super) fn handed_over(mut self) -> Self {
        self.handed_over = true;
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

pub(super) fn counted(reasons: &[Reason]) -> BTreeMap<Reason, u64> {
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
    may_be_summed: bool,
}

impl Case {
    pub(super) fn new(name: &str, objects: Objects, steps: Vec<Step>) -> Self {
        Self {
            name: name.to_owned(),
            objects,
            words: Vec::new(),
            steps,
            may_be_summed: true,
        }
    }

    /// Not run with packets that a device has summed.
    pub(super) fn never_summed(mut self) -> Self {
        self.may_be_summed = false;
        self
    }

    /// Whether it is run with packets that a device has summed too. The kernel's test run cannot tell where the sum of a packet
    /// without Ethernet header begins.
    pub(super) fn may_be_summed(&self) -> bool {
        self.may_be_summed && !self.steps.iter().any(|step| is_bare(step.program))
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
