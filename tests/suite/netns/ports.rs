//! Ports: several of one Service, named ones that differ by endpoint, TCP and UDP on one number.
//!
//! Every server is named `<pod>:<port>`, so that a reply tells both.

use std::net::IpAddr;

use lb_tests::assert::OnFailure;
use lb_tests::objects::{ServiceObject, service};
use lb_tests::traffic::Server;
use lb_tests::world::World;

use super::outcome::{REFUSED, by, check, tcp, udp};
use super::scene::{READY, Scene, at, endpoint, family_slice};

/// Ports that every pod's servers listen on, TCP and UDP.
const SERVER_PORTS: [u16; 3] = [8081, 8082, 8083];
/// ClusterIPs of the Service.
const CLUSTER: [&str; 2] = ["10.96.0.20", "fd00:10:96::20"];

/// A world with servers on every pod and every port, without objects but the nodes'.
#[track_caller]
fn stage() -> (Scene, Vec<Server>) {
    let scene = Scene::silent(&World::builder());
    let mut servers = Vec::new();
    for pod in scene.world.pods() {
        for address in [IpAddr::V4(pod.ip4), IpAddr::V6(pod.ip6)] {
            for port in SERVER_PORTS {
                let name = format!("{}:{port}", pod.name);
                servers.push(Server::tcp(pod, &name, (address, port)));
                servers.push(Server::udp(pod, &name, (address, port)));
            }
        }
    }
    (scene, servers)
}

/// The ClusterIPs as addresses.
fn cluster() -> [IpAddr; 2] {
    CLUSTER.map(|text| text.parse().expect("an address"))
}

/// A Service at [`CLUSTER`] without ports.
fn shop() -> ServiceObject {
    service("default", "shop").cluster_ip(CLUSTER[0]).cluster_ip(CLUSTER[1])
}

#[test]
fn each_port_of_a_service_leads_to_its_own_port_of_every_backend() {
    let (mut scene, _servers) = stage();
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(
        &shop()
            .port("plain", 80, "TCP")
            .node_port(30180)
            .port("secure", 443, "TCP")
            .node_port(30443)
            .port("query", 53, "UDP")
            .node_port(30053),
    );
    for v6 in [false, true] {
        let ports = family_slice("shop", v6)
            .port_of("query", 8083, "UDP")
            .port_of("secure", 8082, "TCP")
            .port_of("plain", 8081, "TCP");
        let object = ["pod1-2", "pod2-1"]
            .iter()
            .fold(ports, |object, name| endpoint(object, scene.world.pod(name), v6, READY));
        scene.folder.put(&object);
    }
    scene.start(&[]);
    let (pod, node, client) = (scene.world.pod("pod1-1"), scene.world.node(1), scene.world.client());
    for vip in cluster() {
        let own = node.ip_like(vip);
        for (port, node_port, expected) in [(80, 30180, 8081), (443, 30443, 8082)] {
            let expected = by(&[&format!("pod1-2:{expected}"), &format!("pod2-1:{expected}")]);
            assert_eq!(tcp(pod, at(vip, port)), expected, "the pod to {vip} port {port}");
            assert_eq!(tcp(node, at(vip, port)), expected, "the node to {vip} port {port}");
            assert_eq!(tcp(client, at(own, node_port)), expected, "the client to {node_port}");
            assert_eq!(
                udp(pod, at(vip, port)),
                REFUSED,
                "port {port} of {vip} is no port over UDP"
            );
        }
        let expected = by(&["pod1-2:8083", "pod2-1:8083"]);
        assert_eq!(udp(pod, at(vip, 53)), expected, "the pod to {vip} port 53");
        assert_eq!(udp(node, at(vip, 53)), expected, "the node to {vip} port 53");
        assert_eq!(udp(client, at(own, 30053)), expected, "the client to 30053");
        assert_eq!(tcp(pod, at(vip, 53)), REFUSED, "port 53 of {vip} is no port over TCP");
    }
}

#[test]
fn a_named_target_port_may_be_another_number_at_each_endpoint() {
    let (mut scene, _servers) = stage();
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(
        &shop()
            .port("web", 80, "TCP")
            .target_port("http")
            .port("query", 80, "UDP")
            .target_port("dns"),
    );
    for v6 in [false, true] {
        for (pod, port) in [("pod1-2", 8081), ("pod2-1", 8082)] {
            let object = family_slice(&format!("shop-{pod}"), v6)
                .label("kubernetes.io/service-name", "shop")
                .port_of("web", port, "TCP")
                .port_of("query", port, "UDP");
            scene.folder.put(&endpoint(object, scene.world.pod(pod), v6, READY));
        }
    }
    scene.start(&[]);
    for vip in cluster() {
        let expected = by(&["pod1-2:8081", "pod2-1:8082"]);
        check("the pod", scene.world.pod("pod1-1"), at(vip, 80), &expected);
        check("the node", scene.world.node(1), at(vip, 80), &expected);
    }
}

#[test]
fn tcp_and_udp_on_one_port_number_have_separate_fates() {
    let (mut scene, _servers) = stage();
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&shop().port("web", 80, "TCP").port("query", 80, "UDP"));
    for v6 in [false, true] {
        let object = family_slice("shop", v6).port_of("web", 8081, "TCP");
        scene
            .folder
            .put(&endpoint(object, scene.world.pod("pod1-2"), v6, READY));
    }
    scene.start(&[]);
    let pod = scene.world.pod("pod1-1");
    for vip in cluster() {
        assert_eq!(tcp(pod, at(vip, 80)), by(&["pod1-2:8081"]), "{vip}");
        assert_eq!(udp(pod, at(vip, 80)), REFUSED, "{vip} has no endpoint over UDP");
    }
    for v6 in [false, true] {
        let object = family_slice("shop-udp", v6)
            .label("kubernetes.io/service-name", "shop")
            .port_of("query", 8082, "UDP");
        scene
            .folder
            .put(&endpoint(object, scene.world.pod("pod2-1"), v6, READY));
    }
    scene.settle();
    let pod = scene.world.pod("pod1-1");
    for vip in cluster() {
        assert_eq!(tcp(pod, at(vip, 80)), by(&["pod1-2:8081"]), "{vip}");
        assert_eq!(udp(pod, at(vip, 80)), by(&["pod2-1:8082"]), "{vip}");
    }
}
