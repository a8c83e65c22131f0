//! The configuration words and devices that packets read, from the configuration and what is known of the node.
//!
//! Pure. The seed of the tables is not among them: it is the node's secret, lives in the pinned configuration map, and the
//! planner keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use lb_common::layout::{DEVICE_POD, Device, config as word};

use crate::config::{Config, HostRouting, RefuseWith};
use crate::datapath::interfaces::{Interface, InterfaceTable, Role};
use crate::datapath::steer::SteerDevice;
use crate::maps::{v4_word, v6_words};
use crate::model::{Family, NodeFacts};

/// Words of the configuration value.
pub(super) type ConfigWords = [u64; word::WORDS];

/// A MAC address as map words have it: bytes in order in the low 48 bits of a little-endian word.
pub(super) fn mac_word(mac: [u8; 6]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(&mac);
    u64::from_le_bytes(bytes)
}

/// Jiffies of a time, at least one.
fn jiffies(time: Duration, hz: u32) -> u64 {
    (time.as_millis() as u64 * u64::from(hz) / 1000).max(1)
}

/// The configuration words. A device that is not there has index 0, which no device has.
pub(super) fn config_words(
    config: &Config,
    table: &InterfaceTable,
    steer: Option<SteerDevice>,
    hz: u32,
) -> ConfigWords {
    let lo = table.with_role(Role::Lo).next();
    let bridges = table
        .interfaces
        .iter()
        .any(|i| i.role != Role::Unhooked && i.bridge.is_some());
    let flags = [
        (config.takeover, word::FLAG_TAKEOVER),
        (config.ping, word::FLAG_ECHO),
        (config.refuse_with == RefuseWith::Icmp, word::FLAG_REFUSE_BY_ICMP),
        (bridges, word::FLAG_BRIDGES),
        (config.host_routing == HostRouting::Bpf, word::FLAG_HOST_ROUTING),
    ];
    let ports = &config.snat_ports;
    let times = &config.timeouts;
    let [tcp_grain, udp_grain] = [times.tcp_established, times.udp_replied].map(|time| grain(jiffies(time, hz), hz));
    let mut words = [0; word::WORDS];
    for (index, value) in [
        (
            word::FLAGS,
            flags.iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag),
        ),
        (word::SELECT_SEED, config.select_seed),
        (word::HZ, u64::from(hz)),
        (word::PORT_MIN, u64::from(*ports.start())),
        (
            word::PORT_COUNT,
            u64::from(*ports.end()) - u64::from(*ports.start()) + 1,
        ),
        (word::STEER_IFINDEX, steer.map_or(0, |device| u64::from(device.ifindex))),
        (word::STEER_MAC, steer.map_or(0, |device| mac_word(device.mac))),
        (word::LO_IFINDEX, lo.map_or(0, |i| u64::from(i.ifindex))),
        (word::TCP_HALF_OPEN, jiffies(times.tcp_half_open, hz)),
        (word::TCP_ESTABLISHED, jiffies(times.tcp_established, hz) + tcp_grain),
        (word::TCP_HALF_CLOSED, jiffies(times.tcp_half_closed, hz)),
        (word::TCP_CLOSED, jiffies(times.tcp_closed, hz)),
        (word::UDP_UNREPLIED, jiffies(times.udp_unreplied, hz)),
        (word::UDP_REPLIED, jiffies(times.udp_replied, hz) + udp_grain),
        (word::TCP_GRAIN, tcp_grain),
        (word::UDP_GRAIN, udp_grain),
        (word::ANSWER_RATE, u64::from(config.answer_rate)),
    ] {
        words[index] = value;
    }
    words
}

/// How old the note of a packet may be where flows have this time-out: a sixteenth of it, between a second and sixteen. The time-out that
/// the kernel is given is so much longer, so that no flow ends early.
fn grain(timeout: u64, hz: u32) -> u64 {
    let second = u64::from(hz);
    (timeout / 16).clamp(second, 16 * second)
}

/// The devices with a role. `vips` never serve as a source: they may sit on an interface, but belong to a Service.
pub(super) fn devices(table: &InterfaceTable, node: &NodeFacts, vips: &BTreeSet<IpAddr>) -> BTreeMap<u32, Device> {
    let hooked = table.interfaces.iter().filter(|i| i.role != Role::Unhooked);
    hooked.map(|i| (i.ifindex, device(i, table, node, vips))).collect()
}

fn device(interface: &Interface, table: &InterfaceTable, node: &NodeFacts, vips: &BTreeSet<IpAddr>) -> Device {
    let source = |family| match interface.role {
        Role::Uplink | Role::Tunnel => source(interface, node, vips, family),
        // What leaves for a pod of this node, where the kernel does not tell a route's source.
        Role::Steer => node_source(table, node, vips, family),
        Role::Pod | Role::Lo | Role::Unhooked => None,
    };
    let source_v4 = match source(Family::V4) {
        Some(IpAddr::V4(address)) => v4_word(address),
        _ => 0,
    };
    let source_v6 = match source(Family::V6) {
        Some(IpAddr::V6(address)) => v6_words(address),
        _ => [0; 2],
    };
    let bridge_mac = interface.bridge.map_or(0, |bridge| mac_word(bridge.mac));
    Device {
        bridge_mac,
        mac: interface.mac.map_or(0, mac_word),
        source_v4,
        flags: if interface.role == Role::Pod && interface.veth && interface.peer_elsewhere {
            DEVICE_POD
        } else {
            0
        },
        source_v6,
    }
}

/// The node's own address of a family, for packets of host processes: its primary one if an interface carries it, else the
/// source of the first uplink that has one.
pub(super) fn node_source(
    table: &InterfaceTable,
    node: &NodeFacts,
    vips: &BTreeSet<IpAddr>,
    family: Family,
) -> Option<IpAddr> {
    let primary = node
        .primary
        .get(family)
        .filter(|address| table.local_addresses.contains(address));
    let uplinks = || {
        table
            .with_role(Role::Uplink)
            .find_map(|uplink| source(uplink, node, vips, family))
    };
    primary
        .or_else(uplinks)
        .filter(|address| table.local_addresses.contains(address))
}

/// The source for SNAT out of an uplink or tunnel: an address of the Node that it carries, else an address of its own, else
/// the node's primary one.
fn source(interface: &Interface, node: &NodeFacts, vips: &BTreeSet<IpAddr>, family: Family) -> Option<IpAddr> {
    let usable = |address: &&IpAddr| {
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        Family::of(**address) == family && !link_local && !address.is_loopback() && !vips.contains(*address)
    };
    let of_node = node
        .addresses
        .iter()
        .filter(usable)
        .find(|address| interface.addresses.contains(address));
    let own = interface.addresses.iter().find(usable);
    of_node.or(own).copied().or(*node.primary.get(family))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layer, Place, gather};
    use crate::datapath::interfaces::Bridge;
    use crate::model::PerFamily;
    use std::net::Ipv4Addr;

    fn config(flags: &[(&'static str, &str)]) -> Config {
        let values = [("folder", "/f")].into_iter().chain(flags.iter().copied());
        let layer: Layer = values
            .map(|(flag, v)| (flag, (Place::Flag(flag), vec![v.to_owned()])))
            .collect();
        Config::validate(&gather(layer, None, |_| None).unwrap(), Some("n1")).unwrap()
    }

    fn interface(ifindex: u32, role: Role, addresses: &[&str]) -> Interface {
        Interface {
            ifindex,
            name: format!("if{ifindex}"),
            role,
            up: true,
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, ifindex as u8]),
            ethernet: true,
            metadata: false,
            veth: false,
            peer_elsewhere: false,
            carries_vlans: false,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            bridge: None,
        }
    }

    fn table(interfaces: Vec<Interface>) -> InterfaceTable {
        InterfaceTable {
            interfaces,
            ..InterfaceTable::default()
        }
    }

    fn node(addresses: &[&str]) -> NodeFacts {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let mut primary: PerFamily<Option<IpAddr>> = PerFamily::default();
        for address in &addresses {
            primary.get_mut(Family::of(*address)).get_or_insert(*address);
        }
        NodeFacts {
            name: "n1".into(),
            known: true,
            zone: None,
            addresses: addresses.into(),
            primary,
            eligible: true,
        }
    }

    #[track_caller]
    fn source_v4(interface: Interface, node: &NodeFacts, vips: &[&str]) -> Ipv4Addr {
        let ifindex = interface.ifindex;
        let vips = vips.iter().map(|a| a.parse().unwrap()).collect();
        crate::maps::v4_address(devices(&table(vec![interface]), node, &vips)[&ifindex].source_v4)
    }

    #[test]
    fn times_are_jiffies_and_ports_a_count() {
        let config = config(&[("snat-ports", "20000-20099"), ("udp-replied-timeout", "2m")]);
        let words = config_words(&config, &InterfaceTable::default(), None, 250);
        assert_eq!(
            (words[word::UDP_REPLIED], words[word::UDP_GRAIN]),
            (30_000 + 1875, 1875)
        );
        assert_eq!(
            (words[word::TCP_ESTABLISHED], words[word::TCP_GRAIN]),
            ((24 * 3600 + 16) * 250, 16 * 250)
        );
        assert_eq!(grain(8 * 250, 250), 250, "a second at least");
        assert_eq!((words[word::PORT_MIN], words[word::PORT_COUNT]), (20000, 100));
        assert_eq!((words[word::TABLE_SEED], words[word::HZ]), (0, 250));
        assert_eq!((words[word::STEER_IFINDEX], words[word::LO_IFINDEX]), (0, 0));
    }

    #[test]
    fn flags_follow_the_configuration_and_the_bridges() {
        let plain = config_words(&config(&[]), &InterfaceTable::default(), None, 100);
        assert_eq!(plain[word::FLAGS], word::FLAG_ECHO);
        let mut port = interface(5, Role::Pod, &[]);
        port.bridge = Some(Bridge {
            ifindex: 4,
            mac: [1, 2, 3, 4, 5, 6],
        });
        let config = config(&[
            ("takeover", "true"),
            ("no-ping", "true"),
            ("refuse-with", "icmp"),
            ("host-routing", "bpf"),
        ]);
        let words = config_words(&config, &table(vec![port.clone()]), None, 100);
        assert_eq!(
            words[word::FLAGS],
            word::FLAG_TAKEOVER | word::FLAG_REFUSE_BY_ICMP | word::FLAG_BRIDGES | word::FLAG_HOST_ROUTING
        );
        let device = devices(&table(vec![port]), &node(&["192.0.2.1"]), &BTreeSet::new())[&5];
        assert_eq!(device.bridge_mac.to_le_bytes(), [1, 2, 3, 4, 5, 6, 0, 0]);
        assert_eq!(device.source_v4, 0);
    }

    #[test]
    fn a_pods_device_is_one_whose_other_end_is_elsewhere() {
        for (role, veth, peer_elsewhere, is_pods) in [
            (Role::Pod, true, true, true),
            // Named by the operator: the kernel hands nothing to what is at its other end.
            (Role::Pod, true, false, false),
            (Role::Pod, false, false, false),
            (Role::Uplink, true, true, false),
        ] {
            let interface = Interface {
                veth,
                peer_elsewhere,
                ..interface(5, role, &[])
            };
            let device = devices(&table(vec![interface]), &node(&["192.0.2.1"]), &BTreeSet::new())[&5];
            assert_eq!(
                device.flags & DEVICE_POD != 0,
                is_pods,
                "{role:?} {veth} {peer_elsewhere}"
            );
        }
    }

    #[test]
    fn our_device_and_lo_are_told_by_index_and_address() {
        let steer = SteerDevice {
            ifindex: 9,
            mac: [2, 0, 0, 0, 0, 9],
            mtu: 1500,
        };
        let words = config_words(
            &config(&[]),
            &table(vec![interface(1, Role::Lo, &[])]),
            Some(steer),
            100,
        );
        assert_eq!((words[word::LO_IFINDEX], words[word::STEER_IFINDEX]), (1, 9));
        assert_eq!(words[word::STEER_MAC].to_le_bytes(), [2, 0, 0, 0, 0, 9, 0, 0]);
    }

    #[test]
    fn an_uplink_takes_the_nodes_address_that_it_carries() {
        let uplink = || interface(2, Role::Uplink, &["10.9.9.1", "192.0.2.1"]);
        assert_eq!(
            source_v4(uplink(), &node(&["192.0.2.1"]), &[]),
            Ipv4Addr::new(192, 0, 2, 1)
        );
        assert_eq!(source_v4(uplink(), &node(&[]), &[]), Ipv4Addr::new(10, 9, 9, 1));
        assert_eq!(
            source_v4(uplink(), &node(&[]), &["10.9.9.1"]),
            Ipv4Addr::new(192, 0, 2, 1)
        );
    }

    #[test]
    fn steer0_has_the_nodes_address_for_ways_that_tell_no_source() {
        let steer = interface(5, Role::Steer, &[]);
        let uplink = interface(2, Role::Uplink, &["192.0.2.1"]);
        let mut table = table(vec![uplink, steer]);
        table.local_addresses = ["192.0.2.1".parse().unwrap()].into();
        let found = |node: &NodeFacts| devices(&table, node, &BTreeSet::new());
        assert_eq!(
            crate::maps::v4_address(found(&node(&["192.0.2.1"]))[&5].source_v4),
            Ipv4Addr::new(192, 0, 2, 1)
        );
        let unknown = found(&node(&[]));
        assert_eq!(
            crate::maps::v4_address(unknown[&5].source_v4),
            Ipv4Addr::new(192, 0, 2, 1),
            "no Node: that of the uplink"
        );
        assert_eq!(unknown[&2].mac.to_le_bytes(), [2, 0, 0, 0, 0, 2, 0, 0]);
    }

    #[test]
    fn a_tunnel_takes_its_own_address_and_without_one_the_nodes() {
        let node = node(&["192.0.2.1", "2001:db8::1"]);
        let tunnel = interface(3, Role::Tunnel, &["10.244.0.0", "fe80::1"]);
        assert_eq!(source_v4(tunnel.clone(), &node, &[]), Ipv4Addr::new(10, 244, 0, 0));
        let device = devices(&table(vec![tunnel]), &node, &BTreeSet::new())[&3];
        assert_eq!(crate::maps::v6_address(device.source_v6).to_string(), "2001:db8::1");
        assert_eq!(
            source_v4(interface(4, Role::Tunnel, &[]), &node, &[]),
            Ipv4Addr::new(192, 0, 2, 1)
        );
    }
}
