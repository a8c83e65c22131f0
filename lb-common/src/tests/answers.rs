//! Answers that the node gives in a destination's place: valid packets with the numbers that the RFCs ask for, about what the
//! sender has sent, whoever was to compute its checksum.

use proptest::prelude::*;

use super::node::{
    BACKEND_PORT, EMPTY, L3, LO, LOCAL, Node, REMOTE, STEER, STEER_MAC, Sent, TCP, UNKNOWN, UPLINK, each_family,
    left_to_device, transport,
};
use super::packet::{Checksum, Decoded, Packet, Transport, fragments};
use super::translation::{client, look};
use crate::layout::config;
use crate::pipeline::Hook;
use crate::testing::Buffer;
use crate::verdict::{Action, Reason};

const PORT: u16 = 40_000;

/// A pod's packet to the ClusterIP.
fn to_vip(node: &Node) -> Packet {
    Packet::new(node.at.pod(), node.at.vip())
}

/// Flags, sequence and acknowledgement number of the reset that a pod's segment to an unserved port gets.
fn reset_of(node: &Node, segment: &Packet) -> (String, u32, u32) {
    let sent = node.send(Hook::POD_IN, segment);
    sent.expect(Action::Transmit, Reason::UnknownPort);
    let decoded = sent.decoded();
    assert_eq!(
        (decoded.ip.source, decoded.ip.destination, decoded.ports()),
        (node.at.vip(), node.at.pod(), Some((UNKNOWN, PORT)))
    );
    let Transport::Tcp {
        flags,
        sequence,
        acknowledgement,
        window,
        options,
        ..
    } = decoded.transport
    else {
        panic!("no TCP: {decoded:?}")
    };
    assert_eq!((window, options.len(), decoded.payload.len()), (0, 0, 0));
    (flags, sequence, acknowledgement)
}

#[test]
fn a_reset_has_the_numbers_of_rfc_9293_section_3_10_7_1() {
    each_family(|node| {
        let segment = |flags, payload: &[u8]| {
            to_vip(&node)
                .tcp(PORT, UNKNOWN, flags)
                .sequence(1000, 77)
                .payload(payload)
        };
        let reset = |flags: &str, sequence, acknowledgement| (flags.to_owned(), sequence, acknowledgement);
        // Without ACK: sequence 0, and what would have been acknowledged.
        assert_eq!(reset_of(&node, &segment("S", b"")), reset("AR", 0, 1001));
        assert_eq!(reset_of(&node, &segment("S", b"data")), reset("AR", 0, 1005));
        assert_eq!(reset_of(&node, &segment("SF", b"data")), reset("AR", 0, 1006));
        assert_eq!(reset_of(&node, &segment("F", b"")), reset("AR", 0, 1001));
        assert_eq!(reset_of(&node, &segment("", b"data")), reset("AR", 0, 1004));
        // With ACK: the sequence number that was acknowledged, and no ACK.
        assert_eq!(reset_of(&node, &segment("A", b"data")), reset("R", 77, 0));
        assert_eq!(reset_of(&node, &segment("SA", b"")), reset("R", 77, 0));
        // Numbers wrap.
        let last = to_vip(&node).tcp(PORT, UNKNOWN, "S").sequence(u32::MAX, 0);
        assert_eq!(reset_of(&node, &last), reset("AR", 0, 0));
    });
}

/// The kind of an ICMP message, its second word and the packet that it quotes.
fn message(decoded: &Decoded) -> ((u8, u8), [u8; 4], Option<&Decoded>) {
    let Transport::Icmp {
        icmp_type,
        code,
        rest,
        quoted,
    } = &decoded.transport
    else {
        panic!("no ICMP: {decoded:?}")
    };
    ((*icmp_type, *code), *rest, quoted.as_deref())
}

/// The bytes that an ICMP error quotes.
fn quotation(sent: &Sent, v6: bool) -> Vec<u8> {
    sent.buffer.wire()[L3 + if v6 { 48 } else { 28 }..].to_vec()
}

#[test]
fn what_is_refused_gets_port_unreachable_from_the_address_that_it_was_sent_to() {
    each_family(|node| {
        let sent = node.send(Hook::POD_IN, &to_vip(&node).udp(PORT, EMPTY).payload(b"hello"));
        sent.expect(Action::Transmit, Reason::NoEndpoints);
        let decoded = sent.decoded();
        assert_eq!(
            (decoded.ip.source, decoded.ip.destination),
            (node.at.vip(), node.at.pod())
        );
        assert_eq!((decoded.ip.ttl, decoded.ip.fragment), (64, None));
        let (kind, rest, quoted) = message(&decoded);
        assert_eq!((kind, rest), (if node.v6 { (1, 4) } else { (3, 3) }, [0; 4]));
        let quoted = quoted.expect("a quotation");
        assert_eq!(
            (quoted.ip.source, quoted.ip.destination),
            (node.at.pod(), node.at.vip())
        );
        assert_eq!(quoted.ports(), Some((PORT, EMPTY)));
    });
}

#[test]
fn tcp_is_refused_by_icmp_where_the_configuration_says_so() {
    each_family(|node| {
        node.set_flags(config::FLAG_REFUSE_BY_ICMP);
        let sent = node.send(Hook::POD_IN, &to_vip(&node).tcp(PORT, UNKNOWN, "S").sequence(5, 6));
        let decoded = sent.expect(Action::Transmit, Reason::UnknownPort).decoded();
        let (kind, _, quoted) = message(&decoded);
        assert_eq!(kind, if node.v6 { (1, 4) } else { (3, 3) });
        assert_eq!(quoted.and_then(Decoded::ports), Some((PORT, UNKNOWN)));
    });
}

#[test]
fn a_protocol_that_no_service_has_is_refused_with_the_eight_bytes_that_its_sender_needs() {
    each_family(|node| {
        let sctp = to_vip(&node)
            .protocol(132)
            .payload(&[9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2]);
        let sent = node.send(Hook::POD_IN, &sctp);
        let decoded = sent.expect(Action::Transmit, Reason::UnknownProtocol).decoded();
        assert_eq!(message(&decoded).0, if node.v6 { (1, 4) } else { (3, 3) });
        let original = sctp.clone().bare().build();
        let quoted = quotation(&sent, node.v6);
        let header = if node.v6 { 40 } else { 20 };
        // RFC 792: the internet header plus the first 64 bits of the original datagram's data.
        assert!(quoted.len() >= header + 8, "only {} bytes are quoted", quoted.len());
        assert_eq!(quoted, original[..quoted.len()]);

        let short = to_vip(&node).protocol(132).payload(&[9, 8, 7]);
        let sent = node.send(Hook::POD_IN, &short);
        let decoded = sent.expect(Action::Transmit, Reason::UnknownProtocol).decoded();
        assert!(message(&decoded).2.is_some());
    });
}

#[test]
fn what_does_not_fit_the_way_out_is_told_its_mtu() {
    each_family(|node| {
        let at = node.at;
        node.route(Some(at.remote_pod()), UPLINK, at.gateway(), Some(at.node()), 1400);
        let long = Packet::new(at.client(), at.lb())
            .tcp(PORT, REMOTE, "A")
            .payload(&[1; 1400]);
        let sent = node.send(Hook::UPLINK_IN, &long);
        let decoded = sent.expect(Action::Transmit, Reason::TooBig).decoded();
        assert_eq!((decoded.ip.source, decoded.ip.destination), (at.lb(), at.client()));
        let (kind, rest, quoted) = message(&decoded);
        // RFC 1191 section 4 and RFC 4443 section 3.2: the MTU is at the end of the second word.
        assert_eq!(
            (kind, rest),
            (if node.v6 { (2, 0) } else { (3, 4) }, 1400u32.to_be_bytes())
        );
        assert_eq!(quoted.and_then(Decoded::ports), Some((PORT, REMOTE)));
        // The same bytes in segments of 1400 bytes fit.
        let mut segments = Buffer::from(long.build());
        segments.segment_payload = 1400 - if node.v6 { 60 } else { 40 };
        node.send_buffer(Hook::UPLINK_IN, L3, segments.clone())
            .expect(Action::Neighbour, Reason::Forward);
        segments.segment_payload += 1;
        node.send_buffer(Hook::UPLINK_IN, L3, segments)
            .expect(Action::Transmit, Reason::TooBig);
    });
}

#[test]
fn what_does_not_fit_the_way_out_but_may_be_cut_is_translated_and_left_to_the_kernel() {
    let node = Node::standard(false);
    let at = node.at;
    node.route(Some(at.remote_pod()), UPLINK, at.gateway(), Some(at.node()), 1400);
    let long = Packet::new(at.client(), at.lb()).udp(PORT, REMOTE).payload(&[1; 1400]);
    node.send(Hook::UPLINK_IN, &long)
        .expect(Action::Transmit, Reason::TooBig);
    let sent = node.send(Hook::UPLINK_IN, &long.clone().may_fragment());
    let decoded = sent.expect(Action::Receive, Reason::Forward).decoded();
    assert_eq!(sent.outcome.ifindex, LO);
    assert_eq!(decoded.link.as_ref().map(|link| link.destination), Some([0; 6]));
    assert_eq!(
        (decoded.ip.source, decoded.ip.destination),
        (at.node(), at.remote_pod())
    );
    assert_eq!(decoded.ip.ttl, 64, "the kernel takes its own step");
    assert!(decoded.sums_are_good());
    // What fits goes its way at once.
    let short = Packet::new(at.client(), at.lb()).udp(PORT, REMOTE).may_fragment();
    node.send(Hook::UPLINK_IN, &short)
        .expect(Action::Neighbour, Reason::Forward);
}

#[test]
fn a_packet_on_its_last_hop_is_told_so_and_a_process_of_the_host_has_no_last_hop() {
    each_family(|node| {
        let last = Packet::new(node.at.client(), node.at.lb()).udp(PORT, REMOTE).ttl(1);
        let decoded = node
            .send(Hook::UPLINK_IN, &last)
            .expect(Action::Transmit, Reason::TimeExceeded)
            .decoded();
        assert_eq!(message(&decoded).0, if node.v6 { (3, 0) } else { (11, 0) });
        assert!(
            node.halves().is_empty(),
            "a flow was entered for a packet that could not leave"
        );

        let own = Packet::new(node.at.node(), node.at.vip()).udp(PORT, REMOTE).ttl(1);
        let sent = node.send(Hook::STEER_OUT, &own);
        assert_eq!(sent.expect(Action::Neighbour, Reason::Forward).decoded().ip.ttl, 1);
    });
}

#[test]
fn a_reply_that_cannot_leave_is_answered_to_the_backend_as_the_backend_sent_it() {
    each_family(|node| {
        let at = node.at;
        let open = Packet::new(at.client(), at.lb()).udp(PORT, REMOTE);
        let port = node
            .send(Hook::UPLINK_IN, &open)
            .decoded()
            .source_port()
            .expect("a port");
        node.route(None, UPLINK, at.gateway(), Some(at.node()), 1300);
        let reply = Packet::new(at.remote_pod(), at.node())
            .udp(BACKEND_PORT, port)
            .payload(&[1; 1300]);
        let sent = node.send(Hook::UPLINK_IN, &reply);
        let decoded = sent.expect(Action::Transmit, Reason::TooBig).decoded();
        assert_eq!(
            (decoded.ip.source, decoded.ip.destination),
            (at.node(), at.remote_pod())
        );
        let quoted = message(&decoded).2.expect("a quotation");
        assert_eq!((quoted.ip.source, quoted.ip.destination), (at.remote_pod(), at.node()));
        assert_eq!(quoted.ports(), Some((BACKEND_PORT, port)));
    });
}

#[test]
fn a_ping_is_answered_with_the_same_bytes() {
    each_family(|node| {
        let ping = to_vip(&node)
            .echo_request(0x1234, 7)
            .payload(b"sixteen bytes...")
            .ttl(3);
        let mut complete = Buffer::from(ping.build());
        if !node.v6 {
            complete = complete.complete(L3);
        }
        let sent = node.send_buffer(Hook::POD_IN, L3, complete);
        let decoded = sent.expect(Action::Transmit, Reason::Echo).decoded();
        assert!(sent.buffer.sum_is_right() || sent.outcome.action == Action::Transmit);
        let (kind, rest, _) = message(&decoded);
        assert_eq!(
            (kind, rest),
            (if node.v6 { (129, 0) } else { (0, 0) }, [0x12, 0x34, 0, 7])
        );
        assert_eq!(
            (decoded.ip.source, decoded.ip.destination),
            (node.at.vip(), node.at.pod())
        );
        assert_eq!(
            (decoded.ip.ttl, decoded.payload.as_slice()),
            (64, b"sixteen bytes...".as_slice())
        );
    });
}

#[test]
fn an_answer_to_a_process_of_the_host_comes_by_steer0() {
    each_family(|node| {
        for packet in [
            Packet::new(node.at.node(), node.at.vip()).tcp(PORT, UNKNOWN, "S"),
            Packet::new(node.at.node(), node.at.vip()).udp(PORT, EMPTY),
            Packet::new(node.at.node(), node.at.vip()).echo_request(1, 1),
        ] {
            let sent = node.send_buffer(Hook::STEER_OUT, L3, packet.build().into());
            assert_eq!(
                (sent.outcome.action, sent.outcome.ifindex),
                (Action::Receive, STEER),
                "{sent:?}"
            );
            let decoded = sent.decoded();
            assert_eq!(decoded.link.map(|link| link.destination), Some(STEER_MAC));
            assert_eq!(
                (decoded.ip.source, decoded.ip.destination),
                (node.at.vip(), node.at.node())
            );
        }
    });
}

#[test]
fn nobody_is_answered_who_is_no_single_host_and_no_reset_is_answered() {
    each_family(|node| {
        let many = if node.v6 { "ff02::1" } else { "224.0.0.1" };
        let none = if node.v6 { "::" } else { "0.0.0.0" };
        for source in [many, none] {
            let source: std::net::IpAddr = source.parse().expect("an address");
            let sent = node.send(Hook::POD_IN, &Packet::new(source, node.at.vip()).udp(PORT, UNKNOWN));
            assert!(sent.expect(Action::Drop, Reason::Silent).is_untouched());
            let ping = Packet::new(source, node.at.vip()).echo_request(1, 1);
            node.send(Hook::POD_IN, &ping).expect(Action::Drop, Reason::Silent);
        }
        let reset = to_vip(&node).tcp(PORT, UNKNOWN, "RA");
        node.send(Hook::POD_IN, &reset).expect(Action::Drop, Reason::Silent);
    });
}

#[test]
fn a_first_fragment_gets_a_reset_that_is_a_whole_packet_or_none() {
    each_family(|node| {
        let whole = to_vip(&node).tcp(PORT, UNKNOWN, "S").payload(&[1; 60]);
        let whole = if node.v6 { whole } else { whole.may_fragment() };
        let first = fragments(&whole.build(), 40, 9).remove(0);
        let sent = node.send_buffer(Hook::POD_IN, L3, first.into());
        if node.v6 {
            // A fragment header would have to go.
            assert_eq!(sent.outcome.action, Action::Drop);
            assert_eq!(sent.counted.get(&Reason::AnswerFailed), Some(&1));
            return;
        }
        let decoded = sent.expect(Action::Transmit, Reason::UnknownPort).decoded();
        assert_eq!(decoded.ip.fragment, None, "{decoded:?}");
        assert_eq!(decoded.transport_sum, Checksum::Good);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_refused_packet_gets_a_valid_answer_that_quotes_what_went_out_on_the_wire(
        look in look(), v6: bool, bits: u128, by_icmp: bool, by_device: bool,
    ) {
        let node = Node::standard(v6);
        node.set_flags(if by_icmp { config::FLAG_REFUSE_BY_ICMP } else { 0 });
        let from = (client(v6, bits), PORT);
        let packet = look.packet(from, (node.at.vip(), UNKNOWN));
        // A field of zero says that there is no checksum, so there is nothing left to the device.
        let by_device = by_device && !look.is_unsummed();
        let buffer = if by_device { left_to_device(&packet) } else { Buffer::from(packet.build()) };
        let original = buffer.wire();
        let sent = node.send_buffer(Hook::POD_IN, L3, buffer);
        prop_assert_eq!((sent.outcome.action, sent.outcome.reason), (Action::Transmit, Reason::UnknownPort));
        let decoded = sent.decoded();
        prop_assert_eq!((decoded.ip.source, decoded.ip.destination), (node.at.vip(), from.0));
        let (at, protocol) = transport(&original, L3);
        if protocol == TCP && !by_icmp {
            prop_assert_eq!(decoded.ports(), Some((UNKNOWN, PORT)));
        } else {
            let quoted = quotation(&sent, v6);
            prop_assert!(quoted.len() >= at - L3 + 8);
            let mut expected = original[L3..L3 + quoted.len()].to_vec();
            if by_device {
                // The device sums what is left of the packet: the quoted header, not the payload that was cut off.
                let field = at - L3 + if protocol == TCP { 16 } else { 6 };
                expected[field..field + 2].copy_from_slice(&quoted[field..field + 2]);
            }
            prop_assert_eq!(quoted, expected);
        }
    }
}

#[test]
fn a_flow_is_answered_for_at_most_as_often_as_allowed() {
    each_family(|node| {
        node.tables.set_answers(3);
        let refused: Vec<Action> = (0..5)
            .map(|port| {
                node.send(Hook::POD_IN, &to_vip(&node).tcp(port, UNKNOWN, "S"))
                    .outcome
                    .action
            })
            .collect();
        assert_eq!(refused.iter().filter(|action| **action == Action::Transmit).count(), 3);
        assert_eq!(node.tables.counted(Reason::RateLimited), 2);
        // What needs no answer is not limited.
        node.send(Hook::POD_IN, &to_vip(&node).tcp(PORT, LOCAL, "S"))
            .expect(Action::Pass, Reason::Forward);
    });
}
