//! What the model decides: every service port with its frontends, its endpoints and which of them each kind of traffic
//! gets. Plain data in a fixed order; equal input gives equal output.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::address::Family;
use super::node::NodeFacts;
use super::object::{ObjectKey, Rejection};
use super::ord_map::OrdMap;
use super::port::Protocol;
use super::service::{ServiceType, TrafficPolicy};
use super::slice::Conditions;

/// Everything that this node should forward. Cheap to clone, but for what is of a node's size or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredState {
    /// The service ports that have a frontend.
    pub service_ports: OrdMap<ServicePortKey, Arc<ServicePort>>,
    /// Every ClusterIP in use and its Service: a port of it that no frontend matches is refused, not routed.
    pub cluster_ips: OrdMap<IpAddr, ObjectKey>,
    /// The health check servers to run.
    pub health_checks: OrdMap<ObjectKey, HealthCheck>,
    /// This node.
    pub node: NodeFacts,
    /// Addresses of other nodes: where one is a Service's as well, packets of this host for it go to that node.
    pub other_nodes: BTreeSet<IpAddr>,
    /// The ranges that ClusterIPs are allocated from, sorted; an address in them without a Service may be dropped.
    pub service_cidrs: Vec<IpNet>,
    /// What objects could not have beside each other, sorted. What is wrong with an object alone its source reports.
    pub rejections: Vec<Rejection>,
}

impl DesiredState {
    /// A node without Services.
    pub(crate) fn of_node(node: NodeFacts) -> Self {
        Self {
            service_ports: OrdMap::default(),
            cluster_ips: OrdMap::default(),
            health_checks: OrdMap::default(),
            node,
            other_nodes: BTreeSet::new(),
            service_cidrs: Vec::new(),
            rejections: Vec::new(),
        }
    }
}

/// Identifies a service port: one port of a Service in one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortKey {
    /// The Service's namespace.
    pub namespace: Arc<str>,
    /// The Service's name.
    pub name: Arc<str>,
    /// The port's name; may be empty.
    pub port: Arc<str>,
    /// The port's protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: Family,
}

impl fmt::Display for ServicePortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            namespace,
            name,
            port,
            protocol,
            family,
        } = self;
        let colon = if port.is_empty() { "" } else { ":" };
        write!(f, "{namespace}/{name}{colon}{port} {protocol} {family}")
    }
}

/// A service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The type of its Service.
    pub service_type: ServiceType,
    /// What it is reached by, sorted; never empty.
    pub frontends: Vec<Frontend>,
    /// Every endpoint known, also those that nothing uses.
    pub backends: BTreeMap<EndpointAddress, Backend>,
    /// What traffic to the ClusterIP gets.
    pub internal: Choice,
    /// What traffic from outside to every other frontend gets.
    pub external: Choice,
    /// What traffic from local pods and from this node to every other frontend gets: never cut down to local endpoints.
    pub external_from_inside: Choice,
    /// Whether any endpoint anywhere could be used.
    pub has_any: bool,
    /// Session affinity by client address and its time-out in seconds.
    pub affinity_seconds: Option<u32>,
    /// The sources that may use a LoadBalancer address; no other frontend is restricted.
    pub source_ranges: SourceRanges,
    /// The internal traffic policy in force.
    pub internal_policy: TrafficPolicy,
    /// The external traffic policy in force.
    pub external_policy: TrafficPolicy,
    /// How topology narrowed the cluster set.
    pub topology: Topology,
}

impl ServicePort {
    /// The backends of a set, in order of address and port.
    pub fn set(&self, set: BackendSet) -> impl Iterator<Item = (EndpointAddress, &Backend)> {
        let member = move |backend: &Backend| match set {
            BackendSet::Cluster => backend.in_cluster_set,
            BackendSet::Local => backend.in_local_set,
        };
        self.backends
            .iter()
            .filter(move |(_, backend)| member(backend))
            .map(|(address, backend)| (*address, backend))
    }
}

/// One thing that a service port is reached by. Its protocol and family are those of the service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Where it comes from.
    pub kind: FrontendKind,
    /// The address; `None` stands for this node's NodePort addresses. A frontend with an address goes before one without.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// Where a frontend comes from. Where one service port has an address twice, the first kind in this order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `status.loadBalancer.ingress`; the only kind under source ranges.
    LoadBalancerIp,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `spec.ports[].nodePort`.
    NodePort,
}

/// Address and port of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointAddress {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// An endpoint of a service port and what it is used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its conditions.
    pub conditions: Conditions,
    /// Whether it is on this node.
    pub local: bool,
    /// Whether traffic under policy Cluster may go to it.
    pub in_cluster_set: bool,
    /// Whether traffic under policy Local may go to it.
    pub in_local_set: bool,
    /// Why no traffic goes to it; `None` when it is in a set.
    pub why_unused: Option<WhyUnused>,
    /// The node it is on.
    pub node_name: Option<Arc<str>>,
    /// The zone it is in.
    pub zone: Option<Arc<str>>,
}

/// Why a backend is in no set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WhyUnused {
    /// It is not ready, nor serving while it terminates.
    NotReady,
    /// It terminates, and there are ready ones.
    Terminating,
    /// Every policy of the Service is Local, and it is on another node.
    NotLocal,
    /// Topology hints name other nodes for it.
    OtherNode,
    /// Topology hints name other zones for it.
    OtherZone,
}

/// A set of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BackendSet {
    /// Those of the whole cluster, as topology narrows them.
    Cluster,
    /// Those on this node.
    Local,
}

/// Which set a kind of traffic gets, and what becomes of a new flow while that set is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice {
    /// The set.
    pub set: BackendSet,
    /// What happens when it is empty.
    pub when_empty: WhenEmpty,
}

/// What becomes of a new flow without a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WhenEmpty {
    /// Refused at once: nobody in the cluster could serve it.
    Reject,
    /// Dropped without a word, so that a load balancer tries another node.
    Drop,
}

/// The sources that may use a LoadBalancer address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceRanges {
    /// Every source.
    AllowAll,
    /// Only some.
    Ranges {
        /// These ranges, sorted, without overlap; none means nobody.
        ranges: Vec<IpNet>,
        /// Whether every address of this node is allowed too, because a range contains its primary address.
        allow_node: bool,
    },
}

/// How topology narrowed the cluster set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Topology {
    /// Not at all.
    Off,
    /// To the endpoints hinted for this node.
    SameNode,
    /// To the endpoints hinted for this node's zone.
    SameZone,
}

/// A health check server for load balancers (type LoadBalancer with external policy Local).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The TCP port to listen on.
    pub port: u16,
    /// For each family of the Service, how many different addresses of ready endpoints are on this node.
    pub local_endpoints: BTreeMap<Family, usize>,
}
