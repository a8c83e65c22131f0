//! The node that the cases run on: its addresses, devices and routes, once as a network namespace for the kernel's programs
//! and once as a table for the host's pipeline. Interface indices are fixed, so that both sides name devices alike.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use lb_common::layout::{DEVICE_POD, Device, config};
use lb_tests::netns::Netns;
use steerway::maps::{v4_word, v6_words};
use steerway::plan::NodeTables;

/// Index of the loopback in a new namespace.
pub(super) const LO: u32 = 1;
pub(super) const UPLINK: u32 = 10;
/// The node's end of the client pod's link.
pub(super) const CLIENT_VETH: u32 = 11;
/// The node's end of the local backend pod's link; a bridge port, as far as the tables say.
pub(super) const BACKEND_VETH: u32 = 12;
pub(super) const STEER: u32 = 13;

/// The uplink's MAC address, to which packets are built.
pub(super) const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The next hop's.
pub(super) const NEXT_HOP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// MAC addresses of the local backend, and of the node's end of its link.
pub(super) const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
pub(super) const VETH_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub(super) const STEER_MAC: [u8; 6] = [2, 0, 0, 0, 0xee, 0xee];
pub(super) const BRIDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0xbb, 0xbb];

/// The first SNAT port; unless a case says otherwise also the only one, so that the table can name it.
pub(super) const SNAT_PORT: u16 = 20_000;
/// MTU of the way to [`Addresses::narrow_pod`].
pub(super) const NARROW_MTU: u16 = 1300;
/// MTU of every other way.
pub(super) const MTU: u16 = 1500;

/// The name of the Node object.
pub(super) const NODE: &str = "node-a";

/// Addresses by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) v6: bool,
}

impl Addresses {
    pub(super) const BOTH: [Self; 2] = [Self { v6: false }, Self { v6: true }];

    pub(super) fn pick<'a>(self, v4: &'a str, v6: &'a str) -> &'a str {
        if self.v6 { v6 } else { v4 }
    }

    fn parse(self, v4: &str, v6: &str) -> IpAddr {
        self.pick(v4, v6).parse().expect("an address")
    }

    pub(super) fn client(self) -> IpAddr {
        self.parse("192.0.2.10", "2001:db8:1::10")
    }

    pub(super) fn other_client(self) -> IpAddr {
        self.parse("192.0.2.11", "2001:db8:1::11")
    }

    /// A router on the way to clients and other nodes.
    pub(super) fn router(self) -> IpAddr {
        self.parse("172.16.9.9", "2001:db8:9::9")
    }

    pub(super) fn pod(self) -> IpAddr {
        self.parse("10.1.0.10", "fd00:1::10")
    }

    pub(super) fn local_pod(self) -> IpAddr {
        self.parse("10.1.0.20", "fd00:1::20")
    }

    pub(super) fn remote_pod(self) -> IpAddr {
        self.parse("10.2.0.20", "fd00:2::20")
    }

    /// A pod of another node behind a link of [`NARROW_MTU`].
    pub(super) fn narrow_pod(self) -> IpAddr {
        self.parse("10.2.0.99", "fd00:2::99")
    }

    /// A pod of another node behind a next hop that nobody has asked for its MAC address.
    pub(super) fn unresolved_pod(self) -> IpAddr {
        self.parse("10.2.0.98", "fd00:2::98")
    }

    /// A pod to which no route leads.
    pub(super) fn unreachable_pod(self) -> IpAddr {
        self.parse("10.9.0.9", "fd00:9::9")
    }

    pub(super) fn node(self) -> IpAddr {
        self.parse("198.51.100.1", "2001:db8:2::1")
    }

    /// The node's address towards its pods.
    pub(super) fn gateway_of_pods(self) -> IpAddr {
        self.parse("10.1.0.1", "fd00:1::1")
    }

    pub(super) fn next_hop(self) -> IpAddr {
        self.parse("198.51.100.254", "2001:db8:2::fe")
    }

    fn unresolved_hop(self) -> IpAddr {
        self.parse("198.51.100.253", "2001:db8:2::fd")
    }

    pub(super) fn vip(self) -> IpAddr {
        self.parse("10.96.0.10", "fd00:96::10")
    }

    pub(super) fn load_balancer(self) -> IpAddr {
        self.parse("203.0.113.5", "2001:db8:5::5")
    }

    /// An address that is nobody's.
    pub(super) fn stranger(self) -> IpAddr {
        self.parse("203.0.113.99", "2001:db8:5::99")
    }

    fn own(self) -> [IpAddr; 2] {
        [self.node(), self.gateway_of_pods()]
    }
}

/// What a route look-up finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Out of a device by way of a next hop, from a preferred source.
    Via {
        ifindex: u32,
        next_hop: IpAddr,
        source: IpAddr,
        mtu: u16,
        /// MAC addresses of a frame to the next hop, where they are known: the receiver's and the sender's.
        macs: Option<[[u8; 6]; 2]>,
    },
    Local,
    Nothing,
}

/// The routes of [`namespace`], for the host's pipeline.
pub(super) fn route(destination: IpAddr) -> Found {
    let at = Addresses {
        v6: destination.is_ipv6(),
    };
    if at.own().contains(&destination) {
        return Found::Local;
    }
    if destination == at.unreachable_pod() {
        return Found::Nothing;
    }
    let pods = [(at.pod(), CLIENT_VETH), (at.local_pod(), BACKEND_VETH)];
    if let Some((pod, ifindex)) = pods.into_iter().find(|(pod, _)| *pod == destination) {
        return Found::Via {
            ifindex,
            next_hop: pod,
            source: at.gateway_of_pods(),
            mtu: MTU,
            macs: (ifindex == BACKEND_VETH).then_some([BACKEND_MAC, VETH_MAC]),
        };
    }
    let resolved = destination != at.unresolved_pod();
    Found::Via {
        ifindex: UPLINK,
        next_hop: if resolved { at.next_hop() } else { at.unresolved_hop() },
        source: at.node(),
        macs: resolved.then_some([NEXT_HOP_MAC, UPLINK_MAC]),
        mtu: if destination == at.narrow_pod() {
            NARROW_MTU
        } else {
            MTU
        },
    }
}

/// Makes the node as a namespace. Nothing is attached in it and nothing is sent: programs are run by hand.
pub(super) fn namespace(label: &str) -> Netns {
    let netns = Netns::new(label);
    netns.sysctls(&[
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv6.conf.default.forwarding", "1"),
    ]);
    let names = [
        ("up0", UPLINK),
        ("pod0", CLIENT_VETH),
        ("pod1", BACKEND_VETH),
        ("steer0", STEER),
    ];
    let mut batch = String::new();
    for (name, index) in names {
        let mac = match index {
            UPLINK => format!("address {}", mac_text(UPLINK_MAC)),
            BACKEND_VETH => format!("address {}", mac_text(VETH_MAC)),
            _ => String::new(),
        };
        _ = write!(
            batch,
            "link add {name} index {index} {mac} mtu {MTU} type veth peer name {name}-peer index {}\n\
             link set {name} up\n\
             link set {name}-peer up\n",
            index + 100
        );
    }
    for at in Addresses::BOTH {
        let bits = if at.v6 { 128 } else { 32 };
        let (gateway, hop, node) = (at.gateway_of_pods(), at.next_hop(), at.node());
        // Else a route may come before the kernel has found its source address unique.
        let known = at.pick("", "nodad");
        _ = write!(
            batch,
            "address add {node}/{} dev up0 {known}\n\
             address add {gateway}/{bits} dev pod0 {known}\n\
             route add {}/{bits} dev pod0 src {gateway}\n\
             route add {}/{bits} dev pod1 src {gateway}\n\
             route add default via {hop} dev up0 src {node}\n\
             route add {}/{bits} via {hop} dev up0 src {node} mtu lock {NARROW_MTU}\n\
             route add {}/{bits} via {} dev up0 src {node}\n\
             neighbour add {hop} lladdr {} dev up0 nud permanent\n\
             neighbour add {} lladdr {} dev pod1 nud permanent\n\
             route add unreachable {}/{bits}\n",
            at.pick("24", "64"),
            at.pod(),
            at.local_pod(),
            at.narrow_pod(),
            at.unresolved_pod(),
            at.unresolved_hop(),
            mac_text(NEXT_HOP_MAC),
            at.local_pod(),
            mac_text(BACKEND_MAC),
            at.unreachable_pod(),
        );
    }
    netns.ip_batch(&batch);
    netns.await_links(&names.map(|(name, _)| name));
    netns
}

/// What the tables say of the node. Time stands still for packets (a second never passes), so that a slow machine and a fast
/// one see the same.
pub(super) fn tables() -> NodeTables {
    let mut words = [0; config::WORDS];
    for (word, value) in [
        (config::FLAGS, config::FLAG_ECHO),
        (config::SELECT_SEED, 0xfedc_ba98_7654_3210),
        (config::HZ, 1 << 30),
        (config::PORT_MIN, u64::from(SNAT_PORT)),
        (config::PORT_COUNT, 1),
        (config::STEER_IFINDEX, u64::from(STEER)),
        (config::STEER_MAC, mac_word(STEER_MAC)),
        (config::LO_IFINDEX, u64::from(LO)),
        (config::TCP_HALF_OPEN, 1 << 20),
        (config::TCP_ESTABLISHED, 1 << 26),
        (config::TCP_HALF_CLOSED, 1 << 22),
        (config::TCP_CLOSED, 1 << 20),
        (config::UDP_UNREPLIED, 1 << 20),
        (config::UDP_REPLIED, 1 << 21),
        (config::TCP_GRAIN, 1 << 30),
        (config::UDP_GRAIN, 1 << 30),
        (config::ANSWER_RATE, 1 << 20),
    ] {
        words[word] = value;
    }
    let mut devices = BTreeMap::new();
    for ifindex in [LO, UPLINK, CLIENT_VETH, BACKEND_VETH, STEER] {
        devices.insert(ifindex, device(ifindex));
    }
    NodeTables {
        addresses: Addresses::BOTH.iter().flat_map(|at| at.own()).collect(),
        nodeport_addresses: Addresses::BOTH.iter().map(|at| at.node()).collect::<BTreeSet<_>>(),
        config: words,
        devices,
    }
}

/// Whether a device is a pod's.
pub(super) fn is_pods(ifindex: u32) -> bool {
    matches!(ifindex, CLIENT_VETH | BACKEND_VETH)
}

fn device(ifindex: u32) -> Device {
    let (mut source_v4, mut source_v6) = (0, [0; 2]);
    if ifindex == UPLINK {
        for at in Addresses::BOTH {
            match at.node() {
                IpAddr::V4(address) => source_v4 = v4_word(address),
                IpAddr::V6(address) => source_v6 = v6_words(address),
            }
        }
    }
    Device {
        bridge_mac: if ifindex == BACKEND_VETH {
            mac_word(BRIDGE_MAC)
        } else {
            0
        },
        mac: if ifindex == UPLINK { mac_word(UPLINK_MAC) } else { 0 },
        source_v4,
        source_v6,
        flags: if is_pods(ifindex) { DEVICE_POD } else { 0 },
    }
}

pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A MAC address as map words hold it.
pub(super) fn mac_word(mac: [u8; 6]) -> u64 {
    mac.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
