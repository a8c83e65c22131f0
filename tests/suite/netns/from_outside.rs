//! Clients outside the cluster reach node ports, LoadBalancer IPs and external IPs.

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::netns::Netns;
use lb_tests::traffic::{ConnectErrorKind, distribution, ping, tcp_request, udp_distribution, udp_request};
use lb_tests::world::{Cni, PodRouting, World};

use super::scene::{NODE_PORT, PORT, Scene, at, families, web};

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
fn every_external_frontend_reaches_every_backend_where_netfilter_drops_invalid_packets() {
    let bridge = World::builder().cni(Cni::Bridge).drop_invalid();
    for builder in [World::builder().drop_invalid(), bridge.clone(), bridge.br_netfilter()] {
        let scene = Scene::of(&builder, &[]);
        all_frontends_reach_all_backends(&scene);
        for node in scene.world.nodes() {
            assert_eq!(node.invalid_drops(), 0, "{} saw half a connection", node.name);
        }
    }
}

#[test]
fn a_local_backend_sees_the_client_and_a_remote_one_the_node() {
    backends_see_whom_they_should(Scene::new(), PodRouting::Static);
}

#[test]
fn a_local_backend_sees_the_client_and_a_remote_one_the_nodes_end_of_the_tunnel() {
    let scene = Scene::of(&World::builder().routing(PodRouting::Vxlan), &[]);
    backends_see_whom_they_should(scene, PodRouting::Vxlan);
}

#[track_caller]
pub(super) fn backends_see_whom_they_should(mut scene: Scene, routing: PodRouting) {
    let _dump = OnFailure::of(&scene.world);
    for (pod, local) in [("pod1-1", true), ("pod2-1", false)] {
        scene.put_endpoints(&[pod]);
        scene.settle();
        let client = scene.world.client();
        for addresses in families() {
            let node: IpAddr = scene.world.node(1).ip_like(addresses.cluster);
            let expected = match routing {
                _ if local => client.ip_like(node),
                PodRouting::Static => node,
                PodRouting::Vxlan => scene.world.node(1).overlay_ip_like(node),
            };
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
    scene.put_service(&web().external_local());
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

/// Asserts who gets in by the LoadBalancer IP over TCP and UDP: each of the pod, the node and the client does or does not.
#[track_caller]
fn admits(scene: &Scene, expected: [bool; 3]) {
    const DENIED: Duration = Duration::from_millis(500);
    let world = &scene.world;
    let askers: [(&str, &Netns); 3] = [
        ("the pod", &world.pod("pod1-1").ns),
        ("the node", &world.node(1).ns),
        ("the client", &world.client().ns),
    ];
    for addresses in families() {
        let to = at(addresses.balancer, PORT);
        for ((who, from), admitted) in askers.into_iter().zip(expected) {
            let limit = if admitted { SECOND } else { DENIED };
            for (protocol, reply) in [
                ("TCP", tcp_request(from, to, None, limit)),
                ("UDP", udp_request(from, to, None, limit)),
            ] {
                match reply {
                    Ok(_) => assert!(admitted, "{who} got in to {to} over {protocol}"),
                    Err(error) => assert!(
                        // A drop is seen at once on one's own host, elsewhere by the wait.
                        !admitted && [ConnectErrorKind::Timeout, ConnectErrorKind::NotSent].contains(&error.kind),
                        "{who} to {to} over {protocol}: {error}"
                    ),
                }
            }
        }
        let cluster = at(addresses.cluster, PORT);
        let inside = tcp_request(world.pod("pod1-1"), cluster, None, SECOND);
        inside.expect("ranges are for the LoadBalancer IP alone");
    }
}

#[track_caller]
pub(super) fn source_ranges_hold(mut scene: Scene) {
    let _dump = OnFailure::of(&scene.world);
    let node = scene.world.node(1);
    // Datagrams are sent once: who gets them is known to the node before.
    for pod in scene.world.pods() {
        for address in [IpAddr::from(pod.ip4), pod.ip6.into()] {
            ping(node, address, 56, SECOND).unwrap_or_else(|error| panic!("the node to {address}: {error}"));
        }
    }
    let own = [format!("{}/32", node.ip4), format!("{}/128", node.ip6)];
    let outside = ["192.0.2.0/24".to_owned(), "2001:db8:2::/64".to_owned()];
    let pod = ["10.244.1.0/24".to_owned(), "fd00:10:244:1::/64".to_owned()];
    for (ranges, expected) in [
        (outside, [false, false, true]),
        (own, [false, true, false]),
        (pod, [true, false, false]),
    ] {
        scene.put_service(&ranges.iter().fold(web(), |service, range| service.source_range(range)));
        scene.settle();
        admits(&scene, expected);
    }
}
