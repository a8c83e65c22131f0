//! The programs of devices without an Ethernet header.
//!
//! The kernel's test run takes `skb->protocol` from bytes 12 and 13 of every packet. In a bare IP packet they belong to the
//! source address: one that begins with 8.0 reads as IPv4, one with 86dd as its third group as IPv6. So every source here does.
//! It also wants the length of an IP header behind them, so packets carry some payload. Answers that make room for a header
//! cannot be run so: the kernel makes it behind the Ethernet header that it believes in.

use std::net::IpAddr;

use lb_common::verdict::Reason::{Echo, Forward, NewFlow, NotOurs, Reply, UnknownPort, UnsupportedDevice};
use lb_tests::packet::Packet;
use steerway::datapath::load::ProgramName::{L3In, L3Out, SteerOut};

use super::case::{Case, at};
use super::flow::{CLIENT_PORT, Flow, Transport};
use super::node::{Addresses, NODE, SNAT_PORT, UPLINK};
use super::objects::{BACKEND_PORT, Objects, PORT, slice_of_web, web};
use super::run_cases;

fn readable(family: Addresses, host: u8) -> IpAddr {
    let text = if family.v6 {
        format!("2001:db8:86dd::{host:x}")
    } else {
        format!("8.0.0.{host}")
    };
    text.parse().expect("an address")
}

fn on(family: Addresses, backend: IpAddr, node: &str) -> Objects {
    Objects {
        services: vec![web(family)],
        slices: vec![slice_of_web(family).endpoint(backend).node(node).ready(true)],
    }
}

#[test]
fn a_flow_is_translated_on_devices_without_a_link_header() {
    run_cases(|family| {
        let (client, backend) = (readable(family, 10), readable(family, 20));
        let mut cases = Vec::new();
        for transport in Transport::BOTH {
            let local = Flow {
                transport,
                client: (client, CLIENT_PORT),
                frontend: (family.load_balancer(), PORT),
                source: (client, SNAT_PORT),
                backend: (backend, BACKEND_PORT),
            };
            cases.push(Case::new(
                "to a pod of this node",
                on(family, backend, NODE),
                vec![
                    at(L3In, &local.ask("S")).passes_as(&local.asked("S"), &[NewFlow, Forward]),
                    at(L3Out, &local.answer("SA")).passes_as(&local.answered("SA"), &[Reply]),
                    at(L3In, &local.ask("A")).passes_as(&local.asked("A"), &[Forward]),
                ],
            ));
            let remote = Flow {
                source: (family.node(), SNAT_PORT),
                ..local
            };
            cases.push(Case::new(
                "to another node",
                on(family, backend, "node-b"),
                vec![
                    at(L3In, &remote.ask("S")).redirected_as(UPLINK, &remote.asked("S").ttl(63), &[NewFlow, Forward]),
                    at(L3In, &remote.answer("SA")).redirected_as(UPLINK, &remote.answered("SA").ttl(63), &[Reply]),
                ],
            ));
        }
        cases
    });
}

#[test]
fn answers_leave_a_device_without_a_link_header_as_they_are() {
    run_cases(|family| {
        let (client, vip) = (readable(family, 10), family.vip());
        let opening = Packet::new(client, vip).tcp(CLIENT_PORT, 99, "S").payload(b"four");
        let reset = Packet::new(vip, client)
            .tcp(99, CLIENT_PORT, "RA")
            .sequence(0, 6)
            .window(0);
        let reset = if family.v6 { reset } else { reset.may_fragment() };
        let ping = Packet::new(client, vip).echo_request(1, 2).payload(b"0123456789abcdef");
        let pong = Packet::new(vip, client)
            .icmp(if family.v6 { 129 } else { 0 }, 0, [0, 1, 0, 2])
            .payload(b"0123456789abcdef");
        vec![Case::new(
            "answers",
            on(family, readable(family, 20), NODE),
            vec![
                at(L3In, &opening).redirected_as(UPLINK, &reset, &[UnknownPort]),
                at(L3In, &ping).redirected_as(UPLINK, &pong, &[Echo]),
                at(
                    L3In,
                    &Packet::new(client, family.stranger()).tcp(1, 2, "S").payload(&[0; 16]),
                )
                .passes(&[NotOurs]),
                at(
                    L3Out,
                    &Packet::new(client, family.stranger()).tcp(1, 2, "S").payload(&[0; 16]),
                )
                .passes(&[NotOurs]),
            ],
        )]
    });
}

#[test]
fn a_reply_to_a_process_of_the_host_needs_a_link_header() {
    run_cases(|family| {
        let backend = readable(family, 20);
        let flow = Flow {
            transport: Transport::Tcp,
            client: (family.node(), CLIENT_PORT),
            frontend: (family.vip(), PORT),
            source: (family.node(), SNAT_PORT),
            backend: (backend, BACKEND_PORT),
        };
        vec![Case::new(
            "a tunnel without link header",
            on(family, backend, "node-b"),
            vec![
                at(SteerOut, &flow.ask("S")).redirected_as(UPLINK, &flow.asked("S"), &[NewFlow, Forward]),
                at(L3In, &flow.answer("SA")).dropped(&[UnsupportedDevice]),
            ],
        )]
    });
}
