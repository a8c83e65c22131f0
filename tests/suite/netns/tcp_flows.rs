//! TCP connections outlive their endpoint, their port and their Service, as with kube-proxy; new ones see each change at once.

use std::net::SocketAddr;
use std::time::Duration;

use lb_tests::assert::{OnFailure, throughout};
use lb_tests::netns::Netns;
use lb_tests::objects::{ServiceObject, service};
use lb_tests::traffic::HeldConnections;
use lb_tests::world::{World, WorldBuilder};

use super::outcome::{DROPPED, Outcome, REFUSED, by, tcp};
use super::scene::{ENDING, LEAVING, NODE_PORT, PORT, READY, Scene, at, families, web};

/// Connections of each client to each frontend.
const COUNT: usize = 12;
/// How long they are watched after each change: longer than a flow's clock, which ticks once a second.
const WATCHED: Duration = Duration::from_millis(1500);

/// Who is connected to what.
type Held = Vec<(String, HeldConnections)>;

/// Connections of two pods, one of them an endpoint, and of a client outside.
#[track_caller]
fn connect_pods_and_client(scene: &Scene) -> Held {
    let mut all = Vec::new();
    for addresses in families() {
        let world = &scene.world;
        let cluster = at(addresses.cluster, PORT);
        let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
        all.push(connect("a pod", &world.pod("pod1-1").ns, cluster));
        all.push(connect("an endpoint", &world.pod("pod1-2").ns, cluster));
        all.push(connect("the client", &world.client().ns, node_port));
        all.push(connect("the client", &world.client().ns, at(addresses.balancer, PORT)));
    }
    all
}

/// Connections of the node itself.
#[track_caller]
fn connect_node(scene: &Scene) -> Held {
    let mut all = Vec::new();
    for addresses in families() {
        let node = scene.world.node(1);
        for to in [
            at(addresses.cluster, PORT),
            at(node.ip_like(addresses.cluster), NODE_PORT),
        ] {
            all.push(connect("the node", &node.ns, to));
        }
    }
    all
}

#[track_caller]
fn connect(who: &str, from: &Netns, to: SocketAddr) -> (String, HeldConnections) {
    let mut held = HeldConnections::start(from, to, COUNT);
    held.set_timeout(Duration::from_secs(5));
    (format!("{who} to {to}"), held)
}

/// Asserts that all connections are alive for a while.
#[track_caller]
fn all_alive(what: &str, connections: &mut Held) {
    throughout(WATCHED, what, || {
        let mut all = connections.iter_mut();
        all.try_for_each(|(who, held)| held.all_alive().map_err(|report| format!("{who}: {report}")))
    });
}

#[test]
fn connections_outlive_their_endpoint_and_their_port() {
    outlive_endpoint_and_port(&World::builder());
}

#[track_caller]
pub(super) fn outlive_endpoint_and_port(builder: &WorldBuilder) -> Scene {
    let mut scene = Scene::of(builder, &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.set_conditions(&[("pod1-2", READY), ("pod2-1", READY)]);
    let mut held = connect_pods_and_client(&scene);
    held.extend(connect_node(&scene));
    all_alive("connections before any change", &mut held);

    scene.set_conditions(&[("pod1-2", LEAVING), ("pod2-1", ENDING), ("pod2-2", READY)]);
    all_alive("connections of endpoints on their way out", &mut held);
    scene.set_conditions(&[("pod2-2", READY)]);
    all_alive("connections of removed endpoints", &mut held);
    new_ones(&scene, &by(&["pod2-2"]));

    scene.set_conditions(&[]);
    all_alive("connections of a Service without endpoints", &mut held);
    new_ones(&scene, &REFUSED);

    scene.set_conditions(&[("pod2-2", READY)]);
    scene.put_service(&without_tcp());
    scene.settle();
    all_alive("connections of a removed port", &mut held);
    new_ones(&scene, &REFUSED);
    scene
}

#[test]
fn connections_of_pods_and_clients_outlive_their_service_and_its_return() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.set_conditions(&[("pod1-2", READY), ("pod2-1", READY)]);
    outlive_the_service(&mut scene, connect_pods_and_client);
}

#[test]
fn connections_of_the_node_outlive_their_service_and_its_return() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.set_conditions(&[("pod1-2", READY), ("pod2-1", READY)]);
    outlive_the_service(&mut scene, connect_node);
}

#[track_caller]
fn outlive_the_service(scene: &mut Scene, connect: impl Fn(&Scene) -> Held) {
    let mut held = connect(scene);
    all_alive("connections before any change", &mut held);
    scene.folder.delete(&web());
    scene.settle();
    all_alive("connections of a deleted Service", &mut held);
    scene.set_conditions(&[("pod2-2", READY)]);
    scene.put_service(&web());
    scene.settle();
    all_alive("connections of a Service that was deleted and is back", &mut held);
    new_ones(scene, &by(&["pod2-2"]));
}

/// Asserts what becomes of new connections.
#[track_caller]
fn new_ones(scene: &Scene, expected: &Outcome) {
    for addresses in families() {
        let pod = scene.world.pod("pod1-1");
        assert_eq!(tcp(pod, at(addresses.cluster, PORT)), *expected);
    }
}

/// The Service with its UDP port alone.
fn without_tcp() -> ServiceObject {
    let [v4, v6] = families().map(|addresses| addresses.cluster.to_string());
    service("default", "web")
        .cluster_ip(&v4)
        .cluster_ip(&v6)
        .port("dns", PORT, "UDP")
}

#[test]
fn connections_outlive_a_policy_that_takes_their_endpoint_out_of_reach_of_new_ones() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.set_conditions(&[("pod2-1", READY)]);
    let mut held = connect_pods_and_client(&scene);
    held.extend(connect_node(&scene));
    scene.put_service(&web().external_local().internal_local());
    scene.settle();
    all_alive("connections of a policy before", &mut held);
    for addresses in families() {
        let world = &scene.world;
        assert_eq!(tcp(world.pod("pod1-1"), at(addresses.cluster, PORT)), DROPPED);
        assert_eq!(tcp(world.client(), at(addresses.balancer, PORT)), DROPPED);
    }
}
