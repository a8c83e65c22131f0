//! Steerway's side: the source `kubernetes` and the model, in this process, as the agent runs them.

use std::collections::BTreeSet;

use ipnet::IpNet;
use lb_tests::kubernetes::ControlPlane;
use lb_tests::world::{Node, World};
use steerway::model::{
    BackendSet, Choice, DesiredState, Family, FrontendKind, ModelConfig, Protocol, ServicePort, ServicePortKey,
    SourceRanges, WhenEmpty, build,
};
use steerway::source::kubernetes::{Access, start};

use super::{Admitted, Answer, Answers, CLASSES, Class, Frontend};

/// What the model decides on what the API holds now, and what it rejected.
#[track_caller]
pub(super) fn state(world: &World, cluster: &ControlPlane, node: &Node) -> (DesiredState, Vec<String>) {
    let access = Access::Kubeconfig {
        file: cluster.kube_proxy(),
        server: None,
    };
    let config = ModelConfig::new(&node.name);
    let source_state = world.fabric.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let source = start(access, &node.name);
            source.handle().refresh().await.expect("a source that reads")
        })
    });
    let state = build(&source_state.snapshot, &config);
    let rejections = source_state.rejections.iter().chain(&state.rejections);
    let rejections = rejections.map(ToString::to_string).collect();
    (state, rejections)
}

/// The answers for every frontend.
pub(super) fn answers(state: &DesiredState) -> Answers {
    let mut answers = Answers::default();
    for (key, port) in &state.service_ports {
        for frontend in &port.frontends {
            let asked = Frontend {
                address: frontend.address,
                v6: key.family == Family::V6,
                port: frontend.port,
                protocol: protocol(key),
            };
            for class in CLASSES {
                let answer = answer(port, frontend.kind, class);
                answers.flows.insert((asked.clone(), class), answer);
            }
            if frontend.address.is_some() {
                let admitted = if frontend.kind == FrontendKind::LoadBalancerIp {
                    admitted(port)
                } else {
                    None
                };
                answers.admitted.insert(asked, admitted);
            }
        }
    }
    answers
}

fn protocol(key: &ServicePortKey) -> &'static str {
    match key.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn answer(port: &ServicePort, kind: FrontendKind, class: Class) -> Answer {
    let choice = match (kind, class) {
        (FrontendKind::ClusterIp, _) => port.internal,
        (_, Class::Outside) => port.external,
        (_, Class::Pod | Class::Node) => port.external_from_inside,
    };
    let endpoints: BTreeSet<_> = members(port, choice);
    if endpoints.is_empty() {
        return match choice.when_empty {
            WhenEmpty::Reject => Answer::Refused,
            WhenEmpty::Drop => Answer::Dropped,
        };
    }
    Answer::Endpoints(endpoints, port.affinity_seconds.map(u64::from))
}

fn members(port: &ServicePort, choice: Choice) -> BTreeSet<std::net::SocketAddr> {
    let set: BackendSet = choice.set;
    port.set(set)
        .map(|(at, _)| std::net::SocketAddr::new(at.address, at.port))
        .collect()
}

/// The sources that the port's load balancer addresses admit. kube-proxy lets a node whose address is in a range reach itself by
/// admitting the load balancer's addresses as sources.
fn admitted(port: &ServicePort) -> Admitted {
    let SourceRanges::Ranges { ranges, allow_node } = &port.source_ranges else {
        return None;
    };
    let own = port
        .frontends
        .iter()
        .filter(|frontend| *allow_node && frontend.kind == FrontendKind::LoadBalancerIp);
    let own = own.filter_map(|frontend| frontend.address).map(IpNet::from);
    let all: Vec<IpNet> = ranges.iter().copied().chain(own).collect();
    Some(IpNet::aggregate(&all).into_iter().collect())
}
