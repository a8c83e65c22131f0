//! UDP flows leave an endpoint when it stops serving, wait for nothing when there is none, and come when there is one.

use std::time::Duration;

use lb_tests::assert::{OnFailure, eventually, throughout};
use lb_tests::traffic::{UdpReport, UdpStream};
use lb_tests::world::{World, WorldBuilder};

use super::scene::{ENDING, LEAVING, NODE_PORT, PORT, READY, Scene, at, families, web};

/// Datagrams a second of each stream.
const RATE: u32 = 200;
/// Datagrams that may be on their way when a flow moves: 20 ms of a busy machine.
const ON_THE_WAY: u64 = 4;
/// For what must come true.
const LIMIT: Duration = Duration::from_secs(10);
/// How long what must stay true is watched: longer than a flow's clock, which ticks once a second.
const WATCHED: Duration = Duration::from_millis(1500);

/// A stream from a pod, the node and a client outside in each family: each keeps its port.
fn streams(scene: &Scene) -> Vec<(String, UdpStream)> {
    let mut all = Vec::new();
    for addresses in families() {
        let world = &scene.world;
        let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
        let cluster = at(addresses.cluster, PORT);
        for (who, netns, to) in [
            ("the pod", &world.pod("pod1-1").ns, cluster),
            ("the node", &world.node(1).ns, cluster),
            ("the client", &world.client().ns, node_port),
        ] {
            all.push((format!("{who} to {to}"), UdpStream::start(netns, to, None, RATE)));
        }
    }
    all
}

fn finish(streams: Vec<(String, UdpStream)>) -> Vec<(String, UdpReport)> {
    let done = |(who, stream): (String, UdpStream)| (who, stream.finish(Duration::from_secs(1)));
    streams.into_iter().map(done).collect()
}

/// Datagrams that the servers of a pod have seen.
fn seen(scene: &Scene, pod: &str) -> u64 {
    let servers = scene.servers.iter().filter(|server| server.name() == pod);
    servers.map(lb_tests::traffic::Server::requests).sum()
}

/// Waits until the servers of a pod see datagrams of every one of `streams` at their full rate again.
#[track_caller]
fn await_traffic(scene: &Scene, pod: &str, streams: usize) {
    let before = seen(scene, pod);
    let wanted = streams as u64 * u64::from(RATE) / 4;
    eventually(LIMIT, &format!("{pod} sees the streams"), || {
        let new = seen(scene, pod) - before;
        if new >= wanted {
            Ok(())
        } else {
            Err(format!("{new} of {wanted} datagrams"))
        }
    });
}

/// Asserts that the servers of a pod see nothing from now on.
#[track_caller]
fn assert_silence(scene: &Scene, pod: &str) {
    let before = seen(scene, pod);
    throughout(WATCHED, &format!("silence at {pod}"), || {
        let new = seen(scene, pod) - before;
        if new == 0 {
            Ok(())
        } else {
            Err(format!("{new} datagrams"))
        }
    });
}

#[test]
fn a_flow_stays_while_its_endpoint_serves_and_moves_with_the_next_datagram_when_it_stops() {
    flows_follow_what_serves(&World::builder());
}

#[track_caller]
pub(super) fn flows_follow_what_serves(builder: &WorldBuilder) -> Scene {
    let mut scene = Scene::of(builder, &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.set_conditions(&[("pod1-2", READY)]);
    let streams = streams(&scene);
    await_traffic(&scene, "pod1-2", streams.len());
    scene.set_conditions(&[("pod1-2", LEAVING), ("pod2-1", READY)]);
    assert_silence(&scene, "pod2-1");
    scene.set_conditions(&[("pod1-2", ENDING), ("pod2-1", READY)]);
    assert_silence(&scene, "pod1-2");
    await_traffic(&scene, "pod2-1", streams.len());
    scene.set_conditions(&[("pod1-2", READY)]);
    assert_silence(&scene, "pod2-1");
    for (who, report) in finish(streams) {
        let order: Vec<&str> = report.handovers.iter().map(|(_, backend)| backend.as_str()).collect();
        assert_eq!(order, ["pod1-2", "pod2-1", "pod1-2"], "{who}: {report:?}");
        assert_only_late_answers_are_lost(&who, &report);
    }
    scene
}

/// A reply to a datagram that was on its way when the flow left its endpoint finds no flow; nothing else may be lost.
#[track_caller]
fn assert_only_late_answers_are_lost(who: &str, report: &UdpReport) {
    let on_its_way = |number: &u64| {
        report
            .handovers
            .iter()
            .any(|(first, _)| (first.saturating_sub(ON_THE_WAY)..*first).contains(number))
    };
    assert!(report.missing.iter().all(on_its_way), "{who}: {report:?}");
    let strays = report.foreign.values().sum::<u64>();
    assert!(strays <= report.missing.len() as u64, "{who}: {report:?}");
    assert_eq!((report.duplicated, report.garbled), (0, 0), "{who}: {report:?}");
    assert!(report.send_errors.is_empty(), "{who}: {report:?}");
}

#[test]
fn nobody_gets_the_flows_of_a_service_scaled_to_zero_or_deleted_and_they_find_it_when_it_is_back() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.set_conditions(&[("pod1-2", READY)]);
    let streams = streams(&scene);
    await_traffic(&scene, "pod1-2", streams.len());
    scene.set_conditions(&[]);
    assert_silence(&scene, "pod1-2");
    scene.set_conditions(&[("pod2-1", READY)]);
    await_traffic(&scene, "pod2-1", streams.len());
    scene.folder.delete(&web());
    scene.settle();
    assert_silence(&scene, "pod2-1");
    scene.put_service(&web());
    scene.settle();
    await_traffic(&scene, "pod2-1", streams.len());
    for (who, report) in finish(streams) {
        let order: Vec<&str> = report.handovers.iter().map(|(_, backend)| backend.as_str()).collect();
        assert_eq!(order, ["pod1-2", "pod2-1"], "{who}: {report:?}");
        assert!(report.foreign.is_empty() && report.garbled == 0, "{who}: {report:?}");
    }
}

#[test]
fn a_flow_that_began_before_its_service_or_its_first_endpoint_is_served_once_they_are_there() {
    let mut scene = Scene::silent(&World::builder());
    let _dump = OnFailure::of(&scene.world);
    scene.start(&[]);
    let streams = streams(&scene);
    assert_silence(&scene, "pod2-1");
    scene.put_service(&web());
    scene.set_conditions(&[("pod2-1", [Some(false), Some(false), Some(false)])]);
    assert_silence(&scene, "pod2-1");
    scene.set_conditions(&[("pod2-1", READY)]);
    await_traffic(&scene, "pod2-1", streams.len());
    for (who, report) in finish(streams) {
        let order: Vec<&str> = report.handovers.iter().map(|(_, backend)| backend.as_str()).collect();
        assert_eq!(order, ["pod2-1"], "{who}: {report:?}");
    }
}
