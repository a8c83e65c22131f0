//! sessionAffinity ClientIP: kept, shared by frontends, switched live, independent of other endpoints.

use lb_tests::assert::OnFailure;
use lb_tests::traffic::distribution;

use super::scene::{NODE_PORT, PORT, Scene, at, families, web};

#[test]
fn a_client_stays_on_its_backend_by_every_frontend_and_affinity_switches_live() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web().affinity(600));
    scene.settle();
    for addresses in families() {
        let client = scene.world.pod("pod1-1");
        let node = scene.world.node(1).ip_like(addresses.cluster);
        let first = distribution(client, at(addresses.cluster, PORT), 15);
        assert_eq!(first.len(), 1, "one backend: {first:?}");
        for to in [at(addresses.balancer, PORT), at(node, NODE_PORT)] {
            let other = distribution(client, to, 15);
            assert_eq!(
                other.keys().collect::<Vec<_>>(),
                first.keys().collect::<Vec<_>>(),
                "{to}"
            );
        }
    }
    scene.put_service(&web());
    scene.settle();
    for addresses in families() {
        let free = distribution(scene.world.pod("pod1-1"), at(addresses.cluster, PORT), 40);
        assert!(free.len() > 1, "affinity is off: {free:?}");
    }
    scene.put_service(&web().affinity(600));
    scene.settle();
    for addresses in families() {
        let again = distribution(scene.world.pod("pod1-1"), at(addresses.cluster, PORT), 15);
        assert_eq!(again.len(), 1, "{again:?}");
    }
}

#[test]
fn affinity_survives_changes_of_other_endpoints_and_moves_when_its_own_goes() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web().affinity(600));
    scene.settle();
    let [v4, _] = families();
    let to = at(v4.cluster, PORT);
    let all = ["pod1-1", "pod1-2", "pod2-1", "pod2-2"];
    let kept = distribution(scene.world.pod("pod1-1"), to, 5)
        .into_keys()
        .next()
        .expect("a backend");
    let other = all.into_iter().find(|pod| *pod != kept).expect("another pod");
    scene.put_endpoints(&all.into_iter().filter(|pod| *pod != other).collect::<Vec<_>>());
    scene.settle();
    assert_eq!(
        distribution(scene.world.pod("pod1-1"), to, 10)
            .into_keys()
            .collect::<Vec<_>>(),
        std::slice::from_ref(&kept)
    );
    scene.put_endpoints(&all.into_iter().filter(|pod| *pod != kept).collect::<Vec<_>>());
    scene.settle();
    let moved = distribution(scene.world.pod("pod1-1"), to, 10);
    assert!(moved.len() == 1 && !moved.contains_key(&kept), "{moved:?}");
}
