//! Headers as RFC 791, 8200, 9293 and 768 describe them, byte by byte, and what is no header.

use super::node::{L3, TCP, UDP};
use super::packet::{Packet, fragments};
use crate::family::{Family, V4, V6};
use crate::steps::parse::{self, Fragment, Header, MAX_EXTENSIONS, Part, Ports};
use crate::testing::{Buffer, words};

fn header<F: Family>(bytes: &[u8], l3: usize) -> Option<Header<F>> {
    let mut header = Header::empty();
    parse::header::<F, _>(&Buffer::from(bytes.to_vec()), l3, &mut header).then_some(header)
}

fn v4(packet: &Packet) -> Header<V4> {
    header(&packet.build(), L3).expect("a header")
}

fn v6(packet: &Packet) -> Header<V6> {
    header(&packet.build(), L3).expect("a header")
}

fn plain4() -> Packet {
    Packet::new([192, 0, 2, 1], [198, 51, 100, 2])
        .tcp(4000, 80, "SA")
        .payload(b"four")
}

fn plain6() -> Packet {
    let [from, to] = ["2001:db8::1", "2001:db8::2"].map(|text| text.parse::<std::net::IpAddr>().expect("an address"));
    Packet::new(from, to).udp(4000, 53).payload(b"six six")
}

#[test]
fn an_ipv4_header_is_read_as_rfc_791_draws_it() {
    // Version 4, 20 bytes; length 44; id 0x1234, DF; TTL 61, TCP.
    let bytes = [
        0x45, 0, 0, 44, 0x12, 0x34, 0x40, 0, 61, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2,
    ];
    let read = header::<V4>(&bytes, 0).expect("a header");
    assert_eq!(
        (read.l3, read.l4, read.protocol, read.ttl(), read.length),
        (0, 20, TCP, 61, 44)
    );
    assert_eq!(V4::to_words(read.src), words([192, 0, 2, 1].into()));
    assert_eq!(V4::to_words(read.dst), words([198, 51, 100, 2].into()));
    assert_eq!(read.fragment, Fragment::WHOLE);
}

#[test]
fn options_and_extension_headers_move_the_transport_header() {
    for length in (0..=40).step_by(4) {
        assert_eq!(v4(&plain4().options(&vec![1; length])).l4, L3 + 20 + length);
    }
    assert_eq!(v6(&plain6()).l4, L3 + 40);
    let read = v6(&plain6().hop_by_hop(&[1; 6]).destination_options(&[1; 20]));
    assert_eq!((read.l4, read.protocol), (L3 + 40 + 8 + 24, UDP));
    assert_eq!(read.length, 40 + 8 + 24 + 8 + 7);
}

#[test]
fn extension_headers_are_walked_up_to_the_limit_and_then_left_alone() {
    let with = |count| (0..count).fold(plain6(), |packet, _| packet.destination_options(&[1; 6]));
    assert_eq!(v6(&with(MAX_EXTENSIONS)).protocol, UDP);
    assert_eq!(v6(&with(MAX_EXTENSIONS + 1)).protocol, crate::wire::DESTINATION_OPTIONS);
    // Routing headers, IPsec and whatever comes are no transport that a Service has.
    for number in [43, 50, 51, 135, 59] {
        assert_eq!(v6(&plain6().extension(number, &[0; 6])).protocol, number);
    }
}

#[test]
fn fragments_are_told_apart_by_offset_and_more_bit() {
    let cut = |packet: Packet| fragments(&packet.payload(&[5; 50]).build(), 24, 0x0a0b_0c0d);
    let parts = |read: Vec<Fragment>| {
        read.iter()
            .map(|fragment| (fragment.part, fragment.id))
            .collect::<Vec<_>>()
    };
    let expected = |id: u32| vec![(Part::First, id), (Part::Later, id), (Part::Later, id)];
    let read4: Vec<Fragment> = cut(plain4().identification(0x1234))
        .iter()
        .map(|frame| header::<V4>(frame, L3).expect("a header").fragment)
        .collect();
    assert_eq!(parts(read4), expected(u32::from(0x1234u16.to_be())));
    let read6: Vec<Fragment> = cut(plain6())
        .iter()
        .map(|frame| header::<V6>(frame, L3).expect("a header").fragment)
        .collect();
    assert_eq!(parts(read6), expected(0x0a0b_0c0du32.to_be()));
    // An atomic fragment (RFC 6946) is a whole packet behind a fragment header.
    let atomic = fragments(&plain6().build(), 200, 1).remove(0);
    let read = header::<V6>(&atomic, L3).expect("a header");
    assert_eq!(
        (read.fragment.part, read.protocol, read.l4),
        (Part::Whole, UDP, L3 + 48)
    );
}

#[test]
fn what_is_no_header_of_the_family_is_not_read() {
    let (four, six) = (plain4().build(), plain6().build());
    assert!(header::<V4>(&six, L3).is_none() && header::<V6>(&four, L3).is_none());
    for length in 0..L3 + 20 {
        assert!(header::<V4>(&four[..length], L3).is_none());
        assert!(header::<V6>(&six[..length], L3).is_none());
    }
    for words in 0..5 {
        let mut short = four.clone();
        short[L3] = 0x40 | words;
        assert!(header::<V4>(&short, L3).is_none(), "a header of {words} words");
    }
    let cut = plain6().hop_by_hop(&[1; 6]).build();
    assert!(
        header::<V6>(&cut[..L3 + 41], L3).is_none(),
        "an extension header that is not there"
    );
    let mut endless = cut;
    endless[L3 + 41] = 255;
    let read = header::<V6>(&endless, L3).expect("the header itself");
    assert_eq!(parse::ports(&Buffer::from(endless), read.l4, UDP), None);
}

#[test]
fn ports_and_flags_are_read_in_host_order() {
    let read = |packet: &Packet, at, protocol| parse::ports(&Buffer::from(packet.build()), at, protocol);
    let ports = |tcp_flags| Ports {
        src: 4000,
        dst: 80,
        tcp_flags,
    };
    for (flags, bits) in [("S", 0x02), ("SA", 0x12), ("FA", 0x11), ("R", 0x04), ("PUA", 0x38)] {
        assert_eq!(read(&plain4().tcp(4000, 80, flags), L3 + 20, TCP), Some(ports(bits)));
    }
    assert_eq!(read(&plain4().udp(4000, 80), L3 + 20, UDP), Some(ports(0)));
    let segment = plain4().build();
    for length in L3 + 20..L3 + 34 {
        assert_eq!(
            parse::ports(&Buffer::from(segment[..length].to_vec()), L3 + 20, TCP),
            None
        );
    }
}
