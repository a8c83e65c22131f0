//! Host routing by BPF: straight into the pod whose MAC address the kernel knows, by the kernel to one that it has to ask for, and by
//! the stack where the answer came by it.

use lb_common::layout::config;
use lb_common::verdict::Reason::{Forward, NewFlow, OtherHook, Reply};
use lb_tests::packet::Packet;
use steerway::datapath::load::ProgramName::{PodIn, PodOut};

use super::case::{Case, at};
use super::flow::{Flow, Transport};
use super::node::{BACKEND_MAC, BACKEND_VETH, CLIENT_VETH, VETH_MAC};
use super::objects::{Backend, web_on};
use super::run_cases;

const SETTING: u64 = config::FLAG_ECHO | config::FLAG_HOST_ROUTING;

/// As the backend gets it from this node.
fn delivered(packet: Packet) -> Packet {
    packet.macs(VETH_MAC, BACKEND_MAC).ttl(63)
}

#[test]
fn packets_go_past_the_stack_where_the_pod_is_known() {
    run_cases(|family| {
        Transport::BOTH
            .map(|transport| {
                let flow = Flow::from_pod(family, transport);
                let answer = |flags: &str| {
                    at(PodIn, &flow.answer(flags))
                        .on(BACKEND_VETH)
                        .received_by(BACKEND_VETH)
                };
                Case::new(
                    transport.name(),
                    web_on(family, &[Backend::Local]),
                    vec![
                        at(PodIn, &flow.ask("S")).redirected_as(
                            BACKEND_VETH,
                            &delivered(flow.asked("S")),
                            &[NewFlow, Forward],
                        ),
                        // Nobody has asked for the client's MAC address.
                        answer("SA").redirected_as(CLIENT_VETH, &flow.answered("SA").ttl(63), &[Reply]),
                        at(PodOut, &flow.answer("A")).passes_as(&flow.answered("A"), &[Reply]),
                        at(PodIn, &flow.ask("A")).redirected_as(BACKEND_VETH, &delivered(flow.asked("A")), &[Forward]),
                    ],
                )
                .flags(SETTING)
            })
            .into()
    });
}

#[test]
fn what_is_not_on_this_node_and_all_without_the_setting_goes_by_the_stack() {
    run_cases(|family| {
        let flow = Flow::from_pod(family, Transport::Tcp);
        let remote = Flow {
            backend: (family.remote_pod(), flow.backend.1),
            ..flow
        };
        let by_the_stack = |name, flow: &Flow, backend| {
            Case::new(
                name,
                web_on(family, &[backend]),
                vec![
                    at(PodIn, &flow.ask("S")).passes_as(&flow.asked("S"), &[NewFlow, Forward]),
                    at(PodIn, &flow.answer("SA")).passes(&[OtherHook]),
                    at(PodOut, &flow.answer("SA")).passes_as(&flow.answered("SA"), &[Reply]),
                ],
            )
        };
        vec![
            by_the_stack("another node", &remote, Backend::Remote).flags(SETTING),
            by_the_stack("without the setting", &flow, Backend::Local),
        ]
    });
}
