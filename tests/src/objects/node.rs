//! Nodes: addresses, pod networks and labels.

use serde_json::{Value, json};

use super::{Manifest, Metadata, push};
use crate::world;

/// A Node under construction.
#[derive(Clone, Debug)]
pub struct NodeObject {
    metadata: Metadata,
    spec: Value,
    status: Value,
}

/// A Node without addresses.
pub fn node(name: &str) -> NodeObject {
    let mut metadata = Metadata::new(None, name);
    metadata.labels.insert("kubernetes.io/hostname".to_owned(), name.into());
    NodeObject {
        metadata,
        spec: json!({}),
        status: json!({}),
    }
}

impl From<&world::Node> for NodeObject {
    /// The Node with the addresses and pod networks of a node of a world, IPv4 first.
    fn from(place: &world::Node) -> Self {
        let object = node(&place.name).internal_ip(place.ip4).internal_ip(place.ip6);
        place
            .pod_cidrs()
            .iter()
            .fold(object, |object, cidr| object.pod_cidr(cidr))
    }
}

impl NodeObject {
    /// An address of type InternalIP.
    #[must_use]
    #[track_caller]
    pub fn internal_ip(self, address: impl ToString + Copy) -> Self {
        self.address("InternalIP", &address.to_string())
    }

    /// An address of any type.
    #[must_use]
    #[track_caller]
    pub fn address(mut self, kind: &str, address: &str) -> Self {
        push(
            &mut self.status,
            "addresses",
            json!({ "type": kind, "address": address }),
        );
        self
    }

    /// A pod network; the first is `podCIDR` too.
    #[must_use]
    #[track_caller]
    pub fn pod_cidr(mut self, cidr: &str) -> Self {
        if self.spec["podCIDR"].is_null() {
            self.spec["podCIDR"] = cidr.into();
        }
        push(&mut self.spec, "podCIDRs", cidr);
        self
    }

    /// The zone, as the well-known label.
    #[must_use]
    pub fn zone(self, zone: &str) -> Self {
        self.label("topology.kubernetes.io/zone", zone)
    }

    /// A label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.metadata.labels.insert(key.to_owned(), value.into());
        self
    }
}

impl Manifest for NodeObject {
    fn to_json(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": self.metadata.to_json(),
            "spec": self.spec,
            "status": self.status,
        })
    }
}
