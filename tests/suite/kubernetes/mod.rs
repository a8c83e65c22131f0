//! The agent on a real API server, with exactly kube-proxy's rights: kubectl changes objects while traffic flows.
//!
//! Each test has a world and a control plane of its own. Pods are namespaces; a test writes their Pod objects where a
//! controller has to make slices of them, and slices by hand where that is the case.

mod configuration;
mod credentials;
mod deploy;
mod differential;
mod events;
mod flapping;
mod health;
mod hostile;
mod lists;
mod migration;
mod outage;
mod scale;
mod services;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::agent::Agent;
use lb_tests::kubernetes::ControlPlane;
use lb_tests::objects::{Manifest, NodeObject, ServiceObject, SliceObject, service, slice};
use lb_tests::traffic::{ConnectErrorKind, Server, distribution, tcp_request};
use lb_tests::world::{Pod, World, WorldBuilder};
use serde_json::{Value, json};

/// Port of every server on a pod, TCP.
const SERVER_PORT: u16 = 8080;
/// Port of the Services.
const PORT: u16 = 80;
/// Longest wait for one answer.
const SECOND: Duration = Duration::from_secs(2);

/// A world with a server on each pod, a control plane, and an agent on every node.
struct Scene {
    // Dropped in this order: agents end before their world goes.
    agents: Vec<Agent>,
    cluster: ControlPlane,
    _servers: Vec<Server>,
    world: World,
}

impl Scene {
    /// Two nodes of two pods.
    #[track_caller]
    fn new() -> Self {
        Self::of(&World::builder(), &[])
    }

    /// Any world, with further flags of the API server.
    #[track_caller]
    fn of(builder: &WorldBuilder, flags: &[&str]) -> Self {
        let world = builder.build();
        let servers = world
            .pods()
            .flat_map(|pod| [IpAddr::V4(pod.ip4), IpAddr::V6(pod.ip6)].map(|address| (pod, address)))
            .map(|(pod, address)| Server::tcp(pod, &pod.name, (address, SERVER_PORT)))
            .collect();
        let cluster = ControlPlane::start(&world, flags);
        for node in world.nodes() {
            cluster.create(&NodeObject::from(node));
        }
        let mut scene = Self {
            agents: Vec::new(),
            cluster,
            _servers: servers,
            world,
        };
        for node in scene.world.nodes() {
            scene
                .agents
                .push(Agent::start_on_api(node, scene.cluster.kube_proxy(), &[]));
        }
        scene.settle();
        scene
    }

    /// Waits until every agent has programmed what the API holds now.
    #[track_caller]
    fn settle(&mut self) {
        for agent in &mut self.agents {
            agent.wait_ready();
        }
    }

    /// Creates a slice of a Service with these pods, written by hand.
    #[track_caller]
    fn create_slice(&self, service: &str, pods: &[&str]) {
        self.cluster.create(&self.slice(service, pods));
    }

    fn slice(&self, service: &str, pods: &[&str]) -> SliceObject {
        let object = slice("default", &format!("{service}-by-hand"), service)
            .v4()
            .port("http", SERVER_PORT);
        pods.iter().fold(object, |object, name| {
            let pod = self.world.pod(name);
            object
                .endpoint(pod.ip4)
                .node(&format!("node{}", pod.node))
                .condition("ready", true)
        })
    }

    /// Writes the Pod object of a pod of the world, running and ready, with a label `app`.
    #[track_caller]
    fn create_pod(&self, name: &str, app: &str) {
        self.cluster.create_json(&pod_object(self.world.pod(name), app));
    }

    /// The backends that answer a pod of node 1, which is none of them.
    #[track_caller]
    fn backends(&self, to: SocketAddr) -> BTreeMap<String, usize> {
        distribution(self.world.pod("pod1-1"), to, 40)
    }

    /// What a failing request from a pod of node 1 fails by.
    #[track_caller]
    fn failure(&self, to: SocketAddr) -> ConnectErrorKind {
        tcp_request(self.world.pod("pod1-1"), to, None, SECOND)
            .expect_err("nobody shall answer")
            .kind
    }
}

fn pod_object(pod: &Pod, app: &str) -> Value {
    let (ip4, ip6) = (pod.ip4.to_string(), pod.ip6.to_string());
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": pod.name, "namespace": "default", "labels": { "app": app } },
        "spec": { "nodeName": format!("node{}", pod.node), "containers": [{ "name": "server", "image": "none" }] },
        "status": { "phase": "Running", "podIP": ip4, "podIPs": [{ "ip": ip4 }, { "ip": ip6 }],
            "conditions": [{ "type": "Ready", "status": "True" }] } })
}

/// A Service at a ClusterIP of the test's choice, with port `http`.
fn web(name: &str, cluster_ip: &str) -> ServiceObject {
    service("default", name)
        .cluster_ip(cluster_ip)
        .port("http", PORT, "TCP")
        .target_port(SERVER_PORT)
}

/// A Service with a selector.
fn selecting(object: &ServiceObject, app: &str) -> Value {
    let mut object = object.to_json();
    object["spec"]["selector"] = json!({ "app": app });
    object
}

#[track_caller]
fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// The names of backends.
fn names(found: &BTreeMap<String, usize>) -> Vec<&str> {
    found.keys().map(String::as_str).collect()
}
