//! What the pipeline decided, and why. Every reason has a stable number (never reused), a name and one counter per CPU.

/// What the hook must do with the packet; the packet has been rewritten already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// Go on to the next program and the stack.
    Pass,
    /// Drop the packet.
    Drop,
    /// Send out of a device as it is (Ethernet header complete).
    Transmit,
    /// Hand to the receive path of a device (destination MAC is that device's).
    Receive,
    /// Hand to the pod at the other end of a device's link (Ethernet header complete).
    Deliver,
    /// Send out of a device; the kernel resolves the next hop and fills the Ethernet header.
    Neighbour,
    /// Answer in place of the destination: the answer is built from the untranslated packet and sent back.
    Answer,
}

/// An answer that the node gives itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// TCP RST to a segment (RFC 9293 section 3.5.1).
    Reset,
    /// ICMP port unreachable.
    PortUnreachable,
    /// ICMP fragmentation needed or ICMPv6 packet too big.
    TooBig,
    /// ICMP time exceeded in transit.
    TimeExceeded,
    /// Echo reply.
    Echo,
}

impl Answer {
    /// Reads the number; unknown numbers mean an echo reply.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Reset,
            1 => Self::PortUnreachable,
            2 => Self::TooBig,
            3 => Self::TimeExceeded,
            _ => Self::Echo,
        }
    }
}

/// The pipeline's result. A plain struct, all of it always set: what an enum leaves undefined, a compiler may read from a
/// register that the verifier knows to be undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<N> {
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// The answer, for [`Action::Answer`].
    pub answer: Answer,
    /// The MTU, for [`Answer::TooBig`].
    pub mtu: u16,
    /// The device, for the actions that name one.
    pub ifindex: u32,
    /// The next hop, for [`Action::Neighbour`].
    pub next_hop: N,
}

impl<N: Default> Verdict<N> {
    /// A verdict that needs no more than an action.
    #[inline(always)]
    pub fn new(action: Action, reason: Reason) -> Self {
        Self {
            action,
            reason,
            answer: Answer::Reset,
            mtu: 0,
            ifindex: 0,
            next_hop: N::default(),
        }
    }

    /// Pass for `reason`.
    #[inline(always)]
    pub fn pass(reason: Reason) -> Self {
        Self::new(Action::Pass, reason)
    }

    /// Drop for `reason`.
    #[inline(always)]
    pub fn drop(reason: Reason) -> Self {
        Self::new(Action::Drop, reason)
    }

    /// Answer for `reason`.
    #[inline(always)]
    pub fn answer(answer: Answer, mtu: u16, reason: Reason) -> Self {
        Self {
            answer,
            mtu,
            ..Self::new(Action::Answer, reason)
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why a verdict was given. The number is the index of its counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name = $number,)* }

        impl Reason {
            /// All reasons in order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The reason of this number; [`Self::NotOurs`] where there is none.
            #[inline(always)]
            pub const fn from_number(number: u32) -> Self {
                match number { $($number => Self::$name,)* _ => Self::NotOurs }
            }

            /// The stable name that the command line and the metrics show.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// No Service's traffic; most of it is not even looked up.
    NotOurs = 0, "not_ours";
    /// Not TCP, UDP or ICMP of a known kind, or headers we do not read.
    NotParsed = 1, "not_parsed";
    /// An established flow, translated towards its backend.
    Forward = 2, "forward";
    /// An established flow, un-translated towards its client.
    Reply = 3, "reply";
    /// A new flow, translated towards its backend.
    NewFlow = 4, "new_flow";
    /// A flow entry that applies at another hook.
    OtherHook = 5, "other_hook";
    /// A TCP segment without a flow left to the stack because takeover is on.
    Takeover = 6, "takeover";
    /// A port of a VIP that is not served and is left to the host.
    UnknownPortPassed = 7, "unknown_port_passed";
    /// A port of a ClusterIP that no Service has: refused.
    UnknownPort = 8, "unknown_port";
    /// A Service without usable endpoints: refused.
    NoEndpoints = 9, "no_endpoints";
    /// A Service whose Local policy finds no local endpoint: dropped.
    NoLocalEndpoints = 10, "no_local_endpoints";
    /// The source is in none of the loadBalancerSourceRanges: dropped.
    SourceRange = 11, "source_range";
    /// An ICMP error about a translated flow, translated.
    IcmpError = 12, "icmp_error";
    /// An ICMP error whose flow is unknown.
    IcmpErrorPassed = 13, "icmp_error_passed";
    /// Ping to a VIP, answered.
    Echo = 14, "echo";
    /// Ping to a VIP that is not answered (switched off, or a fragment).
    EchoDropped = 15, "echo_dropped";
    /// An answer was due, but the rate limit is used up.
    RateLimited = 16, "rate_limited";
    /// A later fragment whose first was not seen.
    FragmentLost = 17, "fragment_lost";
    /// The flow is being entered, displaced or freed by another CPU at this moment, or a key that the table cannot tell from it.
    FlowBusy = 18, "flow_busy";
    /// No room for a new flow among more valuable ones.
    FlowTableFull = 19, "flow_table_full";
    /// No free SNAT port was found.
    PortsExhausted = 20, "ports_exhausted";
    /// Service record, run and backend disagree: the tables changed while they were read, three times.
    TablesChanged = 21, "tables_changed";
    /// No route or unusable neighbour towards the rewritten destination.
    NoRoute = 22, "no_route";
    /// The packet does not fit the way out: answered with too big.
    TooBig = 23, "too_big";
    /// The time to live ran out: answered with time exceeded.
    TimeExceeded = 24, "time_exceeded";
    /// The packet could not be rewritten (a helper refused).
    RewriteFailed = 25, "rewrite_failed";
    /// The answer could not be built (a helper refused).
    AnswerFailed = 26, "answer_failed";
    /// A forward entry whose reply half was lost was completed again.
    Healed = 27, "healed";
    /// A reply of ours on a bridge port, lifted to the bridge's own address.
    Lifted = 28, "lifted";
    /// A frontend names a service that is not published.
    NoService = 29, "no_service";
    /// A packet that needs no answer where one was due (an RST segment, a multicast source).
    Silent = 30, "silent";
    /// A protocol on a ClusterIP that no Service can have: refused.
    UnknownProtocol = 31, "unknown_protocol";
    /// A flow that left its backend because the backend stopped serving.
    BackendGone = 32, "backend_gone";
    /// The device has no way to carry the host's reply (no Ethernet header).
    UnsupportedDevice = 33, "unsupported_device";
    /// The next stage's program is not in place (the agent is being replaced).
    StageMissing = 34, "stage_missing";
    /// Ours, or maybe ours, but left by XDP to the tc hook, which counts it anew: not plain, or no sure way out.
    HandedOver = 35, "handed_over";
}

/// Number of reason counters; a map of this size holds every reason with room to grow.
pub const REASONS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_indices_and_names_are_unique() {
        let mut names = std::collections::BTreeSet::new();
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert_eq!(Reason::from_number(i as u32), *reason);
            assert!(names.insert(reason.name()), "{} twice", reason.name());
        }
        assert!(Reason::ALL.len() <= REASONS);
    }
}
