//! Random interleavings of packets, endpoint changes, evictions, losses and time, against what was promised to each flow.
//!
//! Tables change as user space changes them: backend records first, then a fresh block and one switch of the service's word,
//! then narrower states; an id comes back under the next generation once a sweep has found no flow that refers to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use proptest::prelude::*;

use super::halves::Half;
use super::node::{BACKEND_PORT, HZ, Node, Sent, TCP, UDP};
use super::packet::Packet;
use crate::flow::state::{REPLIED, is_closed};
use crate::layout::{
    BACKEND_ON_NODE, BACKEND_SERVING, FRONTEND_CLUSTER, FRONTEND_ECHO, FRONTEND_RANGES, FRONTEND_REFUSE,
};
use crate::pipeline::Hook;
use crate::testing::{Block, Sizes};
use crate::verdict::{Action, Reason};

/// Ports of the two Services; their ids are 1 and 2.
const PORTS: [u16; 2] = [801, 802];
/// Ids of backends that may be used.
const IDS: u32 = 8;
/// Seconds of the longest time-out, and a little more.
const LONG: u32 = 86_500;

/// What happens.
#[derive(Clone, Debug)]
enum Op {
    /// The client of a flow sends: TCP flags; a datagram where the flow is UDP's.
    Client(usize, &'static str),
    /// The backend of a flow answers.
    Backend(usize, &'static str),
    /// A new endpoint; on this node where the flag says so.
    Add(usize, bool),
    /// An endpoint ends at once.
    Remove(usize, usize),
    /// An endpoint terminates: it still serves, but gets no new flows.
    Terminate(usize, usize),
    /// The same endpoints in a fresh block.
    Republish(usize),
    /// Jiffies pass.
    Pass(u32),
    /// User space sweeps.
    Sweep,
    /// One half of a flow vanishes.
    Lose(usize),
}

/// A client's way to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    hook: u8,
    protocol: u8,
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    service: usize,
}

#[derive(Clone, Copy, Debug)]
struct Endpoint {
    id: u32,
    address: IpAddr,
}

#[derive(Debug, Default)]
struct Service {
    /// In its runs.
    published: Vec<Endpoint>,
    /// Out of its runs, still serving.
    terminating: Vec<Endpoint>,
    /// Every address that it ever had.
    ever: BTreeSet<IpAddr>,
}

/// What the network knows of a translated flow: its protocol, the backend and the source that the backend sees.
type Tuple = (u8, (IpAddr, u16), (IpAddr, u16));

struct Run {
    node: Node,
    flows: Vec<Flow>,
    services: [Service; 2],
    free_ids: VecDeque<u32>,
    retired: Vec<u32>,
    next_address: u8,
    on_node: BTreeSet<IpAddr>,
    /// Where the last packet of each flow went.
    last: BTreeMap<usize, Tuple>,
    /// The flow whose packet went that way last.
    owner: BTreeMap<Tuple, usize>,
    lossy: bool,
    /// When a half was lost on purpose last.
    lost_at: Option<u32>,
}

fn flows(node: &Node) -> Vec<Flow> {
    let at = node.at;
    let clients = [
        (Hook::POD_IN, at.pod(), 40_000),
        (Hook::UPLINK_IN, at.client(), 40_000),
        (Hook::UPLINK_IN, at.client(), 40_001),
        (Hook::STEER_OUT, at.node(), 40_000),
    ];
    let mut flows = Vec::new();
    for (hook, client, port) in clients {
        for frontend in [at.vip(), at.lb()] {
            for (service, service_port) in PORTS.into_iter().enumerate() {
                for protocol in [TCP, UDP] {
                    flows.push(Flow {
                        hook,
                        protocol,
                        from: (client, port),
                        to: (frontend, service_port),
                        service,
                    });
                }
            }
        }
    }
    flows
}

impl Run {
    fn new(v6: bool, flow_sets: usize, lossy: bool) -> Self {
        let node = Node::new(
            v6,
            Sizes {
                flow_sets,
                ..Sizes::default()
            },
        );
        let at = node.at;
        node.address(at.vip(), FRONTEND_REFUSE | FRONTEND_ECHO);
        node.address(at.lb(), FRONTEND_ECHO);
        for (service, port) in (1..).zip(PORTS) {
            for protocol in [TCP, UDP] {
                node.frontend(at.vip(), port, protocol, FRONTEND_CLUSTER, service);
                node.frontend(at.lb(), port, protocol, FRONTEND_RANGES, service);
            }
            node.publish(service, &Block::default());
        }
        let mut run = Self {
            flows: flows(&node),
            node,
            services: Default::default(),
            free_ids: (1..=IDS).collect(),
            retired: Vec::new(),
            next_address: 1,
            on_node: BTreeSet::new(),
            last: BTreeMap::new(),
            owner: BTreeMap::new(),
            lossy,
            lost_at: None,
        };
        for service in 0..2 {
            run.add(service, true);
            run.add(service, false);
        }
        run
    }

    fn publish(&self, service: usize) {
        let ids: Vec<u32> = self.services[service]
            .published
            .iter()
            .map(|endpoint| endpoint.id)
            .collect();
        self.node.publish(service as u32 + 1, &Block::of(&ids));
    }

    fn add(&mut self, service: usize, on_node: bool) {
        let Some(id) = self.free_ids.pop_front() else { return };
        let address = self.node.at.numbered(self.next_address);
        let Some(next) = self.next_address.checked_add(1) else {
            return;
        };
        self.next_address = next;
        if on_node {
            self.on_node.insert(address);
            self.node.route(
                Some(address),
                super::node::BACKEND_VETH,
                address,
                Some(self.node.at.tunnel()),
                1500,
            );
        }
        let flags = if on_node { BACKEND_ON_NODE } else { 0 };
        self.node.backend(id, service as u32 + 1, address, flags);
        let state = &mut self.services[service];
        state.published.push(Endpoint { id, address });
        state.ever.insert(address);
        self.publish(service);
    }

    fn end(&mut self, service: usize, which: usize, serving: bool) {
        let state = &mut self.services[service];
        let all = state.published.len() + state.terminating.len();
        if all == 0 {
            return;
        }
        let which = which % all;
        let endpoint = if which < state.published.len() {
            state.published.remove(which)
        } else {
            let which = which - state.published.len();
            state.terminating.remove(which)
        };
        if serving {
            state.terminating.push(endpoint);
        } else {
            self.retired.push(endpoint.id);
        }
        self.publish(service);
        self.node
            .set_state(endpoint.id, if serving { BACKEND_SERVING } else { 0 });
    }

    fn sweep(&mut self) {
        self.node.sweep();
        let referred: BTreeSet<u32> = self.node.halves().iter().map(|half| half.backend.0).collect();
        let (kept, free): (Vec<u32>, Vec<u32>) = self.retired.iter().partition(|id| referred.contains(id));
        self.retired = kept;
        self.free_ids.extend(free);
    }

    /// The packet of a flow in either direction.
    fn packet(protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16), flags: &str) -> Packet {
        match protocol {
            TCP => Packet::new(from.0, to.0).tcp(from.1, to.1, flags),
            _ => Packet::new(from.0, to.0).udp(from.1, to.1),
        }
    }

    fn is_serving(&self, half: &Half) -> bool {
        let control = self.node.tables.backend_control(half.backend.0);
        control.generation == half.backend.1 && control.state & BACKEND_SERVING != 0
    }

    /// Asked for in vain, for a second at least, at a backend that serves no more.
    fn is_stuck(&self, half: &Half) -> bool {
        half.control.state & REPLIED == 0 && half.control.age(self.node.now()) >= HZ && !self.is_serving(half)
    }

    /// The entry that binds a packet: one that stands, is not over, and is not left on purpose.
    fn binding(&self, flow: &Flow, flags: &str) -> Option<Half> {
        let half = self.node.half(flow.protocol, flow.from, flow.to)?;
        let left = match flow.protocol {
            TCP => flags == "S" && (is_closed(half.control.state) || self.is_stuck(&half)),
            _ => !self.is_serving(&half),
        };
        // Another flow has taken the way back: this one has to begin anew as soon as it notices.
        let reply = self.node.half(
            half.protocol,
            (half.new_to.ip(), half.new_to.port()),
            (half.new_from.ip(), half.new_from.port()),
        );
        let taken = self.lossy && reply.is_some_and(|reply| !reply.is_twin_of(&half));
        (!left && !taken && !self.node.is_expired(&half)).then_some(half)
    }

    fn client(&mut self, index: usize, flags: &str) -> Result<(), TestCaseError> {
        let flow = self.flows[index];
        let bound = self.binding(&flow, flags);
        let sent = self
            .node
            .send(flow.hook, &Self::packet(flow.protocol, flow.from, flow.to, flags));
        if sent.outcome.reason != Reason::Forward {
            return self.check_refused(&flow, bound, &sent);
        }
        let seen = sent.decoded();
        let (source, destination) = seen.ports().expect("ports");
        let tuple = (
            flow.protocol,
            (seen.ip.destination, destination),
            (seen.ip.source, source),
        );
        let service = &self.services[flow.service];
        prop_assert!(
            service.ever.contains(&tuple.1.0),
            "a backend that is not its own: {tuple:?} of {flow:?}"
        );
        prop_assert_eq!(tuple.1.1, BACKEND_PORT);
        if let Some(half) = bound {
            prop_assert_eq!(
                tuple.1,
                (half.new_to.ip(), half.new_to.port()),
                "a flow moved: {:?}",
                flow
            );
            prop_assert_eq!(
                tuple.2,
                (half.new_from.ip(), half.new_from.port()),
                "a flow moved: {:?}",
                flow
            );
        } else {
            let is_new = sent.counted.contains_key(&Reason::NewFlow);
            prop_assert!(is_new || self.is_healing());
            prop_assert!(
                !is_new || service.published.iter().any(|endpoint| endpoint.address == tuple.1.0),
                "a new flow got a backend that takes none: {tuple:?}"
            );
        }
        // Where halves are lost, the other may be a widow that has not sent since; its next packet begins it anew.
        let other = self.owner.get(&tuple).filter(|other| **other != index && !self.lossy);
        if let Some(other) = other {
            let theirs = self.flows[*other];
            let half = self.node.half(theirs.protocol, theirs.from, theirs.to).filter(|half| {
                let way = (
                    (half.new_to.ip(), half.new_to.port()),
                    (half.new_from.ip(), half.new_from.port()),
                );
                way == (tuple.1, tuple.2) && !is_closed(half.control.state) && !self.node.is_expired(half)
            });
            prop_assert!(
                half.is_none(),
                "two flows are one to the backend: {flow:?} and {theirs:?}, {tuple:?}"
            );
        }
        self.last.insert(index, tuple);
        let reply = self.node.half(flow.protocol, tuple.1, tuple.2);
        match reply {
            None => prop_assert!(self.is_healing(), "nothing would restore the answer to {flow:?}"),
            Some(reply) if self.is_healing() && reply.new_to != flow.from.into() => {}
            Some(reply) if self.is_healing() && reply.new_from != flow.to.into() => {}
            Some(reply) => {
                self.owner.insert(tuple, index);
                prop_assert_eq!(
                    reply.new_from,
                    flow.to.into(),
                    "answers would come from another frontend"
                );
                prop_assert_eq!(reply.new_to, flow.from.into(), "answers would go to another client");
            }
        }
        Ok(())
    }

    /// A half was lost so short ago that its flow need not have noticed: packets go unnoted for sixteen seconds at most.
    fn is_healing(&self) -> bool {
        self.lost_at
            .is_some_and(|lost_at| self.node.now().wrapping_sub(lost_at) <= 16 * HZ)
    }

    /// A packet that was not translated has a reason to be so.
    fn check_refused(&self, flow: &Flow, bound: Option<Half>, sent: &Sent) -> Result<(), TestCaseError> {
        prop_assert!(sent.counted.contains_key(&sent.outcome.reason));
        match sent.outcome.reason {
            Reason::NoEndpoints => {
                prop_assert_eq!(bound, None);
                prop_assert!(self.services[flow.service].published.is_empty());
            }
            Reason::Silent => prop_assert!(bound.is_none() && self.services[flow.service].published.is_empty()),
            Reason::FlowTableFull | Reason::FlowBusy | Reason::PortsExhausted => {
                prop_assert_eq!(sent.outcome.action, Action::Drop);
                prop_assert_eq!(bound, None, "a flow was dropped for want of room that it had");
            }
            other => prop_assert!(false, "{other:?} for {flow:?}: {sent:?}"),
        }
        Ok(())
    }

    fn backend(&mut self, index: usize, flags: &str) -> Result<(), TestCaseError> {
        let Some(tuple) = self.last.get(&index).copied() else {
            return Ok(());
        };
        let flow = self.flows[index];
        let (protocol, backend, seen) = tuple;
        let on_node = self.node_has(backend.0);
        let hook = match (flow.hook, on_node) {
            (Hook::POD_IN, _) => Hook::POD_OUT,
            (Hook::UPLINK_IN, true) => Hook::UPLINK_OUT,
            (Hook::STEER_OUT, true) => Hook::POD_IN,
            _ => Hook::UPLINK_IN,
        };
        let reply = self.node.half(protocol, backend, seen);
        let sent = self.node.send(hook, &Self::packet(protocol, backend, seen, flags));
        let Some(reply) = reply.filter(|half| !self.node.is_expired(half)) else {
            prop_assert_eq!(sent.outcome.reason, Reason::NotOurs, "{:?}", sent);
            prop_assert!(sent.is_untouched() && sent.counted.contains_key(&Reason::NotOurs));
            return Ok(());
        };
        prop_assert_eq!(sent.outcome.reason, Reason::Reply, "{:?} {:?}", sent, reply);
        let restored = sent.decoded();
        let (source, destination) = restored.ports().expect("ports");
        // Whoever sent that way last, and has a way back, is whom the backend answers.
        let owner = self.flows[self.owner[&tuple]];
        prop_assert_eq!((restored.ip.source, source), owner.to);
        prop_assert_eq!((restored.ip.destination, destination), owner.from);
        Ok(())
    }

    fn node_has(&self, address: IpAddr) -> bool {
        self.on_node.contains(&address)
    }

    fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Client(index, flags) => self.client(index % self.flows.len(), flags)?,
            Op::Backend(index, flags) => self.backend(index % self.flows.len(), flags)?,
            Op::Add(service, on_node) => self.add(service, on_node),
            Op::Remove(service, which) => self.end(service, which, false),
            Op::Terminate(service, which) => self.end(service, which, true),
            Op::Republish(service) => self.publish(service),
            Op::Pass(jiffies) => self.node.tables.advance(jiffies),
            Op::Sweep => self.sweep(),
            Op::Lose(which) => {
                let halves = self.node.halves();
                if self.lossy && !halves.is_empty() {
                    self.node.lose(&halves[which % halves.len()]);
                    self.lost_at = Some(self.node.now());
                }
            }
        }
        self.node.check_table();
        if !self.lossy {
            let widows = self.node.widows();
            prop_assert!(widows.is_empty(), "half a flow stands: {widows:?}");
        }
        Ok(())
    }

    /// After the longest time that a packet may go unnoted and a packet each way, what is lost is whole again; after the longest time-out
    /// nothing is left.
    fn quiesce(&mut self) -> Result<(), TestCaseError> {
        self.node.tables.advance(16 * HZ);
        for index in 0..self.flows.len() {
            let flow = self.flows[index];
            let stands = |run: &Self| run.node.half(flow.protocol, flow.from, flow.to).is_some();
            if !stands(self) {
                continue;
            }
            self.client(index, "A")?;
            if stands(self) {
                let tuple = self.last[&index];
                let reply = self.node.half(tuple.0, tuple.1, tuple.2);
                prop_assert!(reply.is_some(), "a flow's packet did not heal it: {flow:?}");
            }
        }
        self.node.tables.advance(LONG * HZ);
        self.sweep();
        prop_assert_eq!(self.node.halves(), Vec::new());
        prop_assert!(
            self.node.spilled().iter().all(|counts| *counts == (0, 0)),
            "nothing is spilled any more"
        );
        self.sweep();
        prop_assert!(self.retired.is_empty());
        Ok(())
    }
}

fn op() -> impl Strategy<Value = Op> {
    let flags = || prop::sample::select(vec!["S", "A", "A", "PA", "FA", "R"]);
    let answers = || prop::sample::select(vec!["SA", "A", "A", "FA", "RA"]);
    let span = prop::sample::select(vec![
        1,
        HZ / 2,
        HZ,
        HZ + 1,
        31 * HZ,
        61 * HZ,
        121 * HZ,
        3601 * HZ,
        86_401 * HZ,
    ]);
    prop_oneof![
        12 => (any::<usize>(), flags()).prop_map(|(flow, flags)| Op::Client(flow, flags)),
        8 => (any::<usize>(), answers()).prop_map(|(flow, flags)| Op::Backend(flow, flags)),
        1 => (0usize..2, any::<bool>()).prop_map(|(service, on_node)| Op::Add(service, on_node)),
        1 => (0usize..2, any::<usize>()).prop_map(|(service, which)| Op::Remove(service, which)),
        1 => (0usize..2, any::<usize>()).prop_map(|(service, which)| Op::Terminate(service, which)),
        1 => (0usize..2).prop_map(Op::Republish),
        3 => span.prop_map(Op::Pass),
        1 => Just(Op::Sweep),
        2 => any::<usize>().prop_map(Op::Lose),
    ]
}

/// A conversation of a few flows, so that connections get somewhere, and everything else in between.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    let few = |op: Op, among: usize| match op {
        Op::Client(flow, flags) => Op::Client(flow % among, flags),
        Op::Backend(flow, flags) => Op::Backend(flow % among, flags),
        other => other,
    };
    (
        prop::collection::vec(op(), 1..150),
        prop::sample::select(vec![2, 6, 32]),
    )
        .prop_map(move |(ops, among)| ops.into_iter().map(|op| few(op, among)).collect())
}

fn play(v6: bool, flow_sets: usize, lossy: bool, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut run = Run::new(v6, flow_sets, lossy);
    for op in ops {
        run.step(op)?;
    }
    run.quiesce()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flows_keep_their_backends_and_answers_their_clients_with_room_for_all(v6: bool, ops in ops()) {
        play(v6, 64, false, &ops)?;
    }

    #[test]
    fn flows_keep_their_backends_and_answers_their_clients_while_others_are_evicted(
        v6: bool, flow_sets in prop::sample::select(vec![2usize, 4]), ops in ops()
    ) {
        play(v6, flow_sets, false, &ops)?;
    }

    #[test]
    fn a_lost_half_is_healed_or_its_loss_counted_and_nothing_reaches_a_stranger(
        v6: bool, flow_sets in prop::sample::select(vec![2usize, 4, 64]), ops in ops()
    ) {
        play(v6, flow_sets, true, &ops)?;
    }
}
