//! A pod reaches itself through its own Service.

use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::traffic::{tcp_request, udp_request};
use lb_tests::world::{Cni, World, WorldBuilder};

use super::scene::{Scene, families};

#[test]
fn a_pod_reaches_itself_by_every_frontend_on_routed_and_bridge_networks() {
    for cni in [Cni::Ptp, Cni::Bridge] {
        reaches_itself(&World::builder().cni(cni));
    }
}

#[track_caller]
pub(super) fn reaches_itself(builder: &WorldBuilder) {
    let mut scene = Scene::of(builder, &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&["pod1-1"]);
    scene.settle();
    let pod = scene.world.pod("pod1-1");
    for addresses in families() {
        for to in scene.frontends(addresses) {
            let limit = Duration::from_secs(2);
            let tcp = tcp_request(pod, to, None, limit).unwrap_or_else(|e| panic!("{to} TCP on {builder:?}: {e:?}"));
            let udp = udp_request(pod, to, None, limit).unwrap_or_else(|e| panic!("{to} UDP on {builder:?}: {e:?}"));
            for reply in [tcp, udp] {
                assert_eq!(reply.backend, "pod1-1");
                assert_eq!(
                    reply.client_seen.ip(),
                    to.ip(),
                    "the pod sees the frontend as its client"
                );
            }
        }
    }
}
