//! Services: addresses, ports and policies (API reference, Service v1).

use serde_json::{Value, json};

use super::{Manifest, Metadata, last, push};

/// A Service under construction.
#[derive(Clone, Debug)]
pub struct ServiceObject {
    metadata: Metadata,
    spec: Value,
    ingress: Vec<Value>,
}

/// A Service of type ClusterIP without addresses and ports.
pub fn service(namespace: &str, name: &str) -> ServiceObject {
    ServiceObject {
        metadata: Metadata::new(Some(namespace), name),
        spec: json!({ "type": "ClusterIP" }),
        ingress: Vec::new(),
    }
}

impl ServiceObject {
    /// A ClusterIP; the first is `clusterIP` too. Each adds its family.
    #[must_use]
    #[track_caller]
    pub fn cluster_ip(mut self, address: &str) -> Self {
        if self.spec["clusterIP"].is_null() {
            self.spec["clusterIP"] = address.into();
        }
        push(&mut self.spec, "clusterIPs", address);
        push(
            &mut self.spec,
            "ipFamilies",
            if address.contains(':') { "IPv6" } else { "IPv4" },
        );
        let families = self.spec["ipFamilies"].as_array().map_or(0, Vec::len);
        self.spec["ipFamilyPolicy"] = if families > 1 {
            "RequireDualStack"
        } else {
            "SingleStack"
        }
        .into();
        self
    }

    /// No ClusterIP (`None`).
    #[must_use]
    pub fn headless(mut self) -> Self {
        self.spec["clusterIP"] = "None".into();
        self.spec["clusterIPs"] = json!(["None"]);
        self
    }

    /// A port, with the same targetPort.
    #[must_use]
    #[track_caller]
    pub fn port(mut self, name: &str, port: u16, protocol: &str) -> Self {
        let mut entry = json!({ "port": port, "protocol": protocol, "targetPort": port });
        if !name.is_empty() {
            entry["name"] = name.into();
        }
        push(&mut self.spec, "ports", entry);
        self
    }

    /// The last port's targetPort, a number or a name.
    #[must_use]
    #[track_caller]
    pub fn target_port(self, target: impl Into<Value>) -> Self {
        self.port_field("targetPort", target)
    }

    /// The last port's nodePort; a ClusterIP Service becomes a NodePort one.
    #[must_use]
    #[track_caller]
    pub fn node_port(mut self, port: u16) -> Self {
        if self.spec["type"] == "ClusterIP" {
            self.spec["type"] = "NodePort".into();
        }
        self.port_field("nodePort", port)
    }

    /// Any field of the last port.
    #[must_use]
    #[track_caller]
    pub fn port_field(mut self, field: &str, value: impl Into<Value>) -> Self {
        last(&mut self.spec, "ports")[field] = value.into();
        self
    }

    /// An externalIP.
    #[must_use]
    #[track_caller]
    pub fn external_ip(mut self, address: &str) -> Self {
        push(&mut self.spec, "externalIPs", address);
        self
    }

    /// A LoadBalancer address in the status; the Service becomes a LoadBalancer one.
    #[must_use]
    pub fn load_balancer_ip(self, address: &str) -> Self {
        self.ingress(json!({ "ip": address }))
    }

    /// A LoadBalancer address with an ipMode (`VIP`, `Proxy`).
    #[must_use]
    pub fn load_balancer_ip_with_mode(self, address: &str, mode: &str) -> Self {
        self.ingress(json!({ "ip": address, "ipMode": mode }))
    }

    /// An entry of loadBalancerSourceRanges.
    #[must_use]
    #[track_caller]
    pub fn source_range(mut self, cidr: &str) -> Self {
        push(&mut self.spec, "loadBalancerSourceRanges", cidr);
        self
    }

    /// sessionAffinity ClientIP with a time-out.
    #[must_use]
    pub fn affinity(mut self, seconds: u32) -> Self {
        self.spec["sessionAffinity"] = "ClientIP".into();
        self.spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": seconds } });
        self
    }

    /// externalTrafficPolicy Local.
    #[must_use]
    pub fn external_local(self) -> Self {
        self.field("externalTrafficPolicy", "Local")
    }

    /// internalTrafficPolicy Local.
    #[must_use]
    pub fn internal_local(self) -> Self {
        self.field("internalTrafficPolicy", "Local")
    }

    /// healthCheckNodePort.
    #[must_use]
    pub fn health_check_node_port(self, port: u16) -> Self {
        self.field("healthCheckNodePort", port)
    }

    /// trafficDistribution.
    #[must_use]
    pub fn traffic_distribution(self, value: &str) -> Self {
        self.field("trafficDistribution", value)
    }

    /// Any field of the spec.
    #[must_use]
    pub fn field(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.spec[field] = value.into();
        self
    }

    /// A label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.metadata.labels.insert(key.to_owned(), value.into());
        self
    }

    /// An annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.metadata.annotations.insert(key.to_owned(), value.into());
        self
    }

    fn ingress(mut self, entry: Value) -> Self {
        self.spec["type"] = "LoadBalancer".into();
        self.ingress.push(entry);
        self
    }
}

impl Manifest for ServiceObject {
    fn to_json(&self) -> Value {
        let mut object =
            json!({ "apiVersion": "v1", "kind": "Service", "metadata": self.metadata.to_json(), "spec": self.spec });
        if !self.ingress.is_empty() {
            object["status"] = json!({ "loadBalancer": { "ingress": self.ingress } });
        }
        object
    }
}
