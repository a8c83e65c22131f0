//! Answers that the node gives in the destination's place: echo replies, time exceeded, too big; and how they look
//! (RFC 792, RFC 1812 section 4.3.2, RFC 4443).

use std::net::IpAddr;

use lb_common::layout::config;
use lb_common::verdict::Reason::{Echo, EchoDropped, Forward, NewFlow, NoRoute, NotOurs, TimeExceeded, TooBig};
use lb_tests::packet::Packet;
use steerway::datapath::load::ProgramName::{PodIn, SteerOut, UplinkIn};

use super::case::{Case, at};
use super::flow::CLIENT_PORT;
use super::node::{CLIENT_VETH, NARROW_MTU, SNAT_PORT, STEER, STEER_MAC, UPLINK};
use super::objects::{BACKEND_PORT, Backend, PORT, web_on};
use super::run_cases;

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A packet that goes back where the one that it answers came from.
pub(super) fn swapped(packet: Packet) -> Packet {
    packet.macs(NODE_MAC, CLIENT_MAC)
}

/// An ICMP error that a node sends about `packet`, quoting its IP header and `transport` bytes.
pub(super) fn icmp_error(
    packet: &Packet,
    (to, from): (IpAddr, IpAddr),
    (icmp_type, code): (u8, u8),
    rest: [u8; 4],
    transport: usize,
) -> Packet {
    let quoted = packet.clone().bare().build();
    let header = if from.is_ipv4() {
        usize::from(quoted[0] & 15) * 4
    } else {
        40
    };
    let error = Packet::new(from, to).icmp_error(icmp_type, code, rest, &quoted[..header + transport]);
    swapped(if from.is_ipv4() {
        // Internetwork control, and small enough never to need DF.
        error.tos(0xc0).may_fragment()
    } else {
        error
    })
}

/// ICMP port unreachable for `packet`.
pub(super) fn port_unreachable(packet: &Packet, to: IpAddr, from: IpAddr, transport: usize) -> Packet {
    let kind = if from.is_ipv4() { (3, 3) } else { (1, 4) };
    icmp_error(packet, (to, from), kind, [0; 4], transport)
}

#[test]
fn a_ping_to_a_vip_is_answered() {
    run_cases(|family| {
        let (pod, node) = (family.pod(), family.node());
        let ping = |from, to| {
            Packet::new(from, to)
                .echo_request(7, 9)
                .payload(b"0123456789abcdef")
                .ttl(3)
        };
        let reply_type = if family.v6 { 129 } else { 0 };
        let pong = |from, to| {
            Packet::new(to, from)
                .icmp(reply_type, 0, [0, 7, 0, 9])
                .payload(b"0123456789abcdef")
        };
        let objects = || web_on(family, &[Backend::Local]);
        let mut cases = vec![
            Case::new(
                "not for a VIP",
                objects(),
                vec![
                    at(UplinkIn, &ping(family.client(), node)).passes(&[NotOurs]),
                    at(PodIn, &ping(pod, family.stranger())).passes(&[NotOurs]),
                    at(PodIn, &pong(family.vip(), pod)).passes(&[NotOurs]),
                ],
            ),
            Case::new(
                "switched off",
                objects(),
                vec![at(PodIn, &ping(pod, family.vip())).dropped(&[EchoDropped])],
            )
            .word(config::FLAGS, 0),
        ];
        for to in [family.vip(), family.load_balancer()] {
            cases.push(Case::new(
                &format!("to {to}"),
                objects(),
                vec![
                    at(PodIn, &ping(pod, to)).redirected_as(CLIENT_VETH, &swapped(pong(pod, to)), &[Echo]),
                    at(UplinkIn, &ping(family.client(), to)).redirected_as(
                        UPLINK,
                        &swapped(pong(family.client(), to)),
                        &[Echo],
                    ),
                    at(SteerOut, &ping(node, to)).redirected_as(
                        STEER,
                        &pong(node, to).macs(CLIENT_MAC, STEER_MAC),
                        &[Echo],
                    ),
                ],
            ));
        }
        cases
    });
}

#[test]
fn a_packet_on_its_last_hop_is_answered_where_we_route_and_passes_where_the_stack_does() {
    run_cases(|family| {
        let (client, balancer) = (family.client(), family.load_balancer());
        let kind = if family.v6 { (3, 0) } else { (11, 0) };
        let new = Packet::new(client, balancer)
            .tcp(CLIENT_PORT, PORT, "S")
            .payload(&[1; 40]);
        let data = Packet::new(client, balancer)
            .tcp(CLIENT_PORT, PORT, "A")
            .payload(&[1; 40]);
        let datagram = Packet::new(client, balancer).udp(CLIENT_PORT, PORT).payload(&[1; 41]);
        let reached = |to| {
            Packet::new(client, to)
                .tcp(SNAT_PORT, BACKEND_PORT, "S")
                .payload(&[1; 40])
        };
        let sent = |flags| {
            Packet::new(family.node(), family.remote_pod())
                .tcp(SNAT_PORT, BACKEND_PORT, flags)
                .payload(&[1; 40])
        };
        let exceeded = |packet: &Packet, quoted| icmp_error(packet, (client, balancer), kind, [0; 4], quoted);
        vec![
            Case::new(
                "to another node",
                web_on(family, &[Backend::Remote]),
                vec![
                    at(UplinkIn, &new.clone().ttl(1))
                        .redirected_as(UPLINK, &exceeded(&new.clone().ttl(1), 20), &[TimeExceeded])
                        .handed_over(),
                    at(UplinkIn, &datagram.clone().ttl(1))
                        .redirected_as(UPLINK, &exceeded(&datagram.clone().ttl(1), 8), &[TimeExceeded])
                        .handed_over(),
                    at(UplinkIn, &new.clone().ttl(2)).redirected_as(UPLINK, &sent("S").ttl(1), &[NewFlow, Forward]),
                    at(UplinkIn, &data.clone().ttl(1))
                        .redirected_as(UPLINK, &exceeded(&data.clone().ttl(1), 20), &[TimeExceeded])
                        .handed_over(),
                ],
            ),
            Case::new(
                "to this node",
                web_on(family, &[Backend::Local]),
                vec![
                    at(UplinkIn, &new.clone().ttl(1))
                        .passes_as(&reached(family.local_pod()).ttl(1), &[NewFlow, Forward]),
                ],
            ),
        ]
    });
}

#[test]
fn what_does_not_fit_the_way_out_is_told_its_mtu() {
    run_cases(|family| {
        let (client, balancer) = (family.client(), family.load_balancer());
        let header = if family.v6 { 40 } else { 20 };
        let room = usize::from(NARROW_MTU) - header - 20;
        let (kind, [high, low]) = (if family.v6 { (2, 0) } else { (3, 4) }, NARROW_MTU.to_be_bytes());
        let of = |flags, payload| {
            Packet::new(client, balancer)
                .tcp(CLIENT_PORT, PORT, flags)
                .payload(&vec![5; payload])
        };
        let sent = |flags, payload| {
            Packet::new(family.node(), family.narrow_pod())
                .tcp(SNAT_PORT, BACKEND_PORT, flags)
                .payload(&vec![5; payload])
                .ttl(63)
        };
        let told = |packet: &Packet| icmp_error(packet, (client, balancer), kind, [0, 0, high, low], 20);
        vec![
            Case::new(
                "one byte too much",
                web_on(family, &[Backend::Narrow]),
                vec![
                    at(UplinkIn, &of("S", room + 1))
                        .redirected_as(UPLINK, &told(&of("S", room + 1)), &[TooBig])
                        .handed_over(),
                    at(UplinkIn, &of("S", room)).redirected_as(UPLINK, &sent("S", room), &[NewFlow, Forward]),
                    at(UplinkIn, &of("A", room + 1))
                        .redirected_as(UPLINK, &told(&of("A", room + 1)), &[TooBig])
                        .handed_over(),
                    at(UplinkIn, &of("A", room)).redirected_as(UPLINK, &sent("A", room), &[Forward]),
                ],
            ),
            Case::new(
                "a packet of segments that fit, and of some that do not",
                web_on(family, &[Backend::Narrow]),
                vec![
                    at(UplinkIn, &of("S", 0)).redirected_as(UPLINK, &sent("S", 0), &[NewFlow, Forward]),
                    at(UplinkIn, &of("A", 3000))
                        .in_segments_of(room as u32)
                        .redirected_as(UPLINK, &sent("A", 3000), &[Forward])
                        .handed_over(),
                    at(UplinkIn, &of("A", 3000))
                        .in_segments_of(room as u32 + 1)
                        .redirected_as(UPLINK, &told(&of("A", 3000)), &[TooBig])
                        .handed_over(),
                ],
            ),
            Case::new(
                "no way at all",
                web_on(family, &[Backend::Unreachable]),
                vec![at(UplinkIn, &of("S", 10)).dropped(&[NoRoute]).handed_over()],
            ),
        ]
    });
}
