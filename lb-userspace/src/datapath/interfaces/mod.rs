//! Which interfaces there are and what role each plays, as a pure function of a netlink dump and the operator's patterns.
//!
//! Precedence: `lo` and our own device > name patterns > **uplink** (carries a default route or an address of the Node) >
//! **tunnel** (by kind) > **pod** (a veth whose peer lives in another network namespace) > not hooked.
//! [`InterfaceWatch`] keeps the table current.

mod dump;
mod pattern;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;

pub use dump::{Change, DefaultRoute, Dump, Kind, Link};
pub use watch::{InterfaceWatch, WatchError, snapshot};

use super::steer::STEER;
use crate::config::InterfacePatterns;

/// What an interface is to us; decides which programs run on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Leads to the outside.
    Uplink,
    /// Leads to other nodes' pods.
    Tunnel,
    /// The node's end of a pod's link.
    Pod,
    /// Our device that host processes' packets to VIPs leave by.
    Steer,
    /// The loopback device.
    Lo,
    /// Nothing of ours runs there.
    Unhooked,
}

impl Role {
    /// The name for logs and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Tunnel => "tunnel",
            Self::Pod => "pod",
            Self::Steer => "steer",
            Self::Lo => "lo",
            Self::Unhooked => "unhooked",
        }
    }
}

/// The bridge that an interface is a port of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bridge {
    /// Its interface index.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent property of the device"
)]
pub struct Interface {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Set up by the operator or the CNI (IFF_UP).
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// MAC address; `None` without Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Packets carry an Ethernet header.
    pub ethernet: bool,
    /// A tunnel that takes its remote end from each packet's metadata: no target for redirects.
    pub metadata: bool,
    /// One end of a pair.
    pub veth: bool,
    /// The other end of the pair lives in another network namespace.
    pub peer_elsewhere: bool,
    /// Devices of VLANs take their packets from it.
    pub carries_vlans: bool,
    /// Addresses, sorted.
    pub addresses: Vec<IpAddr>,
    /// The bridge that it is a port of.
    pub bridge: Option<Bridge>,
}

/// All interfaces at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InterfaceTable {
    /// By interface index, the unhooked ones too.
    pub interfaces: Vec<Interface>,
    /// Addresses of all interfaces.
    pub local_addresses: BTreeSet<IpAddr>,
    /// Rises with each change, from 1.
    pub generation: u64,
}

impl InterfaceTable {
    /// Interfaces of a role.
    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().filter(move |interface| interface.role == role)
    }

    /// The smallest MTU of the uplinks and tunnels that are up; `None` without any.
    pub fn smallest_mtu(&self) -> Option<u32> {
        let outward = |interface: &&Interface| interface.up && matches!(interface.role, Role::Uplink | Role::Tunnel);
        self.interfaces
            .iter()
            .filter(outward)
            .map(|interface| interface.mtu)
            .min()
    }
}

/// What besides the dump decides about roles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Name patterns of the operator.
    pub patterns: InterfacePatterns,
    /// Addresses in the Node object; empty while it is unknown.
    pub node_addresses: BTreeSet<IpAddr>,
}

/// Gives every interface of a dump its role. The generation of the result is 0.
pub fn interface_table(dump: &Dump, rules: &Rules) -> InterfaceTable {
    let routed: BTreeSet<u32> = dump.default_routes.iter().map(|route| route.ifindex).collect();
    let none = BTreeSet::new();
    let interfaces = dump.links.iter().map(|(&ifindex, link)| {
        let addresses = dump.addresses.get(&ifindex).unwrap_or(&none);
        let faces_out = routed.contains(&ifindex) || !addresses.is_disjoint(&rules.node_addresses);
        Interface {
            ifindex,
            name: link.name.clone(),
            role: role(link, &rules.patterns, faces_out),
            up: link.up,
            mtu: link.mtu,
            mac: link.mac,
            ethernet: link.ethernet,
            metadata: link.metadata,
            veth: link.kind == Kind::Veth,
            peer_elsewhere: link.peer_elsewhere,
            carries_vlans: dump
                .links
                .values()
                .any(|upper| upper.kind == Kind::Vlan && upper.peer == Some(ifindex)),
            addresses: addresses.iter().copied().collect(),
            bridge: bridge(&dump.links, link),
        }
    });
    InterfaceTable {
        interfaces: interfaces.collect(),
        local_addresses: dump.addresses.values().flatten().copied().collect(),
        generation: 0,
    }
}

fn role(link: &Link, patterns: &InterfacePatterns, faces_out: bool) -> Role {
    if link.loopback {
        return Role::Lo;
    }
    if let Some(end) = STEER.iter().position(|name| *name == link.name) {
        // The far end takes what no program caught; nothing runs there.
        return if end == 0 { Role::Steer } else { Role::Unhooked };
    }
    if let Some(forced) = pattern::forced_role(patterns, &link.name) {
        return forced;
    }
    match link.kind {
        _ if faces_out => Role::Uplink,
        Kind::Tunnel => Role::Tunnel,
        Kind::Veth if link.peer_elsewhere => Role::Pod,
        Kind::Veth | Kind::Bridge | Kind::Vlan | Kind::Other => Role::Unhooked,
    }
}

fn bridge(links: &BTreeMap<u32, Link>, port: &Link) -> Option<Bridge> {
    let ifindex = port.master?;
    let master = links.get(&ifindex).filter(|master| master.kind == Kind::Bridge)?;
    Some(Bridge {
        ifindex,
        mac: master.mac?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: Kind) -> Link {
        Link {
            name: name.to_owned(),
            kind,
            ..Link::test_default()
        }
    }

    fn dump(links: impl IntoIterator<Item = (u32, Link)>) -> Dump {
        Dump {
            links: links.into_iter().collect(),
            ..Dump::default()
        }
    }

    fn roles(dump: &Dump, rules: &Rules) -> Vec<(String, Role)> {
        interface_table(dump, rules)
            .interfaces
            .into_iter()
            .map(|found| (found.name, found.role))
            .collect()
    }

    #[track_caller]
    fn check(dump: &Dump, rules: &Rules, expected: &[(&str, Role)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, role)| ((*name).to_owned(), *role))
            .collect();
        assert_eq!(roles(dump, rules), expected);
    }

    fn world() -> Dump {
        let pod = |name: &str| Link {
            peer_elsewhere: true,
            ..link(name, Kind::Veth)
        };
        let mut dump = dump([
            (
                1,
                Link {
                    loopback: true,
                    ..link("lo", Kind::Other)
                },
            ),
            (2, link("eth0", Kind::Other)),
            (3, link("vxlan.calico", Kind::Tunnel)),
            (4, link("cni0", Kind::Bridge)),
            (
                5,
                Link {
                    master: Some(4),
                    ..pod("veth5")
                },
            ),
            (6, link("veth-host", Kind::Veth)),
            (7, link("steer0", Kind::Veth)),
            (8, link("steer1", Kind::Veth)),
            (9, link("docker0", Kind::Bridge)),
        ]);
        dump.default_routes.insert(DefaultRoute { ifindex: 2, v6: false });
        dump
    }

    #[test]
    fn roles_follow_routes_kinds_and_peers() {
        use Role::{Lo, Pod, Steer, Tunnel, Unhooked, Uplink};
        let expected = [
            ("lo", Lo),
            ("eth0", Uplink),
            ("vxlan.calico", Tunnel),
            ("cni0", Unhooked),
            ("veth5", Pod),
            ("veth-host", Unhooked),
            ("steer0", Steer),
            ("steer1", Unhooked),
            ("docker0", Unhooked),
        ];
        check(&world(), &Rules::default(), &expected);
    }

    #[test]
    fn an_address_of_the_node_makes_an_uplink_of_any_kind_without_a_route() {
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        let rules = Rules {
            node_addresses: BTreeSet::from([address]),
            ..Rules::default()
        };
        for ifindex in [3, 5, 9] {
            let mut dump = world();
            dump.default_routes.clear();
            dump.addresses.entry(ifindex).or_default().insert(address);
            let uplinks: Vec<u32> = interface_table(&dump, &rules)
                .with_role(Role::Uplink)
                .map(|found| found.ifindex)
                .collect();
            assert_eq!(uplinks, [ifindex]);
        }
    }

    #[test]
    fn the_loopback_device_and_ours_keep_their_roles_whatever_they_carry() {
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        let all = vec!["*".to_owned()];
        let rules = Rules {
            node_addresses: BTreeSet::from([address]),
            patterns: InterfacePatterns {
                ignore: all,
                ..InterfacePatterns::default()
            },
        };
        let mut dump = world();
        for ifindex in [1, 7, 8] {
            dump.addresses.entry(ifindex).or_default().insert(address);
            dump.default_routes.insert(DefaultRoute { ifindex, v6: true });
        }
        let table = interface_table(&dump, &rules);
        let hooked: Vec<_> = table
            .interfaces
            .iter()
            .filter(|found| found.role != Role::Unhooked)
            .collect();
        assert_eq!(
            hooked
                .iter()
                .map(|found| (found.ifindex, found.role))
                .collect::<Vec<_>>(),
            [(1, Role::Lo), (7, Role::Steer)]
        );
    }

    #[test]
    fn patterns_override_what_an_interface_looks_like() {
        let list = |text: &str| vec![text.to_owned()];
        let patterns = InterfacePatterns {
            uplink: list("veth-host"),
            tunnel: list("docker0"),
            pod: list("eth*"),
            ignore: list("vx*"),
        };
        let table = interface_table(
            &world(),
            &Rules {
                patterns,
                ..Rules::default()
            },
        );
        let role_of = |name: &str| table.interfaces.iter().find(|found| found.name == name).unwrap().role;
        assert_eq!(role_of("veth-host"), Role::Uplink);
        assert_eq!(role_of("docker0"), Role::Tunnel);
        assert_eq!(role_of("eth0"), Role::Pod);
        assert_eq!(role_of("vxlan.calico"), Role::Unhooked);
    }

    #[test]
    fn a_bridge_port_knows_the_address_of_its_bridge_alone() {
        let mut dump = world();
        dump.links.get_mut(&4).unwrap().mac = Some([2, 0, 0, 0, 0, 4]);
        dump.links.get_mut(&6).unwrap().master = Some(2);
        let table = interface_table(&dump, &Rules::default());
        let bridge_of = |ifindex: u32| {
            table
                .interfaces
                .iter()
                .find(|found| found.ifindex == ifindex)
                .unwrap()
                .bridge
        };
        assert_eq!(
            bridge_of(5),
            Some(Bridge {
                ifindex: 4,
                mac: [2, 0, 0, 0, 0, 4]
            })
        );
        assert_eq!(bridge_of(6), None);
    }

    #[test]
    fn the_smallest_mtu_is_that_of_uplinks_and_tunnels_that_are_up() {
        let mut dump = world();
        for (ifindex, mtu) in [(2, 1500), (3, 1450), (5, 1280), (9, 576)] {
            dump.links.get_mut(&ifindex).unwrap().mtu = mtu;
        }
        assert_eq!(interface_table(&dump, &Rules::default()).smallest_mtu(), Some(1450));
        dump.links.get_mut(&3).unwrap().up = false;
        assert_eq!(interface_table(&dump, &Rules::default()).smallest_mtu(), Some(1500));
        assert_eq!(InterfaceTable::default().smallest_mtu(), None);
    }
}
