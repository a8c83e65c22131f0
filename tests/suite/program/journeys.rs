//! New flows, established ones and replies at every hook where flows begin, for a backend in every place.

use std::net::IpAddr;

use lb_common::verdict::Reason::{Forward, NewFlow, OtherHook, Reply};
use lb_tests::packet::Packet;
use steerway::datapath::load::ProgramName::{self, LoOut, PodIn, PodOut, SteerOut, UplinkIn, UplinkOut};

use super::case::{Case, End, Step, at};
use super::flow::{CLIENT_PORT, Flow, Transport};
use super::node::{Addresses, BACKEND_VETH, CLIENT_VETH, LO, SNAT_PORT, STEER, STEER_MAC, UPLINK};
use super::objects::{BACKEND_PORT, Backend, NODE_PORT, PORT, web_on};
use super::run_cases;

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The source that a backend sees.
#[derive(Clone, Copy, PartialEq)]
enum Seen {
    /// The client with its port.
    Client,
    /// The client's address, a port of ours.
    ClientAddress,
    /// The frontend's address, the client's port.
    Frontend,
    /// The node's address towards that device, a port of ours.
    Node(u32),
}

/// What a hop does to a packet besides translating it.
#[derive(Clone, Copy, PartialEq)]
enum Onwards {
    /// To the stack.
    Stack,
    /// Out of a device as the next hop of a router.
    Routed(u32),
    /// Out of a device, from a process of this host.
    Out(u32),
    /// Back where it came from.
    Back(u32),
    /// To the host by steer0.
    Steer,
    /// To the host by the loopback.
    Loopback,
}

struct Journey {
    name: &'static str,
    hook: ProgramName,
    client: fn(Addresses) -> IpAddr,
    frontend: (fn(Addresses) -> IpAddr, u16),
    backend: (Backend, fn(Addresses) -> IpAddr),
    seen: Seen,
    forward: Onwards,
    /// Hooks that the answer passes untouched.
    passes: &'static [ProgramName],
    reply_hook: ProgramName,
    /// The device on which the answer is met, if not the usual one of its hook.
    reply_device: Option<u32>,
    reply: Onwards,
}

const VIP: (fn(Addresses) -> IpAddr, u16) = (Addresses::vip, PORT);
const BALANCER: (fn(Addresses) -> IpAddr, u16) = (Addresses::load_balancer, PORT);
const OWN: (fn(Addresses) -> IpAddr, u16) = (Addresses::node, NODE_PORT);
const LOCAL: (Backend, fn(Addresses) -> IpAddr) = (Backend::Local, Addresses::local_pod);
const REMOTE: (Backend, fn(Addresses) -> IpAddr) = (Backend::Remote, Addresses::remote_pod);
const HOST: (Backend, fn(Addresses) -> IpAddr) = (Backend::Host, Addresses::node);

/// Outside to a pod of this node by the LoadBalancer IP.
const OUTSIDE: Journey = Journey {
    name: "outside to a local pod",
    hook: UplinkIn,
    client: Addresses::client,
    frontend: BALANCER,
    backend: LOCAL,
    seen: Seen::ClientAddress,
    forward: Onwards::Stack,
    passes: &[PodIn],
    reply_hook: UplinkOut,
    reply_device: None,
    reply: Onwards::Stack,
};
const OUTSIDE_TO_REMOTE: Journey = Journey {
    name: "outside to a remote pod",
    backend: REMOTE,
    seen: Seen::Node(UPLINK),
    forward: Onwards::Routed(UPLINK),
    passes: &[],
    reply_hook: UplinkIn,
    reply: Onwards::Routed(UPLINK),
    ..OUTSIDE
};
const POD: Journey = Journey {
    name: "pod to a local pod",
    hook: PodIn,
    client: Addresses::pod,
    frontend: VIP,
    seen: Seen::Client,
    reply_hook: PodOut,
    ..OUTSIDE
};
const PROCESS: Journey = Journey {
    name: "process to a local pod",
    hook: SteerOut,
    client: Addresses::node,
    frontend: VIP,
    seen: Seen::Node(BACKEND_VETH),
    forward: Onwards::Out(BACKEND_VETH),
    passes: &[],
    reply_hook: PodIn,
    reply_device: Some(BACKEND_VETH),
    reply: Onwards::Steer,
    ..OUTSIDE
};
const BY_LOOPBACK: Journey = Journey {
    name: "process to a local pod by a NodePort",
    hook: LoOut,
    frontend: OWN,
    reply: Onwards::Loopback,
    ..PROCESS
};

const JOURNEYS: &[Journey] = &[
    OUTSIDE,
    Journey {
        name: "outside to a local pod by a NodePort",
        frontend: OWN,
        ..OUTSIDE
    },
    Journey {
        name: "outside to a process of the host",
        backend: HOST,
        passes: &[],
        ..OUTSIDE
    },
    OUTSIDE_TO_REMOTE,
    Journey {
        name: "outside to a remote pod by a NodePort",
        frontend: OWN,
        ..OUTSIDE_TO_REMOTE
    },
    POD,
    Journey {
        name: "pod to a remote pod",
        backend: REMOTE,
        passes: &[UplinkIn],
        ..POD
    },
    Journey {
        name: "pod to a process of the host",
        backend: HOST,
        passes: &[],
        ..POD
    },
    Journey {
        name: "pod to itself",
        backend: (Backend::Client, Addresses::pod),
        seen: Seen::Frontend,
        forward: Onwards::Back(CLIENT_VETH),
        passes: &[],
        reply_hook: PodIn,
        reply: Onwards::Back(CLIENT_VETH),
        ..POD
    },
    Journey {
        name: "pod to a remote pod by the LoadBalancer IP",
        frontend: BALANCER,
        backend: REMOTE,
        passes: &[UplinkIn],
        ..POD
    },
    Journey {
        name: "pod to a local pod by a NodePort",
        frontend: OWN,
        ..POD
    },
    PROCESS,
    Journey {
        name: "process to a remote pod",
        backend: REMOTE,
        seen: Seen::Node(UPLINK),
        forward: Onwards::Out(UPLINK),
        reply_hook: UplinkIn,
        reply_device: None,
        ..PROCESS
    },
    Journey {
        name: "process to a process of the host",
        backend: HOST,
        seen: Seen::Frontend,
        forward: Onwards::Steer,
        reply_hook: SteerOut,
        reply_device: None,
        ..PROCESS
    },
    BY_LOOPBACK,
    Journey {
        name: "process to a remote pod by a NodePort",
        backend: REMOTE,
        seen: Seen::Node(UPLINK),
        forward: Onwards::Out(UPLINK),
        reply_hook: UplinkIn,
        reply_device: None,
        ..BY_LOOPBACK
    },
    Journey {
        name: "process to a process of the host by a NodePort",
        backend: HOST,
        seen: Seen::Client,
        forward: Onwards::Stack,
        reply_hook: LoOut,
        reply_device: None,
        reply: Onwards::Stack,
        ..BY_LOOPBACK
    },
];

impl Onwards {
    fn of(self, step: Step, packet: &Packet, counts: &[lb_common::verdict::Reason]) -> Step {
        let (end, packet) = match self {
            Self::Stack => (End::Next, packet.clone()),
            Self::Routed(device) => (End::Redirect(device), packet.clone().ttl(63)),
            Self::Out(device) => (End::Redirect(device), packet.clone()),
            Self::Back(device) => (End::Redirect(device), packet.clone().macs(NODE_MAC, CLIENT_MAC)),
            Self::Steer => (End::Redirect(STEER), packet.clone().macs(CLIENT_MAC, STEER_MAC)),
            Self::Loopback => (End::Redirect(LO), packet.clone().macs(CLIENT_MAC, [0; 6])),
        };
        let step = match end {
            End::Redirect(device) => step.redirected_as(device, &packet, counts),
            End::Next | End::Drop => step.passes_as(&packet, counts),
        };
        match self {
            // Not a way that XDP has.
            Self::Steer | Self::Loopback => step.handed_over(),
            Self::Stack | Self::Routed(_) | Self::Out(_) | Self::Back(_) => step,
        }
    }
}

impl Journey {
    fn flow(&self, family: Addresses, transport: Transport) -> Flow {
        let client = ((self.client)(family), CLIENT_PORT);
        let frontend = (self.frontend.0(family), self.frontend.1);
        let source = match self.seen {
            Seen::Client => client,
            Seen::ClientAddress => (client.0, SNAT_PORT),
            Seen::Frontend => (frontend.0, CLIENT_PORT),
            Seen::Node(UPLINK) => (family.node(), SNAT_PORT),
            Seen::Node(_) => (family.gateway_of_pods(), SNAT_PORT),
        };
        Flow {
            transport,
            client,
            frontend,
            source,
            backend: (self.backend.1(family), BACKEND_PORT),
        }
    }

    fn case(&self, family: Addresses, transport: Transport) -> Case {
        let flow = self.flow(family, transport);
        let forward = |flags, counts: &[_]| {
            self.forward
                .of(at(self.hook, &flow.ask(flags)), &flow.asked(flags), counts)
        };
        let reply = |flags| {
            let step = at(self.reply_hook, &flow.answer(flags));
            let step = match self.reply_device {
                Some(device) => step.on(device).received_by(device),
                None => step,
            };
            self.reply.of(step, &flow.answered(flags), &[Reply])
        };
        let mut steps = vec![forward("S", &[NewFlow, Forward])];
        for hook in self.passes {
            steps.push(at(*hook, &flow.answer("SA")).passes(&[OtherHook]));
        }
        steps.push(reply("SA"));
        for flags in ["A", "PA", "FA"] {
            steps.extend([forward(flags, &[Forward]), reply(flags)]);
        }
        steps.push(forward("R", &[Forward]));
        Case::new(
            &format!("{} over {}", self.name, transport.name()),
            web_on(family, &[self.backend.0]),
            steps,
        )
    }
}

#[test]
fn every_packet_of_a_flow_is_translated_both_ways_at_every_hook() {
    run_cases(|family| {
        JOURNEYS
            .iter()
            .flat_map(|journey| Transport::BOTH.map(|transport| journey.case(family, transport)))
            .collect()
    });
}
