//! From objects as a test writes them down to what the agent's model makes of them, and the objects that most cases share.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_tests::objects::{
    Manifest, ServiceObject as ServiceManifest, SliceObject as SliceManifest, node, service, slice,
};
use serde::de::DeserializeOwned;
use steerway::model::{DesiredState, ModelConfig, Names, NodeObject, ServiceObject, SliceObject, Snapshot, build};

use super::node::{Addresses, NODE};

/// What every backend listens on.
pub(super) const BACKEND_PORT: u16 = 8080;
/// The port of the Services of [`web`].
pub(super) const PORT: u16 = 80;
/// Their NodePort.
pub(super) const NODE_PORT: u16 = 30_080;

/// Services and slices of one case; the Node is always there.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    pub(super) services: Vec<ServiceManifest>,
    pub(super) slices: Vec<SliceManifest>,
}

impl Objects {
    /// The model's view of them. An object that is refused fails the test.
    pub(super) fn desired(&self) -> DesiredState {
        let (mut names, mut rejections, mut snapshot) = (Names::default(), Vec::new(), Snapshot::default());
        for manifest in &self.services {
            let object: Service = read(manifest);
            let converted = ServiceObject::convert(&object, &mut names, &mut rejections);
            snapshot
                .services
                .extend(converted.map(|(key, object)| (key, Arc::new(object))));
        }
        for manifest in &self.slices {
            let object: EndpointSlice = read(manifest);
            let converted = SliceObject::convert(&object, &mut names, &mut rejections);
            snapshot
                .slices
                .extend(converted.map(|(key, object)| (key, Arc::new(object))));
        }
        let own = Addresses::BOTH
            .iter()
            .fold(node(NODE), |object, at| object.internal_ip(at.node()));
        let own: Node = read(&own);
        snapshot.node = NodeObject::convert(&own, &mut names, &mut rejections).map(Arc::new);
        let desired = build(&snapshot, &ModelConfig::new(NODE));
        assert!(
            rejections.is_empty() && desired.rejections.is_empty(),
            "{rejections:?} {:?}",
            desired.rejections
        );
        desired
    }
}

fn read<T: DeserializeOwned>(manifest: &dyn Manifest) -> T {
    serde_json::from_value(manifest.to_json()).expect("an object of its kind")
}

/// The Service `default/web`: ClusterIP, LoadBalancer IP and NodePort on TCP and UDP.
pub(super) fn web(at: Addresses) -> ServiceManifest {
    service("default", "web")
        .cluster_ip(&at.vip().to_string())
        .load_balancer_ip(&at.load_balancer().to_string())
        .port("tcp", PORT, "TCP")
        .node_port(NODE_PORT)
        .port("udp", PORT, "UDP")
        .node_port(NODE_PORT)
}

/// An empty slice of [`web`].
pub(super) fn slice_of_web(at: Addresses) -> SliceManifest {
    slice("default", "web-1", "web")
        .address_type(at.pick("IPv4", "IPv6"))
        .port_of("tcp", BACKEND_PORT, "TCP")
        .port_of("udp", BACKEND_PORT, "UDP")
}

/// [`web`] with one ready endpoint of each kind that is named.
pub(super) fn web_on(at: Addresses, backends: &[Backend]) -> Objects {
    Objects {
        services: vec![web(at)],
        slices: vec![
            backends
                .iter()
                .fold(slice_of_web(at), |slice, backend| backend.add(at, slice)),
        ],
    }
}

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// A pod of this node.
    Local,
    /// A pod of another node.
    Remote,
    /// A pod behind a narrow link.
    Narrow,
    /// A pod to which no route leads.
    Unreachable,
    /// A pod behind a next hop of unknown MAC address.
    Unresolved,
    /// The pod that is the client too.
    Client,
    /// A process in the host's network.
    Host,
}

impl Backend {
    fn add(self, at: Addresses, slice: SliceManifest) -> SliceManifest {
        let (address, node) = match self {
            Self::Local => (at.local_pod(), NODE),
            Self::Client => (at.pod(), NODE),
            Self::Host => (at.node(), NODE),
            Self::Remote => (at.remote_pod(), "node-b"),
            Self::Narrow => (at.narrow_pod(), "node-b"),
            Self::Unreachable => (at.unreachable_pod(), "node-b"),
            Self::Unresolved => (at.unresolved_pod(), "node-b"),
        };
        slice.endpoint(address).node(node).ready(true)
    }
}
