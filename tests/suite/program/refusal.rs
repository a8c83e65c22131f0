//! What is not served: refusals in place (RST, ICMP port unreachable), and silence.

use std::net::IpAddr;

use lb_common::layout::config;
use lb_common::verdict::Reason::{
    NoEndpoints, NotOurs, RateLimited, Silent, UnknownPort, UnknownPortPassed, UnknownProtocol,
};
use lb_tests::packet::Packet;
use steerway::datapath::load::ProgramName::{LoOut, PodIn, SteerOut, UplinkIn};

use super::answers::{port_unreachable, swapped};
use super::case::{Case, at};
use super::flow::CLIENT_PORT;
use super::node::{Addresses, CLIENT_VETH, LO, STEER, STEER_MAC, UPLINK};
use super::objects::{Backend, NODE_PORT, Objects, PORT, web_on};
use super::run_cases;

/// A port of no Service.
const UNKNOWN: u16 = 99;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub(super) fn segment(from: IpAddr, to: IpAddr, port: u16, flags: &str) -> Packet {
    Packet::new(from, to).tcp(CLIENT_PORT, port, flags).payload(b"four")
}

/// The RST that answers an opening [`segment`].
pub(super) fn reset(from: IpAddr, to: IpAddr, port: u16) -> Packet {
    // RFC 9293 section 3.10.7.1: the acknowledgement covers the SYN and four bytes.
    let reset = Packet::new(to, from)
        .tcp(port, CLIENT_PORT, "RA")
        .sequence(0, 6)
        .window(0);
    swapped(fragmentable(reset))
}

/// Resets carry no DF: they are too short for it to matter.
fn fragmentable(packet: Packet) -> Packet {
    if packet.is_v4() { packet.may_fragment() } else { packet }
}

fn without_endpoints(family: Addresses) -> Objects {
    web_on(family, &[])
}

fn unknown_ports(family: Addresses) -> Vec<Case> {
    let (pod, client, node) = (family.pod(), family.client(), family.node());
    let (vip, balancer) = (family.vip(), family.load_balancer());
    let objects = || web_on(family, &[Backend::Local]);
    let datagram = Packet::new(pod, vip).udp(CLIENT_PORT, UNKNOWN).payload(b"hello");
    let segment_of = |flags| segment(pod, vip, UNKNOWN, flags);
    // Nothing but headers: the answer is built without a trim, and a whole-packet sum goes on.
    let numbered = segment_of("A").sequence(77, 4711).payload(b"");
    let empty = Packet::new(pod, vip).udp(CLIENT_PORT, UNKNOWN);
    let tunnelled = Packet::new(pod, vip).protocol(47).payload(&[7; 24]);
    vec![
        Case::new(
            "an unknown port of a ClusterIP",
            objects(),
            vec![
                at(PodIn, &segment_of("S")).redirected_as(CLIENT_VETH, &reset(pod, vip, UNKNOWN), &[UnknownPort]),
                at(PodIn, &numbered).redirected_as(
                    CLIENT_VETH,
                    &swapped(fragmentable(
                        Packet::new(vip, pod)
                            .tcp(UNKNOWN, CLIENT_PORT, "R")
                            .sequence(4711, 0)
                            .window(0),
                    )),
                    &[UnknownPort],
                ),
                at(PodIn, &segment_of("R")).dropped(&[Silent]),
                at(PodIn, &empty).redirected_as(CLIENT_VETH, &port_unreachable(&empty, pod, vip, 8), &[UnknownPort]),
                at(PodIn, &datagram).redirected_as(
                    CLIENT_VETH,
                    &port_unreachable(&datagram, pod, vip, 8),
                    &[UnknownPort],
                ),
            ],
        ),
        Case::new(
            "an unknown port of a ClusterIP, from outside and from a process",
            objects(),
            vec![
                at(UplinkIn, &segment(client, vip, UNKNOWN, "S")).redirected_as(
                    UPLINK,
                    &reset(client, vip, UNKNOWN),
                    &[UnknownPort],
                ),
                at(SteerOut, &segment(node, vip, UNKNOWN, "S")).redirected_as(
                    STEER,
                    &reset(node, vip, UNKNOWN).macs(CLIENT_MAC, STEER_MAC),
                    &[UnknownPort],
                ),
            ],
        ),
        Case::new(
            "TCP refused by ICMP",
            objects(),
            [&segment_of("S"), &numbered]
                .map(|packet| {
                    at(PodIn, packet).redirected_as(
                        CLIENT_VETH,
                        &port_unreachable(packet, pod, vip, 20),
                        &[UnknownPort],
                    )
                })
                .to_vec(),
        )
        .flags(config::FLAG_REFUSE_BY_ICMP),
        Case::new(
            "answers are used up",
            objects(),
            vec![
                at(PodIn, &segment_of("S")).dropped(&[RateLimited]),
                at(PodIn, &datagram).dropped(&[RateLimited]),
            ],
        )
        .word(config::ANSWER_RATE, 0),
        Case::new(
            "a protocol that no Service has",
            objects(),
            vec![
                at(PodIn, &tunnelled).redirected_as(
                    CLIENT_VETH,
                    &port_unreachable(&tunnelled, pod, vip, 8),
                    &[UnknownProtocol],
                ),
                at(PodIn, &Packet::new(pod, balancer).protocol(47).payload(&[7; 24])).passes(&[NotOurs]),
            ],
        ),
        Case::new(
            "an unknown port of an address that others may listen on",
            objects(),
            vec![
                at(UplinkIn, &segment(client, balancer, UNKNOWN, "S")).passes(&[UnknownPortPassed]),
                at(UplinkIn, &segment(client, node, UNKNOWN, "S")).passes(&[UnknownPortPassed]),
                at(LoOut, &segment(node, node, UNKNOWN, "S")).passes(&[UnknownPortPassed]),
            ],
        ),
        Case::new(
            "a source that is no single host",
            objects(),
            vec![
                at(
                    PodIn,
                    &segment(
                        family.pick("224.0.0.5", "ff02::5").parse().expect("a group"),
                        vip,
                        UNKNOWN,
                        "S",
                    ),
                )
                .dropped(&[Silent]),
            ],
        ),
    ]
}

#[test]
fn an_unknown_port_of_a_cluster_ip_is_refused_and_one_of_another_address_is_left_alone() {
    run_cases(unknown_ports);
}

#[test]
fn a_service_without_endpoints_refuses_by_every_frontend() {
    run_cases(|family| {
        let (pod, client, node) = (family.pod(), family.client(), family.node());
        let rows = [
            (PodIn, pod, (family.vip(), PORT), CLIENT_VETH),
            (PodIn, pod, (family.load_balancer(), PORT), CLIENT_VETH),
            (PodIn, pod, (node, NODE_PORT), CLIENT_VETH),
            (UplinkIn, client, (family.load_balancer(), PORT), UPLINK),
            (UplinkIn, client, (node, NODE_PORT), UPLINK),
        ];
        let mut cases: Vec<_> = rows
            .into_iter()
            .map(|(hook, from, (to, port), device)| {
                let datagram = Packet::new(from, to).udp(CLIENT_PORT, port).payload(b"?");
                Case::new(
                    &format!("from {from} to {to}"),
                    without_endpoints(family),
                    vec![
                        at(hook, &segment(from, to, port, "S")).redirected_as(
                            device,
                            &reset(from, to, port),
                            &[NoEndpoints],
                        ),
                        at(hook, &datagram).redirected_as(
                            device,
                            &port_unreachable(&datagram, from, to, 8),
                            &[NoEndpoints],
                        ),
                    ],
                )
            })
            .collect();
        cases.push(Case::new(
            "from a process by a NodePort",
            without_endpoints(family),
            vec![at(LoOut, &segment(node, node, NODE_PORT, "S")).redirected_as(
                LO,
                &reset(node, node, NODE_PORT).macs(CLIENT_MAC, [0; 6]),
                &[NoEndpoints],
            )],
        ));
        cases
    });
}
