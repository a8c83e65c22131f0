//! Servers say who they are, clients tell how they failed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netfilter::set_rules;
use lb_tests::traffic::{
    ConnectErrorKind, HeldConnections, HttpClient, PingError, Server, UdpKind, bulk_transfer, distribution,
    http_request, path_mtu, ping, tcp_request, udp_request, udp_request_with,
};
use lb_tests::world::World;

use super::{server_of_two_addresses, two_pods};

const PATIENCE: Duration = Duration::from_secs(2);
const FORWARD: &str = "filter hook forward priority 0";
const SILENCE: Duration = Duration::from_millis(200);

#[test]
fn replies_name_backend_client_and_the_port_that_was_bound() {
    let (_world, from, to) = two_pods();
    for address in [IpAddr::from(to.ip4), to.ip6.into()] {
        let bind = SocketAddr::new(from.ip_like(address), 4321);
        let _tcp = Server::tcp(&to, "tcp", (address, 80));
        let _udp = Server::udp(&to, "udp", (address, 80));
        let tcp = tcp_request(&from, (address, 80), Some(bind), PATIENCE).expect("a reply by TCP");
        assert_eq!((tcp.backend.as_str(), tcp.client_seen, tcp.local), ("tcp", bind, bind));
        let udp = udp_request(&from, (address, 80), Some(bind), PATIENCE).expect("a reply by UDP");
        assert_eq!((udp.backend.as_str(), udp.client_seen, udp.local), ("udp", bind, bind));
    }
}

#[test]
fn a_closed_port_is_refused_at_once_by_tcp_and_udp() {
    let (_world, from, to) = two_pods();
    for address in [IpAddr::from(to.ip4), to.ip6.into()] {
        let tcp = tcp_request(&from, (address, 81), None, PATIENCE).expect_err("nobody listens");
        let udp = udp_request(&from, (address, 81), None, PATIENCE).expect_err("nobody listens");
        let sent = udp_request_with(&from, (address, 81), None, PATIENCE, UdpKind::Unconnected);
        for error in [tcp, udp, sent.expect_err("nobody listens")] {
            assert_eq!(error.kind, ConnectErrorKind::Refused, "{error}");
            assert!(error.after < PATIENCE / 2, "{error}");
        }
    }
}

#[test]
fn silence_an_icmp_error_and_a_lost_route_are_told_apart() {
    let (world, from, to) = two_pods();
    let _server = Server::tcp(&to, "to", (to.ip4, 80));
    let kind = || {
        tcp_request(&from, (to.ip4, 80), None, SILENCE)
            .expect_err("a rule forbids it")
            .kind
    };
    let forward = |rule: &str| set_rules(world.node(1), "inet t", FORWARD, rule);
    forward("tcp dport 80 drop");
    assert_eq!(kind(), ConnectErrorKind::Timeout);
    forward("tcp dport 80 reject with icmpx host-unreachable");
    assert_eq!(kind(), ConnectErrorKind::Unreachable);
    forward("tcp dport 80 reject with tcp reset");
    assert_eq!(kind(), ConnectErrorKind::Refused);
    from.ns.ip("route del default");
    assert_eq!(kind(), ConnectErrorKind::Unreachable);
}

#[test]
fn an_answer_from_a_foreign_address_is_seen_when_the_socket_is_not_connected() {
    let (world, from, to) = two_pods();
    let (_server, asked) = server_of_two_addresses(&world, &to);
    let seen = udp_request_with(&from, asked, None, PATIENCE, UdpKind::Unconnected).expect_err("a foreign answer");
    assert_eq!(seen.kind, ConnectErrorKind::ForeignSource, "{seen}");
    let unseen = udp_request(&from, asked, None, SILENCE).expect_err("a foreign answer");
    assert_eq!(unseen.kind, ConnectErrorKind::Timeout, "{unseen}");
}

#[test]
fn requests_are_counted_by_backend() {
    let (_world, from, to) = two_pods();
    let server = Server::tcp(&to, "only", (to.ip4, 80));
    assert_eq!(
        distribution(&from, server.address(), 50),
        BTreeMap::from([("only".to_owned(), 50)])
    );
    assert_eq!(server.requests(), 50);
    assert_eq!(server.clients().len(), 50, "each request comes from a port of its own");
}

#[test]
#[should_panic(expected = "10 of 10 requests to")]
fn counting_fails_when_requests_fail() {
    let (_world, from, to) = two_pods();
    distribution(&from, (to.ip4, 81), 10);
}

#[test]
fn an_http_connection_is_kept() {
    let (_world, from, to) = two_pods();
    let server = Server::http(&to, "http", (to.ip6, 80));
    let mut client = HttpClient::connect(&from, server.address(), PATIENCE).expect("a connection");
    let replies = [(); 3].map(|()| client.get().expect("an answer"));
    assert!(
        replies
            .iter()
            .all(|reply| reply == &replies[0] && reply.client_seen == reply.local),
        "{replies:?}"
    );
    assert_eq!((server.requests(), server.clients().len()), (3, 1));
    http_request(&from, server.address(), PATIENCE).expect("an answer on another connection");
    assert_eq!(server.clients().len(), 2);
}

#[test]
fn held_connections_stay_while_the_server_does() {
    let (world, from, to) = two_pods();
    let _dump = OnFailure::of(&world);
    let server = Server::tcp(&to, "held", (to.ip4, 80));
    let mut held = HeldConnections::start(&from, server.address(), 100);
    for _ in 0..3 {
        let report = held.check_all();
        assert_eq!((report.alive, report.lost.len()), (100, 0));
    }
    assert_eq!(held.backends(), BTreeMap::from([("held".to_owned(), 100)]));
    let talking = held.keep_talking(Duration::from_millis(1));
    eventually(PATIENCE, "rounds in the background", || {
        if talking.rounds() >= 3 {
            Ok(())
        } else {
            Err(format!("{} rounds", talking.rounds()))
        }
    });
    let mut held = talking.stop();
    assert_eq!(held.report().alive, 100);
    drop(server);
    let report = held.check_all();
    assert_eq!((report.alive, report.lost.len()), (0, 100));
    let kinds: Vec<_> = report.lost.iter().map(|lost| lost.error.kind).collect();
    assert!(
        kinds
            .iter()
            .all(|kind| [ConnectErrorKind::Reset, ConnectErrorKind::Closed].contains(kind)),
        "{kinds:?}"
    );
}

#[test]
fn held_connections_that_are_cut_off_count_as_lost() {
    let (world, from, to) = two_pods();
    let server = Server::tcp(&to, "held", (to.ip4, 80));
    let mut held = HeldConnections::start(&from, server.address(), 10);
    held.set_timeout(SILENCE);
    let victims: Vec<String> = held
        .replies()
        .take(3)
        .map(|reply| reply.local.port().to_string())
        .collect();
    set_rules(
        world.node(1),
        "inet t",
        FORWARD,
        &format!("tcp sport {{ {} }} drop", victims.join(", ")),
    );
    let report = held.check_all();
    assert_eq!((report.alive, report.lost.len()), (7, 3));
    assert!(
        report
            .lost
            .iter()
            .all(|lost| lost.error.kind == ConnectErrorKind::Timeout),
        "{:?}",
        report.lost
    );
}

#[test]
fn a_thousand_connections_can_be_held() {
    let (_world, from, to) = two_pods();
    let server = Server::tcp(&to, "many", (to.ip4, 80));
    let mut held = HeldConnections::start(&from, server.address(), 1000);
    assert_eq!(held.check_all().alive, 1000);
    assert_eq!(server.requests(), 1000);
}

#[test]
fn a_bulk_transfer_comes_back_whole() {
    for offload in [true, false] {
        let (_world, from, to) = two_pods();
        from.ns.tx_checksum("eth0", offload);
        to.ns.tx_checksum("eth0", offload);
        let server = Server::tcp(&to, "bulk", (to.ip6, 80));
        let report = bulk_transfer(&from, server.address(), 8 << 20, PATIENCE).expect("a whole transfer");
        assert_eq!(
            (report.backend.as_str(), report.bytes, report.path_mtu),
            ("bulk", 8 << 20, 1500)
        );
        assert!(report.bytes_per_second() > 1_000_000, "{report:?}");
    }
}

#[test]
fn a_bulk_transfer_notices_a_changed_byte() {
    let (world, from, to) = two_pods();
    let server = Server::tcp(&to, "bulk", (to.ip4, 80));
    // The echo's 100th payload byte, if the segment has one, is overwritten; nft repairs the checksum.
    set_rules(
        world.node(1),
        "inet t",
        FORWARD,
        "tcp sport 80 ip length > 600 @th,1056,8 set 0x5a",
    );
    let error = bulk_transfer(&from, server.address(), 1 << 20, PATIENCE).expect_err("a byte was changed");
    assert_eq!(error.kind, ConnectErrorKind::Garbled, "{error}");
}

#[test]
fn a_bulk_transfer_finds_the_mtu_of_its_path() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    world.fabric.ip("link set out0 mtu 1280");
    let (pod, client) = (world.pod("pod1-1"), world.client());
    let server = Server::tcp(client, "client", (client.ip4, 80));
    let report = bulk_transfer(pod, server.address(), 1 << 20, PATIENCE).expect("a whole transfer");
    assert_eq!((report.path_mtu, path_mtu(pod, server.address())), (1280, 1280));
}

#[test]
fn ping_tells_who_answered_or_who_complained() {
    let world = World::builder().build();
    let (pod, client) = (world.pod("pod1-1"), world.client());
    for (address, router, code) in [
        (IpAddr::from(client.ip4), IpAddr::from(world.node(1).ip4), 1),
        // With no address but a link-local one on the pod's link, the node answers with another of its addresses.
        (client.ip6.into(), world.node(1).ip6.into(), 0),
    ] {
        let reply = ping(pod, address, 1000, PATIENCE).expect("a reply");
        assert_eq!(reply.source, address);
        let absent: IpAddr = if address.is_ipv4() {
            [203, 0, 113, 1].into()
        } else {
            "2001:db8:ffff::1".parse().expect("an address")
        };
        let network = if address.is_ipv4() {
            "203.0.113.0/24"
        } else {
            "2001:db8:ffff::/48"
        };
        world.node(1).ns.ip(&format!("route add unreachable {network}"));
        let error = ping(pod, absent, 56, PATIENCE).expect_err("no such network");
        let PingError::Icmp { from, code: found, .. } = error else {
            panic!("{error}")
        };
        assert_eq!((from, found), (router, code));
    }
    let silent = ping(pod, world.pod("pod2-1").ip4, 56, Duration::from_millis(1)).err();
    assert!(silent.is_none_or(|error| matches!(error, PingError::Timeout(_))));
}
