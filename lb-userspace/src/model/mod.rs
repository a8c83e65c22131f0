//! From Kubernetes objects to what this node should forward: pure, total, deterministic.
//!
//! In: a [`Snapshot`] of reduced objects (made by `ServiceObject::convert` and its siblings, which validate each object
//! alone) and a [`ModelConfig`]. Out: a [`DesiredState`]. There is no failure: what cannot be used becomes a [`Rejection`]
//! and stops nothing else. No clock, no I/O, no randomness; equal input gives equal output. A [`Model`] remembers the last
//! snapshot to save work, and nothing else.
//! The two families are independent: every service port exists once in each family that its Service has a ClusterIP of.
//!
//! Left out: which ids, tables and map entries this becomes (the plan), and where objects come from (the source).
//! Source: kube-proxy `pkg/proxy`, Kubernetes 1.36; the file that holds a rule names its KEP.

mod address;
mod build;
mod desired;
mod endpoint;
mod frontend;
mod mirror;
mod names;
mod node;
mod object;
mod ord_map;
mod policy;
mod port;
mod service;
mod service_address;
mod service_cidr;
mod service_slices;
mod slice;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use address::{Family, PerFamily, parse_address, parse_range};
pub use build::{Model, build};
pub use desired::{
    Backend, BackendSet, Choice, DesiredState, EndpointAddress, Frontend, FrontendKind, HealthCheck, ServicePort,
    ServicePortKey, SourceRanges, Topology, WhenEmpty, WhyUnused,
};
pub use names::Names;
pub use node::{NodeFacts, NodeObject, NodePortAddresses, nodeport_addresses};
pub use object::{ObjectKey, ObjectKind, ObjectRef, Rejection};
pub use ord_map::OrdMap;
pub use port::Protocol;
pub use service::{AddressField, NotProxied, PortObject, ServiceObject, ServiceType, TrafficPolicy};
pub use service_cidr::service_ranges;
pub use slice::{Conditions, EndpointObject, Hints, SliceObject, SlicePort, TRIGGER_ANNOTATION};

/// All objects at one moment. Cheap to clone: objects are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The Services.
    pub services: OrdMap<ObjectKey, Arc<ServiceObject>>,
    /// The slices, by their own names; one may be older or younger than its Service.
    pub slices: OrdMap<ObjectKey, Arc<SliceObject>>,
    /// This node's Node object.
    pub node: Option<Arc<NodeObject>>,
    /// Addresses of the other nodes, as far as the source knows them.
    pub other_nodes: BTreeSet<IpAddr>,
    /// The ranges of all ServiceCIDRs.
    pub service_cidrs: Vec<IpNet>,
}

/// The settings that the model depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// The name of this node, trimmed and in lower case as by [`ModelConfig::new`].
    pub node_name: Arc<str>,
    /// Where NodePorts answer.
    pub nodeport_addresses: NodePortAddresses,
    /// Takes the place of the node's primary address of its family, unless it is unspecified.
    pub bind_address: Option<IpAddr>,
    /// Whether `spec.externalIPs` is honoured.
    pub allow_external_ips: bool,
}

impl ModelConfig {
    /// The defaults for a node.
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.trim().to_lowercase().into(),
            nodeport_addresses: NodePortAddresses::Primary,
            bind_address: None,
            allow_external_ips: true,
        }
    }
}
