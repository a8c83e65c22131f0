//! Who may use what: traffic policies, source ranges, takeover, conditions of endpoints.

use std::net::IpAddr;

use lb_common::layout::config;
use lb_common::verdict::Reason::{self, Forward, NewFlow, NoEndpoints, NoLocalEndpoints, SourceRange, Takeover};
use lb_tests::packet::Packet;
use steerway::datapath::load::ProgramName::{PodIn, SteerOut, UplinkIn};

use super::case::{Case, at};
use super::flow::{CLIENT_PORT, Transport};
use super::node::{Addresses, CLIENT_VETH, SNAT_PORT, UPLINK};
use super::objects::{BACKEND_PORT, Backend, NODE_PORT, Objects, PORT, slice_of_web, web, web_on};
use super::refusal::{reset, segment};
use super::run_cases;

/// A Service under a policy, with a backend on another node alone.
fn elsewhere(family: Addresses, internal: bool) -> Objects {
    let service = web(family);
    Objects {
        services: vec![if internal {
            service.internal_local()
        } else {
            service.external_local().health_check_node_port(32_000)
        }],
        ..web_on(family, &[Backend::Remote])
    }
}

#[test]
fn a_local_policy_without_local_endpoints_drops_only_those_whom_it_concerns() {
    run_cases(|family| {
        let (pod, client, node) = (family.pod(), family.client(), family.node());
        let (vip, balancer) = (family.vip(), family.load_balancer());
        let forwarded = |from| Transport::Tcp.packet((from, CLIENT_PORT), (family.remote_pod(), BACKEND_PORT), "S");
        vec![
            Case::new(
                "externalTrafficPolicy Local",
                elsewhere(family, false),
                vec![
                    at(UplinkIn, &segment(client, balancer, PORT, "S")).dropped(&[NoLocalEndpoints]),
                    at(UplinkIn, &segment(client, node, NODE_PORT, "S")).dropped(&[NoLocalEndpoints]),
                    at(PodIn, &segment(pod, balancer, PORT, "S"))
                        .passes_as(&forwarded(pod).payload(b"four"), &[NewFlow, Forward]),
                ],
            ),
            Case::new(
                "internalTrafficPolicy Local",
                elsewhere(family, true),
                vec![
                    at(PodIn, &segment(pod, vip, PORT, "S")).dropped(&[NoLocalEndpoints]),
                    at(SteerOut, &segment(node, vip, PORT, "S")).dropped(&[NoLocalEndpoints]),
                    at(PodIn, &segment(pod, balancer, PORT, "S"))
                        .passes_as(&forwarded(pod).payload(b"four"), &[NewFlow, Forward]),
                ],
            ),
        ]
    });
}

#[test]
fn source_ranges_hold_for_load_balancer_addresses_alone() {
    run_cases(|family| {
        let range = family.pick("192.0.2.10/31", "2001:db8:1::10/127");
        let (inside, outside) = (family.other_client(), family.router());
        let (balancer, node) = (family.load_balancer(), family.node());
        let reached = |from| {
            Packet::new(from, family.local_pod())
                .tcp(SNAT_PORT, BACKEND_PORT, "S")
                .payload(b"four")
        };
        let new: &[Reason] = &[NewFlow, Forward];
        let objects = Objects {
            services: vec![web(family).source_range(range)],
            ..web_on(family, &[Backend::Local])
        };
        vec![Case::new(
            "a range of two clients",
            objects,
            vec![
                at(UplinkIn, &segment(family.client(), balancer, PORT, "S")).passes_as(&reached(family.client()), new),
                at(UplinkIn, &segment(inside, balancer, PORT, "S")).passes_as(&reached(inside), new),
                at(UplinkIn, &segment(outside, balancer, PORT, "S")).dropped(&[SourceRange]),
                at(PodIn, &segment(family.pod(), balancer, PORT, "S")).dropped(&[SourceRange]),
                at(UplinkIn, &segment(outside, node, NODE_PORT, "S")).passes_as(&reached(outside), new),
                at(UplinkIn, &segment(family.stranger(), family.vip(), PORT, "S"))
                    .passes_as(&reached(family.stranger()), new),
            ],
        )]
    });
}

#[test]
fn a_denied_source_is_dropped_also_where_there_is_no_endpoint() {
    run_cases(|family| {
        let range = family.pick("192.0.2.10/31", "2001:db8:1::10/127");
        let (inside, outside, balancer) = (family.other_client(), family.router(), family.load_balancer());
        let objects = Objects {
            services: vec![web(family).source_range(range)],
            ..web_on(family, &[])
        };
        vec![Case::new(
            "a range of two clients, and nobody to serve them",
            objects,
            vec![
                at(UplinkIn, &segment(outside, balancer, PORT, "S")).dropped(&[SourceRange]),
                at(UplinkIn, &Packet::new(outside, balancer).udp(CLIENT_PORT, PORT)).dropped(&[SourceRange]),
                at(PodIn, &segment(family.pod(), balancer, PORT, "S")).dropped(&[SourceRange]),
                at(UplinkIn, &segment(inside, balancer, PORT, "S")).redirected_as(
                    UPLINK,
                    &reset(inside, balancer, PORT),
                    &[NoEndpoints],
                ),
            ],
        )]
    });
}

#[test]
fn source_ranges_leave_external_ips_open() {
    run_cases(|family| {
        let range = family.pick("192.0.2.10/31", "2001:db8:1::10/127");
        let external = family.pick("198.51.100.7", "2001:db8:51::7");
        let (outside, pod, local) = (family.router(), family.pod(), family.local_pod());
        let address: IpAddr = external.parse().expect("an address");
        let reached = |from, port| Packet::new(from, local).tcp(port, BACKEND_PORT, "S").payload(b"four");
        let objects = Objects {
            services: vec![web(family).external_ip(external).source_range(range)],
            ..web_on(family, &[Backend::Local])
        };
        vec![Case::new(
            "an external IP beside a ranged LoadBalancer IP",
            objects,
            vec![
                at(UplinkIn, &segment(outside, family.load_balancer(), PORT, "S")).dropped(&[SourceRange]),
                at(UplinkIn, &segment(outside, address, PORT, "S"))
                    .passes_as(&reached(outside, SNAT_PORT), &[NewFlow, Forward]),
                at(PodIn, &segment(pod, address, PORT, "S")).passes_as(&reached(pod, CLIENT_PORT), &[NewFlow, Forward]),
            ],
        )]
    });
}

#[test]
fn segments_without_a_flow_are_left_to_the_stack_while_flows_are_taken_over() {
    run_cases(|family| {
        let (client, balancer) = (family.client(), family.load_balancer());
        let reached = Packet::new(client, family.local_pod())
            .tcp(SNAT_PORT, BACKEND_PORT, "S")
            .payload(b"four");
        vec![
            Case::new(
                "takeover",
                web_on(family, &[Backend::Local]),
                vec![
                    at(UplinkIn, &segment(client, balancer, PORT, "A")).passes(&[Takeover]),
                    at(UplinkIn, &segment(client, balancer, PORT, "S")).passes_as(&reached, &[NewFlow, Forward]),
                ],
            )
            .flags(config::FLAG_TAKEOVER),
        ]
    });
}

#[test]
fn an_endpoint_that_is_not_ready_is_as_good_as_none() {
    run_cases(|family| {
        let objects = Objects {
            services: vec![web(family)],
            slices: vec![
                slice_of_web(family)
                    .endpoint(family.local_pod())
                    .ready(false)
                    .serving(true),
            ],
        };
        let (pod, vip) = (family.pod(), family.vip());
        vec![Case::new(
            "not ready",
            objects,
            vec![at(PodIn, &segment(pod, vip, PORT, "S")).redirected_as(
                CLIENT_VETH,
                &reset(pod, vip, PORT),
                &[NoEndpoints],
            )],
        )]
    });
}
