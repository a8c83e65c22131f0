//! Every case once more with the program at XDP before the one at tc, as on an uplink that has both.
//!
//! A packet of a case at the uplink's ingress becomes at XDP what the case says of it at tc, with the next hop's MAC addresses
//! where it is sent on; or it is handed over untouched, where the case says so, and becomes it at tc. What passes untouched is
//! seen by tc in any case. Packets of other hooks are given to both as if they came from outside: no case says what becomes of
//! them there, but kernel and host have to agree.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use lb_common::layout::config;
use lb_common::verdict::Reason::{Forward, NewFlow, NotOurs, Reply};
use lb_common::verdict::{Action, Reason};
use lb_tests::packet::{Decoded, Packet, diff};
use lb_tests::prog_run::xdp::{XDP_DROP, XDP_PASS, XDP_TX};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use steerway::datapath::load::ProgramName::{self, UplinkIn};
use steerway::maps::{MapStore as _, Table};

use super::case::{Case, End, Step, at, counted, is_bare};
use super::compare::{self, both, check, counted_since, delta};
use super::flow::{CLIENT_PORT, Flow, Transport};
use super::node::{Addresses, NEXT_HOP_MAC, SNAT_PORT, UPLINK, UPLINK_MAC, mac_text};
use super::objects::{BACKEND_PORT, Backend, PORT, web_on};
use super::{Given, World, run_cases};

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// What XDP made of a frame.
#[derive(Clone, Debug)]
struct Outcome {
    frame: Vec<u8>,
    end: End,
    /// Told to tc that the frame is translated.
    marked: bool,
    counts: BTreeMap<Reason, u64>,
}

impl Outcome {
    /// True where tc has to look at the packet.
    fn is_left_to_tc(&self) -> bool {
        self.end == End::Next && !self.marked
    }
}

/// Runs the program at XDP on both sides. The error says in what they differ.
fn both_xdp(world: &World, frame: &[u8]) -> Result<Outcome, String> {
    let mut wrong = String::new();
    let before = [world.kernel_counts(), world.host_counts()];
    let (packet, decision) = world.host.run_xdp(frame, UPLINK);
    let output = world.kernel.run_xdp(frame, UPLINK)?;
    let counts = counted_since(world, &before, &mut wrong);
    if let Some(text) = diff(packet.bytes(), &output.frame) {
        _ = writeln!(wrong, "the kernel's frame is not the host's:\n{text}");
    }
    let (end, returned) = match decision.action {
        Action::Pass => (End::Next, XDP_PASS),
        Action::Drop => (End::Drop, XDP_DROP),
        Action::Transmit => (End::Redirect(decision.ifindex), XDP_TX),
        Action::Answer | Action::Receive | Action::Deliver | Action::Neighbour => {
            return Err(format!("no verdict of XDP: {decision:?}"));
        }
    };
    if output.verdict != returned {
        _ = writeln!(wrong, "the kernel returned {}, the host {decision:?}", output.verdict);
    }
    let mark = packet.mark.map_or_else(Vec::new, |mark| mark.to_ne_bytes().to_vec());
    if mark != output.beside {
        _ = writeln!(
            wrong,
            "beside the frame the kernel left {:?}, the host {mark:?}",
            output.beside
        );
    }
    if let Some(text) = world.flow_difference(frame) {
        _ = writeln!(wrong, "{text}");
    }
    let outcome = Outcome {
        frame: output.frame,
        end,
        marked: packet.mark.is_some(),
        counts,
    };
    if outcome.is_left_to_tc() && outcome.frame != frame {
        _ = writeln!(wrong, "passed without a mark, but not untouched");
    }
    if wrong.is_empty() { Ok(outcome) } else { Err(wrong) }
}

/// Where a table of packets meets the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At a hook of tc.
    Tc(ProgramName),
    /// At XDP of the uplink, which may leave none of them to tc.
    Xdp,
}

impl Place {
    /// Runs a packet on both sides. The error says in what they differ, or that XDP did not do its part.
    pub(super) fn both(self, world: &World, packet: &Packet) -> Result<compare::Outcome, String> {
        if let Self::Tc(hook) = self {
            return both(world, hook, &at(hook, packet).given);
        }
        let outcome = both_xdp(world, &packet.build())?;
        if outcome.is_left_to_tc() {
            return Err(format!("XDP left it to tc: {outcome:?}"));
        }
        Ok(compare::Outcome {
            frame: outcome.frame,
            end: outcome.end,
            counts: outcome.counts,
        })
    }
}

/// The frame that XDP sends where tc leaves the Ethernet header to the kernel.
fn with_hop(step: &Step) -> Vec<u8> {
    let mut frame = step.becomes.clone().unwrap_or_else(|| step.given.frame.clone());
    let kernel_writes_header = frame[..12] == step.given.frame[..12];
    if matches!(step.end, End::Redirect(_)) && kernel_writes_header {
        frame[..6].copy_from_slice(&NEXT_HOP_MAC);
        frame[6..12].copy_from_slice(&UPLINK_MAC);
    }
    frame
}

/// Runs a step at the uplink's ingress by XDP, then by tc where XDP leaves it.
fn check_step(world: &World, step: &Step) -> Result<(), String> {
    let outcome = both_xdp(world, &step.given.frame)?;
    let mut wrong = String::new();
    if step.handed_over {
        if !outcome.is_left_to_tc() || outcome.counts != counted(&[Reason::HandedOver]) {
            return Err(format!("not handed over, but {:?}, {:?}", outcome.end, outcome.counts));
        }
        return check(world, step, false);
    }
    let expected = with_hop(step);
    if let Some(text) = diff(&expected, &outcome.frame) {
        _ = writeln!(wrong, "not the expected frame:\n{text}");
    }
    if (outcome.end, &outcome.counts) != (step.end, &step.counts) {
        let (end, counts) = (&step.end, &step.counts);
        _ = writeln!(
            wrong,
            "ended in {:?}, {:?}, not in {end:?}, {counts:?}",
            outcome.end, outcome.counts
        );
    }
    if step.becomes.is_some() && !Decoded::frame(&outcome.frame).is_ok_and(|decoded| decoded.sums_are_good()) {
        _ = writeln!(wrong, "wrong checksums: {:?}", Decoded::frame(&outcome.frame));
    }
    if outcome.marked != (outcome.end == End::Next && step.becomes.is_some()) {
        _ = writeln!(wrong, "marked: {}", outcome.marked);
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    if outcome.is_left_to_tc() {
        return check(world, step, false);
    }
    Ok(())
}

/// Runs a step of another hook as if its packet came from outside.
fn check_elsewhere(world: &World, step: &Step) -> Result<(), String> {
    let outcome = both_xdp(world, &step.given.frame)?;
    if outcome.is_left_to_tc() {
        let given = Given {
            frame: step.given.frame.clone(),
            ifindex: UPLINK,
            ingress_ifindex: UPLINK,
            segment_payload: 0,
            summed: false,
        };
        both(world, UplinkIn, &given)?;
    }
    Ok(())
}

impl World {
    /// Runs a case with XDP before tc, on tables without flows; gives what is wrong. `outside`: every packet comes from there.
    pub(super) fn run_with_xdp(&mut self, case: &Case, outside: bool) -> Result<(), String> {
        self.clear();
        self.publish(&case.objects, &case.words);
        for (number, step) in case.steps.iter().enumerate() {
            if let Some(objects) = step.new_objects() {
                self.publish(objects, &case.words);
            }
            let at_uplink = step.program == UplinkIn && step.given.ifindex == UPLINK;
            let done = match (at_uplink, outside) {
                (_, true) if is_bare(step.program) => Ok(()),
                (_, true) => check_elsewhere(self, step),
                (true, false) => check_step(self, step),
                (false, false) => check(self, step, false),
            };
            done.map_err(|wrong| format!("packet {number} at {step}: {wrong}"))?;
        }
        Ok(())
    }
}

/// From the client outside to a backend.
fn to(family: Addresses, transport: Transport, backend: IpAddr) -> Flow {
    Flow {
        transport,
        client: (family.client(), CLIENT_PORT),
        frontend: (family.load_balancer(), PORT),
        source: (family.node(), SNAT_PORT),
        backend: (backend, BACKEND_PORT),
    }
}

#[test]
fn what_xdp_cannot_be_sure_of_is_left_to_tc_untouched_and_creates_nothing() {
    run_cases(|family| {
        let mut cases = Vec::new();
        for transport in Transport::BOTH {
            let new: &[_] = &[NewFlow, Forward];
            let unresolved = to(family, transport, family.unresolved_pod());
            cases.push(Case::new(
                "a next hop whose MAC address is unknown",
                web_on(family, &[Backend::Unresolved]),
                vec![
                    at(UplinkIn, &unresolved.ask("S"))
                        .redirected_as(UPLINK, &unresolved.asked("S").ttl(63), new)
                        .handed_over(),
                    at(UplinkIn, &unresolved.ask("A"))
                        .redirected_as(UPLINK, &unresolved.asked("A").ttl(63), &[Forward])
                        .handed_over(),
                ],
            ));
            let remote = to(family, transport, family.remote_pod());
            let elsewhere = |packet: Packet| packet.macs(CLIENT_MAC, [2, 0, 0, 0, 0, 3]);
            cases.push(Case::new(
                "a frame for another host",
                web_on(family, &[Backend::Remote]),
                vec![
                    at(UplinkIn, &elsewhere(remote.ask("S")))
                        .passes(&[NotOurs])
                        .handed_over(),
                    at(UplinkIn, &elsewhere(remote.ask("A")))
                        .passes(&[NotOurs])
                        .handed_over(),
                ],
            ));
        }
        cases
    });
}

/// With a flow of each kind to a backend on another node, on tables that know of no flow.
#[track_caller]
fn with_each_flow(test: impl Fn(&World, &Flow)) {
    let mut world = World::shared();
    for family in Addresses::BOTH {
        for transport in Transport::BOTH {
            world.clear();
            world.publish(&web_on(family, &[Backend::Remote]), &[]);
            test(&world, &to(family, transport, family.remote_pod()));
        }
    }
}

#[test]
fn a_frame_in_several_buffers_is_left_to_tc() {
    with_each_flow(|world, flow| {
        let mut frame = flow.ask("S").build();
        // A program sees the first buffer alone: less than the IP header announces.
        frame.truncate(frame.len() - 1);
        let outcome = both_xdp(world, &frame).expect("both sides agree");
        assert!(outcome.is_left_to_tc(), "{outcome:?}");
        assert_eq!(outcome.counts, counted(&[Reason::HandedOver]));
    });
}

#[test]
fn a_frame_whose_data_are_in_further_buffers_is_left_to_tc_whole() {
    // More than the test run puts into the first buffer, which is a page with head and tail room.
    const DATA: usize = 5000;
    let mut world = World::shared();
    for family in Addresses::BOTH {
        for transport in Transport::BOTH {
            world.clear();
            world.publish(&web_on(family, &[Backend::Local]), &[]);
            let flow = to(family, transport, family.local_pod());
            let payload: Vec<u8> = (0..DATA).map(|index| (index * 7) as u8).collect();
            let frame = flow.ask("S").payload(&payload).build();
            let before = world.kernel_counts();
            let output = world.kernel.run_xdp(&frame, UPLINK).expect("a run");
            assert_eq!(output.verdict, XDP_PASS);
            assert!(
                diff(&frame, &output.frame).is_none(),
                "{:?}",
                diff(&frame, &output.frame)
            );
            assert!(output.beside.is_empty(), "a mark for tc: {:?}", output.beside);
            let counts = delta(&before, &world.kernel_counts());
            assert_eq!(counts, counted(&[Reason::HandedOver]));
            assert_eq!(world.flow_difference(&frame), None, "a flow began");
            // All in one buffer, the same frame is translated.
            let (whole, decision) = world.host.run_xdp(&frame, UPLINK);
            assert_eq!(decision.action, Action::Pass);
            assert!(whole.mark.is_some() && whole.bytes() != frame, "{decision:?}");
        }
    }
}

#[test]
fn a_flow_goes_on_whether_xdp_or_tc_meets_its_packets() {
    with_each_flow(|world, flow| {
        let by_xdp = |packet: &Packet| both_xdp(world, &packet.build()).expect("both sides agree");
        let by_tc = |packet: &Packet| {
            let given = at(UplinkIn, packet).given;
            both(world, UplinkIn, &given).expect("both sides agree")
        };
        assert_eq!(by_xdp(&flow.ask("S")).counts, counted(&[NewFlow, Forward]));
        assert_eq!(by_tc(&flow.ask("A")).counts, counted(&[Forward]));
        assert_eq!(by_tc(&flow.answer("SA")).counts, counted(&[Reply]));
        assert_eq!(by_xdp(&flow.answer("A")).counts, counted(&[Reply]));
        assert_eq!(by_xdp(&flow.ask("A")).counts, counted(&[Forward]));
    });
}

/// The receiver of the frame that XDP sends for the next packet of a flow.
#[track_caller]
fn receiver(world: &World, flow: &Flow) -> [u8; 6] {
    let output = world.kernel.run_xdp(&flow.ask("A").build(), UPLINK).expect("a run");
    assert_eq!(output.verdict, XDP_TX);
    output.frame[..6].try_into().expect("six bytes")
}

#[test]
fn a_way_out_is_remembered_until_user_space_tells_of_a_change_or_a_second_has_passed() {
    const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfd];
    // What is remembered is a CPU's own, and the threads that run programs stay where this one stays.
    let everywhere = sched_getaffinity(Pid::from_raw(0)).expect("this thread's CPUs");
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|cpu| everywhere.is_set(*cpu).unwrap_or(false));
    one.set(first.expect("a CPU")).expect("a CPU's number");
    sched_setaffinity(Pid::from_raw(0), &one).expect("a CPU for this thread");
    with_each_flow(|world, flow| {
        let hop = if flow.client.0.is_ipv6() {
            Addresses::BOTH[1]
        } else {
            Addresses::BOTH[0]
        }
        .next_hop();
        let set_neighbour = |mac: [u8; 6]| {
            let mac = mac_text(mac);
            let netns = &world.kernel.netns;
            netns.ip(&format!("neighbour replace {hop} lladdr {mac} dev up0 nud permanent"));
        };
        both_xdp(world, &flow.ask("S").build()).expect("both sides agree");
        assert_eq!(receiver(world, flow), NEXT_HOP_MAC);
        set_neighbour(OTHER_MAC);
        assert_eq!(receiver(world, flow), NEXT_HOP_MAC, "nobody told of a change");
        let epoch = world.kernel.store.words(Table::Epoch);
        epoch.store(0, epoch.load(0) + 1);
        assert_eq!(receiver(world, flow), OTHER_MAC);
        set_neighbour(NEXT_HOP_MAC);
        assert_eq!(receiver(world, flow), OTHER_MAC);
        // A second of no jiffy is over at once.
        let config = world.kernel.store.words(Table::Config);
        let second = config.load(config::HZ);
        config.store(config::HZ, 0);
        world.kernel.run_xdp(&flow.ask("A").build(), UPLINK).expect("a run");
        config.store(config::HZ, second);
        assert_eq!(receiver(world, flow), NEXT_HOP_MAC);
    });
    sched_setaffinity(Pid::from_raw(0), &everywhere).expect("this thread's CPUs");
}
