//! Which endpoints get new flows, by their conditions (KEP-1672, KEP-1669 proxy-terminating-endpoints).

use lb_tests::assert::OnFailure;
use lb_tests::world::{World, WorldBuilder};

use super::outcome::{Outcome, REFUSED, by, check};
use super::scene::{Conditions, ENDING, LEAVING, NODE_PORT, PORT, READY, Scene, at, families};

/// In service, says a slice that says nothing.
const SILENT: Conditions = [None; 3];
/// Not ready, though it serves and is not on its way out: never used.
const UNREADY: Conditions = [Some(false), Some(true), Some(false)];
/// Published before it is ready and on its way out: used, because it is called ready.
const PUBLISHED: Conditions = [Some(true), Some(false), Some(true)];
/// Not ready, says a slice that says no more; it counts as serving, but not as terminating.
const ONLY_UNREADY: Conditions = [Some(false), None, None];
/// Terminating, says a slice that does not say whether it serves: it does.
const ONLY_TERMINATING: Conditions = [Some(false), None, Some(true)];

#[test]
fn new_flows_go_to_ready_endpoints_else_to_serving_ones_that_terminate_else_nowhere() {
    best_endpoints_get_new_flows(&World::builder());
}

#[track_caller]
pub(super) fn best_endpoints_get_new_flows(builder: &WorldBuilder) -> Scene {
    let local = || by(&["pod1-2"]);
    let remote = || by(&["pod2-1"]);
    let both = || by(&["pod1-2", "pod2-1"]);
    let rows: [(&str, Conditions, Conditions, Outcome); 12] = [
        ("both ready", READY, READY, both()),
        ("one ready, one leaving", READY, LEAVING, local()),
        ("both leaving", LEAVING, LEAVING, both()),
        ("one leaving, one ending", LEAVING, ENDING, local()),
        ("one leaving, one unready", UNREADY, LEAVING, remote()),
        ("one ready, one unready", UNREADY, READY, remote()),
        ("both unready", UNREADY, UNREADY, REFUSED),
        ("both ending", ENDING, ENDING, REFUSED),
        ("no conditions beside leaving", SILENT, LEAVING, local()),
        ("published beside leaving", PUBLISHED, LEAVING, local()),
        ("only `ready: false` beside ending", ONLY_UNREADY, ENDING, REFUSED),
        (
            "terminating without `serving` beside ending",
            ONLY_TERMINATING,
            ENDING,
            local(),
        ),
    ];
    let mut scene = Scene::of(builder, &[]);
    let _dump = OnFailure::of(&scene.world);
    for (what, first, second, expected) in rows {
        scene.set_conditions(&[("pod1-2", first), ("pod2-1", second)]);
        for addresses in families() {
            let world = &scene.world;
            let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
            let pod = world.pod("pod1-1");
            check(&format!("{what}: the pod"), pod, at(addresses.cluster, PORT), &expected);
            check(&format!("{what}: the client"), world.client(), node_port, &expected);
        }
    }
    scene
}
