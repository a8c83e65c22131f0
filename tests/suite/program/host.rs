//! The host's side: the pipeline of lb-common over tables in memory, with a packet that behaves as a socket buffer does.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::access::{Macs, Route, RouteKind, TableFamily};
use lb_common::family::{V4, V6};
use lb_common::layout::config;
use lb_common::pipeline::{self, Hook};
use lb_common::testing::{Buffer, Frame};
use lb_common::verdict::{Action, Verdict};
use steerway::datapath::load::ProgramName;
use steerway::maps::{
    HostTables, MapStore as _, MemorySizes, MemoryStore, Surroundings, Table, address_of_words, address_words,
};

use super::node::{Found, UPLINK, UPLINK_MAC, mac_word, route};
use super::{ETHERNET, FLOW_SETS, Given};

/// What the pipeline decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) action: Action,
    /// The device, for the actions that name one.
    pub(super) ifindex: u32,
    /// The next hop, for [`Action::Neighbour`].
    pub(super) next_hop: IpAddr,
}

/// The tables and what stands in for the kernel.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) store: MemoryStore,
}

/// Routes of the node, a clock that stands, answers as the configuration allows.
struct Still<'a>(&'a MemoryStore);

impl Surroundings for Still<'_> {
    fn now(&self) -> u32 {
        7
    }

    fn route<F: TableFamily>(&self, _ifindex: u32, _saddr: F::Addr, daddr: F::Addr, length: u16) -> Route<F::Addr> {
        match route(address_of_words(F::V6, F::to_words(daddr))) {
            Found::Local => Route::without(RouteKind::Local),
            Found::Nothing => Route::without(RouteKind::None),
            Found::Via { mtu, .. } if length > mtu => Route {
                mtu,
                ..Route::without(RouteKind::TooBig)
            },
            Found::Via {
                ifindex,
                next_hop,
                source,
                macs,
                ..
            } => Route {
                kind: RouteKind::Via,
                ifindex,
                next_hop: F::from_words(address_words(next_hop)),
                source: F::from_words(address_words(source)),
                mtu: 0,
                macs: macs.map_or_else(Macs::default, |[to, from]| Macs {
                    to: mac_word(to),
                    from: mac_word(from),
                }),
                settled: length != 0,
            },
        }
    }

    fn answer_token(&self) -> bool {
        self.0.words(Table::Config).load(config::ANSWER_RATE) > 0
    }
}

impl Host {
    pub(super) fn new() -> Self {
        let sizes = MemorySizes {
            flow_sets: FLOW_SETS,
            ..MemorySizes::default()
        };
        Self {
            store: MemoryStore::new(sizes).expect("memory for the tables"),
        }
    }

    /// Runs all stages for one packet; gives the packet as it is left, and what was decided.
    pub(super) fn run(&self, program: ProgramName, given: &Given) -> (Buffer, Decision) {
        let l3 = match program {
            ProgramName::L3In | ProgramName::L3Out => 0,
            ProgramName::PodIn
            | ProgramName::PodOut
            | ProgramName::UplinkIn
            | ProgramName::UplinkOut
            | ProgramName::SteerOut
            | ProgramName::LoOut => ETHERNET,
        };
        let mut packet = Buffer::from(given.frame.clone());
        if given.summed {
            packet = packet.complete(l3);
        }
        packet.ifindex = given.ifindex;
        packet.for_host = given.ifindex != UPLINK || given.frame[..6] == UPLINK_MAC;
        packet.sent_by_host = given.ingress_ifindex == 0;
        packet.segment_payload = given.segment_payload as usize;
        // The EtherType, which `skb->protocol` is from; also where the IP header begins the packet (see `l3.rs`).
        let decision = match given.frame[12..ETHERNET] {
            [0x08, 0x00] => self.family::<V4>(program, &mut packet, l3),
            [0x86, 0xdd] => self.family::<V6>(program, &mut packet, l3),
            _ => PASSED,
        };
        (packet, decision)
    }

    /// As [`Self::run`], for the uplink's XDP hook.
    pub(super) fn run_xdp(&self, frame: &[u8], ifindex: u32) -> (Frame, Decision) {
        let mut packet = Frame::new(frame.to_vec(), ifindex);
        let decision = match frame[12..ETHERNET] {
            [0x08, 0x00] => self.early::<V4>(&mut packet),
            [0x86, 0xdd] => self.early::<V6>(&mut packet),
            _ => PASSED,
        };
        (packet, decision)
    }

    fn early<F: TableFamily>(&self, packet: &mut Frame) -> Decision {
        let tables = HostTables {
            store: &self.store,
            surroundings: &Still(&self.store),
        };
        decision::<F>(&pipeline::process::<F, _, _, { Hook::UPLINK_IN }>(
            packet, &tables, ETHERNET,
        ))
    }

    fn family<F: TableFamily>(&self, program: ProgramName, packet: &mut Buffer, l3: usize) -> Decision {
        let tables = HostTables {
            store: &self.store,
            surroundings: &Still(&self.store),
        };
        let verdict: Verdict<F::Addr> = match program {
            ProgramName::PodIn => pipeline::process::<F, _, _, { Hook::POD_IN }>(packet, &tables, l3),
            ProgramName::PodOut => pipeline::process::<F, _, _, { Hook::POD_OUT }>(packet, &tables, l3),
            ProgramName::UplinkIn | ProgramName::L3In => {
                pipeline::process::<F, _, _, { Hook::UPLINK_IN }>(packet, &tables, l3)
            }
            ProgramName::UplinkOut | ProgramName::L3Out => {
                pipeline::process::<F, _, _, { Hook::UPLINK_OUT }>(packet, &tables, l3)
            }
            ProgramName::SteerOut => pipeline::process::<F, _, _, { Hook::STEER_OUT }>(packet, &tables, l3),
            ProgramName::LoOut => pipeline::process::<F, _, _, { Hook::LO_OUT }>(packet, &tables, l3),
        };
        decision::<F>(&verdict)
    }
}

fn decision<F: TableFamily>(verdict: &Verdict<F::Addr>) -> Decision {
    Decision {
        action: verdict.action,
        ifindex: verdict.ifindex,
        next_hop: address_of_words(F::V6, F::to_words(verdict.next_hop)),
    }
}

/// As the programs do with what is not IP.
const PASSED: Decision = Decision {
    action: Action::Pass,
    ifindex: 0,
    next_hop: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
};
