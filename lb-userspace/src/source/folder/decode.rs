//! From one object of a file to its reduced form, by its `apiVersion` and `kind`.
//!
//! An object whose fields have the wrong types is told by field, like any other wrong object, and marked undecodable, so
//! that the caller may keep its last good form. Objects of kinds that nobody needs are no entries.

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::debug;

use crate::model::{
    Names, NodeObject, ObjectKey, ObjectKind, ObjectRef, Rejection, ServiceObject, SliceObject, service_ranges,
};

/// One object of a file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) object: ObjectRef,
    /// `None` when nothing of the object can be used.
    pub(super) content: Option<Content>,
    /// Whether the fields' types were wrong, so that not even a part could be read.
    pub(super) undecodable: bool,
    pub(super) rejections: Vec<Rejection>,
}

/// What an object adds to the snapshot.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Service(ObjectKey, Arc<ServiceObject>),
    Slices(Vec<(ObjectKey, Arc<SliceObject>)>),
    Node(Arc<NodeObject>),
    ServiceRanges(Vec<IpNet>),
}

/// Reads an object; `None` when it is of no kind that the model knows.
pub(super) fn entry(value: Value, api_version: &str, kind: &str, names: &mut Names) -> Option<Entry> {
    let kind = match (api_version, kind) {
        ("v1", "Service") => ObjectKind::Service,
        ("v1", "Endpoints") => ObjectKind::Endpoints,
        ("v1", "Node") => ObjectKind::Node,
        ("discovery.k8s.io/v1", "EndpointSlice") => ObjectKind::EndpointSlice,
        ("networking.k8s.io/v1", "ServiceCIDR") => ObjectKind::ServiceCIDR,
        _ => {
            debug!(api_version, kind, "object of another kind is ignored");
            return None;
        }
    };
    let object = reference(&value, kind);
    let mut rejections = Vec::new();
    let content = match kind {
        ObjectKind::Service => typed(value, |service: Service| {
            let (key, service) = ServiceObject::convert(&service, names, &mut rejections)?;
            Some(Content::Service(key, Arc::new(service)))
        }),
        ObjectKind::EndpointSlice => typed(value, |mut slice: EndpointSlice| {
            set_defaults(&mut slice);
            let (key, slice) = SliceObject::convert(&slice, names, &mut rejections)?;
            Some(Content::Slices(vec![(key, Arc::new(slice))]))
        }),
        ObjectKind::Endpoints => typed(value, |endpoints: Endpoints| {
            let slices = SliceObject::mirror(&endpoints, names, &mut rejections).into_iter();
            Some(Content::Slices(
                slices.map(|(key, slice)| (key, Arc::new(slice))).collect(),
            ))
        }),
        ObjectKind::Node => typed(value, |node: Node| {
            NodeObject::convert(&node, names, &mut rejections).map(|node| Content::Node(Arc::new(node)))
        }),
        ObjectKind::ServiceCIDR => typed(value, |object: ServiceCIDR| {
            Some(Content::ServiceRanges(service_ranges(&object, &mut rejections)))
        }),
    };
    let undecodable = content.is_err();
    let content = content.unwrap_or_else(|(field, reason)| {
        rejections.push(Rejection {
            object: object.clone(),
            field,
            reason,
        });
        None
    });
    Some(Entry {
        object,
        content,
        undecodable,
        rejections,
    })
}

/// Reads the fields as those of `T`. The error is the field whose type is wrong, and how.
fn typed<T: DeserializeOwned>(
    value: Value,
    reduce: impl FnOnce(T) -> Option<Content>,
) -> Result<Option<Content>, (String, String)> {
    serde_path_to_error::deserialize(value)
        .map(reduce)
        .map_err(|error| (error.path().to_string(), error.inner().to_string()))
}

/// The object's own name for itself, as far as it has one.
fn reference(value: &Value, kind: ObjectKind) -> ObjectRef {
    let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
    let mut namespace = text("namespace");
    let has_namespace = !matches!(kind, ObjectKind::Node | ObjectKind::ServiceCIDR);
    if !has_namespace {
        namespace.clear();
    } else if namespace.is_empty() {
        "default".clone_into(&mut namespace);
    }
    ObjectRef {
        kind,
        namespace,
        name: text("name"),
    }
}

/// What the API server would have filled in (`pkg/apis/discovery/v1/defaults.go`); the other defaults the model knows.
fn set_defaults(slice: &mut EndpointSlice) {
    for port in slice.ports.iter_mut().flatten() {
        port.name.get_or_insert_default();
    }
}
