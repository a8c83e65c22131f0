//! What is refused is refused at once; what is not ours is untouched.

use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::traffic::{ConnectErrorKind, tcp_request, udp_request};

use super::scene::{NODE_PORT, PORT, Scene, at, families};

const LIMIT: Duration = Duration::from_secs(2);

#[test]
fn a_service_without_endpoints_and_an_unknown_port_refuse_pods_the_node_and_clients() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&[]);
    scene.settle();
    for addresses in families() {
        for to in [
            at(addresses.cluster, PORT),
            at(addresses.balancer, PORT),
            at(addresses.external, PORT),
            at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT),
            at(addresses.cluster, 81),
        ] {
            for (who, place) in [
                ("a pod", scene.world.pod("pod1-1").ns.clone()),
                ("the node", scene.world.node(1).ns.clone()),
                ("a client", scene.world.client().ns.clone()),
            ] {
                let tcp = tcp_request(&place, to, None, LIMIT).expect_err("a refusal over TCP");
                assert_eq!(tcp.kind, ConnectErrorKind::Refused, "{who} to {to} over TCP: {tcp:?}");
                assert!(
                    tcp.after < Duration::from_secs(1),
                    "{who} to {to}: refused after {:?}",
                    tcp.after
                );
                let udp = udp_request(&place, to, None, LIMIT).expect_err("a refusal over UDP");
                assert_eq!(udp.kind, ConnectErrorKind::Refused, "{who} to {to} over UDP: {udp:?}");
            }
        }
    }
}

#[test]
fn refusing_by_icmp_works_as_well() {
    let mut scene = Scene::of(&lb_tests::world::World::builder(), &["--refuse-with", "icmp"]);
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&[]);
    scene.settle();
    for addresses in families() {
        let to = at(addresses.cluster, PORT);
        for place in [scene.world.pod("pod1-1").ns.clone(), scene.world.node(1).ns.clone()] {
            let error = tcp_request(&place, to, None, LIMIT).expect_err("a refusal");
            assert_eq!(error.kind, ConnectErrorKind::Refused, "{error:?}");
        }
    }
}
