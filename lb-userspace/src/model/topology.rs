//! Which topology mode a service port is in.
//!
//! Only the ready endpoints decide, and only by their hints: every one must carry a hint, and one must name this node
//! (or, failing that, its zone). A single endpoint without hints turns the mode off, so that a half-updated set of slices
//! never hides endpoints. Source: kube-proxy `pkg/proxy/topology.go`, KEP-2433, KEP-3015, KEP-4444.

use std::sync::Arc;

use super::desired::Topology;
use super::node::NodeFacts;
use super::slice::{EndpointObject, Hints};

/// The mode that the ready endpoints of a service port put it in.
pub(super) fn mode<'a>(ready: impl Iterator<Item = &'a EndpointObject>, node: &NodeFacts) -> Topology {
    let mut any = false;
    let (mut all_name_nodes, mut all_name_zones) = (true, true);
    let (mut this_node, mut this_zone) = (false, false);
    for endpoint in ready {
        any = true;
        let hints = endpoint.hints.as_deref();
        all_name_nodes &= hints.is_some_and(|hints| !hints.nodes.is_empty());
        all_name_zones &= hints.is_some_and(|hints| !hints.zones.is_empty());
        this_node |= names_node(hints, node);
        this_zone |= names_zone(hints, node);
    }
    if any && all_name_nodes && this_node {
        Topology::SameNode
    } else if any && all_name_zones && this_zone {
        Topology::SameZone
    } else {
        Topology::Off
    }
}

/// Whether an endpoint passes the filter of a mode.
pub(super) fn passes(endpoint: &EndpointObject, mode: Topology, node: &NodeFacts) -> bool {
    match mode {
        Topology::Off => true,
        Topology::SameNode => names_node(endpoint.hints.as_deref(), node),
        Topology::SameZone => names_zone(endpoint.hints.as_deref(), node),
    }
}

fn names_node(hints: Option<&Hints>, node: &NodeFacts) -> bool {
    hints.is_some_and(|hints| hints.nodes.contains(&node.name))
}

fn names_zone(hints: Option<&Hints>, node: &NodeFacts) -> bool {
    let zone: Option<&Arc<str>> = node.zone.as_ref();
    hints.is_some_and(|hints| zone.is_some_and(|zone| hints.zones.contains(zone)))
}
