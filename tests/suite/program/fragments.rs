//! Datagrams in fragments: later ones follow their first; one that overtakes it is dropped, but only where the address is ours.

use lb_common::verdict::Reason::{
    AnswerFailed, EchoDropped, Forward, FragmentLost, NewFlow, NotOurs, NotParsed, Reply, UnknownPort,
};
use lb_tests::packet::{Packet, fragments};
use steerway::datapath::load::ProgramName::{PodIn, PodOut, UplinkIn};

use super::answers::swapped;
use super::case::{Case, Step, at_frame};
use super::flow::CLIENT_PORT;
use super::node::{Addresses, CLIENT_VETH, SNAT_PORT, UPLINK};
use super::objects::{BACKEND_PORT, Backend, PORT, web_on};
use super::run_cases;

/// A port of no Service.
const UNKNOWN: u16 = 99;
/// Data bytes of a fragment.
const ROOM: usize = 1000;

/// Fragments of a packet without DF; three of a datagram of 2500 bytes.
fn cut(packet: &Packet, identification: u16) -> Vec<Vec<u8>> {
    let packet = if packet.is_v4() {
        packet.clone().may_fragment().identification(identification)
    } else {
        packet.clone()
    };
    fragments(&packet.build(), ROOM, identification.into())
}

fn datagram() -> Vec<u8> {
    (0..2500u32).map(|index| (index * 7) as u8).collect()
}

fn followed(family: Addresses) -> Vec<Case> {
    let (pod, vip, backend) = (family.pod(), family.vip(), family.remote_pod());
    let (client, balancer, node) = (family.client(), family.load_balancer(), family.node());
    let udp = |from: (_, u16), to: (_, u16)| Packet::new(from.0, to.0).udp(from.1, to.1).payload(&datagram());
    let pairs = |before: Packet, after: Packet, id| cut(&before, id).into_iter().zip(cut(&after, id)).enumerate();
    let mut by_stack: Vec<Step> = pairs(
        udp((pod, CLIENT_PORT), (vip, PORT)),
        udp((pod, CLIENT_PORT), (backend, BACKEND_PORT)),
        11,
    )
    .map(|(index, (before, after))| {
        let counts: &[_] = if index == 0 { &[NewFlow, Forward] } else { &[Forward] };
        at_frame(PodIn, before).passes_as_frame(after, counts)
    })
    .collect();
    by_stack.extend(
        pairs(
            udp((backend, BACKEND_PORT), (pod, CLIENT_PORT)),
            udp((vip, PORT), (pod, CLIENT_PORT)),
            12,
        )
        .map(|(_, (before, after))| at_frame(PodOut, before).passes_as_frame(after, &[Reply])),
    );
    let routed = pairs(
        udp((client, CLIENT_PORT), (balancer, PORT)),
        udp((node, SNAT_PORT), (backend, BACKEND_PORT)).ttl(63),
        13,
    )
    .map(|(index, (before, after))| {
        let counts: &[_] = if index == 0 { &[NewFlow, Forward] } else { &[Forward] };
        at_frame(UplinkIn, before)
            .redirected_as_frame(UPLINK, after, counts)
            .handed_over()
    });
    vec![
        Case::new("both ways by the stack", web_on(family, &[Backend::Remote]), by_stack),
        Case::new("routed by us", web_on(family, &[Backend::Remote]), routed.collect()),
    ]
}

#[test]
fn every_fragment_of_a_datagram_follows_its_first() {
    run_cases(followed);
}

#[test]
fn a_fragment_that_overtakes_its_first_is_dropped_where_the_address_is_ours_alone() {
    run_cases(|family| {
        let (pod, client) = (family.pod(), family.client());
        let later = |from, to, id| {
            let packet = Packet::new(from, to).udp(CLIENT_PORT, PORT).payload(&datagram());
            cut(&packet, id).remove(1)
        };
        let ping = Packet::new(pod, family.vip()).echo_request(1, 1).payload(&datagram());
        let pings = cut(&ping, 24);
        vec![Case::new(
            "no first was seen",
            web_on(family, &[Backend::Local]),
            vec![
                at_frame(PodIn, later(pod, family.vip(), 20)).dropped(&[FragmentLost]),
                at_frame(UplinkIn, later(client, family.load_balancer(), 21))
                    .dropped(&[FragmentLost])
                    .handed_over(),
                at_frame(UplinkIn, later(client, family.node(), 22))
                    .passes(&[NotParsed])
                    .handed_over(),
                at_frame(PodIn, later(pod, family.stranger(), 23)).passes(&[NotOurs]),
                at_frame(PodIn, pings[0].clone()).dropped(&[EchoDropped]),
                at_frame(PodIn, pings[1].clone()).dropped(&[FragmentLost]),
            ],
        )]
    });
}

#[test]
fn a_first_fragment_is_refused_by_a_whole_packet_or_by_none() {
    run_cases(|family| {
        let (pod, vip) = (family.pod(), family.vip());
        let segment = Packet::new(pod, vip)
            .tcp(CLIENT_PORT, UNKNOWN, "S")
            .payload(&datagram());
        let first = at_frame(PodIn, cut(&segment, 30).remove(0));
        let step = if family.v6 {
            // The fragment header would stay.
            first.dropped(&[UnknownPort, AnswerFailed])
        } else {
            let occupied = ROOM as u32 - 20 + 1;
            let reset = Packet::new(vip, pod)
                .tcp(UNKNOWN, CLIENT_PORT, "RA")
                .sequence(0, 1 + occupied)
                .window(0)
                .identification(30)
                .may_fragment();
            first.redirected_as(CLIENT_VETH, &swapped(reset), &[UnknownPort])
        };
        vec![Case::new("a segment", web_on(family, &[Backend::Local]), vec![step])]
    });
}
