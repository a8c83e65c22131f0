//! Connections that are still being asked for: each SYN that is sent again meets the rules and the endpoints of that moment, and
//! stays with its endpoint while that serves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netfilter::{remove_rules, rule_hits, set_rules};
use lb_tests::netns::Netns;
use lb_tests::packet::{Decoded, Transport};
use lb_tests::traffic::{ConnectError, ConnectErrorKind, Direction, FrameSocket, Reply, tcp_request};

use super::scene::{NODE_PORT, PORT, READY, SERVER_PORT, Scene, at, families};

const TABLE: &str = "inet deaf";
/// Long enough for the SYNs after 1 and 3 seconds, too short for the next.
const LIMIT: Duration = Duration::from_millis(6500);

#[test]
fn a_syn_that_is_sent_again_leaves_an_endpoint_that_stopped_serving() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let deaf = scene.world.pod("pod2-1").clone();
    let rule = format!("tcp dport {SERVER_PORT} counter name hits drop");
    set_rules(&deaf, TABLE, "filter hook input priority filter", &rule);
    scene.set_conditions(&[("pod2-1", READY)]);
    let mut attempts = Vec::new();
    for addresses in families() {
        let world = &scene.world;
        let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
        for (who, netns, to) in [
            ("the pod", &world.pod("pod1-1").ns, at(addresses.cluster, PORT)),
            ("the node", &world.node(1).ns, at(addresses.cluster, PORT)),
            ("the client", &world.client().ns, node_port),
        ] {
            let inside = netns.clone();
            let attempt = netns.spawn(move || tcp_request(&inside, to, None, LIMIT));
            attempts.push((format!("{who} to {to}"), attempt));
        }
    }
    let wanted = attempts.len() as u64;
    eventually(Duration::from_secs(2), "every SYN has met the deaf endpoint", || {
        let seen = rule_hits(&deaf, TABLE);
        if seen >= wanted {
            Ok(())
        } else {
            Err(format!("{seen} of {wanted}"))
        }
    });
    scene.set_conditions(&[("pod1-2", READY)]);
    for (who, attempt) in attempts {
        let reply = attempt.join().expect("the thread of an attempt");
        let reply = reply.unwrap_or_else(|error| panic!("{who}: {error}"));
        assert_eq!(reply.backend, "pod1-2", "{who}");
    }
}

/// The rule that takes a pod its way.
const POLICY: &str = "inet pod_policy";
/// Attempts of each client in each family: that both endpoints are among those of all is all but sure.
const ATTEMPTS: usize = 4;

type Attempt = (String, JoinHandle<Result<Reply, ConnectError>>);

/// Starts attempts to connect.
fn attempts(who: &str, netns: &Netns, to: SocketAddr) -> impl Iterator<Item = Attempt> {
    (0..ATTEMPTS).map(move |_| {
        let inside = netns.clone();
        let attempt = netns.spawn(move || tcp_request(&inside, to, None, LIMIT));
        (format!("{who} to {to}"), attempt)
    })
}

/// SYNs that came to endpoints, by the client as the endpoint sees it: where each came to.
#[derive(Default)]
struct Syns(BTreeMap<SocketAddr, Vec<&'static str>>);

impl Syns {
    /// Takes what the devices of endpoints have received since the last time.
    fn note(&mut self, endpoints: &[(&'static str, FrameSocket)]) {
        for (name, device) in endpoints {
            for captured in device.drain() {
                let Ok(packet) = Decoded::frame(&captured.frame) else {
                    continue;
                };
                if let Transport::Tcp {
                    source,
                    destination: SERVER_PORT,
                    flags,
                    ..
                } = &packet.transport
                    && flags == "S"
                    && captured.direction == Direction::Incoming
                {
                    self.0.entry(at(packet.ip.source, *source)).or_default().push(*name);
                }
            }
        }
    }

    /// Clients whose SYN came at least `times`, apart from those at these addresses.
    fn seen(&self, times: usize, apart_from: &[std::net::IpAddr]) -> usize {
        let others = self.0.iter().filter(|(client, _)| !apart_from.contains(&client.ip()));
        others.filter(|(_, came_to)| came_to.len() >= times).count()
    }
}

#[test]
fn a_syn_that_is_sent_again_stays_with_its_endpoint_and_meets_the_policy_of_now() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.set_conditions(&[("pod1-2", READY), ("pod2-1", READY)]);
    let world = &scene.world;
    let names = ["pod1-2", "pod2-1"];
    let rule = format!("tcp dport {SERVER_PORT} counter name hits drop");
    for name in names {
        set_rules(world.pod(name), TABLE, "filter hook input priority filter", &rule);
    }
    let endpoints = names.map(|name| (name, FrameSocket::open(world.pod(name), "eth0")));
    let barred = world.pod("pod1-1");
    let barred_addresses = [barred.ip4.into(), barred.ip6.into()];
    let (mut denied, mut free) = (Vec::new(), Vec::new());
    for addresses in families() {
        let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
        let cluster = at(addresses.cluster, PORT);
        denied.extend(attempts("the barred pod", &barred.ns, cluster));
        free.extend(attempts("the node", &world.node(1).ns, cluster));
        free.extend(attempts("the client", &world.client().ns, node_port));
    }
    let mut syns = Syns::default();
    let mut until_seen = |wanted: usize, times: usize, apart_from: &[std::net::IpAddr]| {
        eventually(Duration::from_secs(5), "SYNs have come to deaf endpoints", || {
            syns.note(&endpoints);
            let seen = syns.seen(times, apart_from);
            if seen >= wanted {
                Ok(())
            } else {
                Err(format!("{seen} of {wanted}, {times} times: {:?}", syns.0))
            }
        });
    };
    until_seen(denied.len() + free.len(), 1, &[]);
    let rules = format!(
        "ip saddr {} tcp dport {SERVER_PORT} counter name hits drop\nip6 saddr {} tcp dport {SERVER_PORT} counter name hits drop",
        barred.ip4, barred.ip6
    );
    set_rules(world.node(1), POLICY, "filter hook forward priority filter", &rules);
    // The second SYN is sent a second after the first.
    until_seen(free.len(), 2, &barred_addresses);
    for name in names {
        remove_rules(world.pod(name), TABLE);
    }
    for (who, attempt) in free {
        let reply = attempt.join().expect("the thread of an attempt");
        let reply = reply.unwrap_or_else(|error| panic!("{who}: {error}"));
        syns.note(&endpoints);
        let came_to = &syns.0[&reply.client_seen];
        assert!(
            came_to.len() > 1 && came_to.iter().all(|name| *name == reply.backend),
            "{who}: {came_to:?}, answered by {}",
            reply.backend
        );
    }
    for (who, attempt) in denied {
        let error = attempt
            .join()
            .expect("the thread of an attempt")
            .expect_err("a rule against it");
        assert_eq!(error.kind, ConnectErrorKind::Timeout, "{who}: {error}");
    }
    let hits = rule_hits(world.node(1), POLICY);
    assert!(hits >= (ATTEMPTS * 2) as u64, "the rule has met {hits} SYNs");
}
