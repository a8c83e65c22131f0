//! The stage of the traffic tests: a world, a server on every pod, one Service with every kind of frontend, an agent a node.

use std::net::{IpAddr, SocketAddr};

use lb_tests::agent::Agent;
use lb_tests::objects::{Folder, NodeObject, ServiceObject, SliceObject, service, slice};
use lb_tests::traffic::Server;
use lb_tests::world::{Pod, World, WorldBuilder};

/// Port of every server on a pod, TCP and UDP.
pub(super) const SERVER_PORT: u16 = 8080;
/// Port of the Service, TCP and UDP.
pub(super) const PORT: u16 = 80;
/// The Service's node port, TCP and UDP.
pub(super) const NODE_PORT: u16 = 30080;

/// Addresses of the Service in one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    /// ClusterIP.
    pub(super) cluster: IpAddr,
    /// External IP.
    pub(super) external: IpAddr,
    /// LoadBalancer IP.
    pub(super) balancer: IpAddr,
}

/// The Service's addresses, IPv4 then IPv6.
pub(super) fn families() -> [Addresses; 2] {
    let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
    [
        Addresses {
            cluster: parse("10.96.0.10"),
            external: parse("198.51.100.7"),
            balancer: parse("203.0.113.10"),
        },
        Addresses {
            cluster: parse("fd00:10:96::10"),
            external: parse("2001:db8:51::7"),
            balancer: parse("2001:db8:113::10"),
        },
    ]
}

/// What an EndpointSlice says of an endpoint: ready, serving, terminating; nothing where it is silent.
pub(super) type Conditions = [Option<bool>; 3];
/// An endpoint in service.
pub(super) const READY: Conditions = [Some(true), Some(true), Some(false)];
/// An endpoint on its way out that still serves.
pub(super) const LEAVING: Conditions = [Some(false), Some(true), Some(true)];
/// An endpoint on its way out that serves no more.
pub(super) const ENDING: Conditions = [Some(false), Some(false), Some(true)];

/// A running scene. Agents are dropped before the world.
pub(super) struct Scene {
    /// One agent a node.
    pub(super) agents: Vec<Agent>,
    /// The objects.
    pub(super) folder: Folder,
    /// The servers, each named after its pod.
    pub(super) servers: Vec<Server>,
    /// The world.
    pub(super) world: World,
}

impl Scene {
    /// The usual world with the Service over all pods.
    #[track_caller]
    pub(super) fn new() -> Self {
        Self::of(&World::builder(), &[])
    }

    /// A world of one's own; agents get further arguments. The Service stands over all pods.
    #[track_caller]
    pub(super) fn of(builder: &WorldBuilder, arguments: &[&str]) -> Self {
        let mut scene = Self::silent(builder);
        let all: Vec<String> = scene.world.pods().map(|pod| pod.name.clone()).collect();
        scene.put_service(&web());
        scene.put_endpoints(&all.iter().map(String::as_str).collect::<Vec<_>>());
        scene.start(arguments);
        scene
    }

    /// World and servers, without objects but the nodes' and without agents.
    #[track_caller]
    pub(super) fn silent(builder: &WorldBuilder) -> Self {
        let world = builder.build();
        let folder = Folder::new();
        for node in world.nodes() {
            folder.put(&NodeObject::from(node));
        }
        let mut servers = Vec::new();
        for pod in world.pods() {
            for address in [IpAddr::V4(pod.ip4), IpAddr::V6(pod.ip6)] {
                servers.push(Server::tcp(pod, &pod.name, (address, SERVER_PORT)));
                servers.push(Server::udp(pod, &pod.name, (address, SERVER_PORT)));
            }
        }
        for [cluster, external, balancer] in [
            ["10.96.0.10", "198.51.100.7", "203.0.113.10"],
            ["fd00:10:96::10", "2001:db8:51::7", "2001:db8:113::10"],
        ] {
            for address in [cluster, external, balancer] {
                let length = if address.contains(':') { 128 } else { 32 };
                world.route_to_node(&format!("{address}/{length}"), 1);
            }
        }
        Self {
            agents: Vec::new(),
            folder,
            servers,
            world,
        }
    }

    /// Starts an agent on every node and waits until all is programmed. Where the world has XDP, the agents are told to have it, and all that the world tells them.
    #[track_caller]
    pub(super) fn start(&mut self, arguments: &[&str]) {
        let xdp: &[&str] = if self.world.has_xdp() {
            &["--xdp", "native"]
        } else {
            &[]
        };
        let arguments = &[arguments, xdp, self.world.agent_arguments()].concat();
        for node in self.world.nodes() {
            self.agents.push(Agent::start(node, &self.folder, arguments));
        }
        self.settle();
    }

    /// Waits until every agent has programmed what the folder holds.
    #[track_caller]
    pub(super) fn settle(&mut self) {
        for agent in &mut self.agents {
            agent.wait_ready();
        }
    }

    /// Writes the Service.
    pub(super) fn put_service(&self, object: &ServiceObject) {
        self.folder.put(object);
    }

    /// Writes the Service's endpoints in both families.
    pub(super) fn put_endpoints(&self, pods: &[&str]) {
        let pods: Vec<Pod> = pods.iter().map(|name| self.world.pod(name).clone()).collect();
        self.folder.put(&endpoints("web", &pods, false));
        self.folder.put(&endpoints("web", &pods, true));
    }

    /// Starts servers in the host network of a node, named after it.
    #[track_caller]
    pub(super) fn serve_on_node(&mut self, number: usize) {
        let node = self.world.node(number);
        for address in [IpAddr::from(node.ip4), node.ip6.into()] {
            self.servers.push(Server::tcp(node, &node.name, (address, SERVER_PORT)));
            self.servers.push(Server::udp(node, &node.name, (address, SERVER_PORT)));
        }
    }

    /// Makes the host networks of these nodes the Service's endpoints, in both families.
    pub(super) fn put_node_endpoints(&self, nodes: &[usize]) {
        for (v6, addresses) in [false, true].into_iter().zip(families()) {
            let object = nodes.iter().fold(empty_slice("web", v6), |object, number| {
                let node = self.world.node(*number);
                let address = node.ip_like(addresses.cluster);
                object.endpoint(address).node(&node.name).ready(true).serving(true)
            });
            self.folder.put(&object);
        }
    }

    /// Every frontend of the Service in one family that a pod of node 1 can ask.
    pub(super) fn frontends(&self, addresses: Addresses) -> [SocketAddr; 4] {
        [
            at(addresses.cluster, PORT),
            at(addresses.external, PORT),
            at(addresses.balancer, PORT),
            at(self.world.node(1).ip_like(addresses.cluster), NODE_PORT),
        ]
    }

    /// Packets that the agent of node 1 has counted for a reason.
    #[track_caller]
    pub(super) fn counted(&self, reason: &str) -> u64 {
        let status = self.agents[0].json(&["status"]);
        let count = status["reasons"][reason].as_u64();
        count.unwrap_or_else(|| panic!("no reason {reason} in {status}"))
    }

    /// Writes the Service's endpoints in both families, with conditions, and waits until they are programmed.
    #[track_caller]
    pub(super) fn set_conditions(&mut self, pods: &[(&str, Conditions)]) {
        for v6 in [false, true] {
            let object = pods.iter().fold(empty_slice("web", v6), |object, (name, conditions)| {
                endpoint(object, self.world.pod(name), v6, *conditions)
            });
            self.folder.put(&object);
        }
        self.settle();
    }
}

/// The Service `web`: ClusterIP, external IP, LoadBalancer IP and node port, TCP and UDP on one port, both families.
pub(super) fn web() -> ServiceObject {
    let [v4, v6] = families();
    let text = |address: IpAddr| address.to_string();
    web_inside()
        .external_ip(&text(v4.external))
        .external_ip(&text(v6.external))
        .load_balancer_ip(&text(v4.balancer))
        .load_balancer_ip(&text(v6.balancer))
}

/// [`web`] with ClusterIP and node port alone.
pub(super) fn web_inside() -> ServiceObject {
    let [v4, v6] = families();
    service("default", "web")
        .cluster_ip(&v4.cluster.to_string())
        .cluster_ip(&v6.cluster.to_string())
        .port("http", PORT, "TCP")
        .target_port(SERVER_PORT)
        .node_port(NODE_PORT)
        .port("dns", PORT, "UDP")
        .target_port(SERVER_PORT)
        .node_port(NODE_PORT)
}

/// The Service `web` behind LoadBalancer addresses of one's own, without node port.
pub(super) fn balanced(addresses: [&str; 2]) -> ServiceObject {
    let [v4, v6] = families();
    service("default", "web")
        .cluster_ip(&v4.cluster.to_string())
        .cluster_ip(&v6.cluster.to_string())
        .port("http", PORT, "TCP")
        .target_port(SERVER_PORT)
        .port("dns", PORT, "UDP")
        .target_port(SERVER_PORT)
        .load_balancer_ip(addresses[0])
        .load_balancer_ip(addresses[1])
}

/// A slice of a Service over pods in service.
pub(super) fn endpoints(name: &str, pods: &[Pod], v6: bool) -> SliceObject {
    pods.iter()
        .fold(empty_slice(name, v6), |object, pod| endpoint(object, pod, v6, READY))
}

/// A slice of a Service with the ports of [`web`] and no endpoint.
pub(super) fn empty_slice(name: &str, v6: bool) -> SliceObject {
    family_slice(name, v6)
        .port_of("http", SERVER_PORT, "TCP")
        .port_of("dns", SERVER_PORT, "UDP")
}

/// A slice of a Service in one family, without ports.
pub(super) fn family_slice(name: &str, v6: bool) -> SliceObject {
    let object = slice("default", &format!("{name}-{}", if v6 { "v6" } else { "v4" }), name);
    if v6 { object.v6() } else { object.v4() }
}

/// Adds a pod to a slice.
pub(super) fn endpoint(object: SliceObject, pod: &Pod, v6: bool, conditions: Conditions) -> SliceObject {
    let object = if v6 {
        object.endpoint(pod.ip6)
    } else {
        object.endpoint(pod.ip4)
    };
    let mut object = object.node(&format!("node{}", pod.node));
    for (name, value) in ["ready", "serving", "terminating"].into_iter().zip(conditions) {
        object = match value {
            Some(value) => object.condition(name, value),
            None => object,
        };
    }
    object
}

/// A socket address.
pub(super) fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}
