//! A node: a namespace with an uplink, forwarding, its pods and, on request, netfilter rules as clusters have them.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::builder::{PodRouting, WorldBuilder, vlan_device};
use super::pod::Plan;
use super::{Cni, Pod, same_family};
use crate::netfilter::{rule_hits, set_rules};
use crate::netns::Netns;

/// Host part of a node's first pod.
const FIRST_POD: u8 = 10;

/// A node of the world.
#[derive(Debug)]
pub struct Node {
    /// Its name (`node1`).
    pub name: String,
    /// Its number, from 1.
    pub number: usize,
    /// Its namespace.
    pub ns: Netns,
    /// Its IPv4 address.
    pub ip4: Ipv4Addr,
    /// Its IPv6 address.
    pub ip6: Ipv6Addr,
    /// Name of the interface towards the LAN.
    pub uplink: String,
    /// Its pods, in the order of their making.
    pub pods: Vec<Pod>,
    cni: Cni,
    pod_mtu: u32,
    next_host: u8,
}

impl AsRef<Netns> for Node {
    fn as_ref(&self) -> &Netns {
        &self.ns
    }
}

impl Node {
    /// Its address of the family of `like`.
    pub fn ip_like(&self, like: IpAddr) -> IpAddr {
        same_family(like, self.ip4, self.ip6)
    }

    /// Its address on the overlay, of the family of `like`.
    pub fn overlay_ip_like(&self, like: IpAddr) -> IpAddr {
        let (ip4, ip6) = (overlay_ip4(self.number), overlay_ip6(self.number));
        same_family(like, ip4, ip6)
    }

    /// Its pod networks, IPv4 and IPv6.
    pub fn pod_cidrs(&self) -> [String; 2] {
        pod_cidrs(self.number)
    }

    /// Makes the node's end of the overlay of [`PodRouting::Vxlan`], over an uplink of MTU `node_mtu`, with the ways to the
    /// pods of all `nodes`.
    #[track_caller]
    pub fn add_overlay(&self, nodes: usize, node_mtu: u32) {
        let others = || (1..=nodes).filter(|other| *other != self.number);
        let mut commands = vxlan_device(self.number, self.ip4, node_mtu);
        others().for_each(|other| commands += &vxlan_routes(other));
        self.ns.ip_batch(&commands);
        for other in others() {
            let (mac, remote) = (vxlan_mac(other), ip4(other).to_string());
            self.ns
                .ok(&["bridge", "fdb", "append", &mac, "dev", "vxlan0", "dst", &remote]);
        }
    }

    /// Packets that the rule of [`WorldBuilder::drop_invalid`] has dropped on this node.
    #[track_caller]
    pub fn invalid_drops(&self) -> u64 {
        rule_hits(&self.ns, INVALID_TABLE)
    }

    /// Makes the node's namespace with the sysctls that must stand before its interfaces come.
    pub(super) fn bare(number: usize, world: &WorldBuilder) -> Self {
        let name = format!("node{number}");
        let ns = Netns::new(&name);
        let rp_filter = world.rp_filter.to_string();
        let br_netfilter = if world.br_netfilter { "1" } else { "0" };
        ns.sysctls(&[
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.rp_filter", &rp_filter),
            ("net.ipv4.conf.default.rp_filter", &rp_filter),
            ("net.bridge.bridge-nf-call-iptables", br_netfilter),
            ("net.bridge.bridge-nf-call-ip6tables", br_netfilter),
        ]);
        Self {
            name,
            number,
            ns,
            ip4: ip4(number),
            ip6: ip6(number),
            uplink: "eth0".to_owned(),
            pods: Vec::new(),
            cni: world.cni,
            pod_mtu: world.pod_mtu.unwrap_or(match world.routing {
                PodRouting::Static => world.node_mtu,
                PodRouting::Vxlan => world.node_mtu - VXLAN_OVERHEAD,
            }),
            next_host: FIRST_POD,
        }
    }

    /// Configures the uplink (made by the fabric), the routes to the other nodes' pods, the bridge and the rules.
    pub(super) fn configure(&self, world: &WorldBuilder) {
        let number = self.number;
        let mut commands = if world.vlan_uplinks {
            vlan_device()
        } else {
            String::new()
        };
        _ = write!(
            commands,
            "link set eth0 mtu {} up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
            world.node_mtu, self.ip4, self.ip6
        );
        if world.default_route {
            commands += "route add default via 172.31.0.1\nroute add default via fd00:31::1\n";
        }
        if self.cni == Cni::Bridge {
            _ = write!(
                commands,
                "link add cni0 address 02:cb:00:00:00:{number:02x} mtu {} type bridge forward_delay 0 mcast_snooping 0\n\
                 addr add 10.244.{number}.1/24 dev cni0\naddr add fd00:10:244:{number}::1/64 dev cni0 nodad\nlink set cni0 up\n",
                self.pod_mtu
            );
        }
        if world.routing == PodRouting::Static {
            let others = (1..=world.nodes).filter(|other| *other != number);
            others.for_each(|other| commands += &static_routes(other));
        }
        self.ns.ip_batch(&commands);
        if world.routing == PodRouting::Vxlan {
            self.add_overlay(world.nodes, world.node_mtu);
        }
        if world.forward_policy_drop {
            set_rules(
                &self.ns,
                "inet forward_policy",
                "filter hook forward priority filter; policy drop",
                FORWARD_ACCEPTS,
            );
        }
        if world.drop_invalid {
            // As late as the rules of kube-proxy and firewalld, but before those of a policy.
            let rule = "ct state invalid counter name hits drop";
            set_rules(&self.ns, INVALID_TABLE, "filter hook forward priority filter - 1", rule);
            let input = format!("add chain {INVALID_TABLE} input {{ type filter hook input priority filter - 1; }}\n");
            self.ns.nft(&format!("{input}add rule {INVALID_TABLE} input {rule}\n"));
        }
    }

    #[track_caller]
    pub(super) fn add_pod(&mut self, name: &str, host: Option<u8>) -> Pod {
        let veth = format!("veth-{name}");
        assert!(veth.len() <= 15, "pod name {name:?} is too long for an interface name");
        let host = host.unwrap_or_else(|| {
            let next = self.next_host;
            self.next_host += 1;
            next
        });
        let ns = Netns::new(name);
        let plan = Plan {
            cni: self.cni,
            node: self.number,
            host,
            mtu: self.pod_mtu,
            veth: &veth,
            netns: ns.name(),
        };
        self.ns.ip_batch(&plan.on_node());
        ns.ip_batch(&plan.in_pod());
        ns.await_links(&["eth0"]);
        let on_node: &[&str] = if self.cni == Cni::Bridge {
            &[&veth, "cni0"]
        } else {
            &[&veth]
        };
        self.ns.await_links(on_node);
        let (ip4, ip6) = (plan.ip4(), plan.ip6());
        let ifindex = self.ns.ifindex(&veth).expect("the veth that was just made");
        let pod = Pod {
            name: name.to_owned(),
            ns,
            ip4,
            ip6,
            veth,
            ifindex,
            node: self.number,
        };
        self.pods.push(pod.clone());
        pod
    }

    pub(super) fn remove_pod(&mut self, name: &str) {
        self.pods.retain(|pod| {
            if pod.name == name {
                self.ns.ip(&format!("link del {}", pod.veth));
            }
            pod.name != name
        });
    }
}

/// Outer IPv4, UDP, VXLAN and inner Ethernet headers.
const VXLAN_OVERHEAD: u32 = 50;

pub(super) fn ip4(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, 0, 10 + number as u8)
}

pub(super) fn ip6(number: usize) -> Ipv6Addr {
    super::ip6("fd00:31::", 10 + number as u32)
}

pub(super) fn pod_cidrs(number: usize) -> [String; 2] {
    [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")]
}

/// Routes to a node's pods by the node's own addresses.
pub(super) fn static_routes(number: usize) -> String {
    let [cidr4, cidr6] = pod_cidrs(number);
    format!(
        "route add {cidr4} via {}\nroute add {cidr6} via {}\n",
        ip4(number),
        ip6(number)
    )
}

fn overlay_ip4(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, number as u8, 0)
}

fn overlay_ip6(number: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, number as u16, 0, 0, 0, 0xfffe)
}

fn vxlan_mac(number: usize) -> String {
    format!("02:42:00:00:00:{number:02x}")
}

/// flannel's shape: one device, its own /32 address, neighbours and forwarding entries set by the control plane.
fn vxlan_device(number: usize, local: Ipv4Addr, node_mtu: u32) -> String {
    format!(
        "link add vxlan0 address {} mtu {} type vxlan id 1 dstport 8472 local {local} dev eth0 nolearning\n\
         addr add {}/32 dev vxlan0\naddr add {}/128 dev vxlan0 nodad\nlink set vxlan0 up\n",
        vxlan_mac(number),
        node_mtu - VXLAN_OVERHEAD,
        overlay_ip4(number),
        overlay_ip6(number)
    )
}

fn vxlan_routes(other: usize) -> String {
    let mac = vxlan_mac(other);
    let [cidr4, cidr6] = pod_cidrs(other);
    let (via4, via6) = (overlay_ip4(other), overlay_ip6(other));
    format!(
        "neigh add {via4} lladdr {mac} dev vxlan0 nud permanent\nneigh add {via6} lladdr {mac} dev vxlan0 nud permanent\n\
         route add {cidr4} via {via4} dev vxlan0 onlink\nroute add {cidr6} via {via6} dev vxlan0 onlink\n"
    )
}

const INVALID_TABLE: &str = "inet drop_invalid";
const FORWARD_ACCEPTS: &str = "ct state established,related accept
ip saddr 10.244.0.0/16 accept
ip daddr 10.244.0.0/16 accept
ip6 saddr fd00:10:244::/48 accept
ip6 daddr fd00:10:244::/48 accept";
