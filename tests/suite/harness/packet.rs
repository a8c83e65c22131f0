//! The oracle finds every wrong checksum, and shows and compares packets field by field.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_tests::packet::{Checksum, DecodeError, Decoded, Packet, Sums, Transport, diff, fragments};

const V4: (IpAddr, IpAddr) = (
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 11)),
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
);
const V6: (IpAddr, IpAddr) = (
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 0x11)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10)),
);

/// One packet of every kind, in both families.
fn every_kind() -> Vec<Packet> {
    let mut all = Vec::new();
    for (from, to) in [V4, V6] {
        let new = || Packet::new(from, to);
        let inner = Packet::new(to, from).bare().udp(53, 4000).payload(b"answer").build();
        all.extend([
            new()
                .tcp(4000, 80, "S")
                .sequence(7, 0)
                .window(1000)
                .tcp_options(&[2, 4, 5, 180]),
            new().tcp(4000, 80, "PA").payload(b"odd"),
            new().udp(4000, 53).payload(b"question"),
            new().udp(4000, 53),
            new().echo_request(1, 2).payload(&[7; 33]),
            new().icmp_error(if from.is_ipv4() { 3 } else { 1 }, 4, [0; 4], &inner),
            new().vlan(5).vlan(6).tos(0xb9).ttl(3).tcp(1, 2, "FA"),
        ]);
    }
    all.push(
        Packet::new(V4.0, V4.1)
            .options(&[7, 7, 4, 0, 0, 0, 0, 0])
            .udp(1, 2)
            .payload(b"x"),
    );
    all.push(
        Packet::new(V6.0, V6.1)
            .hop_by_hop(&[5, 2, 0, 0])
            .destination_options(&[1, 0])
            .tcp(1, 2, "A"),
    );
    all
}

#[test]
fn built_packets_have_good_sums() {
    for packet in every_kind() {
        let decoded = Decoded::frame(&packet.build()).expect("a packet");
        assert_eq!(decoded.transport_sum, Checksum::Good, "{decoded:?}");
        assert!(decoded.sums_are_good(), "{decoded:?}");
    }
}

#[test]
fn a_wrong_sum_is_found_and_the_right_one_named() {
    for packet in every_kind() {
        let decoded = Decoded::frame(&packet.clone().sums(Sums::WrongTransport).build()).expect("a packet");
        let Checksum::Wrong { found, expected } = decoded.transport_sum else {
            panic!("{decoded:?}")
        };
        assert_eq!(found ^ expected, 1, "{decoded:?}");
        assert!(!decoded.sums_are_good());
        if decoded.ip.source.is_ipv4() {
            let decoded = Decoded::frame(&packet.sums(Sums::WrongHeader).build()).expect("a packet");
            assert!(matches!(decoded.ip.header_sum, Checksum::Wrong { .. }), "{decoded:?}");
            assert_eq!(decoded.transport_sum, Checksum::Good);
        }
    }
}

#[test]
fn every_single_flipped_bit_of_a_segment_is_found() {
    for (from, to) in [V4, V6] {
        let frame = Packet::new(from, to)
            .tcp(4000, 80, "PA")
            .sequence(1, 2)
            .payload(b"payload")
            .build();
        let header = frame.len() - 27;
        for bit in 0..27 * 8 {
            let mut changed = frame.clone();
            changed[header + bit / 8] ^= 1 << (bit % 8);
            // The data offset may become one that does not fit, which is found too.
            let found = Decoded::frame(&changed).map_or(true, |decoded| !decoded.sums_are_good());
            assert!(found, "bit {bit}: {:?}", Decoded::frame(&changed));
        }
    }
}

#[test]
fn the_header_sum_agrees_with_a_published_example() {
    // The worked example of the article "Internet checksum" in Wikipedia: the sum of this header is 0xb861.
    let header = [
        0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 17, 0xb8, 0x61, 192, 168, 0, 1, 192, 168, 0, 199,
    ];
    let udp = [&[0, 35, 0, 35, 0, 95, 0, 0][..], &[0; 87]].concat();
    let decoded = Decoded::ip(&[&header[..], &udp].concat()).expect("a packet");
    assert_eq!(
        (decoded.ip.header_sum, decoded.transport_sum),
        (Checksum::Good, Checksum::Absent)
    );
}

#[test]
fn a_partial_sum_is_told_from_a_wrong_one() {
    for packet in every_kind() {
        let decoded = Decoded::frame(&packet.sums(Sums::Partial).build()).expect("a packet");
        if decoded.ip.protocol == 1 {
            // ICMP over IPv4 has no pseudo-header, so that there is no such state.
            continue;
        }
        assert_eq!(decoded.transport_sum, Checksum::Partial, "{decoded:?}");
        assert!(!decoded.sums_are_good());
    }
}

#[test]
fn udp_without_a_sum_is_fine_in_ipv4_alone() {
    let decoded = |(from, to)| Decoded::frame(&Packet::new(from, to).udp_unsummed(1, 2).build()).expect("a packet");
    assert_eq!(decoded(V4).transport_sum, Checksum::Absent);
    assert!(matches!(decoded(V6).transport_sum, Checksum::Wrong { found: 0, .. }));
}

#[test]
fn a_udp_sum_of_zero_is_sent_as_all_ones() {
    // Two payload bytes can bring any sum to zero.
    let build = |word: u16| Packet::new(V4.0, V4.1).udp(1, 2).payload(&word.to_be_bytes()).build();
    let sum_of = |frame: &[u8]| u16::from_be_bytes([frame[40], frame[41]]);
    let frame = build(sum_of(&build(0)));
    assert_eq!(sum_of(&frame), 0xffff);
    assert_eq!(Decoded::frame(&frame).expect("a packet").transport_sum, Checksum::Good);
}

#[test]
fn quoted_packets_are_judged_as_far_as_they_go() {
    for (from, to) in [V4, V6] {
        let error = |quoted: &[u8]| {
            let icmp_type = if from.is_ipv4() { 3 } else { 1 };
            let frame = Packet::new(from, to).icmp_error(icmp_type, 0, [0; 4], quoted).build();
            Decoded::frame(&frame).expect("an error")
        };
        let whole = Packet::new(to, from)
            .bare()
            .tcp(80, 4000, "SA")
            .payload(b"hello")
            .build();
        let decoded = error(&whole);
        let quoted = decoded.quoted().expect("a quotation");
        assert_eq!(
            (quoted.ports(), quoted.transport_sum),
            (Some((80, 4000)), Checksum::Good)
        );
        let wrong = Packet::new(to, from)
            .bare()
            .tcp(80, 4000, "SA")
            .sums(Sums::WrongTransport)
            .build();
        assert!(!error(&wrong).sums_are_good());
        // The least that RFC 792 asks for: header and 8 bytes.
        let header = if from.is_ipv4() { 20 } else { 40 };
        let decoded = error(&whole[..header + 8]);
        let quoted = decoded.quoted().expect("a quotation");
        assert_eq!(
            quoted.transport,
            Transport::Ports {
                source: 80,
                destination: 4000
            }
        );
        assert_eq!(quoted.transport_sum, Checksum::Unverifiable);
        assert!(decoded.sums_are_good());
    }
}

#[test]
fn fragments_join_to_the_packet_they_were_cut_from() {
    for (from, to) in [V4, V6] {
        let payload: Vec<u8> = (0..3000_u32).map(|index| index as u8).collect();
        let frame = Packet::new(from, to).udp(1, 2).payload(&payload).build();
        let parts: Vec<_> = fragments(&frame, 1200, 99)
            .iter()
            .map(|part| Decoded::frame(part).expect("a part"))
            .collect();
        let places: Vec<_> = parts
            .iter()
            .map(|part| part.ip.fragment.map(|f| (f.offset, f.more)).expect("a place"))
            .collect();
        assert_eq!(places, [(0, true), (1200, true), (2400, false)]);
        assert_eq!(parts[0].ports(), Some((1, 2)));
        assert_eq!((parts[1].ports(), parts[1].ip.protocol), (None, 17));
        assert!(
            parts
                .iter()
                .all(|part| part.sums_are_good() && part.transport_sum == Checksum::Unverifiable)
        );
        let joined: Vec<u8> = parts.iter().flat_map(|part| part.payload.clone()).collect();
        assert_eq!(joined, payload);
    }
}

#[test]
fn malformed_bytes_are_refused_with_a_reason() {
    let frame = Packet::new(V4.0, V4.1).udp(1, 2).payload(b"hello").build();
    for length in 0..frame.len() {
        Decoded::frame(&frame[..length]).expect_err("a cut packet");
    }
    let padded = [&frame[..], &[0; 20]].concat();
    assert_eq!(
        Decoded::frame(&padded).map(|packet| packet.payload),
        Ok(b"hello".to_vec())
    );
    let mut other = frame;
    other[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(Decoded::frame(&other), Err(DecodeError::NotIp(0x0806)));
}

#[test]
fn a_packet_is_shown_on_one_line() {
    let packet = Packet::new(V4.0, V4.1).bare().tcp(4000, 80, "S").sequence(7, 0);
    let shown = format!("{:?}", Decoded::ip(&packet.build()).expect("a packet"));
    assert_eq!(
        shown,
        "192.0.2.11:4000 > 10.96.0.10:80 tcp S seq 7 ack 0 win 64240 len 0 ttl 64 DF"
    );
}

#[test]
fn a_difference_is_named_by_its_fields() {
    let packet = || Packet::new(V4.0, V4.1).tcp(4000, 80, "S");
    assert_eq!(diff(&packet().build(), &packet().build()), None);
    let text = diff(&packet().build(), &packet().ttl(63).tos(4).build()).expect("a difference");
    for line in [
        "  ttl: expected 64, got 63",
        "  tos: expected 0, got 4",
        "54 bytes expected, 54 got",
    ] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    assert!(!text.contains("ports:"), "{text}");
}
