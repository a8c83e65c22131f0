//! Endpoint selection: which backends each kind of traffic of a service port gets.
//!
//! Mirrors kube-proxy's `CategorizeEndpoints` (`pkg/proxy/topology.go`): traffic policies (KEP-2086), fallback to
//! terminating endpoints (KEP-1669), topology. The two sets fall back independently of each other, and hints never touch
//! the local set. A policy that finds no local endpoint drops, a service port that has no endpoint anywhere rejects.

use std::collections::BTreeMap;

use super::desired::{Backend, BackendSet, Choice, EndpointAddress, Topology, WhenEmpty, WhyUnused};
use super::endpoint::Candidate;
use super::node::NodeFacts;
use super::service::TrafficPolicy;
use super::topology;

/// What the selection needs to know of a service port.
#[derive(Clone, Copy)]
pub(super) struct Policies {
    pub(super) internal: TrafficPolicy,
    pub(super) external: TrafficPolicy,
    /// Whether it has a frontend other than a ClusterIP.
    pub(super) externally_accessible: bool,
}

/// The outcome of the selection.
pub(super) struct Selection {
    pub(super) backends: BTreeMap<EndpointAddress, Backend>,
    pub(super) internal: Choice,
    pub(super) external: Choice,
    pub(super) external_from_inside: Choice,
    pub(super) has_any: bool,
    pub(super) topology: Topology,
}

/// Puts every candidate into the sets that it belongs to.
pub(super) fn select(candidates: &[Candidate<'_>], policies: Policies, node: &NodeFacts) -> Selection {
    let is_local = |candidate: &Candidate<'_>| candidate.endpoint.node.as_ref() == Some(&node.name);
    let external_local = policies.external == TrafficPolicy::Local && policies.externally_accessible;
    let uses_cluster = policies.internal == TrafficPolicy::Cluster || policies.externally_accessible;
    let uses_local = policies.internal == TrafficPolicy::Local || external_local;

    let ready = candidates
        .iter()
        .filter(|candidate| candidate.endpoint.conditions.ready);
    let any_ready = ready.clone().next().is_some();
    let any_local_ready = ready.clone().any(is_local);
    let topology = if uses_cluster {
        topology::mode(ready.map(|candidate| candidate.endpoint), node)
    } else {
        Topology::Off
    };

    let backend = |candidate: &Candidate<'_>| {
        let endpoint = candidate.endpoint;
        let conditions = endpoint.conditions;
        let local = is_local(candidate);
        let in_cluster_set = uses_cluster
            && if any_ready {
                conditions.ready && topology::passes(endpoint, topology, node)
            } else {
                conditions.is_draining()
            };
        let in_local_set = uses_local
            && local
            && if any_local_ready {
                conditions.ready
            } else {
                conditions.is_draining()
            };
        let why_unused = (!in_cluster_set && !in_local_set).then(|| {
            if !conditions.is_usable() {
                WhyUnused::NotReady
            } else if !uses_cluster && !local {
                WhyUnused::NotLocal
            } else if !conditions.ready {
                WhyUnused::Terminating
            } else if topology == Topology::SameNode {
                WhyUnused::OtherNode
            } else {
                WhyUnused::OtherZone
            }
        });
        let (node_name, zone) = (endpoint.node.clone(), endpoint.zone.clone());
        Backend {
            conditions,
            local,
            in_cluster_set,
            in_local_set,
            why_unused,
            node_name,
            zone,
        }
    };
    let backends = candidates
        .iter()
        .map(|candidate| (candidate.at, backend(candidate)))
        .collect();

    let has_any = candidates
        .iter()
        .any(|candidate| candidate.endpoint.conditions.is_usable());
    let cluster = Choice {
        set: BackendSet::Cluster,
        when_empty: WhenEmpty::Reject,
    };
    let when_empty = if has_any { WhenEmpty::Drop } else { WhenEmpty::Reject };
    let local = Choice {
        set: BackendSet::Local,
        when_empty,
    };
    Selection {
        backends,
        internal: if policies.internal == TrafficPolicy::Local {
            local
        } else {
            cluster
        },
        external: if external_local { local } else { cluster },
        external_from_inside: cluster,
        has_any,
        topology,
    }
}
