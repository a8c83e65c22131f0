//! Hints of EndpointSlices: the same node, the same zone, or all (KEP-2433, KEP-4444, KEP-3015).
//!
//! Node 1, where the clients are, is in zone `a`; `pod1-2` is on it, `pod2-1` on node 2 in zone `b`.

use lb_tests::assert::OnFailure;
use lb_tests::objects::{NodeObject, SliceObject};
use lb_tests::world::Pod;

use super::outcome::{Outcome, by, check};
use super::scene::{Conditions, LEAVING, NODE_PORT, PORT, READY, Scene, at, empty_slice, endpoint, families, web};

/// An endpoint's conditions, the zones and the nodes that it is hinted for.
type Hinted = (Conditions, &'static [&'static str], &'static [&'static str]);

fn hinted(object: SliceObject, pod: &Pod, v6: bool, (conditions, zones, nodes): Hinted) -> SliceObject {
    let object = endpoint(object, pod, v6, conditions);
    let object = zones.iter().fold(object, |object, zone| object.hint_zone(zone));
    nodes.iter().fold(object, |object, node| object.hint_node(node))
}

#[track_caller]
fn put(scene: &mut Scene, first: Hinted, second: Hinted) {
    for v6 in [false, true] {
        let object = hinted(empty_slice("web", v6), scene.world.pod("pod1-2"), v6, first);
        scene.folder.put(&hinted(object, scene.world.pod("pod2-1"), v6, second));
    }
    scene.settle();
}

#[test]
fn hints_restrict_a_node_to_its_own_endpoints_where_all_ready_ones_have_them() {
    let (near, far) = (|| by(&["pod1-2"]), || by(&["pod2-1"]));
    let both = || by(&["pod1-2", "pod2-1"]);
    let rows: [(&str, Hinted, Hinted, Outcome); 9] = [
        ("own zones", (READY, &["a"], &[]), (READY, &["b"], &[]), near()),
        ("crossed zones", (READY, &["b"], &[]), (READY, &["a"], &[]), far()),
        (
            "one for two zones",
            (READY, &["b"], &[]),
            (READY, &["b", "a"], &[]),
            far(),
        ),
        ("one without a hint", (READY, &["a"], &[]), (READY, &[], &[]), both()),
        ("none for this zone", (READY, &["b"], &[]), (READY, &["b"], &[]), both()),
        (
            "nodes before zones",
            (READY, &["a"], &["node2"]),
            (READY, &["b"], &["node1"]),
            far(),
        ),
        (
            "zones where no node is hinted for",
            (READY, &["a"], &["node3"]),
            (READY, &["b"], &["node2"]),
            near(),
        ),
        (
            "only ready endpoints count",
            (LEAVING, &["a"], &[]),
            (READY, &["b"], &[]),
            far(),
        ),
        (
            "terminating ones without regard to hints",
            (LEAVING, &["a"], &[]),
            (LEAVING, &["b"], &[]),
            both(),
        ),
    ];
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    for (number, zone) in [(1, "a"), (2, "b")] {
        scene.folder.put(&NodeObject::from(scene.world.node(number)).zone(zone));
    }
    for (what, first, second, expected) in rows {
        put(&mut scene, first, second);
        for addresses in families() {
            let world = &scene.world;
            let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
            let pod = world.pod("pod1-1");
            check(&format!("{what}: the pod"), pod, at(addresses.cluster, PORT), &expected);
            check(&format!("{what}: the client"), world.client(), node_port, &expected);
        }
    }
}

#[test]
fn a_zone_counts_from_the_moment_the_node_has_it_and_local_policy_is_above_hints() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    put(&mut scene, (READY, &["b"], &[]), (READY, &["a"], &[]));
    let [v4, v6] = families();
    for addresses in [v4, v6] {
        let to = at(addresses.cluster, PORT);
        check(
            "a pod of a node without a zone",
            scene.world.pod("pod1-1"),
            to,
            &by(&["pod1-2", "pod2-1"]),
        );
    }
    scene.folder.put(&NodeObject::from(scene.world.node(1)).zone("a"));
    scene.put_service(&web().external_local());
    scene.settle();
    for addresses in [v4, v6] {
        let (world, to) = (&scene.world, at(addresses.cluster, PORT));
        check("a pod of zone a", world.pod("pod1-1"), to, &by(&["pod2-1"]));
        let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
        check(
            "a client under policy Local",
            world.client(),
            node_port,
            &by(&["pod1-2"]),
        );
    }
}
