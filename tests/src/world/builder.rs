//! The description of a world, and its making: one namespace after another, one `ip` process each.

use std::net::Ipv4Addr;
use std::thread;

use aya::programs::XdpMode;

use super::node::{self, Node};
use super::{Cni, Host, World};
use crate::netns::Netns;
use crate::prog_run::xdp::XDP_PASS;
use crate::tiny_program::TinyXdp;

/// The VLAN of [`WorldBuilder::vlan_uplinks`].
const VLAN: u16 = 7;

/// Where the clients stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientPlace {
    /// In a network of their own, with the fabric as router to the nodes.
    BehindFabric,
    /// On the nodes' LAN.
    Lan,
}

/// How packets reach the pods of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodRouting {
    /// Routes by way of the node's LAN address.
    Static,
    /// A vxlan device on each node (flannel's shape), MTU 50 less than the LAN's.
    Vxlan,
}

/// What a world will be. Every method changes one thing and returns the description.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each switch stands for itself; any combination is a world"
)]
pub struct WorldBuilder {
    pub(super) nodes: usize,
    pub(super) cni: Cni,
    pub(super) routing: PodRouting,
    pub(super) rp_filter: u8,
    pub(super) default_route: bool,
    pub(super) forward_policy_drop: bool,
    pub(super) drop_invalid: bool,
    pub(super) br_netfilter: bool,
    pub(super) node_mtu: u32,
    pub(super) pod_mtu: Option<u32>,
    pods_per_node: usize,
    clients: usize,
    client_place: ClientPlace,
    client_mtu: u32,
    tx_checksum: bool,
    xdp: bool,
    agent_arguments: &'static [&'static str],
    pub(super) vlan_uplinks: bool,
}

impl Default for WorldBuilder {
    fn default() -> Self {
        Self {
            nodes: 2,
            cni: Cni::Ptp,
            routing: PodRouting::Static,
            rp_filter: 0,
            default_route: true,
            forward_policy_drop: false,
            drop_invalid: false,
            br_netfilter: false,
            node_mtu: 1500,
            pod_mtu: None,
            pods_per_node: 2,
            clients: 1,
            client_place: ClientPlace::BehindFabric,
            client_mtu: 1500,
            tx_checksum: true,
            xdp: false,
            agent_arguments: &[],
            vlan_uplinks: false,
        }
    }
}

impl WorldBuilder {
    /// Number of nodes, up to 9.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        assert!((1..=9).contains(&count), "1 to 9 nodes");
        self.nodes = count;
        self
    }

    /// Number of pods that each node starts with: `pod<node>-1`, `pod<node>-2` …
    #[must_use]
    pub fn pods_per_node(mut self, count: usize) -> Self {
        self.pods_per_node = count;
        self
    }

    /// Number of clients: `client1`, `client2` …
    #[must_use]
    pub fn clients(mut self, count: usize) -> Self {
        self.clients = count;
        self
    }

    /// Where the clients stand.
    #[must_use]
    pub fn client_place(mut self, place: ClientPlace) -> Self {
        self.client_place = place;
        self
    }

    /// How nodes join their pods.
    #[must_use]
    pub fn cni(mut self, cni: Cni) -> Self {
        self.cni = cni;
        self
    }

    /// How packets reach the pods of another node.
    #[must_use]
    pub fn routing(mut self, routing: PodRouting) -> Self {
        self.routing = routing;
        self
    }

    /// `rp_filter` of every interface of the nodes: 0 off, 1 strict, 2 loose.
    #[must_use]
    pub fn rp_filter(mut self, mode: u8) -> Self {
        self.rp_filter = mode;
        self
    }

    /// Leaves the nodes without a default route; clients behind the fabric are then out of their reach.
    #[must_use]
    pub fn no_default_route(mut self) -> Self {
        self.default_route = false;
        self
    }

    /// Netfilter on the nodes forwards nothing but established flows and what comes from or goes to a pod address, as
    /// with Docker's policy and a CNI plugin's rules.
    #[must_use]
    pub fn forward_policy_drop(mut self) -> Self {
        self.forward_policy_drop = true;
        self
    }

    /// Netfilter on the nodes drops packets in state INVALID, forwarded or for the node; [`Node::invalid_drops`] counts.
    #[must_use]
    pub fn drop_invalid(mut self) -> Self {
        self.drop_invalid = true;
        self
    }

    /// Bridged packets on the nodes pass the IP hooks of netfilter (`bridge-nf-call-iptables`).
    #[must_use]
    pub fn br_netfilter(mut self) -> Self {
        self.br_netfilter = true;
        self
    }

    /// MTU of the nodes' links and of the LAN.
    #[must_use]
    pub fn node_mtu(mut self, mtu: u32) -> Self {
        self.node_mtu = mtu;
        self
    }

    /// MTU of the pods' links; otherwise what the way to other nodes carries.
    #[must_use]
    pub fn pod_mtu(mut self, mtu: u32) -> Self {
        self.pod_mtu = Some(mtu);
        self
    }

    /// MTU of the clients' links.
    #[must_use]
    pub fn client_mtu(mut self, mtu: u32) -> Self {
        self.client_mtu = mtu;
        self
    }

    /// Clients and pods (of the start) compute every checksum themselves: no CHECKSUM_PARTIAL packet, no TSO.
    #[must_use]
    pub fn no_tx_checksum(mut self) -> Self {
        self.tx_checksum = false;
        self
    }

    /// The nodes' links to the LAN are as a wire is to XDP: frames that a node's XDP sends arrive at the other end (a program runs
    /// there, which passes all), and those that come have whole checksums.
    #[must_use]
    pub fn xdp(mut self) -> Self {
        self.xdp = true;
        self
    }

    /// What the agents of this world are told beside what its test tells them.
    #[must_use]
    pub fn agents(mut self, arguments: &'static [&'static str]) -> Self {
        self.agent_arguments = arguments;
        self
    }

    /// The nodes' `eth0` are devices of a VLAN over a link `trunk0`, for kernels that have such devices.
    #[must_use]
    pub fn vlan_uplinks(mut self) -> Self {
        self.vlan_uplinks = true;
        self
    }

    /// Makes the world.
    #[track_caller]
    pub fn build(&self) -> World {
        let fabric = Netns::new("fabric");
        fabric.sysctls(&[
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.bridge.bridge-nf-call-iptables", "0"),
            ("net.bridge.bridge-nf-call-ip6tables", "0"),
        ]);
        let clients: Vec<Host> = (1..=self.clients).map(|number| self.bare_client(number)).collect();
        let nodes: Vec<Node> = (1..=self.nodes).map(|number| Node::bare(number, self)).collect();
        fabric.ip_batch(&self.fabric_commands(&clients, &nodes));
        for client in &clients {
            client.ns.ip_batch(&self.client_commands(client));
        }
        let nodes = thread::scope(|scope| {
            let workers: Vec<_> = nodes
                .into_iter()
                .map(|node| scope.spawn(|| self.furnish(node)))
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().expect("a node"))
                .collect()
        });
        let mut world = World {
            fabric,
            clients,
            nodes,
            far_ends: Vec::new(),
            agent_arguments: self.agent_arguments,
        };
        world.await_links();
        if self.xdp {
            for number in 1..=self.nodes {
                world.carry_xdp(&format!("p-node{number}"));
            }
        }
        if !self.tx_checksum {
            let ends = world
                .clients
                .iter()
                .map(|client| &client.ns)
                .chain(world.pods().map(|pod| &pod.ns));
            ends.for_each(|ns| ns.tx_checksum("eth0", false));
        }
        world
    }

    fn furnish(&self, mut node: Node) -> Node {
        node.configure(self);
        for index in 1..=self.pods_per_node {
            let name = format!("pod{}-{index}", node.number);
            node.add_pod(&name, None);
        }
        node
    }

    fn bare_client(&self, number: usize) -> Host {
        let name = format!("client{number}");
        let (ip4, ip6) = match self.client_place {
            ClientPlace::BehindFabric => (
                Ipv4Addr::new(192, 0, 2, 10 + number as u8),
                super::ip6("2001:db8:2::", 10 + number as u32),
            ),
            ClientPlace::Lan => (
                Ipv4Addr::new(172, 31, 0, 100 + number as u8),
                super::ip6("fd00:31::", 100 + number as u32),
            ),
        };
        Host {
            ns: Netns::new(&name),
            name,
            ip4,
            ip6,
        }
    }

    fn fabric_commands(&self, clients: &[Host], nodes: &[Node]) -> String {
        let mut commands = "link add lan0 address 02:31:00:00:00:01 type bridge forward_delay 0 mcast_snooping 0\n\
             link add out0 address 02:c0:00:00:00:01 type bridge forward_delay 0 mcast_snooping 0\n\
             addr add 172.31.0.1/24 dev lan0\naddr add fd00:31::1/64 dev lan0 nodad\n\
             addr add 192.0.2.1/24 dev out0\naddr add 2001:db8:2::1/64 dev out0 nodad\n"
            .to_owned();
        let bridge = match self.client_place {
            ClientPlace::BehindFabric => "out0",
            ClientPlace::Lan => "lan0",
        };
        for client in clients {
            let mac = format!("02:c0:00:00:00:{:02x}", client.ip4.octets()[3]);
            commands += &port(&client.name, client.ns.name(), &mac, bridge, self.client_mtu);
        }
        let make = if self.vlan_uplinks { tagged_port } else { port };
        for node in nodes {
            commands += &make(&node.name, node.ns.name(), &node_mac(node), "lan0", self.node_mtu);
        }
        commands += "link set lan0 up\nlink set out0 up\n";
        for node in nodes {
            commands += &node::static_routes(node.number);
        }
        commands
    }

    fn client_commands(&self, client: &Host) -> String {
        let (gateway4, gateway6) = match self.client_place {
            ClientPlace::BehindFabric => ("192.0.2.1", "2001:db8:2::1"),
            ClientPlace::Lan => ("172.31.0.1", "fd00:31::1"),
        };
        format!(
            "link set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
             route add default via {gateway4}\nroute add default via {gateway6}\n",
            client.ip4, client.ip6
        )
    }
}

/// Makes the fabric's end of a node's link fit for XDP on the node.
pub(super) fn far_end(fabric: &Netns, port: &str) -> TinyXdp {
    fabric.tx_checksum(port, false);
    let mut passing = TinyXdp::returning(XDP_PASS);
    passing.attach(fabric, port, XdpMode::Driver);
    passing
}

/// Whether a client stands on the nodes' LAN.
pub(super) fn on_lan(client: &Host) -> bool {
    client.ip4.octets()[..3] == [172, 31, 0]
}

/// The MAC address of a node's link.
pub(super) fn node_mac(node: &Node) -> String {
    format!("02:31:00:00:00:{:02x}", node.ip4.octets()[3])
}

/// A veth pair from a bridge of the fabric to `eth0` of a namespace.
pub(super) fn port(name: &str, netns: &str, mac: &str, bridge: &str, mtu: u32) -> String {
    format!(
        "link add p-{name} mtu {mtu} type veth peer name eth0 address {mac} mtu {mtu} netns {netns}\n\
         link set p-{name} master {bridge} up\n"
    )
}

/// The same over a VLAN: a veth pair from the fabric to `trunk0` of a namespace, and the fabric's device of the VLAN as the bridge's
/// port; the namespace makes its own by [`vlan_device`].
fn tagged_port(name: &str, netns: &str, mac: &str, bridge: &str, mtu: u32) -> String {
    format!(
        "link add t-{name} mtu {mtu} type veth peer name trunk0 address {mac} mtu {mtu} netns {netns}\n\
         link set t-{name} up\nlink add link t-{name} name p-{name} type vlan id {VLAN}\n\
         link set p-{name} master {bridge} up\n"
    )
}

/// The command that makes `eth0` of a VLAN over `trunk0`.
pub(super) fn vlan_device() -> String {
    format!("link set trunk0 up\nlink add link trunk0 name eth0 type vlan id {VLAN}\n")
}
