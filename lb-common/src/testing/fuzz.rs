//! The body of a fuzzer: raw bytes choose the hook, the tables and the packet. Runs anywhere, from a corpus, a property test
//! or a fuzzer; it never touches anything outside its own memory.
//!
//! ```text
//! byte 0      hook (bits 0..3), IPv6 (bit 3), no link header (bit 4), sent by the host (bit 5), checksum state (bits 6..8)
//! byte 1      flags of the configuration (bits 0..4); bits 4..7: how many answers are allowed (7 = any number);
//!             bit 7: a service's tables are half published
//! byte 2      number of words to spoil (low three bits); the rest: bytes of each segment, in units of 64
//! 11 each     words to spoil: table, index (2 bytes), value (8 bytes)
//! rest        the packet
//! ```
//! [`fuzz`] panics where the pipeline breaks a promise that holds for every input: what it only passes is untouched, what is
//! nobody's of ours passes, and an IPv4 header whose checksum was right stays right.

use std::net::IpAddr;

use super::{BackendRecord, Block, Buffer, Frame, HostRoute, HostTables, Outcome, Sizes, run, run_early, words};
use crate::access::{Macs, RouteKind};
use crate::layout::{
    BACKEND_HOST, BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BACKEND_ON_NODE, BACKEND_SERVING, BackendControl, DEVICE_POD,
    Device, FRONTEND_CLUSTER, FRONTEND_ECHO, FRONTEND_NODE, FRONTEND_NODE_PORT, FRONTEND_RANGES, FRONTEND_REFUSE,
    FRONTEND_VALID, FrontendValue, ServiceWord, config,
};
use crate::pipeline::Hook;
use crate::verdict::{Action, Reason};

const HOOKS: [u8; 8] = [
    Hook::POD_IN,
    Hook::POD_OUT,
    Hook::UPLINK_IN,
    Hook::UPLINK_OUT,
    Hook::STEER_OUT,
    Hook::LO_OUT,
    Hook::UPLINK_IN,
    Hook::POD_IN,
];

/// Addresses of the tables, IPv4 and IPv6: ClusterIP, LoadBalancer IP, node, a local pod, a remote one.
const OURS: [[&str; 5]; 2] = [
    ["10.96.0.10", "203.0.113.5", "198.51.100.1", "10.1.0.20", "10.2.0.20"],
    [
        "fd00:96::10",
        "2001:db8:5::5",
        "2001:db8:2::1",
        "fd00:1::20",
        "fd00:2::20",
    ],
];

/// A client that has flows.
const CLIENTS: [&str; 2] = ["192.0.2.10", "2001:db8:1::10"];

/// Ports of the Services; the first has a local backend, the second a remote one, the third the node itself, the fourth none.
const PORTS: std::ops::Range<u16> = 80..84;

/// The choices that the first bytes make.
struct Choice<'a> {
    hook: u8,
    v6: bool,
    l3: usize,
    by_host: bool,
    state: u8,
    flags: u8,
    second: u8,
    spoils: &'a [[u8; 11]],
    packet: &'a [u8],
}

impl<'a> Choice<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let ([first, flags, second], rest) = bytes.split_first_chunk()?;
        let (spoils, _) = rest.as_chunks::<11>();
        let spoils = spoils.get(..usize::from(second & 7))?;
        Some(Self {
            hook: HOOKS[usize::from(first & 7)],
            v6: first & 8 != 0,
            l3: if first & 16 == 0 { 14 } else { 0 },
            by_host: first & 32 != 0,
            state: first >> 6,
            flags: *flags,
            second: *second,
            spoils,
            packet: rest.get(spoils.len() * 11..)?,
        })
    }

    fn buffer(&self) -> Buffer {
        let mut buffer = Buffer::from(self.packet.to_vec());
        let header = if self.v6 { 40 } else { 20 };
        buffer = match self.state {
            1 => buffer.partial(self.l3 + header, 16),
            2 => buffer.partial(self.l3 + header, 6),
            3 => buffer.complete(self.l3),
            _ => buffer,
        };
        buffer.sent_by_host = self.by_host;
        buffer.ifindex = u32::from(self.hook) + 1;
        buffer.segment_payload = usize::from(self.second >> 3) * 64;
        buffer
    }
}

fn ip(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

/// Tables with four Services of each family and a flow to each that has a backend. Nodes that may answer six times have host routing
/// by BPF.
fn tables(flags: u8) -> HostTables {
    let tables = HostTables::new(Sizes {
        flow_sets: 4,
        ..Sizes::default()
    });
    let allowed = u32::from(flags >> 4 & 7);
    let host_routing = if allowed == 6 { config::FLAG_HOST_ROUTING } else { 0 };
    for (word, value) in [
        (config::FLAGS, u64::from(flags & 15) | host_routing),
        (config::TABLE_SEED, 3),
        (config::SELECT_SEED, 4),
        (config::HZ, 100),
        (config::PORT_MIN, 16_384),
        (config::PORT_COUNT, 64),
        (config::STEER_IFINDEX, 5),
        (config::LO_IFINDEX, 1),
        (config::TCP_HALF_OPEN, 1000),
        (config::TCP_ESTABLISHED, 1000),
        (config::UDP_REPLIED, 1000),
        (config::TCP_GRAIN, 200),
        (config::UDP_GRAIN, 200),
    ] {
        tables.set_config(word, value);
    }
    for (v6, addresses) in [false, true].into_iter().zip(OURS) {
        let addresses: Vec<IpAddr> = addresses.into_iter().filter_map(ip).collect();
        if let [vip, lb, node, local, remote] = addresses[..] {
            publish(&tables, v6, [vip, lb, node], [local, remote, node]);
        }
    }
    if flags & 0x80 != 0 {
        tables.switch(
            1,
            Some(ServiceWord {
                generation: 2,
                offset: 8,
            }),
        );
    }
    tables.set_answers(if allowed == 7 { u32::MAX } else { allowed });
    tables
}

fn publish(tables: &HostTables, v6: bool, [vip, lb, node]: [IpAddr; 3], backends: [IpAddr; 3]) {
    let base = if v6 { 10 } else { 0 };
    let zero = super::address(v6, [0; 2]);
    let frontend = |address, port, protocol, flags, service| {
        let value = FrontendValue {
            protocol,
            flags: flags | FRONTEND_VALID,
            service,
        };
        tables.write_frontend(address, port, protocol, value);
    };
    for (address, flags) in [
        (vip, FRONTEND_REFUSE | FRONTEND_ECHO),
        (lb, FRONTEND_ECHO),
        (node, FRONTEND_NODE),
    ] {
        tables.mark_forward(address);
        frontend(address, 0, 0, flags, 0);
    }
    let places = [BACKEND_ON_NODE, 0, BACKEND_ON_NODE | BACKEND_HOST];
    for (n, (address, flags)) in (1..).zip(backends.into_iter().zip(places)) {
        tables.mark_reply(address);
        let control = BackendControl {
            generation: 1,
            state: BACKEND_IN_CLUSTER | BACKEND_IN_LOCAL | BACKEND_SERVING,
            service: base + n,
        };
        tables.write_backend(
            base + n,
            &BackendRecord {
                address,
                port: 8080,
                flags,
                control,
            },
        );
    }
    for (n, port) in (1..).zip(PORTS) {
        let service = base + n;
        let offset = service * 16;
        let backend = [service];
        let block = Block::of(if port + 1 < PORTS.end { &backend } else { &[] });
        tables.write_block(service, 1, offset, &block);
        tables.switch(service, Some(ServiceWord { generation: 1, offset }));
        for protocol in [6, 17] {
            frontend(vip, port, protocol, FRONTEND_CLUSTER, service);
            frontend(lb, port, protocol, FRONTEND_RANGES, service);
            frontend(zero, port, protocol, FRONTEND_NODE_PORT, service);
        }
    }
    for ifindex in 0..3 {
        tables.set_device(
            ifindex,
            Device {
                bridge_mac: u64::from(ifindex) * 0x0102_0304_0506,
                mac: u64::from(ifindex) * 0x0605_0403_0201,
                flags: DEVICE_POD,
                ..Device::default()
            },
        );
    }
    tables.set_route(
        v6,
        None,
        HostRoute {
            kind: RouteKind::Via,
            ifindex: 2,
            next_hop: words(lb),
            source: words(node),
            mtu: 1500,
            macs: Macs {
                to: 0x0403_0201,
                from: 0x0908_0706,
            },
        },
    );
}

/// Whether the packet's addresses say that it may be ours: to a frontend, from a backend, or an ICMP error.
fn may_be_ours(choice: &Choice<'_>) -> bool {
    let (at, length, protocol) = if choice.v6 { (8, 16, 6) } else { (12, 4, 9) };
    let field = |offset: usize| choice.packet.get(choice.l3 + offset..choice.l3 + offset + length);
    let (Some(source), Some(destination)) = (field(at), field(at + length)) else {
        return false;
    };
    let is_one_of_ours = |bytes: &[u8]| {
        OURS[usize::from(choice.v6)]
            .into_iter()
            .filter_map(ip)
            .any(|ours| match ours {
                IpAddr::V4(ours) => ours.octets() == bytes,
                IpAddr::V6(ours) => ours.octets() == bytes,
            })
    };
    // Behind extension headers there may be ICMPv6.
    let plain = matches!(choice.packet.get(choice.l3 + protocol), Some(6 | 17));
    !plain || is_one_of_ours(source) || is_one_of_ours(destination)
}

/// Whether an IPv4 header with a right checksum stands at `l3`; `None` where none can be told.
fn header_is_right(bytes: &[u8], l3: usize) -> Option<bool> {
    let first = bytes.get(l3)?;
    let header = bytes.get(l3..l3 + usize::from(first & 15) * 4)?;
    if first >> 4 != 4 || header.len() < 20 {
        return None;
    }
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    Some((sum & 0xffff) + (sum >> 16) == 0xffff)
}

/// A packet that opens a flow, so that replies and errors find one.
fn opening(v6: bool, port: u16, protocol: u8) -> Option<Vec<u8>> {
    let which = usize::from(v6);
    let (client, vip) = (ip(CLIENTS[which])?, ip(OURS[which][0])?);
    let transport = [
        &40_000u16.to_be_bytes()[..],
        &port.to_be_bytes(),
        &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let mut packet = vec![0; 14];
    match (client, vip) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            packet.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0]);
            packet.extend(client.octets().into_iter().chain(vip.octets()));
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            packet.extend([0x60, 0, 0, 0, 0, 20, protocol, 64]);
            packet.extend(client.octets().into_iter().chain(vip.octets()));
        }
        _ => return None,
    }
    packet.extend(transport);
    Some(packet)
}

/// Runs the packet through an uplink's XDP hook too.
fn early(tables: &HostTables, choice: &Choice<'_>) {
    if choice.hook != Hook::UPLINK_IN || choice.l3 == 0 {
        return;
    }
    let mut frame = Frame::new(choice.packet.to_vec(), 2);
    let outcome = run_early(tables, choice.v6, &mut frame);
    let untouched = frame.bytes() == choice.packet;
    match outcome.action {
        Action::Pass => assert!(untouched || frame.mark.is_some(), "{outcome:?} changed the frame"),
        Action::Transmit => assert_eq!(outcome.ifindex, 2, "{outcome:?} leaves by another device"),
        Action::Drop => {}
        Action::Receive | Action::Deliver | Action::Neighbour | Action::Answer => panic!("{outcome:?} at XDP"),
    }
    assert!(
        frame.mark.is_none() || matches!(outcome.action, Action::Pass | Action::Drop),
        "{outcome:?} with a mark"
    );
    if choice.spoils.is_empty() && !may_be_ours(choice) {
        assert!(untouched && outcome.action == Action::Pass, "{outcome:?} is not ours");
    }
}

/// Runs the pipeline on what the bytes choose; `None` where they choose nothing.
///
/// # Panics
/// Where a promise of the pipeline is broken.
pub fn fuzz(bytes: &[u8]) -> Option<Outcome> {
    let choice = Choice::read(bytes)?;
    let tables = tables(choice.flags);
    for port in PORTS {
        for protocol in [6, 17] {
            let mut packet = Buffer::from(opening(choice.v6, port, protocol)?);
            // Of a client that keeps its port, and of clients that do not.
            let hook = if port == PORTS.start {
                Hook::POD_IN
            } else {
                Hook::UPLINK_IN
            };
            run(&tables, hook, choice.v6, 14, &mut packet);
        }
    }
    for [table, low, high, value @ ..] in choice.spoils {
        tables.spoil(
            *table,
            u16::from_le_bytes([*low, *high]).into(),
            u64::from_le_bytes(*value),
        );
    }
    let mut packet = choice.buffer();
    let was_right = header_is_right(packet.bytes(), choice.l3);
    let outcome = run(&tables, choice.hook, choice.v6, choice.l3, &mut packet);
    let untouched = packet.bytes() == choice.packet;
    let translated = matches!(
        outcome.reason,
        Reason::Forward | Reason::Reply | Reason::IcmpError | Reason::Lifted
    );
    if outcome.action == Action::Pass && !translated {
        assert!(untouched, "{outcome:?} changed the packet");
    }
    if choice.spoils.is_empty() && !may_be_ours(&choice) {
        assert!(
            untouched && outcome.action == Action::Pass,
            "{outcome:?} for a packet that is not ours"
        );
    }
    if choice.spoils.is_empty() {
        assert!(
            outcome.action != Action::Deliver || choice.hook == Hook::POD_IN && choice.l3 != 0,
            "the kernel takes no {outcome:?} here"
        );
    }
    if outcome.action != Action::Drop && was_right == Some(true) {
        assert_eq!(
            header_is_right(packet.bytes(), choice.l3),
            Some(true),
            "{outcome:?} broke the IP header"
        );
    }
    // Once more, with whatever the first has left in the tables.
    run(&tables, choice.hook, choice.v6, choice.l3, &mut choice.buffer());
    early(&tables, &choice);
    Some(outcome)
}
