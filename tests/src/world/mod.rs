//! Small worlds of namespaces: clients, a fabric, nodes and pods, IPv4 and IPv6 throughout.
//!
//! ```text
//!  client1 ── out0 ┐ fabric (router) ┌ lan0 ── node1 ── pod1-1, pod1-2 …
//!  (or a port of lan0: ClientPlace::Lan)      ── node2 ── pod2-1, pod2-2 …
//! ```
//! | who | IPv4 | IPv6 | interface |
//! |---|---|---|---|
//! | fabric, on the nodes' LAN | 172.31.0.1/24 | fd00:31::1/64 | `lan0`, a bridge; ports `p-<name>` |
//! | fabric, outside | 192.0.2.1/24 | 2001:db8:2::1/64 | `out0`, a bridge |
//! | client i, behind the fabric | 192.0.2.(10+i) | 2001:db8:2::(10+i) | `eth0` |
//! | client i, on the LAN | 172.31.0.(100+i) | fd00:31::(100+i) | `eth0` |
//! | node n | 172.31.0.(10+n) | fd00:31::(10+n) | `eth0` |
//! | node n on the overlay | 10.244.n.0/32 | fd00:10:244:n::fffe/128 | `vxlan0` |
//! | pod i of node n | 10.244.n.(9+i) | fd00:10:244:n::(9+i) | `eth0`, on the node `veth-<pod>` |
//!
//! The last groups of the IPv6 addresses are written with decimal digits, so that both families read alike.
//! The fabric knows the pod networks (as a fabric with BGP does), nodes know each other's by static routes or the
//! overlay. Nothing here translates addresses and nothing asserts about traffic; a command that fails panics.

mod builder;
mod node;
mod pod;

pub use builder::{ClientPlace, PodRouting, WorldBuilder};
pub use node::Node;
pub use pod::{Cni, Pod};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netns::Netns;
use crate::tiny_program::TinyXdp;

/// Both pod networks of every world, as kube-proxy's `--cluster-cidr` takes them.
pub const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/48";
/// The networks that ClusterIPs of the examples come from.
pub const SERVICE_CIDR: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The nodes' own networks, as `--nodeport-addresses` takes them.
pub const NODE_CIDR: &str = "172.31.0.0/24,fd00:31::/64";

/// A namespace with one address of each family on `eth0`: a client, or a server outside the cluster.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its name in the world (`client1`).
    pub name: String,
    /// Its namespace.
    pub ns: Netns,
    /// Its IPv4 address.
    pub ip4: Ipv4Addr,
    /// Its IPv6 address.
    pub ip6: Ipv6Addr,
}

impl Host {
    /// Its address of the family of `like`.
    pub fn ip_like(&self, like: IpAddr) -> IpAddr {
        same_family(like, self.ip4, self.ip6)
    }
}

impl AsRef<Netns> for Host {
    fn as_ref(&self) -> &Netns {
        &self.ns
    }
}

/// A world; dropping it removes its namespaces.
#[derive(Debug)]
pub struct World {
    /// The namespace of the bridges `lan0` and `out0` that routes between them.
    pub fabric: Netns,
    clients: Vec<Host>,
    nodes: Vec<Node>,
    /// Programs of [`WorldBuilder::xdp`].
    far_ends: Vec<TinyXdp>,
    agent_arguments: &'static [&'static str],
}

impl World {
    /// A description to be changed and built: two nodes, two pods on each, one client behind the fabric.
    pub fn builder() -> WorldBuilder {
        WorldBuilder::default()
    }

    /// Whether the nodes' links carry what XDP sends, as [`WorldBuilder::xdp`] makes them.
    pub fn has_xdp(&self) -> bool {
        !self.far_ends.is_empty()
    }

    /// Arguments for this world's agents, as [`WorldBuilder::agents`] gives them.
    pub fn agent_arguments(&self) -> &'static [&'static str] {
        self.agent_arguments
    }

    /// Makes a further link of a node carry what XDP sends, by its end in the fabric.
    #[track_caller]
    pub fn carry_xdp(&mut self, port: &str) {
        let far_end = builder::far_end(&self.fabric, port);
        self.far_ends.push(far_end);
    }

    /// The first client.
    #[track_caller]
    pub fn client(&self) -> &Host {
        self.clients.first().expect("a world with a client")
    }

    /// All clients.
    pub fn clients(&self) -> &[Host] {
        &self.clients
    }

    /// Node `number`, counted from 1 as in its name.
    #[track_caller]
    pub fn node(&self, number: usize) -> &Node {
        self.nodes
            .get(number.wrapping_sub(1))
            .unwrap_or_else(|| panic!("no node{number}"))
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The pod called `name` (`pod1-2` is the second that node 1 was built with).
    #[track_caller]
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods()
            .find(|pod| pod.name == name)
            .unwrap_or_else(|| panic!("no pod {name}"))
    }

    /// All pods, node by node.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.nodes.iter().flat_map(|node| &node.pods)
    }

    /// Adds a pod with the node's next free address.
    #[track_caller]
    pub fn add_pod(&mut self, node: usize, name: &str) -> Pod {
        self.add_pod_at(node, name, None)
    }

    /// Adds a pod whose addresses end in `host`, for instance one that an earlier pod had.
    #[track_caller]
    pub fn add_pod_at(&mut self, node: usize, name: &str, host: impl Into<Option<u8>>) -> Pod {
        let node = self
            .nodes
            .get_mut(node.wrapping_sub(1))
            .unwrap_or_else(|| panic!("no node{node}"));
        node.add_pod(name, host.into())
    }

    /// Removes a pod: its veth pair, the routes to it, and its namespace once nothing else holds that.
    #[track_caller]
    pub fn remove_pod(&mut self, name: &str) {
        let node = self
            .nodes
            .iter_mut()
            .find(|node| node.pods.iter().any(|pod| pod.name == name))
            .unwrap_or_else(|| panic!("no pod {name}"));
        node.remove_pod(name);
    }

    /// Routes `prefix` (a LoadBalancer address, say) to node `number`, on the fabric and on clients of the LAN, in place
    /// of an earlier route.
    #[track_caller]
    pub fn route_to_node(&self, prefix: &str, number: usize) {
        let node = self.node(number);
        let via: IpAddr = if prefix.contains(':') {
            node.ip6.into()
        } else {
            node.ip4.into()
        };
        let command = format!("route replace {prefix} via {via}\n");
        self.fabric.ip_batch(&command);
        for client in self.clients.iter().filter(|client| builder::on_lan(client)) {
            client.ns.ip_batch(&command);
        }
    }

    /// Takes the link of node `number` away, as if the device were pulled out; devices over it go with it.
    #[track_caller]
    pub fn unplug(&self, number: usize) {
        self.node(number).ns.ip("link del eth0");
    }

    /// Puts the link of node `number` back: a device that is up, without addresses and routes.
    #[track_caller]
    pub fn plug(&self, number: usize) {
        let node = self.node(number);
        let (mac, mtu) = (builder::node_mac(node), 1500);
        self.fabric
            .ip_batch(&builder::port(&node.name, node.ns.name(), &mac, "lan0", mtu));
        node.ns.ip("link set eth0 up");
    }

    /// Sets the MTU of a client's or node's link, on both of its ends, by the name in the world.
    #[track_caller]
    pub fn set_link_mtu(&self, name: &str, mtu: u32) {
        self.fabric.ip(&format!("link set p-{name} mtu {mtu}"));
        self.namespace(name).ip(&format!("link set eth0 mtu {mtu}"));
    }

    /// Gives the node's own routes to a pod an MTU: the node refuses what is larger, while the pod's link carries it and its
    /// TCP does not announce it. Not on a bridge network, where no such routes are.
    #[track_caller]
    pub fn narrow_way_to_pod(&self, name: &str, mtu: u32) {
        let Pod {
            ip4, ip6, veth, node, ..
        } = self.pod(name);
        let commands = format!(
            "route change {ip4}/32 dev {veth} mtu lock {mtu}\nroute change {ip6}/128 dev {veth} mtu lock {mtu}\n"
        );
        self.node(*node).ns.ip_batch(&commands);
    }

    /// Gives the fabric's routes to a client an MTU: the fabric refuses what is larger, while the client's link carries it.
    #[track_caller]
    pub fn narrow_way_to_client(&self, name: &str, mtu: u32) {
        let client = self.clients.iter().find(|client| client.name == name);
        let client = client.unwrap_or_else(|| panic!("no client is called {name}"));
        let (ip4, ip6) = (client.ip4, client.ip6);
        self.fabric.ip_batch(&format!(
            "route replace {ip4}/32 dev out0 mtu {mtu}\nroute replace {ip6}/128 dev out0 mtu {mtu}\n"
        ));
    }

    /// Waits until the links of the fabric, the clients and the nodes carry packets.
    fn await_links(&self) {
        let hosts = self.clients.iter().map(|client| (&client.name, &client.ns));
        let hosts: Vec<_> = hosts
            .chain(self.nodes.iter().map(|node| (&node.name, &node.ns)))
            .collect();
        for (_, netns) in &hosts {
            netns.await_links(&["eth0"]);
        }
        let ports: Vec<String> = hosts.iter().map(|(name, _)| format!("p-{name}")).collect();
        let mut links: Vec<&str> = ports.iter().map(String::as_str).chain(["lan0"]).collect();
        if self.clients.iter().any(|client| !builder::on_lan(client)) {
            links.push("out0");
        }
        self.fabric.await_links(&links);
    }

    /// The namespace of a client, node or pod by its name in the world.
    #[track_caller]
    pub fn namespace(&self, name: &str) -> &Netns {
        let clients = self.clients.iter().map(|client| (&client.name, &client.ns));
        let nodes = self.nodes.iter().map(|node| (&node.name, &node.ns));
        let pods = self.pods().map(|pod| (&pod.name, &pod.ns));
        let mut all = clients.chain(nodes).chain(pods);
        all.find(|(known, _)| *known == name)
            .unwrap_or_else(|| panic!("nobody is called {name}"))
            .1
    }

    /// Every namespace with its name in the world, for a dump.
    pub fn namespaces(&self) -> Vec<(&str, &Netns)> {
        let mut all = vec![("fabric", &self.fabric)];
        all.extend(self.clients.iter().map(|client| (client.name.as_str(), &client.ns)));
        all.extend(self.nodes.iter().map(|node| (node.name.as_str(), &node.ns)));
        all.extend(self.pods().map(|pod| (pod.name.as_str(), &pod.ns)));
        all
    }
}

fn same_family(like: IpAddr, ip4: Ipv4Addr, ip6: Ipv6Addr) -> IpAddr {
    match like {
        IpAddr::V4(_) => ip4.into(),
        IpAddr::V6(_) => ip6.into(),
    }
}

/// An IPv6 address whose last group shows the decimal digits of `host`.
fn ip6(prefix: &str, host: u32) -> Ipv6Addr {
    format!("{prefix}{host}")
        .parse()
        .expect("an IPv6 prefix with room for a host part")
}
