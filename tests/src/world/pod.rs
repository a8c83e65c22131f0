//! Pods and the three ways in which CNI plugins join them to a node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::same_family;
use crate::netns::Netns;

/// How a node joins its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cni {
    /// Calico's way: a veth pair without addresses on the node's side, a /32 (/128) route to the pod; the pod's gateway
    /// is 169.254.1.1 and a link-local address, both permanent neighbours.
    Ptp,
    /// kindnet's way (CNI plugin `ptp`): each veth's node side carries the same gateway address 10.244.n.1/32.
    Kindnet,
    /// A bridge `cni0` (10.244.n.1/24) with hairpin on at each port.
    Bridge,
}

/// A pod: a namespace with `eth0`, the other end of `veth-<name>` on its node.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name in the world.
    pub name: String,
    /// Its namespace.
    pub ns: Netns,
    /// Its IPv4 address.
    pub ip4: Ipv4Addr,
    /// Its IPv6 address.
    pub ip6: Ipv6Addr,
    /// Name of the veth's end on the node.
    pub veth: String,
    /// Index of the veth's end on the node.
    pub ifindex: u32,
    /// Number of its node, from 1.
    pub node: usize,
}

impl Pod {
    /// Its address of the family of `like`.
    pub fn ip_like(&self, like: IpAddr) -> IpAddr {
        same_family(like, self.ip4, self.ip6)
    }
}

impl AsRef<Netns> for Pod {
    fn as_ref(&self) -> &Netns {
        &self.ns
    }
}

/// The MAC address of each node-side veth end under [`Cni::Ptp`], and the link-local address that follows from it.
const PTP_MAC: &str = "ee:ee:ee:ee:ee:ee";
const PTP_GATEWAY6: &str = "fe80::ecee:eeff:feee:eeee";

/// What one pod's commands are made of.
pub(super) struct Plan<'a> {
    pub(super) cni: Cni,
    pub(super) node: usize,
    pub(super) host: u8,
    pub(super) mtu: u32,
    pub(super) veth: &'a str,
    pub(super) netns: &'a str,
}

impl Plan<'_> {
    pub(super) fn ip4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.node as u8, self.host)
    }

    pub(super) fn ip6(&self) -> Ipv6Addr {
        super::ip6(&format!("fd00:10:244:{}::", self.node), u32::from(self.host))
    }

    /// `ip` commands for the node's namespace; they make the pair.
    pub(super) fn on_node(&self) -> String {
        let Self {
            cni,
            node,
            host,
            mtu,
            veth,
            netns,
        } = self;
        let mac = format!("02:0a:f4:00:{node:02x}:{host:02x}");
        let node_mac = if *cni == Cni::Ptp {
            format!("address {PTP_MAC} ")
        } else {
            String::new()
        };
        let pair = format!(
            "link add {veth} {node_mac}mtu {mtu} type veth peer name eth0 address {mac} mtu {mtu} netns {netns}\n"
        );
        let routes = format!(
            "route add {}/32 dev {veth}\nroute add {}/128 dev {veth}\n",
            self.ip4(),
            self.ip6()
        );
        match cni {
            Cni::Ptp => format!("{pair}link set {veth} up\n{routes}"),
            Cni::Kindnet => format!(
                "{pair}link set {veth} up\naddr add 10.244.{node}.1/32 dev {veth}\n\
                 addr add fd00:10:244:{node}::1/128 dev {veth} nodad\n{routes}"
            ),
            Cni::Bridge => format!(
                "{pair}link set {veth} master cni0\nlink set {veth} type bridge_slave hairpin on\nlink set {veth} up\n"
            ),
        }
    }

    /// `ip` commands for the pod's namespace.
    pub(super) fn in_pod(&self) -> String {
        let (node, ip4, ip6) = (self.node, self.ip4(), self.ip6());
        match self.cni {
            Cni::Ptp => format!(
                "link set eth0 up\naddr add {ip4}/32 dev eth0\naddr add {ip6}/128 dev eth0 nodad\n\
                 neigh add 169.254.1.1 lladdr {PTP_MAC} dev eth0 nud permanent\n\
                 neigh add {PTP_GATEWAY6} lladdr {PTP_MAC} dev eth0 nud permanent\n\
                 route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0\n\
                 route add default via {PTP_GATEWAY6} dev eth0\n"
            ),
            Cni::Kindnet => format!(
                "link set eth0 up\naddr add {ip4}/24 dev eth0 noprefixroute\naddr add {ip6}/64 dev eth0 nodad noprefixroute\n\
                 route add 10.244.{node}.1 dev eth0 scope link\nroute add 10.244.{node}.0/24 via 10.244.{node}.1\n\
                 route add default via 10.244.{node}.1\nroute add fd00:10:244:{node}::1 dev eth0\n\
                 route add fd00:10:244:{node}::/64 via fd00:10:244:{node}::1\nroute add default via fd00:10:244:{node}::1\n"
            ),
            Cni::Bridge => format!(
                "link set eth0 up\naddr add {ip4}/24 dev eth0\naddr add {ip6}/64 dev eth0 nodad\n\
                 route add default via 10.244.{node}.1\nroute add default via fd00:10:244:{node}::1\n"
            ),
        }
    }
}
