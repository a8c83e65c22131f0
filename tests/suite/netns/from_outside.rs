//! Clients outside the cluster reach node ports, LoadBalancer IPs and external IPs.

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::traffic::{distribution, tcp_request, udp_distribution, udp_request};
use lb_tests::world::{PodRouting, World};

use super::scene::{NODE_PORT, PORT, Scene, at, families};

const SECOND: Duration = Duration::from_secs(2);

#[track_caller]
pub(super) fn all_frontends_reach_all_backends(scene: &Scene) {
    let _dump = OnFailure::of(&scene.world);
    let client = scene.world.client();
    for addresses in families() {
        let node = scene.world.node(1).ip_like(addresses.cluster);
        for to in [
            at(node, NODE_PORT),
            at(addresses.balancer, PORT),
            at(addresses.external, PORT),
        ] {
            let tcp = distribution(client, to, 60);
            let udp = udp_distribution(client, to, 60);
            for pod in ["pod1-1", "pod1-2", "pod2-1", "pod2-2"] {
                assert!(tcp.contains_key(pod), "{to} TCP never reached {pod}: {tcp:?}");
                assert!(udp.contains_key(pod), "{to} UDP never reached {pod}: {udp:?}");
            }
        }
    }
}

#[test]
fn every_external_frontend_reaches_every_backend() {
    all_frontends_reach_all_backends(&Scene::new());
}

#[test]
fn every_external_frontend_reaches_every_backend_over_a_tunnel() {
    all_frontends_reach_all_backends(&Scene::of(&World::builder().routing(PodRouting::Vxlan), &[]));
}

#[test]
fn a_local_backend_sees_the_client_and_a_remote_one_the_node() {
    backends_see_whom_they_should(Scene::new());
}

#[track_caller]
pub(super) fn backends_see_whom_they_should(mut scene: Scene) {
    let _dump = OnFailure::of(&scene.world);
    for (pod, local) in [("pod1-1", true), ("pod2-1", false)] {
        scene.put_endpoints(&[pod]);
        scene.settle();
        let client = scene.world.client();
        for addresses in families() {
            let node: IpAddr = scene.world.node(1).ip_like(addresses.cluster);
            let expected = if local { client.ip_like(node) } else { node };
            let to = at(node, NODE_PORT);
            let tcp = tcp_request(client, to, None, SECOND).expect("an answer over TCP");
            let udp = udp_request(client, to, None, SECOND).expect("an answer over UDP");
            for reply in [tcp, udp] {
                assert_eq!((reply.backend.as_str(), reply.client_seen.ip()), (pod, expected));
            }
        }
    }
}

#[test]
fn external_policy_local_serves_from_local_backends_alone_and_drops_without_one() {
    external_policy_local_holds(Scene::new());
}

#[track_caller]
pub(super) fn external_policy_local_holds(mut scene: Scene) {
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&super::scene::web().external_local());
    scene.put_endpoints(&["pod1-1", "pod2-1"]);
    scene.settle();
    let client = scene.world.client();
    for addresses in families() {
        let to = at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT);
        assert_eq!(distribution(client, to, 20).keys().collect::<Vec<_>>(), ["pod1-1"]);
    }
    scene.put_endpoints(&["pod2-1"]);
    scene.settle();
    let client = scene.world.client();
    for addresses in families() {
        let to = at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT);
        let error = tcp_request(client, to, None, Duration::from_millis(500)).expect_err("no local backend");
        assert_eq!(
            format!("{:?}", error.kind),
            "Timeout",
            "dropped, not refused: {error:?}"
        );
        let inside = tcp_request(scene.world.pod("pod1-1"), to, None, SECOND).expect("pods get all endpoints");
        assert_eq!(inside.backend, "pod2-1");
    }
}

#[test]
fn source_ranges_let_only_their_clients_in() {
    source_ranges_hold(Scene::new());
}

#[track_caller]
pub(super) fn source_ranges_hold(mut scene: Scene) {
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(
        &super::scene::web()
            .source_range("192.0.2.0/24")
            .source_range("2001:db8:2::/64"),
    );
    scene.settle();
    for addresses in families() {
        let to = at(addresses.balancer, PORT);
        tcp_request(scene.world.client(), to, None, SECOND).expect("a client inside the ranges");
        let error = tcp_request(scene.world.pod("pod1-1"), to, None, Duration::from_millis(500));
        assert!(error.is_err(), "a pod outside the ranges got in");
        tcp_request(scene.world.pod("pod1-1"), at(addresses.cluster, PORT), None, SECOND)
            .expect("ranges are for the LoadBalancer IP alone");
    }
}
