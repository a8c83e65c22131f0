//! Test runs give back what a program did; what the kernel allows in them is as the module says.

use std::time::Duration;

use aya::programs::TcAttachType;
use lb_tests::assert::eventually;
use lb_tests::netfilter::{rule_hits, set_rules};
use lb_tests::netns::Netns;
use lb_tests::packet::{Checksum, Decoded, Packet};
use lb_tests::prog_run::{Input, InputSum, SkbFields, TC_ACT_SHOT, TC_ACT_UNSPEC};
use lb_tests::tiny_program::{Instruction as I, TinyProgram};
use lb_tests::traffic::{Server, udp_request};
use lb_tests::world::World;
use nix::errno::Errno;

const SKB_STORE_BYTES: i32 = 9;
const L4_CSUM_REPLACE: i32 = 11;
/// The checksum's offset in a UDP datagram over IPv4 in an Ethernet frame.
const UDP_SUM_OFFSET: i32 = 40;
const UDP_PORT_OFFSET: i32 = 36;

fn datagram() -> Vec<u8> {
    Packet::new([10, 0, 0, 1], [10, 0, 0, 2])
        .udp(4000, 80)
        .payload(b"payload")
        .build()
}

fn frame_ttl(frame: &[u8]) -> u8 {
    Decoded::frame(frame).expect("a packet").ip.ttl
}

/// Writes the port 81 in place of 80; `sum` instructions follow for the checksum.
fn port_writer(sum: &[I]) -> TinyProgram {
    let mut code = vec![
        I::copy(6, 1),
        I::set(2, i32::from(81_u16.to_be())),
        // The stack's lowest word holds the new port.
        I::store_word(10, -4, 2),
        I::set(2, UDP_PORT_OFFSET),
        I::copy(3, 10),
        I::add(3, -4),
        I::set(4, 2),
        I::set(5, 0),
        I::call(SKB_STORE_BYTES),
    ];
    code.extend_from_slice(sum);
    code.extend([I::set(0, 0), I::exit()]);
    TinyProgram::load(&code)
}

/// `bpf_l4_csum_replace(skb, offset, 80, 81, 2)`.
const SUM_UPDATE: [I; 6] = [
    I::copy(1, 6),
    I::set(2, UDP_SUM_OFFSET),
    I::set(3, (80_u16.to_be()) as i32),
    I::set(4, (81_u16.to_be()) as i32),
    I::set(5, 2),
    I::call(L4_CSUM_REPLACE),
];

#[test]
fn verdict_packet_and_mark_come_back() {
    let program = TinyProgram::marking(42, TC_ACT_SHOT);
    let output = Input::new(datagram()).run(program.program()).expect("a run");
    assert_eq!((output.verdict, output.fields.mark), (TC_ACT_SHOT, 42));
    assert_eq!((output.frame.clone(), frame_ttl(&output.frame)), (datagram(), 64));
    let output = Input::new(datagram())
        .run(TinyProgram::marking(1, TC_ACT_UNSPEC).program())
        .expect("a run");
    assert_eq!(output.verdict, TC_ACT_UNSPEC);
}

#[test]
fn the_fields_that_go_in_come_out() {
    let netns = Netns::new("fields");
    netns.ip("link add v1 type veth peer name v2");
    let (v1, v2) = (netns.ifindex("v1").expect("v1"), netns.ifindex("v2").expect("v2"));
    let fields = SkbFields {
        mark: 1,
        priority: 2,
        ifindex: v1,
        ingress_ifindex: v2,
        cb: [3, 4, 5, 6, 7],
        tstamp: 8,
        wire_len: 4000,
        gso_segs: 3,
        gso_size: 1400,
        hwtstamp: 9,
    };
    let program = TinyProgram::load(&[I::set(0, 0), I::exit()]);
    let output = Input {
        frame: datagram(),
        fields,
        sum: InputSum::None,
    }
    .run_in(&netns, program.program());
    assert_eq!(output.expect("a run").fields, fields);
    let absent = Input::new(datagram())
        .on(9999)
        .run_in(&netns, program.program())
        .expect_err("no such device");
    assert_eq!(absent.raw_os_error(), Some(Errno::ENODEV as i32));
}

#[test]
fn a_program_that_updates_the_sum_leaves_a_good_one_in_every_state() {
    let program = port_writer(&SUM_UPDATE);
    for sum in [InputSum::None, InputSum::Complete] {
        let output = Input {
            sum,
            ..Input::new(datagram())
        }
        .run(program.program())
        .expect("a run");
        let decoded = Decoded::frame(&output.frame).expect("a packet");
        assert_eq!(
            (decoded.destination_port(), decoded.transport_sum),
            (Some(81), Checksum::Good)
        );
    }
}

#[test]
fn a_program_that_forgets_the_sum_is_found_by_the_oracle_and_by_the_kernel() {
    let program = port_writer(&[]);
    let output = Input::new(datagram()).run(program.program()).expect("a run");
    assert!(matches!(
        Decoded::frame(&output.frame).expect("a packet").transport_sum,
        Checksum::Wrong { .. }
    ));
    let broken = Input {
        sum: InputSum::Complete,
        ..Input::new(datagram())
    }
    .run(program.program());
    assert_eq!(
        broken.expect_err("skb->csum no longer fits").raw_os_error(),
        Some(Errno::EBADMSG as i32)
    );
}

#[test]
fn tiny_programs_run_beside_each_other_by_tcx_and_clsact() {
    let world = World::builder().nodes(1).clients(0).build();
    let (node, from, to) = (world.node(1), world.pod("pod1-1"), world.pod("pod1-2"));
    let marked = |mark: u8| {
        let rule = format!("meta mark & 0xff == {mark} counter name hits");
        set_rules(
            node,
            &format!("inet mark{mark}"),
            "filter hook prerouting priority 0",
            &rule,
        );
    };
    let count = |mark: u8| rule_hits(node, &format!("inet mark{mark}"));
    marked(7);
    marked(9);
    let _server = Server::udp(to, "to", (to.ip4, 80));
    let mut first = TinyProgram::marking(7, TC_ACT_UNSPEC);
    first.attach_tcx(node, &from.veth, TcAttachType::Ingress);
    udp_request(from, (to.ip4, 80), None, Duration::from_secs(2)).expect("a reply");
    assert_eq!((count(7), count(9)), (1, 0));
    let mut second = TinyProgram::marking(9, TC_ACT_UNSPEC);
    second.attach_clsact(node, &from.veth, TcAttachType::Ingress, 10);
    eventually(
        Duration::from_secs(2),
        "the clsact program runs behind the tcx one",
        || {
            udp_request(from, (to.ip4, 80), None, Duration::from_secs(2)).map_err(|error| error.to_string())?;
            if count(9) > 0 {
                Ok(())
            } else {
                Err("no packet with the second mark".to_owned())
            }
        },
    );
}
