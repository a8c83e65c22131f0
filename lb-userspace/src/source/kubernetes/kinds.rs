//! The kinds that are followed: where they are, which of them, and their reduced form.
//!
//! The selectors are kube-proxy's: the server leaves out Services of another proxy, headless Services and headless slices, and
//! tells the gain of such a mark as a deletion. An object is decoded into a type that has only the fields that the model
//! reads, so that managed fields, images and the like are skipped in the text and never built. A field of the wrong type
//! makes the object undecodable, which is told by field, and stops no other object.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::store::Object;
use crate::model::{
    Names, NodeObject, ObjectKey, ObjectKind, ObjectRef, Rejection, ServiceObject, SliceObject, TRIGGER_ANNOTATION,
    service_ranges,
};

/// A kind of object.
pub(super) trait Kind: Send + 'static {
    /// Its reduced form.
    type Reduced: Eq + Send + Sync + 'static;
    /// The fields that are decoded.
    type Wire: DeserializeOwned + Identified;

    /// Its name.
    const KIND: ObjectKind;
    /// Where it is.
    const PATH: &'static str;
    /// Which of them, by label.
    const LABELS: Option<&'static str> = None;
    /// How many are asked for at a time.
    const PAGE: u32 = 500;
    /// Whether the API may lack it, or refuse it to us.
    const OPTIONAL: bool = false;

    /// Reduces an object; `None` when nothing of it can be used.
    fn reduce(wire: Self::Wire, names: &mut Names, rejections: &mut Vec<Rejection>) -> Option<Self::Reduced>;
}

/// What has a name and a version.
pub(super) trait Identified {
    /// The object's metadata.
    fn metadata(&self) -> &Metadata;
}

/// `v1` Services.
pub(super) struct Services;
/// `discovery.k8s.io/v1` EndpointSlices.
pub(super) struct EndpointSlices;
/// `v1` Nodes.
pub(super) struct Nodes;
/// `networking.k8s.io/v1` ServiceCIDRs; served since Kubernetes 1.33.
pub(super) struct ServiceCidrs;

/// What is read of an object's metadata.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<Annotations>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}

/// The annotations that are read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    trigger: Option<String>,
}

impl Metadata {
    fn key(&self) -> ObjectKey {
        ObjectKey::new(
            self.namespace.as_deref().unwrap_or_default(),
            self.name.as_deref().unwrap_or_default(),
        )
    }
}

impl From<Metadata> for ObjectMeta {
    fn from(metadata: Metadata) -> Self {
        Self {
            name: metadata.name,
            namespace: metadata.namespace,
            labels: metadata.labels,
            annotations: metadata
                .annotations
                .and_then(|all| all.trigger)
                .map(|trigger| BTreeMap::from([(TRIGGER_ANNOTATION.to_owned(), trigger)])),
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
            ..Self::default()
        }
    }
}

/// What is read of a Service.
#[derive(Debug, Deserialize)]
pub(super) struct ServiceWire {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<core::ServiceSpec>,
    status: Option<core::ServiceStatus>,
}

/// What is read of an EndpointSlice.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SliceWire {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    address_type: String,
    ports: Option<Vec<discovery::EndpointPort>>,
    endpoints: Option<Vec<discovery::Endpoint>>,
}

/// What is read of a Node.
#[derive(Debug, Deserialize)]
pub(super) struct NodeWire {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<NodeSpecWire>,
    status: Option<NodeStatusWire>,
}

#[derive(Debug, Deserialize)]
struct NodeSpecWire {
    taints: Option<Vec<core::Taint>>,
}

#[derive(Debug, Deserialize)]
struct NodeStatusWire {
    addresses: Option<Vec<core::NodeAddress>>,
}

/// What is read of a ServiceCIDR.
#[derive(Debug, Deserialize)]
pub(super) struct ServiceCidrWire {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<networking::ServiceCIDRSpec>,
}

impl Identified for ServiceWire {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl Identified for SliceWire {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl Identified for NodeWire {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl Identified for ServiceCidrWire {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

/// What every object and every bookmark has.
#[derive(Debug, Default, Deserialize)]
struct Bare {
    #[serde(default)]
    metadata: Metadata,
}

impl Kind for Services {
    type Reduced = ServiceObject;
    type Wire = ServiceWire;

    const KIND: ObjectKind = ObjectKind::Service;
    const PATH: &'static str = "/api/v1/services";
    const LABELS: Option<&'static str> = Some("!service.kubernetes.io/service-proxy-name");

    fn reduce(wire: ServiceWire, names: &mut Names, rejections: &mut Vec<Rejection>) -> Option<ServiceObject> {
        let service = core::Service {
            metadata: wire.metadata.into(),
            spec: wire.spec,
            status: wire.status,
        };
        ServiceObject::convert(&service, names, rejections).map(|(_, service)| service)
    }
}

impl Kind for EndpointSlices {
    type Reduced = SliceObject;
    type Wire = SliceWire;

    const KIND: ObjectKind = ObjectKind::EndpointSlice;
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";
    const LABELS: Option<&'static str> = Some("!service.kubernetes.io/headless");
    // A slice of a hundred endpoints, the controller's limit, is some forty kilobytes.
    const PAGE: u32 = 100;

    fn reduce(wire: SliceWire, names: &mut Names, rejections: &mut Vec<Rejection>) -> Option<SliceObject> {
        let slice = discovery::EndpointSlice {
            metadata: wire.metadata.into(),
            address_type: wire.address_type,
            ports: wire.ports,
            endpoints: wire.endpoints.unwrap_or_default(),
        };
        SliceObject::convert(&slice, names, rejections).map(|(_, slice)| slice)
    }
}

impl Kind for Nodes {
    type Reduced = NodeObject;
    type Wire = NodeWire;

    const KIND: ObjectKind = ObjectKind::Node;
    const PATH: &'static str = "/api/v1/nodes";
    // A Node with its images is some fifteen kilobytes.
    const PAGE: u32 = 100;

    fn reduce(wire: NodeWire, names: &mut Names, rejections: &mut Vec<Rejection>) -> Option<NodeObject> {
        let spec = wire.spec.map(|spec| core::NodeSpec {
            taints: spec.taints,
            ..core::NodeSpec::default()
        });
        let status = wire.status.map(|status| core::NodeStatus {
            addresses: status.addresses,
            ..core::NodeStatus::default()
        });
        let node = core::Node {
            metadata: wire.metadata.into(),
            spec,
            status,
        };
        NodeObject::convert(&node, names, rejections)
    }
}

impl Kind for ServiceCidrs {
    type Reduced = Vec<IpNet>;
    type Wire = ServiceCidrWire;

    const KIND: ObjectKind = ObjectKind::ServiceCIDR;
    const PATH: &'static str = "/apis/networking.k8s.io/v1/servicecidrs";
    const OPTIONAL: bool = true;

    fn reduce(wire: ServiceCidrWire, _: &mut Names, rejections: &mut Vec<Rejection>) -> Option<Vec<IpNet>> {
        let object = networking::ServiceCIDR {
            metadata: wire.metadata.into(),
            spec: wire.spec,
            status: None,
        };
        Some(service_ranges(&object, rejections))
    }
}

/// Reads one object from its JSON.
pub(super) fn read<K: Kind>(text: &str, names: &mut Names) -> Object<K::Reduced> {
    match serde_json::from_str::<K::Wire>(text) {
        Ok(wire) => {
            let metadata = wire.metadata();
            let key = metadata.key();
            let version = metadata.resource_version.clone().unwrap_or_default();
            let mut rejections = Vec::new();
            let content = K::reduce(wire, names, &mut rejections);
            Object {
                key,
                version,
                content,
                undecodable: false,
                rejections,
            }
        }
        Err(error) => undecodable::<K>(text, &error),
    }
}

/// Key and version of an object whose content does not matter: one that is gone, or a bookmark.
pub(super) fn read_bare(text: &str) -> (ObjectKey, String) {
    let bare: Bare = serde_json::from_str(text).unwrap_or_default();
    (bare.metadata.key(), bare.metadata.resource_version.unwrap_or_default())
}

/// What can be told of an object that has a field of the wrong type.
fn undecodable<K: Kind>(text: &str, error: &serde_json::Error) -> Object<K::Reduced> {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let told = |field: &str| value["metadata"][field].as_str().unwrap_or_default();
    let (field, reason) = match serde_path_to_error::deserialize::<_, K::Wire>(&value) {
        Err(error) => (error.path().to_string(), error.inner().to_string()),
        // Only text that is no JSON at all, or a repeated field, reads differently a second time.
        Ok(_) => (".".to_owned(), error.to_string()),
    };
    let key = ObjectKey::new(told("namespace"), told("name"));
    let rejection = Rejection {
        object: ObjectRef::namespaced(K::KIND, &key),
        field,
        reason,
    };
    Object {
        key,
        version: told("resourceVersion").to_owned(),
        content: None,
        undecodable: true,
        rejections: vec![rejection],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(text: &str) -> Object<SliceObject> {
        read::<EndpointSlices>(text, &mut Names::default())
    }

    const HEAD: &str = r#""kind":"EndpointSlice","metadata":{"name":"web-1","namespace":"default","resourceVersion":"7",
        "annotations":{"a":"b","endpoints.kubernetes.io/last-change-trigger-time":"2027-01-15T08:00:00.5Z"},
        "labels":{"kubernetes.io/service-name":"web"},"managedFields":[{"manager":"m","fieldsV1":{"f:a":{}}}]},"addressType":"IPv4""#;

    #[test]
    fn a_slice_is_reduced_and_null_lists_are_empty() {
        let object = slice(&format!(
            r#"{{{HEAD},"endpoints":[{{"addresses":["10.0.0.1"],"targetRef":{{"kind":"Pod","name":"p"}}}}],"ports":[{{"name":"","port":80,"protocol":"TCP"}}]}}"#
        ));
        assert_eq!(
            (object.key.to_string(), &*object.version),
            ("default/web-1".to_owned(), "7")
        );
        let content = object.content.unwrap();
        assert_eq!(
            (content.endpoints.len(), content.ports.len(), &*content.service),
            (1, 1, "web")
        );
        assert_eq!(content.triggered_at, Some(1_800_000_000_500_000));
        let object = slice(&format!(r#"{{{HEAD},"endpoints":null,"ports":null}}"#));
        assert_eq!(object.rejections, []);
        let content = object.content.unwrap();
        assert_eq!((content.endpoints.len(), content.ports.len()), (0, 0));
    }

    #[test]
    fn a_field_of_the_wrong_type_is_named_and_the_object_still_has_its_name() {
        let object = slice(&format!(r#"{{{HEAD},"endpoints":[{{"addresses":"10.0.0.1"}}]}}"#));
        assert!(object.undecodable && object.content.is_none());
        assert_eq!(
            (object.key.to_string(), &*object.version),
            ("default/web-1".to_owned(), "7")
        );
        assert_eq!(object.rejections[0].field, "endpoints[0].addresses");
        assert_eq!(object.rejections[0].object.to_string(), "EndpointSlice default/web-1");
        let object = slice("{");
        assert!(object.undecodable && object.rejections[0].field == ".", "{object:?}");
    }

    #[test]
    fn a_node_is_read_without_what_nobody_needs() {
        let text = r#"{"metadata":{"name":"n1","labels":{"topology.kubernetes.io/zone":"z"},"deletionTimestamp":"2026-01-01T00:00:00Z"},
            "spec":{"podCIDRs":["10.244.1.0/24"],"taints":[{"key":"k","effect":"NoSchedule"}]},
            "status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}],"images":[{"names":["a"],"sizeBytes":1}],"conditions":"odd"}}"#;
        let node = read::<Nodes>(text, &mut Names::default()).content.unwrap();
        assert_eq!((node.zone.as_deref(), node.eligible), (Some("z"), false));
        assert_eq!(node.addresses.len(), 1);
    }

    #[test]
    fn a_bookmark_has_a_version() {
        let text = r#"{"kind":"Service","metadata":{"resourceVersion":"42","creationTimestamp":null}}"#;
        assert_eq!(read_bare(text).1, "42");
    }
}
