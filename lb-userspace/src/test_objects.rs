//! Objects for unit tests: Kubernetes JSON in, a source's state out.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::config::{Config, Layer, Place, gather};
use crate::model::{Names, NodeObject, ServiceObject, SliceObject, Snapshot};
use crate::source::SourceState;

/// The node that the tests work for.
pub(crate) const NODE: &str = "node-a";
/// Its address.
pub(crate) const NODE_ADDRESS: &str = "192.0.2.1";

/// A configuration from flags.
pub(crate) fn config(flags: &[(&'static str, &str)]) -> Config {
    let values = [("folder", "/f"), ("node-name", NODE)]
        .into_iter()
        .chain(flags.iter().copied());
    let layer: Layer = values
        .map(|(flag, v)| (flag, (Place::Flag(flag), vec![v.to_owned()])))
        .collect();
    Config::validate(&gather(layer, None, |_| None).unwrap(), None).unwrap()
}

/// The Node object.
pub(crate) fn node() -> Value {
    json!({ "kind": "Node", "metadata": { "name": NODE },
        "status": { "addresses": [{ "type": "InternalIP", "address": NODE_ADDRESS }] } })
}

/// A Service with one TCP port 80.
pub(crate) fn service(name: &str, cluster_ip: &str) -> Value {
    json!({ "kind": "Service", "metadata": { "name": name, "namespace": "default" },
        "spec": { "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"],
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }] } })
}

/// A slice of a Service with endpoints on this node.
pub(crate) fn slice(service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|a| json!({ "addresses": [a], "nodeName": NODE }))
        .collect();
    json!({ "kind": "EndpointSlice",
        "metadata": { "name": format!("{service}-1"), "namespace": "default",
            "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }] })
}

/// The state of a source that holds these objects.
#[track_caller]
pub(crate) fn source_state(objects: &[Value]) -> SourceState {
    let (mut names, mut rejections, mut snapshot) = (Names::default(), Vec::new(), Snapshot::default());
    for object in objects {
        let read = object.clone();
        match object["kind"].as_str() {
            Some("Service") => {
                let converted = ServiceObject::convert(&from(read), &mut names, &mut rejections);
                snapshot
                    .services
                    .extend(converted.map(|(key, object)| (key, Arc::new(object))));
            }
            Some("EndpointSlice") => {
                let converted = SliceObject::convert(&from(read), &mut names, &mut rejections);
                snapshot
                    .slices
                    .extend(converted.map(|(key, object)| (key, Arc::new(object))));
            }
            Some("Node") => snapshot.node = NodeObject::convert(&from(read), &mut names, &mut rejections).map(Arc::new),
            other => panic!("no test reads {other:?}"),
        }
    }
    SourceState {
        synced: true,
        snapshot: Arc::new(snapshot),
        rejections,
        ..SourceState::default()
    }
}

fn from<T: serde::de::DeserializeOwned>(mut object: Value) -> T {
    let kind = object["kind"].take();
    object["apiVersion"] = if kind == "EndpointSlice" {
        "discovery.k8s.io/v1".into()
    } else {
        "v1".into()
    };
    object["kind"] = kind;
    serde_json::from_value(object).unwrap()
}
