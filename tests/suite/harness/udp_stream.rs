//! The numbered stream loses nothing itself, and counts honestly what others lose.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use lb_tests::assert::eventually;
use lb_tests::netfilter::{rule_hits, set_rules};
use lb_tests::traffic::{Server, UdpReport, UdpStream};
use lb_tests::world::Pod;

use super::{server_of_two_addresses, two_pods};

const PATIENCE: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_millis(300);

/// Runs a stream at `rate` until `count` datagrams were sent.
fn stream(from: &Pod, to: SocketAddr, rate: u32, count: u64) -> UdpReport {
    let stream = UdpStream::start(from, to, None, rate);
    eventually(PATIENCE * 5, "datagrams sent", || {
        if stream.sent() >= count {
            Ok(())
        } else {
            Err(format!("{} sent", stream.sent()))
        }
    });
    stream.finish(GRACE)
}

const FORWARD: &str = "filter hook forward priority 0";

#[test]
fn ten_thousand_a_second_arrive_without_loss() {
    let (_world, from, to) = two_pods();
    let server = Server::udp(&to, "sink", (to.ip4, 80));
    let report = stream(&from, server.address(), 10_000, 5_000);
    assert!(report.is_perfect(), "{report:?}");
    assert_eq!(report.by_backend, BTreeMap::from([("sink".to_owned(), report.sent)]));
    assert_eq!(report.handovers, [(0, "sink".to_owned())]);
    assert_eq!(server.requests(), report.sent);
}

#[test]
fn each_dropped_datagram_is_missing() {
    let (world, from, to) = two_pods();
    set_rules(
        world.node(1),
        "inet t",
        FORWARD,
        "udp dport 80 numgen inc mod 10 == 7 counter name hits drop",
    );
    let server = Server::udp(&to, "lossy", (to.ip4, 80));
    let report = stream(&from, server.address(), 2_000, 500);
    let dropped = rule_hits(world.node(1), "inet t");
    assert!(dropped >= 50, "{dropped} dropped of {}", report.sent);
    assert_eq!(report.missing.len() as u64, dropped);
    assert_eq!(report.answered, report.sent - dropped);
    assert_eq!(report.missing[..2], [7, 17]);
    assert_eq!((report.duplicated, report.garbled), (0, 0));
    assert!(!report.is_perfect());
}

#[test]
fn a_lost_reply_counts_like_a_lost_request() {
    let (world, from, to) = two_pods();
    set_rules(
        world.node(1),
        "inet t",
        FORWARD,
        "udp sport 80 numgen inc mod 4 == 0 counter name hits drop",
    );
    let server = Server::udp(&to, "lossy", (to.ip6, 80));
    let report = stream(&from, server.address(), 2_000, 200);
    assert_eq!(report.missing.len() as u64, rule_hits(world.node(1), "inet t"));
    assert!(report.missing.len() >= 50);
}

#[test]
fn each_doubled_datagram_is_a_duplicate() {
    let (world, from, to) = two_pods();
    let rule = format!(
        "udp dport 80 numgen inc mod 5 == 0 counter name hits dup to {} device \"{}\"",
        to.ip4, to.veth
    );
    set_rules(world.node(1), "ip t", "filter hook prerouting priority -300", &rule);
    let server = Server::udp(&to, "twice", (to.ip4, 80));
    let report = stream(&from, server.address(), 2_000, 200);
    assert_eq!(report.duplicated, rule_hits(world.node(1), "ip t"), "{report:?}");
    assert!(report.duplicated >= 40 && report.missing.is_empty(), "{report:?}");
}

#[test]
fn answers_from_a_foreign_address_are_no_answers() {
    let (world, from, to) = two_pods();
    let (_server, asked) = server_of_two_addresses(&world, &to);
    let report = stream(&from, asked, 1_000, 100);
    assert_eq!(report.foreign, BTreeMap::from([((to.ip4, 80).into(), report.sent)]));
    assert_eq!((report.answered, report.missing.len() as u64), (0, report.sent));
}

#[test]
fn a_change_of_the_backend_is_on_record() {
    let (_world, from, to) = two_pods();
    let first = Server::udp(&to, "first", (to.ip4, 80));
    let address = first.address();
    let stream = UdpStream::start(&from, address, None, 2_000);
    eventually(PATIENCE, "requests to the first", || {
        if first.requests() > 50 { Ok(()) } else { Err("too few") }
    });
    drop(first);
    let second = Server::udp(&to, "second", address);
    eventually(PATIENCE, "requests to the second", || {
        if second.requests() > 50 { Ok(()) } else { Err("too few") }
    });
    let report = stream.finish(GRACE);
    let names: Vec<&str> = report.handovers.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    let gap = &report.missing;
    assert!(
        gap.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "one gap, while nobody was bound: {gap:?}"
    );
    assert_eq!(
        report.handovers[1].0,
        gap.last().map_or(report.by_backend["first"], |last| last + 1)
    );
}

#[test]
fn what_the_kernel_does_not_take_was_not_sent() {
    let (_world, from, to) = two_pods();
    let server = Server::udp(&to, "to", (to.ip4, 80));
    set_rules(
        &from,
        "inet t",
        "filter hook output priority 0",
        "udp dport 80 numgen inc mod 2 == 0 drop",
    );
    let report = stream(&from, server.address(), 1_000, 100);
    let refused: u64 = report.send_errors.values().sum();
    assert!(refused.abs_diff(report.sent) <= 1, "{report:?}");
    assert_eq!((report.answered, report.missing.len()), (report.sent, 0));
}
