//! This node: the reduced form of its Node object, what the model makes of it, and the addresses of NodePorts.
//!
//! Everything here also holds while there is no Node object yet: no zone, no addresses, no error.
//! Source: kube-proxy `pkg/proxy/node.go`, `pkg/proxy/util/nodeport_addresses.go`, KEP-3836 (eligibility).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

use super::ModelConfig;
use super::address::{Family, PerFamily, parse_address};
use super::names::Names;
use super::object::{ObjectKind, Rejection, Report};
use super::service_address::not_an_address;
use super::slice::{label, shared};

/// The label that names a node's zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The taint by which the cluster autoscaler announces a node's end.
const SCALE_DOWN_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// A Node as far as the model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeObject {
    /// The name.
    pub name: Arc<str>,
    /// The zone, if it is labelled with one.
    pub zone: Option<Arc<str>>,
    /// `status.addresses`: InternalIP before ExternalIP, else in the object's order, without repeats.
    pub addresses: Box<[IpAddr]>,
    /// Whether load balancers may send traffic here: it is neither being deleted nor scaled down.
    pub eligible: bool,
}

impl NodeObject {
    /// Reduces a Node. `None` when its name is not usable.
    pub fn convert(object: &Node, names: &mut Names, rejections: &mut Vec<Rejection>) -> Option<Self> {
        let metadata = &object.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        let mut report = Report::new(ObjectKind::Node, "", name, rejections);
        if !report.name_is_valid() {
            return None;
        }
        let spec = object.spec.as_ref();
        let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let scaled_down = taints.iter().any(|taint| taint.key == SCALE_DOWN_TAINT);
        Some(Self {
            name: names.text(name),
            zone: shared(label(metadata, ZONE_LABEL), names),
            addresses: addresses(object, &mut report),
            eligible: metadata.deletion_timestamp.is_none() && !scaled_down,
        })
    }
}

fn addresses(object: &Node, report: &mut Report<'_>) -> Box<[IpAddr]> {
    let listed = object
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref())
        .unwrap_or_default();
    let mut addresses: Vec<IpAddr> = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        for (index, entry) in listed.iter().enumerate().filter(|(_, entry)| entry.type_ == wanted) {
            match parse_address(&entry.address) {
                Some(address) if addresses.contains(&address) => {}
                Some(address) => addresses.push(address),
                None => {
                    report.reject(
                        format!("status.addresses[{index}].address"),
                        not_an_address(&entry.address),
                    );
                }
            }
        }
    }
    addresses.into()
}

/// What the model knows of the node it works for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's name, from the configuration.
    pub name: Arc<str>,
    /// Whether its Node object was in the snapshot.
    pub known: bool,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Its addresses, as in [`NodeObject::addresses`].
    pub addresses: Box<[IpAddr]>,
    /// The first address of each family, or what the configuration says instead.
    pub primary: PerFamily<Option<IpAddr>>,
    /// Whether load balancers may send traffic here; false while there is no Node object.
    pub eligible: bool,
}

impl NodeFacts {
    /// Joins the Node object, when it is this node's, with the configuration.
    pub(super) fn new(object: Option<&NodeObject>, config: &ModelConfig) -> Self {
        let object = object.filter(|object| object.name == config.node_name);
        let addresses = object.map(|object| object.addresses.clone()).unwrap_or_default();
        let mut primary: PerFamily<Option<IpAddr>> = PerFamily::default();
        for address in config
            .bind_address
            .iter()
            .chain(&addresses)
            .filter(|address| !address.is_unspecified())
        {
            primary.get_mut(Family::of(*address)).get_or_insert(*address);
        }
        Self {
            name: Arc::clone(&config.node_name),
            known: object.is_some(),
            zone: object.and_then(|object| object.zone.clone()),
            addresses,
            primary,
            eligible: object.is_some_and(|object| object.eligible),
        }
    }
}

/// On which of the node's addresses NodePorts answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The node's primary address of each family.
    #[default]
    Primary,
    /// The interface addresses within these ranges; every one for a family without a range or with a range of length 0.
    Ranges(Vec<IpNet>),
}

/// The addresses of this node on which NodePorts answer, sorted. Loopback never is one; `interface_addresses` are those
/// that the interfaces carry now, and only matter for ranges.
pub fn nodeport_addresses(config: &ModelConfig, node: &NodeFacts, interface_addresses: &[IpAddr]) -> Vec<IpAddr> {
    let candidates: Vec<IpAddr> = match &config.nodeport_addresses {
        NodePortAddresses::Primary => Family::BOTH
            .iter()
            .filter_map(|family| *node.primary.get(*family))
            .collect(),
        NodePortAddresses::Ranges(ranges) => interface_addresses
            .iter()
            .copied()
            .filter(|address| in_ranges(*address, ranges))
            .collect(),
    };
    let usable = |address: &IpAddr| !address.is_loopback() && !address.is_unspecified() && !address.is_multicast();
    candidates
        .into_iter()
        .filter(usable)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

fn in_ranges(address: IpAddr, ranges: &[IpNet]) -> bool {
    let mut of_family = ranges
        .iter()
        .filter(|range| Family::of_range(range) == Family::of(address))
        .peekable();
    of_family.peek().is_none() || of_family.any(|range| range.contains(&address))
}
