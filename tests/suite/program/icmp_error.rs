//! ICMP errors about translated flows, in both directions: from routers, backends and clients, at every way that a flow goes
//! (RFC 792, RFC 4443, RFC 5508 section 7).

use std::net::IpAddr;

use lb_common::verdict::Reason::{Forward, IcmpError, IcmpErrorPassed, NewFlow, OtherHook, Reply};
use lb_tests::packet::Packet;
use steerway::datapath::load::ProgramName::{PodIn, PodOut, SteerOut, UplinkIn};

use super::case::{Case, at};
use super::flow::{CLIENT_PORT, Flow, Transport};
use super::node::{Addresses, SNAT_PORT, STEER, STEER_MAC, UPLINK};
use super::objects::{BACKEND_PORT, Backend, PORT, web_on};
use super::run_cases;

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Type, code and second word.
type Kind = (u8, u8, [u8; 4]);

/// Errors of every type, two of them with an MTU.
fn kinds(family: Addresses) -> Vec<Kind> {
    let mtu = [0, 0, 5, 0];
    if family.v6 {
        vec![
            (1, 0, [0; 4]),
            (1, 4, [0; 4]),
            (2, 0, mtu),
            (3, 0, [0; 4]),
            (4, 1, [0, 0, 0, 6]),
        ]
    } else {
        vec![
            (3, 1, [0; 4]),
            (3, 3, [0; 4]),
            (3, 4, mtu),
            (11, 0, [0; 4]),
            (12, 0, [9, 0, 0, 0]),
        ]
    }
}

/// An error about `packet`, of which `quoted` bytes behind the IP header are quoted.
fn error(from: IpAddr, to: IpAddr, (icmp_type, code, rest): Kind, packet: &Packet, quoted: usize) -> Packet {
    let bytes = packet.clone().bare().build();
    let header = if packet.is_v4() { 20 } else { 40 };
    let length = bytes.len().min(header + quoted);
    Packet::new(from, to).icmp_error(icmp_type, code, rest, &bytes[..length])
}

/// How much is quoted: ports alone, the header, everything.
const QUOTED: [usize; 3] = [8, 20, 1000];

fn flow(transport: Transport, client: IpAddr, frontend: IpAddr, source: (IpAddr, u16), backend: IpAddr) -> Flow {
    Flow {
        transport,
        client: (client, CLIENT_PORT),
        frontend: (frontend, PORT),
        source,
        backend: (backend, BACKEND_PORT),
    }
}

/// Every transport with every kind and length.
fn every(family: Addresses, case: impl Fn(Transport, Kind, usize) -> Case) -> Vec<Case> {
    let mut cases = Vec::new();
    for transport in Transport::BOTH {
        for kind in kinds(family) {
            for quoted in QUOTED {
                let mut case = case(transport, kind, quoted);
                case.name = format!("{} {}/{} of {quoted} bytes", transport.name(), kind.0, kind.1);
                cases.push(case);
            }
        }
    }
    cases
}

#[test]
fn an_error_about_a_pods_packet_reaches_the_pod_as_if_about_the_vip() {
    run_cases(|family| {
        let (pod, vip, backend, router) = (family.pod(), family.vip(), family.remote_pod(), family.router());
        every(family, |transport, kind, quoted| {
            let flow = flow(transport, pod, vip, (pod, CLIENT_PORT), backend);
            let about = |from| error(from, pod, kind, &flow.asked("S"), quoted);
            let told = |from| error(from, pod, kind, &flow.ask("S"), quoted);
            Case::new(
                "",
                web_on(family, &[Backend::Remote]),
                vec![
                    at(PodOut, &about(router)).passes(&[IcmpErrorPassed]),
                    at(PodIn, &flow.ask("S")).passes_as(&flow.asked("S"), &[NewFlow, Forward]),
                    at(UplinkIn, &about(router)).passes(&[OtherHook]),
                    at(PodOut, &about(router)).passes_as(&told(router), &[IcmpError]),
                    at(PodOut, &about(backend)).passes_as(&told(vip), &[IcmpError]),
                    // To another than the sender of what it quotes.
                    at(
                        PodOut,
                        &error(router, family.local_pod(), kind, &flow.asked("S"), quoted),
                    )
                    .passes(&[IcmpErrorPassed]),
                ],
            )
        })
    });
}

#[test]
fn an_error_about_a_packet_that_we_routed_is_routed_on_to_the_client() {
    run_cases(|family| {
        let (client, balancer, backend) = (family.client(), family.load_balancer(), family.remote_pod());
        every(family, |transport, kind, quoted| {
            let flow = flow(transport, client, balancer, (family.node(), SNAT_PORT), backend);
            let about = |from| error(from, family.node(), kind, &flow.asked("S").ttl(63), quoted);
            let told = |from| error(from, client, kind, &flow.ask("S").ttl(63), quoted).ttl(63);
            let back = |to| error(client, to, kind, &flow.answered("SA"), quoted);
            let reached = error(family.node(), backend, kind, &flow.answer("SA"), quoted).ttl(63);
            Case::new(
                "",
                web_on(family, &[Backend::Remote]),
                vec![
                    at(UplinkIn, &flow.ask("S")).redirected_as(UPLINK, &flow.asked("S").ttl(63), &[NewFlow, Forward]),
                    at(UplinkIn, &about(family.router())).redirected_as(UPLINK, &told(family.router()), &[IcmpError]),
                    at(UplinkIn, &about(backend)).redirected_as(UPLINK, &told(balancer), &[IcmpError]),
                    at(UplinkIn, &flow.answer("SA")).redirected_as(UPLINK, &flow.answered("SA").ttl(63), &[Reply]),
                    at(UplinkIn, &back(balancer)).redirected_as(UPLINK, &reached, &[IcmpError]),
                    at(UplinkIn, &back(family.stranger())).passes(&[IcmpErrorPassed]),
                ],
            )
        })
    });
}

#[test]
fn an_error_about_a_reply_reaches_the_local_backend_as_if_about_what_it_sent() {
    run_cases(|family| {
        let (client, balancer, backend) = (family.client(), family.load_balancer(), family.local_pod());
        every(family, |transport, kind, quoted| {
            let flow = flow(transport, client, balancer, (client, SNAT_PORT), backend);
            let back = |from| error(from, balancer, kind, &flow.answered("SA"), quoted);
            let reached = |from| error(from, backend, kind, &flow.answer("SA"), quoted);
            Case::new(
                "",
                web_on(family, &[Backend::Local]),
                vec![
                    at(UplinkIn, &flow.ask("S")).passes_as(&flow.asked("S"), &[NewFlow, Forward]),
                    at(UplinkIn, &back(client)).passes_as(&reached(client), &[IcmpError]),
                    at(UplinkIn, &back(family.router())).passes_as(&reached(family.router()), &[IcmpError]),
                ],
            )
        })
    });
}

#[test]
fn an_error_for_a_process_of_the_host_comes_by_steer0_from_the_vip() {
    run_cases(|family| {
        let (node, vip, backend) = (family.node(), family.vip(), family.remote_pod());
        every(family, |transport, kind, quoted| {
            let flow = flow(transport, node, vip, (node, SNAT_PORT), backend);
            let about = error(family.router(), node, kind, &flow.asked("S"), quoted);
            let told = error(vip, node, kind, &flow.ask("S"), quoted).macs(CLIENT_MAC, STEER_MAC);
            Case::new(
                "",
                web_on(family, &[Backend::Remote]),
                vec![
                    at(SteerOut, &flow.ask("S")).redirected_as(UPLINK, &flow.asked("S"), &[NewFlow, Forward]),
                    at(UplinkIn, &about)
                        .redirected_as(STEER, &told, &[IcmpError])
                        .handed_over(),
                ],
            )
        })
    });
}
