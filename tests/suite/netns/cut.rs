//! IPv4 datagrams that may be fragmented on their way, where a link behind the node is too narrow for them.

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::netns::Netns;
use lb_tests::traffic::{Server, udp_request_of};
use lb_tests::world::{PodRouting, World, WorldBuilder};

use super::scene::{NODE_PORT, PORT, SERVER_PORT, Scene, at, families};

/// MTU of node 1's ways on.
const NARROW: u32 = 1000;
/// Payload of a datagram that needs a whole link.
const LENGTH: usize = 1400;
const SECOND: Duration = Duration::from_secs(2);

/// Datagrams to a backend on the other node and back, over ways that need them cut.
#[track_caller]
fn are_cut(builder: &WorldBuilder) {
    let mut scene = Scene::of(builder, &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&["pod2-1"]);
    scene.settle();
    let world = &scene.world;
    let (node, client, pod) = (world.node(1), world.client(), world.pod("pod1-1"));
    let pods = &world.node(2).pod_cidrs()[0];
    node.ns.ip_batch(&format!(
        "route replace {pods} via {} mtu lock {NARROW}\nroute add {}/32 via 172.31.0.1 mtu lock {NARROW}\n",
        world.node(2).ip4,
        client.ip4
    ));
    // Sockets that are made from here on leave DF out of their datagrams.
    for place in world.pods().map(|pod| &pod.ns).chain([&node.ns, &client.ns]) {
        place.sysctl("net.ipv4.ip_no_pmtu_disc", "1");
    }
    drop(std::mem::take(&mut scene.servers));
    let backend = world.pod("pod2-1");
    let _server = Server::udp(backend, &backend.name, (backend.ip4, SERVER_PORT));
    let [addresses, _] = families();
    let node_port = at(IpAddr::from(node.ip4), NODE_PORT);
    let vip = at(addresses.cluster, PORT);
    let balancer = at(addresses.balancer, PORT);
    let ways: [(&str, &Netns, _); 5] = [
        ("a pod", &pod.ns, vip),
        ("the node", &node.ns, vip),
        ("the node", &node.ns, node_port),
        ("a client", &client.ns, node_port),
        ("a client", &client.ns, balancer),
    ];
    for (who, from, to) in ways {
        for _ in 0..3 {
            let reply = udp_request_of(from, to, LENGTH, SECOND);
            let reply = reply.unwrap_or_else(|error| panic!("{who} to {to}: {error}"));
            assert_eq!(reply.backend, "pod2-1", "{who} to {to}");
        }
    }
}

#[test]
fn what_is_larger_than_a_tunnel_is_cut_for_it_whole_or_in_fragments_already() {
    let mut scene = Scene::of(&World::builder().routing(PodRouting::Vxlan), &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&["pod2-1"]);
    scene.settle();
    let world = &scene.world;
    let client = world.client();
    for place in world.pods().map(|pod| &pod.ns).chain([&client.ns]) {
        place.sysctl("net.ipv4.ip_no_pmtu_disc", "1");
    }
    drop(std::mem::take(&mut scene.servers));
    let backend = world.pod("pod2-1");
    let _server = Server::udp(backend, &backend.name, (backend.ip4, SERVER_PORT));
    let [addresses, _] = families();
    // The first packet of each flow already is larger than the tunnel's device carries; a larger datagram comes in fragments,
    // the first of which fills the client's link.
    for length in [1472, 4000] {
        for to in [
            at(IpAddr::from(world.node(1).ip4), NODE_PORT),
            at(addresses.balancer, PORT),
        ] {
            let reply = udp_request_of(client, to, length, SECOND);
            let reply = reply.unwrap_or_else(|error| panic!("{length} bytes to {to}: {error}"));
            assert_eq!(reply.backend, "pod2-1", "{length} bytes to {to}");
        }
    }
}

#[test]
fn they_are_cut_and_arrive_whole() {
    are_cut(&World::builder());
}

#[test]
fn they_are_cut_under_a_strict_reverse_path_filter_where_netfilter_drops_invalid_packets() {
    are_cut(&World::builder().rp_filter(1).drop_invalid());
}
