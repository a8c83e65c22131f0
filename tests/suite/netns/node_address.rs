//! A LoadBalancer address that is the node's own: the Service's ports are taken, all else is the host's as before.

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::traffic::{Server, ping, tcp_request, udp_request};
use lb_tests::world::World;

use super::outcome::{by, check};
use super::scene::{PORT, Scene, at, balanced};

/// A port of the host that no Service has.
const OWN_PORT: u16 = 2222;

#[test]
fn the_services_ports_are_served_and_the_hosts_own_ones_stay_reachable_and_able_to_reach_out() {
    let mut scene = Scene::silent(&World::builder());
    let _dump = OnFailure::of(&scene.world);
    let (node4, node6) = (scene.world.node(1).ip4, scene.world.node(1).ip6);
    let mut servers = Vec::new();
    for address in [IpAddr::V4(node4), IpAddr::V6(node6)] {
        servers.push(Server::tcp(scene.world.node(1), "host", (address, OWN_PORT)));
        servers.push(Server::udp(scene.world.node(1), "host", (address, OWN_PORT)));
        let client = scene.world.client().ip_like(address);
        servers.push(Server::tcp(scene.world.client(), "client", (client, OWN_PORT)));
        servers.push(Server::udp(scene.world.client(), "client", (client, OWN_PORT)));
    }
    scene.put_service(&balanced([&node4.to_string(), &node6.to_string()]));
    scene.put_endpoints(&["pod1-2", "pod2-1"]);
    scene.start(&[]);
    let (world, limit) = (&scene.world, Duration::from_secs(2));
    for address in [IpAddr::V4(node4), IpAddr::V6(node6)] {
        for (who, netns) in [
            ("a pod", &world.pod("pod1-1").ns),
            ("the node", &world.node(1).ns),
            ("another node", &world.node(2).ns),
            ("the client", &world.client().ns),
        ] {
            check(who, netns, at(address, PORT), &by(&["pod1-2", "pod2-1"]));
            check(who, netns, at(address, OWN_PORT), &by(&["host"]));
            let reply =
                ping(netns, address, 56, limit).unwrap_or_else(|error| panic!("{who} pings {address}: {error}"));
            assert_eq!(reply.source, address, "{who}");
        }
        let to = at(world.client().ip_like(address), OWN_PORT);
        let tcp = tcp_request(world.node(1), to, None, limit).expect("the host reaches out over TCP");
        let udp = udp_request(world.node(1), to, None, limit).expect("the host reaches out over UDP");
        assert_eq!((tcp.client_seen.ip(), udp.client_seen.ip()), (address, address));
    }
}
