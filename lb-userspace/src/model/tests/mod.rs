//! Tests of the model: objects in as the API has them, the desired state out. One file a feature.

mod conversion;
mod frontends;
mod health_check;
mod mirroring;
mod node_addresses;
mod properties;
mod selection;
mod slices;
mod source_ranges;
mod topology;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

/// The node that every test works for.
const NODE: &str = "node-a";
/// The ClusterIP of `web` and the port that its slices have.
const CLUSTER_IP: &str = "10.96.0.10";
const TARGET_PORT: u16 = 8080;

/// A cluster under construction.
struct World {
    names: Names,
    snapshot: Snapshot,
    config: ModelConfig,
    /// What the conversions rejected.
    rejections: Vec<Rejection>,
}

impl World {
    fn new() -> Self {
        Self {
            names: Names::default(),
            snapshot: Snapshot::default(),
            config: ModelConfig::new(NODE),
            rejections: Vec::new(),
        }
    }

    /// Adds a Service of the namespace `default`.
    #[track_caller]
    fn service(&mut self, name: &str, spec: Value) -> &mut Self {
        let mut object = json!({ "metadata": { "name": name, "namespace": "default" } });
        object["spec"] = spec;
        self.service_object(object)
    }

    #[track_caller]
    fn service_object(&mut self, object: Value) -> &mut Self {
        let converted = ServiceObject::convert(&read::<Service>(object), &mut self.names, &mut self.rejections);
        self.snapshot
            .services
            .extend(converted.map(|(key, service)| (key, Arc::new(service))));
        self
    }

    /// Adds the slice `name` of the Service `web`, with one port without a name.
    #[track_caller]
    fn slice(&mut self, name: &str, endpoints: &[&str]) -> &mut Self {
        let port = json!({ "name": "", "port": TARGET_PORT });
        self.slice_of(
            "web",
            name,
            &[port],
            endpoints.iter().map(|text| endpoint(text)).collect(),
        )
    }

    #[track_caller]
    fn slice_of(&mut self, service: &str, name: &str, ports: &[Value], endpoints: Vec<Value>) -> &mut Self {
        let first = endpoints
            .first()
            .and_then(|endpoint| endpoint["addresses"][0].as_str())
            .unwrap_or_default();
        let mut object = json!({
            "metadata": {
                "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": service },
            },
            "addressType": if first.contains(':') { "IPv6" } else { "IPv4" },
            "ports": ports,
        });
        object["endpoints"] = Value::Array(endpoints);
        self.slice_object(object)
    }

    #[track_caller]
    fn slice_object(&mut self, object: Value) -> &mut Self {
        let converted = SliceObject::convert(&read::<EndpointSlice>(object), &mut self.names, &mut self.rejections);
        self.snapshot
            .slices
            .extend(converted.map(|(key, slice)| (key, Arc::new(slice))));
        self
    }

    #[track_caller]
    fn endpoints(&mut self, object: Value) -> &mut Self {
        let slices = SliceObject::mirror(&read::<Endpoints>(object), &mut self.names, &mut self.rejections);
        self.snapshot
            .slices
            .extend(slices.into_iter().map(|(key, slice)| (key, Arc::new(slice))));
        self
    }

    /// Sets this node's object: its zone label and its internal addresses.
    #[track_caller]
    fn node(&mut self, zone: Option<&str>, addresses: &[&str]) -> &mut Self {
        let labels: BTreeMap<&str, &str> = zone
            .map(|zone| ("topology.kubernetes.io/zone", zone))
            .into_iter()
            .collect();
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|address| json!({ "type": "InternalIP", "address": address }))
            .collect();
        self.node_object(json!({
            "metadata": { "name": NODE, "labels": labels }, "status": { "addresses": addresses },
        }))
    }

    #[track_caller]
    fn node_object(&mut self, object: Value) -> &mut Self {
        let node = NodeObject::convert(&read::<Node>(object), &mut self.names, &mut self.rejections);
        self.snapshot.node = node.map(Arc::new);
        self
    }

    fn build(&self) -> DesiredState {
        build(&self.snapshot, &self.config)
    }

    /// Builds, and returns the one service port that the name shows as, such as `default/web:http TCP IPv4`.
    #[track_caller]
    fn port(&self, shown: &str) -> ServicePort {
        let state = self.build();
        let names: Vec<String> = state.service_ports.keys().map(ToString::to_string).collect();
        let found = state.service_ports.iter().find(|(key, _)| key.to_string() == shown);
        let (_, port) = found.unwrap_or_else(|| panic!("no {shown} in {names:?}"));
        ServicePort::clone(port)
    }

    /// The rejections of conversion and build as `object: field`.
    fn rejected(&self) -> Vec<String> {
        let all = self.rejections.iter().cloned().chain(self.build().rejections);
        all.map(|rejection| format!("{}: {}", rejection.object, rejection.field))
            .collect()
    }
}

#[track_caller]
fn read<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("the test's own object has the right types")
}

/// Reads an endpoint: an address, then any of `on=NODE`, `in=ZONE` (zone of its own), `zones=A,B` and `nodes=A,B` (hints),
/// `unready`, `not-serving` and `terminating`. `unready` alone leaves serving unset.
fn endpoint(text: &str) -> Value {
    let mut words = text.split_whitespace();
    let mut endpoint = json!({ "addresses": [words.next().expect("an address")], "conditions": {} });
    let names = |list: &str| -> Vec<Value> { list.split(',').map(|name| json!({ "name": name })).collect() };
    for word in words {
        match word.split_once('=') {
            Some(("on", node)) => endpoint["nodeName"] = json!(node),
            Some(("in", zone)) => endpoint["zone"] = json!(zone),
            Some(("zones", zones)) => endpoint["hints"]["forZones"] = json!(names(zones)),
            Some(("nodes", nodes)) => endpoint["hints"]["forNodes"] = json!(names(nodes)),
            _ => match word {
                "unready" => endpoint["conditions"]["ready"] = json!(false),
                "not-serving" => endpoint["conditions"]["serving"] = json!(false),
                "terminating" => endpoint["conditions"]["terminating"] = json!(true),
                _ => panic!("{word} is no word for an endpoint"),
            },
        }
    }
    endpoint
}

/// The addresses of a set, without ports.
fn addresses(port: &ServicePort, set: BackendSet) -> Vec<String> {
    port.set(set).map(|(at, _)| at.address.to_string()).collect()
}

/// Asserts both sets of a service port and whether anything is usable at all.
#[track_caller]
fn assert_sets(port: &ServicePort, cluster: &[&str], local: &[&str], has_any: bool) {
    assert_eq!(addresses(port, BackendSet::Cluster), cluster, "cluster set");
    assert_eq!(addresses(port, BackendSet::Local), local, "local set");
    assert_eq!(port.has_any, has_any, "has_any");
}
