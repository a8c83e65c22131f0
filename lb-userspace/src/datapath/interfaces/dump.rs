//! What rtnetlink says about links, addresses and default routes: taken whole from a dump, then patched by single events.
//!
//! The kernel does not report every change: IPv4 routes that vanish with their link or address, or the moment when the peer
//! of a veth leaves for another network namespace. [`Dump::apply`] therefore says when only a fresh dump can tell.
//! Sources: rtnetlink(7), net/core/rtnetlink.c (`rtnl_fill_ifinfo`), net/ipv4/fib_frontend.c.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoGeneve, InfoGre, InfoGre6, InfoIpTunnel, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};

/// The sorts of devices that matter for roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One end of a pair.
    Veth,
    /// A bridge.
    Bridge,
    /// One VLAN of another device.
    Vlan,
    /// vxlan, geneve, ipip, sit, ip6tnl, gre, wireguard, tun.
    Tunnel,
    /// All else.
    Other,
}

/// A link as far as we need it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent property of the device"
)]
pub struct Link {
    /// Name.
    pub name: String,
    /// Sort of device.
    pub kind: Kind,
    /// The loopback device.
    pub loopback: bool,
    /// IFF_UP.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// MAC address, with Ethernet only.
    pub mac: Option<[u8; 6]>,
    /// Packets carry an Ethernet header.
    pub ethernet: bool,
    /// Interface index of the bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// Interface index of the peer, or of the device below, in that one's network namespace.
    pub peer: Option<u32>,
    /// The peer lives in another network namespace.
    pub peer_elsewhere: bool,
    /// A tunnel that takes its remote end from each packet's metadata.
    pub metadata: bool,
}

/// A default route, without its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultRoute {
    /// The way out.
    pub ifindex: u32,
    /// Of IPv6, else of IPv4.
    pub v6: bool,
}

/// Links, addresses and default routes of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// By interface index.
    pub links: BTreeMap<u32, Link>,
    /// By interface index.
    pub addresses: BTreeMap<u32, BTreeSet<IpAddr>>,
    /// Of every table.
    pub default_routes: BTreeSet<DefaultRoute>,
}

/// What an event means for a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// The dump has been patched.
    Patched,
    /// Only a fresh dump can tell.
    Unknown,
}

impl Dump {
    /// Takes in one message: of a dump, or an event.
    pub fn apply(&mut self, message: &RouteNetlinkMessage) -> Change {
        if let RouteNetlinkMessage::NewLink(link) = message {
            self.new_link(link)
        } else if let RouteNetlinkMessage::DelLink(link) = message {
            self.del_link(link)
        } else if let RouteNetlinkMessage::NewAddress(address) = message {
            let Some(ip) = ip_of(address) else {
                return Change::Nothing;
            };
            patched(self.addresses.entry(address.header.index).or_default().insert(ip))
        } else if let RouteNetlinkMessage::DelAddress(address) = message {
            let Some(ip) = ip_of(address) else {
                return Change::Nothing;
            };
            patched(
                self.addresses
                    .get_mut(&address.header.index)
                    .is_some_and(|known| known.remove(&ip)),
            )
        } else if let RouteNetlinkMessage::NewRoute(route) = message {
            let found = default_routes(route);
            let before = self.default_routes.len();
            self.default_routes.extend(found);
            patched(self.default_routes.len() != before)
        } else if let RouteNetlinkMessage::DelRoute(route) = message {
            // Another default route may lead out of the same interface.
            if default_routes(route).is_empty() {
                Change::Nothing
            } else {
                Change::Unknown
            }
        } else {
            Change::Nothing
        }
    }

    fn new_link(&mut self, message: &LinkMessage) -> Change {
        // Bridges send a second, partial message about their ports.
        if message.header.interface_family == AddressFamily::Bridge {
            return Change::Nothing;
        }
        let Some(link) = link_of(message) else {
            return Change::Nothing;
        };
        let old = self.links.insert(message.header.index, link.clone());
        patched(old.as_ref() != Some(&link))
    }

    fn del_link(&mut self, message: &LinkMessage) -> Change {
        if message.header.interface_family == AddressFamily::Bridge {
            return Change::Nothing;
        }
        let gone = message.header.index;
        let known = self.links.remove(&gone).is_some();
        self.addresses.remove(&gone);
        self.default_routes.retain(|route| route.ifindex != gone);
        // A veth whose peer we saw here: the peer may have gone elsewhere, which turns this end into a pod's.
        let bereft = self
            .links
            .values()
            .any(|link| link.kind == Kind::Veth && link.peer == Some(gone));
        if bereft { Change::Unknown } else { patched(known) }
    }
}

fn patched(changed: bool) -> Change {
    if changed { Change::Patched } else { Change::Nothing }
}

fn link_of(message: &LinkMessage) -> Option<Link> {
    let header = &message.header;
    let loopback = header.flags.contains(LinkFlags::Loopback);
    let ethernet = loopback || header.link_layer_type == LinkLayerType::Ether;
    let mut link = Link {
        name: String::new(),
        kind: Kind::Other,
        loopback,
        up: header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac: None,
        ethernet,
        master: None,
        peer: None,
        peer_elsewhere: false,
        metadata: false,
    };
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        } else if let LinkAttribute::Address(bytes) = attribute {
            link.mac = bytes.as_slice().try_into().ok().filter(|_| ethernet);
        } else if let LinkAttribute::Controller(master) = attribute {
            link.master = Some(*master).filter(|&master| master != 0);
        } else if let LinkAttribute::Link(peer) = attribute {
            link.peer = Some(*peer);
        } else if let LinkAttribute::LinkNetNsId(_) = attribute {
            link.peer_elsewhere = true;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            for info in infos {
                if let LinkInfo::Kind(kind) = info {
                    link.kind = kind_of(kind, ethernet);
                } else if let LinkInfo::Data(data) = info {
                    link.metadata = takes_metadata(data);
                }
            }
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn kind_of(kind: &InfoKind, ethernet: bool) -> Kind {
    if *kind == InfoKind::Veth {
        return Kind::Veth;
    }
    if *kind == InfoKind::Bridge {
        return Kind::Bridge;
    }
    if *kind == InfoKind::Vlan {
        return Kind::Vlan;
    }
    // A tap device is a virtual machine's; only the kind without Ethernet is a tunnel's.
    if *kind == InfoKind::Tun {
        return if ethernet { Kind::Other } else { Kind::Tunnel };
    }
    let tunnels = [
        InfoKind::Vxlan,
        InfoKind::Geneve,
        InfoKind::IpIp,
        InfoKind::SitTun,
        InfoKind::Ip6Tnl,
        InfoKind::GreTun,
        InfoKind::GreTap,
        InfoKind::GreTun6,
        InfoKind::GreTap6,
        InfoKind::Wireguard,
    ];
    if tunnels.contains(kind) {
        Kind::Tunnel
    } else {
        Kind::Other
    }
}

fn takes_metadata(data: &InfoData) -> bool {
    if let InfoData::Vxlan(infos) = data {
        infos.contains(&InfoVxlan::CollectMetadata(true))
    } else if let InfoData::Geneve(infos) = data {
        infos.contains(&InfoGeneve::CollectMetadata)
    } else if let InfoData::IpTunnel(infos) = data {
        infos.contains(&InfoIpTunnel::CollectMetadata)
    } else if let InfoData::GreTun(infos) | InfoData::GreTap(infos) = data {
        infos.contains(&InfoGre::CollectMetadata)
    } else if let InfoData::GreTun6(infos) | InfoData::GreTap6(infos) = data {
        infos.contains(&InfoGre6::CollectMetadata)
    } else {
        false
    }
}

/// The node's own address: on a point-to-point link `Address` is the other end's.
fn ip_of(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(ip) = attribute {
            return Some(*ip);
        }
        if let AddressAttribute::Address(ip) = attribute {
            address = Some(*ip);
        }
    }
    address
}

/// One for each way out; none if the route is not a default route.
fn default_routes(message: &RouteMessage) -> Vec<DefaultRoute> {
    let header = &message.header;
    let v6 = header.address_family == AddressFamily::Inet6;
    if !v6 && header.address_family != AddressFamily::Inet {
        return Vec::new();
    }
    if header.destination_prefix_length != 0 || header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut found = Vec::new();
    for attribute in &message.attributes {
        if let RouteAttribute::Oif(ifindex) = attribute {
            found.push(DefaultRoute { ifindex: *ifindex, v6 });
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            found.extend(hops.iter().map(|hop| DefaultRoute {
                ifindex: hop.interface_index,
                v6,
            }));
        }
    }
    found
}

#[cfg(test)]
impl Link {
    /// An Ethernet link that is up.
    pub(super) fn test_default() -> Self {
        Self {
            name: String::new(),
            kind: Kind::Other,
            loopback: false,
            up: true,
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, 1]),
            ethernet: true,
            master: None,
            peer: None,
            peer_elsewhere: false,
            metadata: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rtnetlink::packet_route::route::{RouteAddress, RouteNextHop};
    use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};

    use super::*;

    fn new_link(message: LinkMessage) -> RouteNetlinkMessage {
        RouteNetlinkMessage::NewLink(message)
    }

    fn veth(ifindex: u32, name: &str, peer: u32) -> LinkMessage {
        let mut message = LinkVeth::new(name, "").index(ifindex).up().link(peer).mtu(1500).build();
        message.header.link_layer_type = LinkLayerType::Ether;
        message
    }

    fn address(ifindex: u32, ip: Ipv4Addr) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = ifindex;
        message.attributes = vec![AddressAttribute::Local(ip.into())];
        message
    }

    fn default_route(ifindex: u32) -> RouteMessage {
        RouteMessageBuilder::<Ipv4Addr>::new().output_interface(ifindex).build()
    }

    #[test]
    fn events_patch_the_dump() {
        let ip = Ipv4Addr::new(192, 0, 2, 1);
        let mut dump = Dump::default();
        assert_eq!(dump.apply(&new_link(veth(4, "v4", 9))), Change::Patched);
        assert_eq!(dump.apply(&new_link(veth(4, "v4", 9))), Change::Nothing);
        assert_eq!(
            dump.apply(&RouteNetlinkMessage::NewAddress(address(4, ip))),
            Change::Patched
        );
        assert_eq!(
            dump.apply(&RouteNetlinkMessage::NewRoute(default_route(4))),
            Change::Patched
        );
        let link = &dump.links[&4];
        assert_eq!(
            (link.kind, link.peer, link.peer_elsewhere, link.up),
            (Kind::Veth, Some(9), false, true)
        );
        assert_eq!(dump.addresses[&4], BTreeSet::from([ip.into()]));
        assert_eq!(
            dump.default_routes,
            BTreeSet::from([DefaultRoute { ifindex: 4, v6: false }])
        );
        assert_eq!(
            dump.apply(&RouteNetlinkMessage::DelAddress(address(4, ip))),
            Change::Patched
        );
        assert_eq!(
            dump.apply(&RouteNetlinkMessage::DelAddress(address(4, ip))),
            Change::Nothing
        );
        assert_eq!(
            dump.apply(&RouteNetlinkMessage::DelRoute(default_route(4))),
            Change::Unknown
        );
        assert_eq!(
            dump.apply(&RouteNetlinkMessage::DelLink(veth(4, "v4", 9))),
            Change::Patched
        );
        assert_eq!(dump.links, BTreeMap::new());
        assert_eq!(dump.default_routes, BTreeSet::new());
    }

    #[test]
    fn a_veth_whose_peer_left_needs_a_fresh_dump() {
        let mut dump = Dump::default();
        dump.apply(&new_link(veth(4, "host", 5)));
        dump.apply(&new_link(veth(5, "pod", 4)));
        assert_eq!(
            dump.apply(&RouteNetlinkMessage::DelLink(veth(5, "pod", 4))),
            Change::Unknown
        );
        let mut moved = veth(4, "host", 2);
        moved.attributes.push(LinkAttribute::LinkNetNsId(0));
        assert_eq!(dump.apply(&new_link(moved)), Change::Patched);
        assert!(dump.links[&4].peer_elsewhere);
    }

    #[test]
    fn messages_of_bridges_about_ports_and_other_routes_are_ignored() {
        let mut dump = Dump::default();
        let mut port = veth(4, "v4", 9);
        port.header.interface_family = AddressFamily::Bridge;
        assert_eq!(dump.apply(&new_link(port.clone())), Change::Nothing);
        assert_eq!(dump.apply(&RouteNetlinkMessage::DelLink(port)), Change::Nothing);
        let mut vip = default_route(4);
        vip.header.destination_prefix_length = 32;
        vip.attributes
            .push(RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::new(
                10, 96, 0, 1,
            ))));
        assert_eq!(dump.apply(&RouteNetlinkMessage::NewRoute(vip.clone())), Change::Nothing);
        assert_eq!(dump.apply(&RouteNetlinkMessage::DelRoute(vip)), Change::Nothing);
        let mut blackhole = default_route(4);
        blackhole.header.kind = RouteType::BlackHole;
        assert_eq!(dump.apply(&RouteNetlinkMessage::NewRoute(blackhole)), Change::Nothing);
    }

    #[test]
    fn a_default_route_of_several_ways_counts_for_each() {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let hop = |ifindex| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = ifindex;
            hop
        };
        route.attributes.push(RouteAttribute::MultiPath(vec![hop(2), hop(3)]));
        let mut dump = Dump::default();
        dump.apply(&RouteNetlinkMessage::NewRoute(route));
        assert_eq!(
            dump.default_routes
                .iter()
                .map(|route| route.ifindex)
                .collect::<Vec<_>>(),
            [2, 3]
        );
    }

    #[test]
    fn kinds_are_told_apart() {
        for (kind, ethernet, expected) in [
            (InfoKind::Vxlan, true, Kind::Tunnel),
            (InfoKind::Wireguard, false, Kind::Tunnel),
            (InfoKind::Tun, false, Kind::Tunnel),
            (InfoKind::Tun, true, Kind::Other),
            (InfoKind::Bridge, true, Kind::Bridge),
            (InfoKind::Dummy, true, Kind::Other),
            (InfoKind::Other("new".to_owned()), true, Kind::Other),
        ] {
            let mut message = LinkUnspec::new_with_name("x").index(3).build();
            message.header.link_layer_type = if ethernet {
                LinkLayerType::Ether
            } else {
                LinkLayerType::None
            };
            message
                .attributes
                .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind.clone())]));
            assert_eq!(link_of(&message).unwrap().kind, expected, "{kind:?} {ethernet}");
        }
        let mut external = LinkUnspec::new_with_name("x").index(3).build();
        let data = InfoData::Vxlan(vec![InfoVxlan::CollectMetadata(true)]);
        external.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(data),
        ]));
        assert!(link_of(&external).unwrap().metadata);
    }
}
