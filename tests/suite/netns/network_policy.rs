//! Rules of a network policy in netfilter see flows as they are behind the VIP: the pod, not the Service.

use lb_tests::assert::OnFailure;
use lb_tests::netfilter::{remove_rules, rule_hits, set_rules};
use lb_tests::world::{Cni, World, WorldBuilder};

use super::outcome::{DROPPED, by, check};
use super::scene::{NODE_PORT, PORT, SERVER_PORT, Scene, at, families};

const TABLE: &str = "inet pod_policy";

/// On the node `enforcer`, pods may not reach `backend` from `pod1-1`, nor clients at all: direct or by a frontend.
#[track_caller]
fn policy_holds(builder: &WorldBuilder, backend: &str, enforcer: usize) {
    let mut scene = Scene::of(builder, &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&[backend]);
    scene.settle();
    let world = &scene.world;
    let (barred, server) = (world.pod("pod1-1"), world.pod(backend));
    let free = if backend == "pod1-2" { "pod2-1" } else { "pod2-2" };
    let rules = format!(
        "ip saddr {} ip daddr {} counter name hits drop\nip6 saddr {} ip6 daddr {} counter name hits drop\n",
        barred.ip4, server.ip4, barred.ip6, server.ip6
    );
    set_rules(
        world.node(enforcer),
        TABLE,
        "filter hook forward priority filter",
        &rules,
    );
    for addresses in families() {
        let direct = at(server.ip_like(addresses.cluster), SERVER_PORT);
        let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
        let frontends = [at(addresses.cluster, PORT), at(addresses.balancer, PORT), node_port];
        for to in [direct].into_iter().chain(frontends) {
            let before = rule_hits(world.node(enforcer), TABLE);
            check("the barred pod", barred, to, &DROPPED);
            assert!(
                rule_hits(world.node(enforcer), TABLE) > before,
                "the rule did not see {to}"
            );
            check("a pod that may", world.pod(free), to, &by(&[backend]));
        }
    }
    remove_rules(world.node(enforcer), TABLE);
    for addresses in families() {
        check(
            "the pod without the rule",
            barred,
            at(addresses.cluster, PORT),
            &by(&[backend]),
        );
    }
}

#[test]
fn a_rule_against_a_pod_holds_on_its_own_node_and_on_the_backends_also_through_the_service() {
    policy_holds(&World::builder(), "pod1-2", 1);
    policy_holds(&World::builder(), "pod2-1", 1);
    policy_holds(&World::builder(), "pod2-1", 2);
}

#[test]
fn a_rule_against_a_pod_holds_on_a_bridge_whose_packets_pass_netfilter_also_through_the_service() {
    policy_holds(&World::builder().cni(Cni::Bridge).br_netfilter(), "pod1-2", 1);
}

#[test]
fn a_rule_against_a_client_outside_holds_for_a_backend_on_the_node() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&["pod1-2"]);
    scene.settle();
    let world = &scene.world;
    let (client, server) = (world.client(), world.pod("pod1-2"));
    let rules = format!(
        "ip saddr {} ip daddr {} counter name hits drop\nip6 saddr {} ip6 daddr {} counter name hits drop\n",
        client.ip4, server.ip4, client.ip6, server.ip6
    );
    set_rules(world.node(1), TABLE, "filter hook forward priority filter", &rules);
    for addresses in families() {
        let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
        for to in [node_port, at(addresses.balancer, PORT)] {
            let before = rule_hits(world.node(1), TABLE);
            check("the client", client, to, &DROPPED);
            assert!(rule_hits(world.node(1), TABLE) > before, "the rule did not see {to}");
        }
        check(
            "a pod",
            world.pod("pod1-1"),
            at(addresses.cluster, PORT),
            &by(&["pod1-2"]),
        );
    }
}
