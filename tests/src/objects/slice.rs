//! EndpointSlices, and the Endpoints of old.

use serde_json::{Value, json};

use super::{Manifest, Metadata, last, push};

/// An EndpointSlice under construction.
#[derive(Clone, Debug)]
pub struct SliceObject {
    metadata: Metadata,
    content: Value,
}

/// An IPv4 slice of a Service, without ports and endpoints.
pub fn slice(namespace: &str, name: &str, service: &str) -> SliceObject {
    let mut metadata = Metadata::new(Some(namespace), name);
    metadata
        .labels
        .insert("kubernetes.io/service-name".to_owned(), service.into());
    SliceObject {
        metadata,
        content: json!({ "addressType": "IPv4", "endpoints": [], "ports": [] }),
    }
}

impl SliceObject {
    /// Addresses are IPv4.
    #[must_use]
    pub fn v4(self) -> Self {
        self.address_type("IPv4")
    }

    /// Addresses are IPv6.
    #[must_use]
    pub fn v6(self) -> Self {
        self.address_type("IPv6")
    }

    /// Any addressType.
    #[must_use]
    pub fn address_type(mut self, kind: &str) -> Self {
        self.content["addressType"] = kind.into();
        self
    }

    /// A TCP port; the name is that of the Service's port.
    #[must_use]
    pub fn port(self, name: &str, port: u16) -> Self {
        self.port_of(name, port, "TCP")
    }

    /// A port of any protocol.
    #[must_use]
    #[track_caller]
    pub fn port_of(mut self, name: &str, port: u16, protocol: &str) -> Self {
        push(
            &mut self.content,
            "ports",
            json!({ "name": name, "port": port, "protocol": protocol }),
        );
        self
    }

    /// An endpoint, without conditions.
    #[must_use]
    #[track_caller]
    pub fn endpoint(mut self, address: impl ToString + Copy) -> Self {
        push(
            &mut self.content,
            "endpoints",
            json!({ "addresses": [address.to_string()] }),
        );
        self
    }

    /// The last endpoint's node.
    #[must_use]
    #[track_caller]
    pub fn node(self, name: &str) -> Self {
        self.endpoint_field("nodeName", name)
    }

    /// The last endpoint's zone.
    #[must_use]
    #[track_caller]
    pub fn zone(self, zone: &str) -> Self {
        self.endpoint_field("zone", zone)
    }

    /// The last endpoint's condition `ready`.
    #[must_use]
    #[track_caller]
    pub fn ready(self, value: bool) -> Self {
        self.condition("ready", value)
    }

    /// The last endpoint's condition `serving`.
    #[must_use]
    #[track_caller]
    pub fn serving(self, value: bool) -> Self {
        self.condition("serving", value)
    }

    /// The last endpoint's condition `terminating`.
    #[must_use]
    #[track_caller]
    pub fn terminating(self, value: bool) -> Self {
        self.condition("terminating", value)
    }

    /// A zone that the last endpoint is hinted for.
    #[must_use]
    #[track_caller]
    pub fn hint_zone(self, zone: &str) -> Self {
        self.hint("forZones", zone)
    }

    /// A node that the last endpoint is hinted for.
    #[must_use]
    #[track_caller]
    pub fn hint_node(self, node: &str) -> Self {
        self.hint("forNodes", node)
    }

    /// The pod behind the last endpoint.
    #[must_use]
    #[track_caller]
    pub fn pod(self, name: &str) -> Self {
        self.endpoint_field("targetRef", json!({ "kind": "Pod", "name": name }))
    }

    /// Any field of the last endpoint.
    #[must_use]
    #[track_caller]
    pub fn endpoint_field(mut self, field: &str, value: impl Into<Value>) -> Self {
        last(&mut self.content, "endpoints")[field] = value.into();
        self
    }

    /// A label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.metadata.labels.insert(key.to_owned(), value.into());
        self
    }

    /// Any condition of the last endpoint.
    #[must_use]
    #[track_caller]
    pub fn condition(mut self, name: &str, value: bool) -> Self {
        last(&mut self.content, "endpoints")["conditions"][name] = value.into();
        self
    }

    #[track_caller]
    fn hint(mut self, kind: &str, name: &str) -> Self {
        let endpoint = last(&mut self.content, "endpoints");
        push(&mut endpoint["hints"], kind, json!({ "name": name }));
        self
    }
}

impl Manifest for SliceObject {
    fn to_json(&self) -> Value {
        let mut object = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": self.metadata.to_json(),
        });
        for field in ["addressType", "endpoints", "ports"] {
            object[field] = self.content[field].clone();
        }
        object
    }
}

/// Endpoints (v1) under construction: one subset.
#[derive(Clone, Debug)]
pub struct EndpointsObject {
    metadata: Metadata,
    subset: Value,
}

/// Endpoints of the Service of the same name.
pub fn endpoints(namespace: &str, name: &str) -> EndpointsObject {
    EndpointsObject {
        metadata: Metadata::new(Some(namespace), name),
        subset: json!({}),
    }
}

impl EndpointsObject {
    /// A ready address.
    #[must_use]
    #[track_caller]
    pub fn address(mut self, address: impl ToString + Copy) -> Self {
        push(&mut self.subset, "addresses", json!({ "ip": address.to_string() }));
        self
    }

    /// An address that is not ready.
    #[must_use]
    #[track_caller]
    pub fn not_ready(mut self, address: impl ToString + Copy) -> Self {
        push(
            &mut self.subset,
            "notReadyAddresses",
            json!({ "ip": address.to_string() }),
        );
        self
    }

    /// A port.
    #[must_use]
    #[track_caller]
    pub fn port(mut self, name: &str, port: u16, protocol: &str) -> Self {
        push(
            &mut self.subset,
            "ports",
            json!({ "name": name, "port": port, "protocol": protocol }),
        );
        self
    }

    /// A label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.metadata.labels.insert(key.to_owned(), value.into());
        self
    }
}

impl Manifest for EndpointsObject {
    fn to_json(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": self.metadata.to_json(),
            "subsets": [self.subset],
        })
    }
}
