//! ipMode of LoadBalancer addresses (KEP-1860): `VIP` is taken on the node, `Proxy` is left to the load balancer.

use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::objects::ServiceObject;
use lb_tests::traffic::{Server, tcp_request, udp_request};
use lb_tests::world::World;

use super::scene::{NODE_PORT, PORT, Scene, at, families, web_inside};

fn web(mode: &str) -> ServiceObject {
    let [v4, v6] = families();
    web_inside()
        .load_balancer_ip_with_mode(&v4.balancer.to_string(), mode)
        .load_balancer_ip_with_mode(&v6.balancer.to_string(), mode)
}

#[test]
fn an_address_of_mode_proxy_is_reached_at_the_load_balancer_and_one_of_mode_vip_on_the_node() {
    let mut scene = Scene::silent(&World::builder());
    let _dump = OnFailure::of(&scene.world);
    let mut balancers = Vec::new();
    for addresses in families() {
        let length = if addresses.balancer.is_ipv6() {
            "128 nodad"
        } else {
            "32"
        };
        let fabric = &scene.world.fabric;
        fabric.ip(&format!("addr add {}/{length} dev out0", addresses.balancer));
        balancers.push(Server::tcp(fabric, "balancer", (addresses.balancer, PORT)));
        balancers.push(Server::udp(fabric, "balancer", (addresses.balancer, PORT)));
    }
    scene.put_service(&web("Proxy"));
    scene.put_endpoints(&["pod1-2"]);
    scene.start(&[]);
    for (mode, balancer_answers) in [("Proxy", true), ("VIP", false), ("Proxy", true)] {
        scene.put_service(&web(mode));
        scene.settle();
        let expected = if balancer_answers { "balancer" } else { "pod1-2" };
        for addresses in families() {
            let (limit, world) = (Duration::from_secs(2), &scene.world);
            for (who, place) in [("the pod", &world.pod("pod1-1").ns), ("the node", &world.node(1).ns)] {
                let to = at(addresses.balancer, PORT);
                let tcp = tcp_request(place, to, None, limit).unwrap_or_else(|e| panic!("{mode}: {who} to {to}: {e}"));
                let udp = udp_request(place, to, None, limit).unwrap_or_else(|e| panic!("{mode}: {who} to {to}: {e}"));
                assert_eq!(
                    (tcp.backend.as_str(), udp.backend.as_str()),
                    (expected, expected),
                    "{mode}: {who}"
                );
            }
            let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
            let reply = tcp_request(world.client(), node_port, None, limit).expect("the node port in either mode");
            assert_eq!(reply.backend, "pod1-2");
        }
    }
}
