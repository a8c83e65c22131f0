//! Packets that are less plain than most: IPv4 options, IPv6 extension headers, TCP options, traffic class, odd lengths, UDP
//! without checksum and with one that comes to zero, short frames.

use lb_common::verdict::Reason::{Forward, NewFlow, NotOurs, NotParsed, Reply, UnknownPort};
use lb_tests::packet::Packet;
use steerway::datapath::load::ProgramName::{PodIn, PodOut, UplinkIn};

use super::answers::port_unreachable;
use super::case::{Case, at, at_frame};
use super::flow::{CLIENT_PORT, Flow, Transport};
use super::node::{Addresses, CLIENT_VETH, UPLINK};
use super::objects::{BACKEND_PORT, Backend, PORT, web_on};
use super::{ETHERNET, run_cases};

/// A port of no Service.
const UNKNOWN: u16 = 99;

/// A way to make a packet less plain, and the bytes that it puts between IP header and transport.
type Dressing = (&'static str, fn(Packet) -> Packet, usize);

fn dressings(family: Addresses) -> Vec<Dressing> {
    if family.v6 {
        vec![
            ("hop-by-hop options", |packet| packet.hop_by_hop(&[5, 2, 0, 0]), 8),
            ("destination options", |packet| packet.destination_options(&[1; 14]), 16),
            (
                "both",
                |packet| packet.hop_by_hop(&[5, 2, 0, 0]).destination_options(&[1; 22]),
                32,
            ),
            ("a traffic class", |packet| packet.tos(0xb9), 0),
        ]
    } else {
        vec![
            ("a router alert", |packet| packet.options(&[0x94, 4, 0, 0]), 4),
            ("as many options as there can be", |packet| packet.options(&[1; 40]), 40),
            ("a type of service", |packet| packet.tos(0xb9), 0),
            ("an identification", |packet| packet.identification(0xabcd), 0),
        ]
    }
}

#[test]
fn options_and_extension_headers_stay_and_the_packet_is_translated_behind_them() {
    run_cases(|family| {
        let mut cases = Vec::new();
        for transport in Transport::BOTH {
            for (name, dress, _) in dressings(family) {
                let flow = Flow::from_pod(family, transport);
                cases.push(Case::new(
                    &format!("{name} with {}", transport.name()),
                    web_on(family, &[Backend::Local]),
                    vec![
                        at(PodIn, &dress(flow.ask("S"))).passes_as(&dress(flow.asked("S")), &[NewFlow, Forward]),
                        at(PodOut, &dress(flow.answer("SA"))).passes_as(&dress(flow.answered("SA")), &[Reply]),
                        at(PodIn, &dress(flow.ask("A"))).passes_as(&dress(flow.asked("A")), &[Forward]),
                    ],
                ));
            }
        }
        cases
    });
}

#[test]
fn a_refused_packet_is_quoted_with_its_options() {
    run_cases(|family| {
        let (pod, vip) = (family.pod(), family.vip());
        dressings(family)
            .into_iter()
            .map(|(name, dress, between)| {
                let datagram = dress(Packet::new(pod, vip).udp(CLIENT_PORT, UNKNOWN).payload(b"hello"));
                let quoted = if family.v6 { between + 8 } else { 8 };
                Case::new(
                    name,
                    web_on(family, &[Backend::Local]),
                    vec![at(PodIn, &datagram).redirected_as(
                        CLIENT_VETH,
                        &port_unreachable(&datagram, pod, vip, quoted),
                        &[UnknownPort],
                    )],
                )
            })
            .collect()
    });
}

#[test]
fn tcp_options_and_payloads_of_every_length_up_to_a_word_survive() {
    run_cases(|family| {
        let flow = Flow::from_pod(family, Transport::Tcp);
        let dress = |packet: Packet, length| {
            packet
                .tcp_options(&[2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0])
                .payload(&vec![0xee; length])
        };
        // A test run refuses a frame that ends within its IP header.
        let mut steps = vec![at(PodIn, &flow.ask("S")).passes_as(&flow.asked("S"), &[NewFlow, Forward])];
        for length in 0..5 {
            steps.push(at(PodIn, &dress(flow.ask("A"), length)).passes_as(&dress(flow.asked("A"), length), &[Forward]));
        }
        vec![Case::new("options", web_on(family, &[Backend::Local]), steps)]
    });
}

/// A payload with which a datagram's checksum comes to zero, so that 0xffff stands for it (RFC 768).
fn to_zero(packet: &Packet) -> [u8; 2] {
    let offset = ETHERNET + if packet.is_v4() { 20 } else { 40 } + 6;
    (0..=u16::MAX)
        .map(u16::to_be_bytes)
        .find(|payload| packet.clone().payload(payload).build()[offset..offset + 2] == [0xff, 0xff])
        .expect("some payload gives every checksum")
}

#[test]
fn a_udp_checksum_that_comes_to_zero_is_written_in_its_other_form() {
    run_cases(|family| {
        let flow = Flow::from_pod(family, Transport::Udp);
        let (there, back) = (to_zero(&flow.asked("")), to_zero(&flow.answered("")));
        vec![Case::new(
            "zero",
            web_on(family, &[Backend::Local]),
            vec![
                at(PodIn, &flow.ask("").payload(&there))
                    .passes_as(&flow.asked("").payload(&there), &[NewFlow, Forward]),
                at(PodOut, &flow.answer("").payload(&back)).passes_as(&flow.answered("").payload(&back), &[Reply]),
            ],
        )]
    });
}

#[test]
fn udp_without_a_checksum_stays_without() {
    run_cases(|family| {
        let (pod, vip, backend) = (family.pod(), family.vip(), family.local_pod());
        let plain =
            |from: (_, u16), to: (_, u16)| Packet::new(from.0, to.0).udp_unsummed(from.1, to.1).payload(b"bare");
        if family.v6 {
            // Not allowed in IPv6 (RFC 8200 section 8.1); a receiver drops it, whatever its addresses.
            let summed = Packet::new(pod, vip).udp(CLIENT_PORT, PORT).payload(b"bare");
            let sent = Packet::new(pod, backend)
                .udp(CLIENT_PORT, BACKEND_PORT)
                .payload(b"bare");
            return vec![Case::new(
                "with a checksum",
                web_on(family, &[Backend::Local]),
                vec![at(PodIn, &summed).passes_as(&sent, &[NewFlow, Forward])],
            )];
        }
        vec![
            Case::new(
                "without a checksum",
                web_on(family, &[Backend::Local]),
                vec![
                    at(PodIn, &plain((pod, CLIENT_PORT), (vip, PORT)))
                        .passes_as(&plain((pod, CLIENT_PORT), (backend, BACKEND_PORT)), &[NewFlow, Forward]),
                    at(PodOut, &plain((backend, BACKEND_PORT), (pod, CLIENT_PORT)))
                        .passes_as(&plain((vip, PORT), (pod, CLIENT_PORT)), &[Reply]),
                ],
            )
            // No receiver compares the sum of such a datagram with anything (`udp4_csum_init`), and the kernel's own
            // translation leaves it as it is too (`udp_manip_pkt`).
            .never_summed(),
        ]
    });
}

#[test]
fn a_packet_that_ends_within_its_headers_passes() {
    run_cases(|family| {
        let whole = Flow::from_pod(family, Transport::Tcp).ask("S").build();
        let header = ETHERNET + if family.v6 { 40 } else { 20 };
        let cut = |length: usize| at_frame(PodIn, whole[..length].to_vec()).passes(&[NotParsed]);
        let mut other_version = whole.clone();
        other_version[ETHERNET] ^= 0x20;
        let (client, balancer) = (family.client(), family.load_balancer());
        // A test run refuses a frame that ends within its IP header.
        let mut steps: Vec<_> = [header, header + 3, header + 13].map(cut).to_vec();
        steps.push(at_frame(PodIn, other_version).passes(&[NotParsed]));
        if family.v6 {
            // More extension headers than are walked over.
            let many = (0..7).fold(Packet::new(client, balancer), |packet, _| {
                packet.destination_options(&[1; 6])
            });
            steps.push(
                at(UplinkIn, &many.tcp(CLIENT_PORT, PORT, "S"))
                    .on(UPLINK)
                    .passes(&[NotOurs])
                    .handed_over(),
            );
        }
        vec![Case::new("short", web_on(family, &[Backend::Local]), steps).never_summed()]
    });
}
