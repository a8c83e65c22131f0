//! Kubernetes objects as a test writes them down, and a folder to put them in.
//!
//! `service("default", "web").cluster_ip("10.96.0.10").port("http", 80, "TCP").node_port(30080).to_yaml()`: what has to do
//! with a port or an endpoint applies to the one named last. Only what was said is written; the API server's defaults
//! are not filled in, except `type`. Nothing is checked: a test may well want a wrong object.

mod folder;
mod node;
mod service;
mod slice;

pub use folder::{ConfigMapFolder, Folder};
pub use node::{NodeObject, node};
pub use service::{ServiceObject, service};
pub use slice::{EndpointsObject, SliceObject, endpoints, slice};

use serde_json::{Map, Value, json};

/// An object that can be written to a folder.
pub trait Manifest {
    /// The object as the API would carry it.
    fn to_json(&self) -> Value;

    /// The object as one YAML document.
    fn to_yaml(&self) -> String {
        serde_saphyr::to_string(&self.to_json()).expect("an object without unusual keys")
    }

    /// A file name of its own: `service-default-web.yaml`.
    fn file_name(&self) -> String {
        let object = self.to_json();
        let text = |path: &str| {
            object
                .pointer(path)
                .and_then(Value::as_str)
                .unwrap_or("cluster")
                .to_lowercase()
        };
        format!(
            "{}-{}-{}.yaml",
            text("/kind"),
            text("/metadata/namespace"),
            text("/metadata/name")
        )
    }
}

/// Joins objects into one file of several documents.
pub fn documents(objects: &[&dyn Manifest]) -> String {
    objects
        .iter()
        .map(|object| object.to_yaml())
        .collect::<Vec<_>>()
        .join("---\n")
}

/// `metadata` with labels and annotations, if there are any.
#[derive(Clone, Debug)]
struct Metadata {
    namespace: Option<String>,
    name: String,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
}

impl Metadata {
    fn new(namespace: Option<&str>, name: &str) -> Self {
        Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            labels: Map::new(),
            annotations: Map::new(),
        }
    }

    fn to_json(&self) -> Value {
        let mut metadata = json!({ "name": self.name });
        set(&mut metadata, "namespace", self.namespace.clone());
        set(
            &mut metadata,
            "labels",
            Some(&self.labels).filter(|labels| !labels.is_empty()).cloned(),
        );
        set(
            &mut metadata,
            "annotations",
            Some(&self.annotations).filter(|all| !all.is_empty()).cloned(),
        );
        metadata
    }
}

/// Sets a field if there is a value for it.
fn set(object: &mut Value, field: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object[field] = value.into();
    }
}

/// Appends to a field that is a list, making it if need be.
#[track_caller]
fn push(object: &mut Value, field: &str, value: impl Into<Value>) {
    if object[field].is_null() {
        object[field] = json!([]);
    }
    object[field]
        .as_array_mut()
        .expect("a field that is a list")
        .push(value.into());
}

/// The last element of a field that is a list: the port or endpoint named last.
#[track_caller]
fn last<'a>(object: &'a mut Value, field: &str) -> &'a mut Value {
    let element = object
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .and_then(|all| all.last_mut());
    element.unwrap_or_else(|| panic!("no {field} yet"))
}
