//! Service ports for people: what the model decided, as [`ServiceItem`]s.

use std::collections::BTreeMap;

use crate::model::{
    Backend, BackendSet, Choice, DesiredState, FrontendKind, ServicePort, ServicePortKey, SourceRanges, Topology,
    TrafficPolicy, WhyUnused,
};

use super::report::{EndpointItem, FrontendItem, ServiceFilter, ServiceItem};

/// The service ports that pass the filter, by namespace, name, port, protocol and family.
///
/// `flows` are the numbers of flows of those that have any, where they are known.
pub(crate) fn service_items(
    desired: &DesiredState,
    flows: Option<&BTreeMap<ServicePortKey, u32>>,
    filter: &ServiceFilter,
) -> Vec<ServiceItem> {
    let wanted = desired
        .service_ports
        .iter()
        .filter(|(key, _)| filter.admits(&key.namespace, &key.name));
    let of = |key| flows.map(|flows| flows.get(key).copied().unwrap_or(0));
    wanted.map(|(key, port)| service(key, port, of(key))).collect()
}

fn service(key: &ServicePortKey, port: &ServicePort, flows: Option<u32>) -> ServiceItem {
    ServiceItem {
        namespace: key.namespace.as_ref().into(),
        name: key.name.as_ref().into(),
        port_name: key.port.as_ref().into(),
        protocol: key.protocol.as_str().into(),
        family: key.family.as_str().into(),
        service_type: Some(port.service_type.as_str().to_owned()),
        topology: match port.topology {
            Topology::Off => None,
            Topology::SameNode => Some("PreferSameNode".to_owned()),
            Topology::SameZone => Some("PreferSameZone".to_owned()),
        },
        frontends: port
            .frontends
            .iter()
            .map(|frontend| FrontendItem {
                kind: kind_name(frontend.kind).to_owned(),
                address: frontend.address.map(|address| address.to_string()),
                port: frontend.port,
            })
            .collect(),
        internal_traffic_policy: Some(policy_name(port.internal_policy).to_owned()),
        external_traffic_policy: Some(policy_name(port.external_policy).to_owned()),
        affinity_seconds: port.affinity_seconds,
        source_ranges: ranges(&port.source_ranges),
        flows,
        endpoints: port
            .backends
            .iter()
            .map(|(at, backend)| EndpointItem {
                address: at.address.to_string(),
                port: at.port,
                node: backend.node_name.as_deref().map(str::to_owned),
                zone: backend.zone.as_deref().map(str::to_owned),
                local: backend.local,
                state: state_name(backend).to_owned(),
                used: backend.why_unused.is_none(),
                why: why(port, backend),
            })
            .collect(),
    }
}

/// The name of a kind of frontend as it is printed.
pub(crate) fn kind_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::LoadBalancerIp => "LoadBalancerIP",
        FrontendKind::ExternalIp => "ExternalIP",
        FrontendKind::NodePort => "NodePort",
    }
}

fn policy_name(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

fn ranges(ranges: &SourceRanges) -> Vec<String> {
    match ranges {
        SourceRanges::AllowAll => Vec::new(),
        SourceRanges::Ranges { ranges, allow_node } => {
            let node = allow_node.then(|| "this node".to_owned());
            ranges.iter().map(ToString::to_string).chain(node).collect()
        }
    }
}

fn state_name(backend: &Backend) -> &'static str {
    if backend.conditions.ready {
        "Ready"
    } else if backend.conditions.is_draining() {
        "Terminating"
    } else {
        "NotReady"
    }
}

/// For whom a backend is used, or why it is not.
fn why(port: &ServicePort, backend: &Backend) -> String {
    if let Some(why) = backend.why_unused {
        return unused(why).to_owned();
    }
    let gets = |choice: Choice| match choice.set {
        BackendSet::Cluster => backend.in_cluster_set,
        BackendSet::Local => backend.in_local_set,
    };
    let external = port
        .frontends
        .iter()
        .any(|frontend| frontend.kind != FrontendKind::ClusterIp);
    let who = [
        (gets(port.internal), "ClusterIP"),
        (external && gets(port.external), "outside"),
        (external && gets(port.external_from_inside), "pods and node"),
    ];
    let who: Vec<&str> = who.into_iter().filter_map(|(gets, who)| gets.then_some(who)).collect();
    let fallback = if backend.conditions.ready {
        ""
    } else {
        ", since none is ready"
    };
    format!("for {}{fallback}", who.join(", "))
}

fn unused(why: WhyUnused) -> &'static str {
    match why {
        WhyUnused::NotReady => "it is not ready",
        WhyUnused::Terminating => "it terminates, and others are ready",
        WhyUnused::NotLocal => "it is on another node, and the policy is Local",
        WhyUnused::OtherNode => "it is hinted for other nodes",
        WhyUnused::OtherZone => "it is hinted for other zones",
    }
}
