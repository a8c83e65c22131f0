//! VLAN tags: a tagged packet is the business of the VLAN's own device, a priority tag is none.

use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::packet::{Decoded, Packet};
use lb_tests::traffic::FrameSocket;

use super::scene::{Scene, families};

/// A port of the ClusterIP that no Service has: a SYN to it is reset at once.
const UNKNOWN_PORT: u16 = 9;

#[test]
fn packets_of_a_vlan_pass_and_priority_tags_change_nothing() {
    let scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let pod = scene.world.pod("pod1-1");
    let wire = FrameSocket::open(pod, "eth0");
    for addresses in families() {
        let syn =
            |port: u16| Packet::new(pod.ip_like(addresses.cluster), addresses.cluster).tcp(port, UNKNOWN_PORT, "S");
        wire.send(&syn(40_005).vlan(5).build());
        wire.send(&syn(40_000).vlan(0).build());
        wire.send(&syn(40_001).build());
        let resets = wire.collect(3, Duration::from_secs(2), |captured| {
            Decoded::frame(&captured.frame).is_ok_and(|packet| packet.source_port() == Some(UNKNOWN_PORT))
        });
        let mut ports: Vec<u16> = resets
            .iter()
            .filter_map(|captured| Decoded::frame(&captured.frame).ok()?.destination_port())
            .collect();
        ports.sort_unstable();
        assert_eq!(ports, [40_000, 40_001], "the ports whose SYN was answered");
    }
}
