//! VLAN tags: a tagged packet is the business of the VLAN's own device, a priority tag is none; that device may be an uplink.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use lb_tests::agent::Agent;
use lb_tests::assert::OnFailure;
use lb_tests::packet::{Decoded, Packet};
use lb_tests::traffic::{Captured, FrameSocket};
use lb_tests::world::{Cni, Pod, PodRouting, World};

use super::scene::{PORT, SERVER_PORT, Scene, at, families, web};
use super::{from_outside, from_the_node};

const LIMIT: Duration = Duration::from_secs(2);
/// A port of the ClusterIP that no Service has: a SYN to it is reset at once.
const UNKNOWN_PORT: u16 = 9;
/// The client's ports.
const TAGGED: u16 = 40_005;
const PRIORITY: u16 = 40_000;
const PLAIN: u16 = 40_001;

/// The MAC address of a pod's device.
fn mac(pod: &Pod) -> [u8; 6] {
    let shown = pod.ns.ip("-br link show eth0");
    let mut words = shown.split_whitespace().skip(2);
    let octets = words.next().expect("a MAC address").split(':');
    let octets: Vec<u8> = octets
        .map(|octet| u8::from_str_radix(octet, 16).expect("an octet"))
        .collect();
    octets.try_into().expect("six octets")
}

/// Whether a frame carries a segment from this port.
fn sent_from(captured: &Captured, port: u16) -> bool {
    Decoded::frame(&captured.frame).is_ok_and(|packet| packet.source_port() == Some(port))
}

#[test]
fn packets_of_a_vlan_pass_and_priority_tags_change_nothing() {
    // A bridge carries frames of any VLAN, from one pod to the other through both of their hooks.
    let scene = Scene::of(&World::builder().cni(Cni::Bridge), &[]);
    let _dump = OnFailure::of(&scene.world);
    let (pod, neighbour) = (scene.world.pod("pod1-1"), scene.world.pod("pod1-2"));
    let (wire, far) = (FrameSocket::open(pod, "eth0"), FrameSocket::open(neighbour, "eth0"));
    let macs = [mac(pod), mac(neighbour)];
    for addresses in families() {
        let syn = |to: IpAddr, from_port: u16, to_port: u16| {
            Packet::new(pod.ip_like(to), to)
                .macs(macs[0], macs[1])
                .tcp(from_port, to_port, "S")
        };
        let vip = addresses.cluster;
        // To a port that would be reset, to one that would be translated, and straight to a backend.
        let backend = at(scene.world.pod("pod2-1").ip_like(vip), SERVER_PORT);
        for to in [at(vip, UNKNOWN_PORT), at(vip, PORT), backend] {
            let packet = syn(to.ip(), TAGGED, to.port());
            wire.send(&packet.clone().vlan(5).build());
            let arrived = far.next_matching(LIMIT, |captured| sent_from(captured, TAGGED));
            let arrived = arrived.unwrap_or_else(|| panic!("VLAN 5's packet to {to} did not arrive"));
            // The device has taken the tag off the bytes that it shows.
            assert_eq!(arrived.frame, packet.build(), "VLAN 5's packet to {to}");
        }
        wire.send(&syn(vip, PRIORITY, UNKNOWN_PORT).vlan(0).build());
        wire.send(&syn(vip, PLAIN, UNKNOWN_PORT).build());
        let resets = wire.collect(3, LIMIT, |captured| sent_from(captured, UNKNOWN_PORT));
        let mut ports: Vec<u16> = resets
            .iter()
            .filter_map(|captured| Decoded::frame(&captured.frame).ok()?.destination_port())
            .collect();
        ports.sort_unstable();
        assert_eq!(ports, [PRIORITY, PLAIN], "the ports whose SYN was answered");
        assert_eq!(
            far.drain()
                .iter()
                .filter(|frame| sent_from(frame, PRIORITY) || sent_from(frame, PLAIN))
                .count(),
            0,
            "what was answered went no further"
        );
    }
}

/// Services are served by uplinks that are devices of a VLAN, whose tagged frames pass untouched below. Needs a kernel with
/// such devices: a test of the virtual machines calls this there.
#[track_caller]
pub(crate) fn devices_of_a_vlan_serve_as_uplinks() {
    let mut scene = Scene::silent(&World::builder().vlan_uplinks());
    scene.put_service(&web());
    scene.put_endpoints(&["pod1-1", "pod1-2", "pod2-1", "pod2-2"]);
    // One after the other: a machine verifies programs slowly.
    for number in [1, 2] {
        let agent = Agent::start(scene.world.node(number), &scene.folder, &["--xdp", "off"]);
        scene.agents.push(agent);
        scene.settle();
    }
    for agent in &scene.agents {
        let status = agent.json(&["status"]);
        let attachments = status["attachments"].as_array().expect("attachments");
        let uplinks = attachments.iter().filter(|attachment| attachment["role"] == "uplink");
        let uplinks: HashSet<_> = uplinks.map(|attachment| &attachment["interface"]).collect();
        assert_eq!(uplinks.into_iter().collect::<Vec<_>>(), ["eth0"], "{status}");
    }
    from_outside::all_frontends_reach_all_backends(&scene);
    from_the_node::every_pod_answers(&scene);
    from_outside::backends_see_whom_they_should(scene, PodRouting::Static);
}
