//! Two packets with something in between: endpoints that come and go, ports that run out, clients that close, bridges.

use lb_common::layout::config;
use lb_common::verdict::Reason::{BackendGone, Forward, Lifted, NewFlow, NotOurs, OtherHook, PortsExhausted, Reply};
use steerway::datapath::load::ProgramName::{PodIn, PodOut, UplinkIn};

use super::case::{Case, at};
use super::flow::{CLIENT_PORT, Flow, Transport};
use super::node::{Addresses, BACKEND_VETH, BRIDGE_MAC, SNAT_PORT, UPLINK};
use super::objects::{BACKEND_PORT, Backend, Objects, PORT, web_on};
use super::run_cases;

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// From a client outside to the remote backend.
fn of_client(family: Addresses, client: std::net::IpAddr) -> Flow {
    Flow {
        transport: Transport::Tcp,
        client: (client, CLIENT_PORT),
        frontend: (family.load_balancer(), PORT),
        source: (family.node(), SNAT_PORT),
        backend: (family.remote_pod(), BACKEND_PORT),
    }
}

#[test]
fn udp_leaves_a_backend_that_is_gone_and_tcp_stays() {
    run_cases(|family| {
        let (tcp, udp) = (
            Flow::from_pod(family, Transport::Tcp),
            Flow::from_pod(family, Transport::Udp),
        );
        let moved = Flow {
            backend: (family.remote_pod(), BACKEND_PORT),
            ..udp
        };
        let elsewhere = || web_on(family, &[Backend::Remote]);
        vec![Case::new(
            "an endpoint, then the Service",
            web_on(family, &[Backend::Local]),
            vec![
                at(PodIn, &tcp.ask("S")).passes_as(&tcp.asked("S"), &[NewFlow, Forward]),
                at(PodIn, &udp.ask("")).passes_as(&udp.asked(""), &[NewFlow, Forward]),
                at(PodIn, &tcp.ask("A"))
                    .after(elsewhere())
                    .passes_as(&tcp.asked("A"), &[Forward]),
                at(PodOut, &tcp.answer("PA")).passes_as(&tcp.answered("PA"), &[Reply]),
                at(PodIn, &udp.ask("")).passes_as(&moved.asked(""), &[BackendGone, NewFlow, Forward]),
                at(PodOut, &moved.answer("")).passes_as(&moved.answered(""), &[Reply]),
                at(PodIn, &tcp.ask("PA"))
                    .after(Objects::default())
                    .passes_as(&tcp.asked("PA"), &[Forward]),
                at(PodIn, &udp.ask("")).passes(&[BackendGone, NotOurs]),
            ],
        )]
    });
}

#[test]
fn a_syn_that_is_sent_again_is_the_same_flow_whatever_other_endpoints_come() {
    run_cases(|family| {
        let (inside, outside) = (
            Flow::from_pod(family, Transport::Tcp),
            of_client(family, family.client()),
        );
        let more = || web_on(family, &[Backend::Remote, Backend::Local]);
        let routed = |flow: &Flow, counts: &[_]| {
            at(UplinkIn, &flow.ask("S")).redirected_as(UPLINK, &flow.asked("S").ttl(63), counts)
        };
        vec![
            Case::new(
                "from a pod, to the stack each time",
                web_on(family, &[Backend::Local]),
                vec![
                    at(PodIn, &inside.ask("S")).passes_as(&inside.asked("S"), &[NewFlow, Forward]),
                    at(PodIn, &inside.ask("S")).passes_as(&inside.asked("S"), &[Forward]),
                    at(PodIn, &inside.ask("S"))
                        .after(more())
                        .passes_as(&inside.asked("S"), &[Forward]),
                ],
            ),
            Case::new(
                "from outside, with the same port each time",
                web_on(family, &[Backend::Remote]),
                vec![
                    routed(&outside, &[NewFlow, Forward]),
                    routed(&outside, &[Forward]),
                    routed(&outside, &[Forward]).after(more()),
                ],
            ),
        ]
    });
}

#[test]
fn a_port_of_ours_serves_one_flow_at_a_time() {
    run_cases(|family| {
        let (first, second) = (
            of_client(family, family.client()),
            of_client(family, family.other_client()),
        );
        let new: &[_] = &[NewFlow, Forward];
        vec![Case::new(
            "one port, two clients",
            web_on(family, &[Backend::Remote]),
            vec![
                at(UplinkIn, &first.ask("S")).redirected_as(UPLINK, &first.asked("S").ttl(63), new),
                at(UplinkIn, &second.ask("S")).dropped(&[PortsExhausted]),
                at(UplinkIn, &first.ask("R")).redirected_as(UPLINK, &first.asked("R").ttl(63), &[Forward]),
                // The first flow is over: its port goes to the next one, and so do its replies.
                at(UplinkIn, &second.ask("S")).redirected_as(UPLINK, &second.asked("S").ttl(63), new),
                at(UplinkIn, &second.answer("SA")).redirected_as(UPLINK, &second.answered("SA").ttl(63), &[Reply]),
            ],
        )]
    });
}

#[test]
fn a_reply_on_a_bridge_port_is_lifted_to_the_bridge_while_there_are_bridges() {
    run_cases(|family| {
        let flow = Flow::from_pod(family, Transport::Tcp);
        let reply = || at(PodIn, &flow.answer("SA")).on(BACKEND_VETH).received_by(BACKEND_VETH);
        let case = |name, reply| {
            Case::new(
                name,
                web_on(family, &[Backend::Local]),
                vec![
                    at(PodIn, &flow.ask("S")).passes_as(&flow.asked("S"), &[NewFlow, Forward]),
                    reply,
                    at(PodOut, &flow.answer("SA")).passes_as(&flow.answered("SA"), &[Reply]),
                ],
            )
        };
        let lifted = flow.answer("SA").macs(CLIENT_MAC, BRIDGE_MAC);
        vec![
            case("bridges", reply().passes_as(&lifted, &[Lifted])).flags(config::FLAG_BRIDGES),
            case("no bridges", reply().passes(&[OtherHook])),
            case("not a bridge port", at(PodIn, &flow.answer("SA")).passes(&[OtherHook])).flags(config::FLAG_BRIDGES),
        ]
    });
}
