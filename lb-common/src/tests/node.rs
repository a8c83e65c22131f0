//! A node with Services in memory, for the tests of this folder: addresses, tables, and what becomes of a packet.
//!
//! Every service port answers under the same port number on the ClusterIP and on the LoadBalancer IP, and 30000 above it as
//! NodePort, for TCP and UDP.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use super::packet::{Decoded, Packet};
use crate::access::RouteKind;
use crate::layout::{
    BACKEND_HOST, BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BACKEND_ON_NODE, BACKEND_SERVING, BLOCK_EXTERNAL_DROP,
    BLOCK_EXTERNAL_LOCAL, BLOCK_RANGES, BackendControl, Device, FRONTEND_CLUSTER, FRONTEND_ECHO, FRONTEND_NODE,
    FRONTEND_NODE_PORT, FRONTEND_RANGES, FRONTEND_REFUSE, FRONTEND_VALID, FrontendValue, ServiceWord, config,
};
use crate::pipeline::Hook;
use crate::testing::{BackendRecord, Block, Buffer, HostRoute, HostTables, Lookups, Outcome, Sizes, run, words};
use crate::verdict::{Action, Reason};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
/// Length of the Ethernet header.
pub(super) const L3: usize = 14;
/// Jiffies a second.
pub(super) const HZ: u32 = 250;

/// Interface indices.
pub(super) const LO: u32 = 1;
pub(super) const UPLINK: u32 = 2;
pub(super) const STEER: u32 = 5;
pub(super) const CLIENT_VETH: u32 = 11;
pub(super) const BACKEND_VETH: u32 = 12;
/// MAC address of the uplink, to which packets are built.
pub(super) const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// MAC address of steer0.
pub(super) const STEER_MAC: [u8; 6] = [0x02, 0x57, 0xee, 0x00, 0x00, 0x05];
/// MAC address of the bridge whose port [`BACKEND_VETH`] is.
pub(super) const BRIDGE_MAC: [u8; 6] = [0x02, 0xb0, 0x00, 0x00, 0x00, 0x01];

/// Ports of the standard Services; the id of a service port is its port less 79.
pub(super) const LOCAL: u16 = 80;
pub(super) const REMOTE: u16 = 81;
pub(super) const HOST: u16 = 82;
pub(super) const HAIRPIN: u16 = 83;
pub(super) const EMPTY: u16 = 84;
pub(super) const NO_LOCAL: u16 = 85;
pub(super) const MANY: u16 = 86;
pub(super) const RANGED: u16 = 87;
pub(super) const UNPUBLISHED: u16 = 88;
pub(super) const AFFINE: u16 = 89;
/// Of external policy Local.
pub(super) const BY_POLICY: u16 = 90;
/// A port of no Service.
pub(super) const UNKNOWN: u16 = 99;
/// What is added for the NodePort.
pub(super) const NODE_PORTS: u16 = 30_000;
/// What every backend listens on.
pub(super) const BACKEND_PORT: u16 = 8080;

/// All state bits of a backend that is in use.
pub(super) const IN_USE: u8 = BACKEND_IN_CLUSTER | BACKEND_IN_LOCAL | BACKEND_SERVING;

/// The id of the standard service port on `port`.
pub(super) fn id(port: u16) -> u32 {
    u32::from(port) - 79
}

/// Addresses by family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) v6: bool,
}

impl Addresses {
    fn pick(self, v4: &str, v6: &str) -> IpAddr {
        if self.v6 { v6 } else { v4 }.parse().expect("an address")
    }

    pub(super) fn client(self) -> IpAddr {
        self.pick("192.0.2.10", "2001:db8:1::10")
    }

    pub(super) fn pod(self) -> IpAddr {
        self.pick("10.1.0.10", "fd00:1::10")
    }

    pub(super) fn node(self) -> IpAddr {
        self.pick("198.51.100.1", "2001:db8:2::1")
    }

    /// The kernel's preferred source towards pods of other nodes.
    pub(super) fn tunnel(self) -> IpAddr {
        self.pick("10.1.0.1", "fd00:1::1")
    }

    pub(super) fn gateway(self) -> IpAddr {
        self.pick("198.51.100.254", "2001:db8:2::fe")
    }

    pub(super) fn vip(self) -> IpAddr {
        self.pick("10.96.0.10", "fd00:96::10")
    }

    pub(super) fn lb(self) -> IpAddr {
        self.pick("203.0.113.5", "2001:db8:5::5")
    }

    pub(super) fn local_pod(self) -> IpAddr {
        self.pick("10.1.0.20", "fd00:1::20")
    }

    pub(super) fn remote_pod(self) -> IpAddr {
        self.pick("10.2.0.20", "fd00:2::20")
    }

    pub(super) fn stranger(self) -> IpAddr {
        self.pick("8.8.8.8", "2001:4860:4860::8888")
    }

    pub(super) fn router(self) -> IpAddr {
        self.pick("172.16.9.9", "2001:db8:9::9")
    }

    /// Backend number `n` of a Service with many.
    pub(super) fn numbered(self, n: u8) -> IpAddr {
        self.pick(&format!("10.3.0.{n}"), &format!("fd00:3::{n:x}"))
    }

    fn zero(self) -> IpAddr {
        self.pick("0.0.0.0", "::")
    }
}

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) tables: HostTables,
    pub(super) at: Addresses,
    pub(super) v6: bool,
    next_block: AtomicU32,
}

/// What became of a packet.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) outcome: Outcome,
    /// The packet as the hook leaves it.
    pub(super) buffer: Buffer,
    /// What the packet was before.
    pub(super) before: Vec<u8>,
    /// Reasons that were counted.
    pub(super) counted: BTreeMap<Reason, u64>,
    /// Look-ups that it cost.
    pub(super) lookups: Lookups,
}

impl Sent {
    /// The packet as it goes out, taken apart; every checksum is right.
    #[track_caller]
    pub(super) fn decoded(&self) -> Decoded {
        let wire = self.buffer.wire();
        let decoded = Decoded::frame(&wire).unwrap_or_else(|error| panic!("{error} in {wire:02x?}: {self:?}"));
        assert!(decoded.sums_are_good(), "{decoded:?}\n{self:?}");
        decoded
    }

    /// The packet was left as it was.
    pub(super) fn is_untouched(&self) -> bool {
        self.buffer.bytes() == self.before
    }

    #[track_caller]
    pub(super) fn expect(&self, action: Action, reason: Reason) -> &Self {
        assert_eq!((self.outcome.action, self.outcome.reason), (action, reason), "{self:?}");
        assert!(
            self.counted.get(&reason).is_some_and(|count| *count > 0),
            "{reason:?} is not counted: {self:?}"
        );
        self
    }
}

/// Offset of the transport header in a frame, and the transport's protocol.
pub(super) fn transport(frame: &[u8], l3: usize) -> (usize, u8) {
    if frame[l3] >> 4 == 4 {
        return (l3 + usize::from(frame[l3] & 15) * 4, frame[l3 + 9]);
    }
    let (mut at, mut next) = (l3 + 40, frame[l3 + 6]);
    while matches!(next, 0 | 43 | 60 | 44) {
        let length = if next == 44 {
            8
        } else {
            (usize::from(frame[at + 1]) + 1) * 8
        };
        (next, at) = (frame[at], at + length);
    }
    (at, next)
}

/// The frame of a packet whose sender left the checksum to the device.
pub(super) fn left_to_device(packet: &Packet) -> Buffer {
    let frame = packet.clone().sums(super::packet::Sums::Partial).build();
    let (at, protocol) = transport(&frame, L3);
    let field = if protocol == TCP { 16 } else { 6 };
    Buffer::from(frame).partial(at, field)
}

/// Runs a test for both families.
pub(super) fn each_family(test: impl Fn(Node)) {
    for v6 in [false, true] {
        test(Node::standard(v6));
    }
}

/// The MAC address as map words hold it.
pub(super) fn mac_word(mac: [u8; 6]) -> u64 {
    mac.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

impl Node {
    /// A node without Services.
    pub(super) fn new(v6: bool, sizes: Sizes) -> Self {
        let tables = HostTables::new(sizes);
        let at = Addresses { v6 };
        let second = u64::from(HZ);
        for (word, value) in [
            (config::TABLE_SEED, 0x0123_4567_89ab_cdef),
            (config::SELECT_SEED, 0xfedc_ba98_7654_3210),
            (config::FLAGS, config::FLAG_ECHO),
            (config::HZ, second),
            (config::PORT_MIN, 16_384),
            (config::PORT_COUNT, 13_616),
            (config::STEER_IFINDEX, u64::from(STEER)),
            (config::STEER_MAC, mac_word(STEER_MAC)),
            (config::LO_IFINDEX, u64::from(LO)),
            (config::TCP_HALF_OPEN, 120 * second),
            (config::TCP_ESTABLISHED, 86_400 * second),
            (config::TCP_HALF_CLOSED, 3600 * second),
            (config::TCP_CLOSED, 120 * second),
            (config::UDP_UNREPLIED, 30 * second),
            (config::UDP_REPLIED, 120 * second),
            (config::TCP_GRAIN, 16 * second),
            (config::UDP_GRAIN, 7 * second),
        ] {
            tables.set_config(word, value);
        }
        // Not far from the wrap of the clock: it happens in every test that lets a minute pass.
        tables.set_clock(u32::MAX - 60 * HZ);
        let node = Self {
            tables,
            at,
            v6,
            next_block: AtomicU32::new(8),
        };
        node.tables.set_device(
            UPLINK,
            Device {
                mac: mac_word(UPLINK_MAC),
                source_v4: words(Addresses { v6: false }.node())[0] as u32,
                source_v6: words(Addresses { v6: true }.node()),
                ..Device::default()
            },
        );
        for veth in [CLIENT_VETH, BACKEND_VETH] {
            node.tables.set_device(
                veth,
                Device {
                    bridge_mac: if veth == BACKEND_VETH { mac_word(BRIDGE_MAC) } else { 0 },
                    source_v4: words(Addresses { v6: false }.tunnel())[0] as u32,
                    source_v6: words(Addresses { v6: true }.tunnel()),
                    ..Device::default()
                },
            );
        }
        node.route(None, UPLINK, at.gateway(), Some(at.node()), 1500);
        node.route(
            Some(at.local_pod()),
            BACKEND_VETH,
            at.local_pod(),
            Some(at.tunnel()),
            1500,
        );
        node.route(Some(at.pod()), CLIENT_VETH, at.pod(), Some(at.tunnel()), 1500);
        let local = HostRoute {
            kind: RouteKind::Local,
            ..HostRoute::NONE
        };
        node.tables.set_route(v6, Some(words(at.node())), local);
        node
    }

    /// A route by way of a next hop.
    pub(super) fn route(&self, to: Option<IpAddr>, ifindex: u32, by: IpAddr, source: Option<IpAddr>, mtu: u16) {
        self.tables.set_route(
            self.v6,
            to.map(words),
            HostRoute {
                kind: RouteKind::Via,
                ifindex,
                next_hop: words(by),
                source: source.map_or([0; 2], words),
                mtu,
                macs: crate::access::Macs::default(),
            },
        );
    }

    /// A node with the standard Services.
    pub(super) fn standard(v6: bool) -> Self {
        Self::with(v6, Sizes::default())
    }

    /// A node with the standard Services and tables of these sizes.
    pub(super) fn with(v6: bool, sizes: Sizes) -> Self {
        Self::new(v6, sizes).with_standard_services()
    }

    /// A node with the standard Services and a secret of its own.
    pub(super) fn seeded(v6: bool, table_seed: u64) -> Self {
        let node = Self::new(v6, Sizes::default());
        node.tables.set_config(config::TABLE_SEED, table_seed);
        node.with_standard_services()
    }

    fn with_standard_services(self) -> Self {
        let node = self;
        let at = node.at;
        node.address(at.vip(), FRONTEND_REFUSE | FRONTEND_ECHO);
        node.address(at.lb(), FRONTEND_ECHO);
        node.address(at.node(), FRONTEND_NODE);
        let single = [
            (LOCAL, 1, at.local_pod(), BACKEND_ON_NODE),
            (REMOTE, 2, at.remote_pod(), 0),
            (HOST, 3, at.node(), BACKEND_HOST | BACKEND_ON_NODE),
            (HAIRPIN, 4, at.pod(), BACKEND_ON_NODE),
            (RANGED, 5, at.local_pod(), BACKEND_ON_NODE),
            (BY_POLICY, 6, at.local_pod(), BACKEND_ON_NODE),
        ];
        for (port, backend, address, flags) in single {
            node.backend(backend, id(port), address, flags);
            node.publish(id(port), &Block::of(&[backend]));
        }
        for port in [MANY, AFFINE] {
            let first = if port == MANY { 20 } else { 30 };
            let ids: Vec<u32> = (first..first + 5).collect();
            for backend in &ids {
                node.backend(*backend, id(port), at.numbered(*backend as u8), 0);
            }
            node.publish(
                id(port),
                &Block {
                    affinity: if port == AFFINE { 10_800 } else { 0 },
                    ..Block::of(&ids)
                },
            );
        }
        node.publish(id(EMPTY), &Block::default());
        node.publish(
            id(NO_LOCAL),
            &Block {
                flags: BLOCK_EXTERNAL_DROP,
                ..Block::default()
            },
        );
        node.publish(
            id(RANGED),
            &Block {
                flags: BLOCK_RANGES,
                ..Block::of(&[5])
            },
        );
        node.publish(
            id(BY_POLICY),
            &Block {
                flags: BLOCK_EXTERNAL_LOCAL,
                ..Block::of(&[6])
            },
        );
        for port in LOCAL..=BY_POLICY {
            for protocol in [TCP, UDP] {
                node.frontends(port, protocol, id(port));
            }
        }
        node
    }

    /// The three frontends of a service port.
    pub(super) fn frontends(&self, port: u16, protocol: u8, service: u32) {
        let at = self.at;
        self.frontend(at.vip(), port, protocol, FRONTEND_CLUSTER, service);
        self.frontend(at.lb(), port, protocol, FRONTEND_RANGES, service);
        self.frontend(at.zero(), port + NODE_PORTS, protocol, FRONTEND_NODE_PORT, service);
    }

    /// An address of ours, by its wildcard.
    pub(super) fn address(&self, address: IpAddr, flags: u8) {
        self.tables.mark_forward(address);
        self.frontend(address, 0, 0, flags, 0);
    }

    pub(super) fn frontend(&self, address: IpAddr, port: u16, protocol: u8, flags: u8, service: u32) {
        let value = FrontendValue {
            protocol,
            flags: flags | FRONTEND_VALID,
            service,
        };
        assert!(
            self.tables.write_frontend(address, port, protocol, value),
            "the frontend table is full"
        );
    }

    /// A backend in use, under the next generation of its id.
    pub(super) fn backend(&self, id: u32, service: u32, address: IpAddr, flags: u16) {
        let generation = self.tables.backend_control(id).generation + 1;
        self.tables.mark_reply(address);
        self.tables.write_backend(
            id,
            &BackendRecord {
                address,
                port: BACKEND_PORT,
                flags,
                control: BackendControl {
                    generation,
                    state: IN_USE,
                    service,
                },
            },
        );
    }

    /// Sets the state bits of a backend.
    pub(super) fn set_state(&self, id: u32, state: u8) {
        let control = self.tables.backend_control(id);
        self.tables
            .write_backend_control(id, BackendControl { state, ..control });
    }

    /// Publishes a fresh block for a service and switches to it; the arena is used round and round.
    pub(super) fn publish(&self, service: u32, content: &Block) -> ServiceWord {
        let mut offset = self.next_block.load(Ordering::Relaxed);
        if (offset + content.length()) as usize > self.tables.sizes().arena {
            offset = 8;
        }
        self.next_block.store(offset + content.length(), Ordering::Relaxed);
        let word = ServiceWord { generation: 1, offset };
        self.tables.write_block(service, word.generation, offset, content);
        self.tables.switch(service, Some(word));
        word
    }

    pub(super) fn set_flags(&self, flags: u64) {
        self.tables.set_config(config::FLAGS, flags);
    }

    /// Lets seconds pass.
    pub(super) fn pass_seconds(&self, seconds: u32) {
        self.tables.advance(seconds * HZ);
    }

    /// Sends a packet through a hook, as it comes from a device of that role.
    pub(super) fn send(&self, hook: u8, packet: &Packet) -> Sent {
        self.send_buffer(hook, L3, packet.build().into())
    }

    /// Sends a packet through a hook; a process of the host sends what leaves by steer0 and lo.
    pub(super) fn send_buffer(&self, hook: u8, l3: usize, mut buffer: Buffer) -> Sent {
        (buffer.ifindex, buffer.sent_by_host) = match hook {
            Hook::POD_IN | Hook::POD_OUT => (CLIENT_VETH, false),
            Hook::STEER_OUT => (STEER, true),
            Hook::LO_OUT => (LO, true),
            _ => (UPLINK, false),
        };
        self.send_as_is(hook, l3, buffer)
    }

    /// Sends a packet of which everything is set.
    pub(super) fn send_as_is(&self, hook: u8, l3: usize, mut buffer: Buffer) -> Sent {
        let counts = || Reason::ALL.iter().map(|reason| self.tables.counted(*reason));
        let (before, counts_before, lookups_before) = (
            buffer.bytes().to_vec(),
            counts().collect::<Vec<_>>(),
            self.tables.lookups(),
        );
        let outcome = run(&self.tables, hook, self.v6, l3, &mut buffer);
        let lookups = self.tables.lookups() - lookups_before;
        let counted = Reason::ALL
            .iter()
            .zip(counts().zip(counts_before))
            .filter(|(_, (now, then))| now > then)
            .map(|(reason, (now, then))| (*reason, now - then))
            .collect();
        Sent {
            outcome,
            buffer,
            before,
            counted,
            lookups,
        }
    }
}
