//! Packets that no test run can make: whose sender left the checksum to the device (CHECKSUM_PARTIAL), and those that a device
//! will cut into segments (GSO). They go through a veth whose other end has the real program, and are seen where they leave.

use std::net::IpAddr;
use std::time::Duration;

use lb_common::testing::Buffer;
use lb_tests::packet::{Decoded, Packet, Sums, diff};
use lb_tests::traffic::{Captured, Direction, FrameSocket, VnetHeader};
use steerway::datapath::load::ProgramName;

use super::answers::port_unreachable;
use super::flow::{CLIENT_PORT, Transport};
use super::node::{Addresses, SNAT_PORT, namespace};
use super::objects::{BACKEND_PORT, Backend, PORT, web_on};
use super::{ETHERNET, World};

/// A port of no Service.
const UNKNOWN: u16 = 99;
const LIMIT: Duration = Duration::from_secs(10);

/// What the sender's kernel says of a packet whose checksum it left to the device.
fn left_to_device(transport: Transport, v6: bool) -> VnetHeader {
    VnetHeader {
        partial: true,
        checksum_start: (ETHERNET + if v6 { 40 } else { 20 }) as u16,
        checksum_offset: match transport {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        },
        ..VnetHeader::default()
    }
}

/// The next frame that an interface receives from this source.
#[track_caller]
fn next(socket: &FrameSocket, from: IpAddr) -> Captured {
    let wanted = |captured: &Captured| {
        captured.direction == Direction::Incoming
            && Decoded::frame(&captured.frame).is_ok_and(|decoded| decoded.ip.source == from)
    };
    socket
        .next_matching(LIMIT, wanted)
        .unwrap_or_else(|| panic!("nothing from {from} within {LIMIT:?}"))
}

/// The frame as a device would send it.
fn completed(captured: &Captured) -> Vec<u8> {
    let buffer = Buffer::from(captured.frame.clone());
    let VnetHeader {
        partial,
        checksum_start,
        checksum_offset,
        ..
    } = captured.offload;
    if partial {
        buffer.partial(checksum_start.into(), checksum_offset.into()).wire()
    } else {
        buffer.wire()
    }
}

/// Compares what follows the Ethernet header.
#[track_caller]
fn assert_same(expected: &Packet, captured: &Captured, what: &str) {
    let expected = expected.build();
    let framed = [&expected[..ETHERNET], &captured.frame[ETHERNET..]].concat();
    if let Some(text) = diff(&expected, &framed) {
        panic!("{what}: {text}{:?}", captured.offload);
    }
    let wire = Decoded::frame(&completed(captured)).expect("a packet");
    assert!(wire.sums_are_good(), "{what}: {wire:?}");
}

#[test]
fn what_the_device_has_to_sum_or_to_cut_is_translated_and_still_left_to_it() {
    let mut world = World::new(namespace("offload"));
    let _program = world.kernel.attach(ProgramName::UplinkIn, "up0");
    let netns = world.kernel.netns.clone();
    let up0: Vec<u8> = netns
        .ip("-o link show up0")
        .split_whitespace()
        .skip_while(|word| *word != "link/ether")
        .nth(1)
        .expect("a MAC address")
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("a byte"))
        .collect();
    let up0: [u8; 6] = up0.try_into().expect("six bytes");
    let outside = FrameSocket::open(&netns, "up0-peer");
    let pod = FrameSocket::open(&netns, "pod1-peer");
    for family in Addresses::BOTH {
        let (client, balancer, backend) = (family.client(), family.load_balancer(), family.local_pod());
        world.publish(&web_on(family, &[Backend::Local]), &[]);
        for (number, transport) in Transport::BOTH.into_iter().enumerate() {
            let port = CLIENT_PORT + number as u16;
            let partial = |packet: Packet| packet.sums(Sums::Partial).macs([2, 0, 0, 0, 0, 1], up0);
            let ask = |payload: usize| {
                partial(
                    transport
                        .packet((client, port), (balancer, PORT), "S")
                        .payload(&vec![0xa5; payload]),
                )
            };
            let asked = |payload: usize| {
                partial(
                    transport
                        .packet((client, SNAT_PORT), (backend, BACKEND_PORT), "S")
                        .payload(&vec![0xa5; payload]),
                )
                .ttl(63)
            };
            let state = left_to_device(transport, family.v6);
            for payload in [0, 1, 500] {
                outside.send_with(state, &ask(payload).build());
                let captured = next(&pod, client);
                assert!(captured.offload.partial, "{transport:?} {:?}", captured.offload);
                assert_same(
                    &asked(payload),
                    &captured,
                    &format!("{transport:?} with {payload} bytes"),
                );
            }
            if transport == Transport::Tcp {
                let cut = VnetHeader {
                    gso_type: if family.v6 { 4 } else { 1 },
                    gso_size: 1000,
                    header_length: state.checksum_start + 20,
                    ..state
                };
                outside.send_with(cut, &ask(5000).build());
                let captured = next(&pod, client);
                assert_eq!(
                    (captured.offload.gso_type, captured.offload.gso_size),
                    (cut.gso_type, cut.gso_size)
                );
                assert_same(&asked(5000), &captured, "segments");
            }
        }
        // Nothing but headers, so that the checksum which the device will write into the quotation is the sender's.
        let refused = Packet::new(client, family.vip())
            .udp(CLIENT_PORT, UNKNOWN)
            .macs([2, 0, 0, 0, 0, 1], up0);
        outside.send_with(
            left_to_device(Transport::Udp, family.v6),
            &refused.clone().sums(Sums::Partial).build(),
        );
        let wire = completed(&next(&outside, family.vip()));
        let told = Decoded::frame(&wire).expect("an ICMP error");
        assert!(told.sums_are_good(), "{told:?}");
        let expected = port_unreachable(&refused, client, family.vip(), 8).build();
        let framed = [&expected[..ETHERNET], &wire[ETHERNET..]].concat();
        if let Some(text) = diff(&expected, &framed) {
            panic!("{text}");
        }
    }
}
