//! Forwarding goes on while agents die, come back and endpoints change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeFrom;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netns::Netns;
use lb_tests::objects::service;
use lb_tests::pinned_map::entries_of_all;
use lb_tests::traffic::{HeldConnections, UdpStream, tcp_request, udp_request};
use steerway::maps::{Geometry, geometries};

use super::scene::{NODE_PORT, PORT, Scene, at, endpoints, families};

/// Maps that change by themselves: counters with every packet, the word for changed ways out with every neighbour.
const CHANGING: [&str; 2] = ["reasons", "epoch"];
/// Restarts by SIGKILL while traffic runs.
const RESTARTS: usize = 20;
/// Connections that are held.
const CONNECTIONS: usize = 1000;
/// Datagrams a second.
const RATE: u32 = 10_000;
/// Datagrams a second of the streams beside that one.
const SLOW: u32 = 500;
/// The first of their clients' ports.
const FIRST_PORT: u16 = 34_000;
/// The endpoint that stays, on another node than the one that clients outside ask; and those that come and go.
const KEPT: &str = "pod2-1";
const OTHERS: [&str; 3] = ["pod1-1", "pod1-2", "pod2-2"];

#[test]
fn nothing_is_lost_over_kills_and_endpoint_churn() {
    nothing_is_lost(Scene::new());
}

#[track_caller]
pub(super) fn nothing_is_lost(mut scene: Scene) {
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(
        &service("default", "other")
            .cluster_ip("10.96.0.99")
            .port("http", PORT, "TCP"),
    );
    let [v4, v6] = families();
    let mut held = HeldConnections::start(scene.world.client(), at(v4.balancer, PORT), CONNECTIONS / 2);
    let mut inside = HeldConnections::start(scene.world.pod("pod1-1"), at(v6.cluster, PORT), CONNECTIONS / 2);
    let (pod, client) = (scene.world.pod("pod1-2"), scene.world.client());
    let ways: [(&str, &Netns, _, _); 4] = [
        ("of a pod", pod.as_ref(), at(v4.cluster, PORT), RATE),
        ("of a pod, IPv6", pod.as_ref(), at(v6.cluster, PORT), SLOW),
        ("from outside", client.as_ref(), at(v4.balancer, PORT), SLOW),
        ("from outside, IPv6", client.as_ref(), at(v6.balancer, PORT), SLOW),
    ];
    let mut ports = FIRST_PORT..;
    let streams = ways.map(|(which, from, to, rate)| (which, stream_to(KEPT, from, to, rate, &mut ports)));
    let before = streams.each_ref().map(|(_, stream)| stream.sent());
    for round in 0..RESTARTS {
        scene.agents[0].kill9();
        // So do other endpoints of this Service: datagrams leave those that go, connections do not.
        scene.put_endpoints(&[&[KEPT][..], &OTHERS[..=round % OTHERS.len()]].concat());
        // Another Service's endpoints come and go while no agent sees it: ids and blocks are used again.
        let pods: Vec<_> = ["pod1-1", "pod2-1"]
            .iter()
            .map(|name| scene.world.pod(name).clone())
            .collect();
        scene.folder.put(&endpoints("other", &pods[round % 2..], false));
        scene.agents[0].restart();
        scene.settle();
        for (who, connections) in [("client", &mut held), ("pod", &mut inside)] {
            let report = connections.check_all();
            assert!(
                report.lost.is_empty(),
                "round {round}: the {who}'s connections: {report:?}"
            );
        }
    }
    for ((which, stream), before) in streams.into_iter().zip(before) {
        assert!(stream.sent() > before, "the stream {which} was running");
        let report = stream.finish(Duration::from_secs(2));
        assert!(report.is_perfect(), "the stream {which}: {report:?}");
        assert_eq!(
            report.by_backend.keys().collect::<Vec<_>>(),
            [KEPT],
            "the stream {which}"
        );
    }
}

/// A stream whose datagrams go to `backend`, from the first of `ports` whose flow does: a request has made it.
#[track_caller]
fn stream_to(backend: &str, from: &Netns, to: SocketAddr, rate: u32, ports: &mut RangeFrom<u16>) -> UdpStream {
    let wildcard: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let leads_there = |bind: &SocketAddr| {
        let reply = udp_request(from, to, Some(*bind), Duration::from_secs(5));
        reply.unwrap_or_else(|error| panic!("{bind} to {to}: {error}")).backend == backend
    };
    let bind = ports.take(100).map(|port| at(wildcard, port)).find(leads_there);
    UdpStream::start(from, to, Some(bind.expect("a port of that backend")), rate)
}

#[test]
fn new_connections_to_node_ports_are_taken_while_an_agent_dies_and_starts() {
    const LIMIT: Duration = Duration::from_secs(5);
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let node = scene.world.node(1);
    let frontends = families().map(|addresses| at(node.ip_like(addresses.cluster), NODE_PORT));
    let client = scene.world.client().ns.clone();
    let told = Arc::new((AtomicBool::new(false), AtomicU64::new(0)));
    let shared = Arc::clone(&told);
    // A failure ends it, which the next wait for its progress tells.
    let asking = thread::spawn(move || -> Result<(), String> {
        let (stop, answered) = &*shared;
        while !stop.load(Ordering::Relaxed) {
            for to in frontends {
                let number = answered.load(Ordering::Relaxed);
                let failed = |protocol, error| format!("{protocol} to {to}, after {number} answers: {error}");
                tcp_request(&client, to, None, LIMIT).map_err(|error| failed("TCP", error))?;
                udp_request(&client, to, None, LIMIT).map_err(|error| failed("UDP", error))?;
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    });
    let more = |when: &str| {
        let before = told.1.load(Ordering::Relaxed);
        eventually(2 * LIMIT, &format!("new connections {when}"), || {
            match told.1.load(Ordering::Relaxed) - before {
                0..20 if asking.is_finished() => Err("one has failed"),
                0..20 => Err("too few"),
                _ => Ok(()),
            }
        });
    };
    more("before anything happens");
    for kill in [true, false, true] {
        if kill {
            scene.agents[0].kill9();
        } else {
            assert!(scene.agents[0].terminate().success(), "SIGTERM ends it");
        }
        more("without an agent");
        scene.agents[0].restart();
        scene.settle();
        more("after its start");
    }
    told.0.store(true, Ordering::Relaxed);
    assert_eq!(asking.join().expect("a thread that asks"), Ok(()));
}

#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    nothing_is_written(Scene::new());
}

#[track_caller]
pub(super) fn nothing_is_written(mut scene: Scene) {
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(
        &service("default", "other")
            .cluster_ip("10.96.0.99")
            .port("http", PORT, "TCP")
            .load_balancer_ip("203.0.113.99")
            .source_range("192.0.2.0/24")
            .affinity(600),
    );
    let pods: Vec<_> = scene.world.pods().cloned().collect();
    scene.folder.put(&endpoints("other", &pods, false));
    scene.settle();
    let [v4, v6] = families();
    let other = at([10, 96, 0, 99].into(), PORT);
    let (pod, client) = (&scene.world.pod("pod1-1").ns, &scene.world.client().ns);
    let ways = [
        (pod, at(v4.cluster, PORT)),
        (pod, at(v6.cluster, PORT)),
        (pod, other),
        (client, at(v4.balancer, PORT)),
    ];
    let mut held = ways.map(|(from, to)| HeldConnections::start(from, to, 10));
    let maps = scene.agents[0].pin_dir().join("maps");
    let contents = || entries_of_all(&maps, &CHANGING);
    let before = contents();
    for Geometry { name, .. } in geometries() {
        assert!(
            CHANGING.contains(&name) || before.contains_key(name),
            "{name} is not pinned: {:?}",
            before.keys()
        );
    }
    for written in ["flows_v4", "flows_v6", "affinity_v4", "ranges_v4", "names", "arena"] {
        assert!(!before[written].is_empty(), "{written} holds nothing to lose");
    }

    scene.agents[0].kill9();
    scene.agents[0].restart();
    scene.settle();
    let after = contents();
    for (name, entries) in &before {
        assert!(after.get(name) == Some(entries), "a restart changed the map {name}");
    }
    assert_eq!(after.len(), before.len(), "a restart made maps: {:?}", after.keys());
    let status = scene.agents[0].json(&["status"]);
    let operations = status["reconcile"]["operations"]
        .as_u64()
        .unwrap_or_else(|| panic!("no operation count in {status}"));
    assert_eq!(operations, 0, "{status}");
    for report in held.iter_mut().map(HeldConnections::check_all) {
        assert!(report.lost.is_empty(), "{report:?}");
    }
}
