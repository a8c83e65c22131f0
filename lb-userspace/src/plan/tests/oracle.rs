//! What packets should find, straight from the desired state, without ids, slots or blocks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{
    BackendSet, Choice, DesiredState, EndpointAddress, Family, Frontend, FrontendKind, Protocol, ServicePort,
    ServicePortKey, SourceRanges, WhenEmpty,
};
use crate::plan::NodeTables;

/// A destination to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Probe {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) protocol: u8,
}

/// What becomes of packets to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    NotOurs,
    Passed,
    Refused,
    Service(Service),
}

/// A service port as packets see it through one of its frontends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) key: ServicePortKey,
    pub(super) affinity_seconds: u32,
    /// The ranges to obey; `None` where every source may pass.
    pub(super) ranges: Option<BTreeSet<IpNet>>,
    pub(super) outside: Set,
    pub(super) inside: Set,
}

/// Where new flows may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) local: bool,
    /// With the backend's flags.
    pub(super) members: Result<BTreeSet<(EndpointAddress, u16)>, WhenEmpty>,
}

/// A moment of a publish: frontends with an address, NodePorts, service ports and addresses can each be old or new.
#[derive(Clone, Copy)]
pub(super) struct Moment<'a> {
    pub(super) frontends: &'a DesiredState,
    pub(super) node_ports: &'a DesiredState,
    pub(super) services: &'a DesiredState,
    pub(super) addresses: (&'a DesiredState, &'a NodeTables),
    /// The node as frontends were filtered by, and as backends and ranges were made with.
    pub(super) nodes: [&'a NodeTables; 2],
}

impl<'a> Moment<'a> {
    pub(super) fn of(desired: &'a DesiredState, node: &'a NodeTables) -> Self {
        Self {
            frontends: desired,
            node_ports: desired,
            services: desired,
            addresses: (desired, node),
            nodes: [node, node],
        }
    }
}

/// The answer to a probe; `None` when a frontend's service port does not exist, which packets must never meet.
pub(super) fn answer(moment: &Moment<'_>, probe: Probe) -> Option<Answer> {
    if let Some((key, frontend)) = find(moment, Some(probe.address), &probe) {
        return service(moment, key, frontend);
    }
    let (desired, node) = moment.addresses;
    if node.nodeport_addresses.contains(&probe.address) {
        return match find(moment, None, &probe) {
            Some((key, frontend)) => service(moment, key, frontend),
            None => Some(Answer::Passed),
        };
    }
    let external = |frontend: &Frontend| {
        matches!(frontend.kind, FrontendKind::LoadBalancerIp | FrontendKind::ExternalIp)
            && frontend.address == Some(probe.address)
    };
    Some(if node.addresses.contains(&probe.address) {
        Answer::NotOurs
    } else if desired.cluster_ips.contains_key(&probe.address) {
        Answer::Refused
    } else if desired
        .service_ports
        .values()
        .flat_map(|port| &port.frontends)
        .any(external)
    {
        Answer::Passed
    } else {
        Answer::NotOurs
    })
}

fn find<'a>(moment: &Moment<'a>, address: Option<IpAddr>, probe: &Probe) -> Option<(&'a ServicePortKey, Frontend)> {
    let [node, _] = moment.nodes;
    let desired = if address.is_some() {
        moment.frontends
    } else {
        moment.node_ports
    };
    desired.service_ports.iter().find_map(|(key, port)| {
        let matches = |frontend: &&Frontend| {
            let hosted = frontend
                .address
                .is_some_and(|address| node.addresses.contains(&address));
            frontend.address == address
                && frontend.port == probe.port
                && !(hosted && frontend.kind == FrontendKind::ClusterIp)
        };
        let fits = key.protocol.number() == probe.protocol
            && key.protocol != Protocol::Sctp
            && key.family == Family::of(probe.address);
        port.frontends
            .iter()
            .find(matches)
            .filter(|_| fits)
            .map(|frontend| (key, *frontend))
    })
}

fn service(moment: &Moment<'_>, key: &ServicePortKey, frontend: Frontend) -> Option<Answer> {
    let port = moment.services.service_ports.get(key)?;
    let [_, node] = moment.nodes;
    let is_cluster_ip = frontend.kind == FrontendKind::ClusterIp;
    let (outside, inside) = if is_cluster_ip {
        (port.internal, port.internal)
    } else {
        (port.external, port.external_from_inside)
    };
    let ranges = match &port.source_ranges {
        SourceRanges::Ranges { ranges, allow_node } if frontend.kind == FrontendKind::LoadBalancerIp => {
            let own = node
                .addresses
                .iter()
                .filter(|own| *allow_node && Family::of(**own) == key.family);
            Some(ranges.iter().copied().chain(own.map(|own| IpNet::from(*own))).collect())
        }
        SourceRanges::AllowAll | SourceRanges::Ranges { .. } => None,
    };
    Some(Answer::Service(Service {
        key: key.clone(),
        affinity_seconds: port.affinity_seconds.unwrap_or(0),
        ranges,
        outside: set(port, outside, node),
        inside: set(port, inside, node),
    }))
}

fn set(port: &ServicePort, choice: Choice, node: &NodeTables) -> Set {
    let members: BTreeSet<_> = port
        .set(choice.set)
        .map(|(at, backend)| {
            let host = node.addresses.contains(&at.address);
            let flags = [backend.local || host, host, at.address.is_ipv6()];
            (at, flags.iter().rev().fold(0, |all, flag| all << 1 | u16::from(*flag)))
        })
        .collect();
    let members = if members.is_empty() {
        Err(choice.when_empty)
    } else {
        Ok(members)
    };
    Set {
        local: choice.set == BackendSet::Local,
        members,
    }
}
