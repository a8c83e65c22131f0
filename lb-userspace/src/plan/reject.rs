//! What is told when something cannot be programmed.

use lb_common::layout::NAME_BYTES;

use super::Planner;
use super::name::service_port_name;
use crate::model::{Frontend, FrontendKind, ObjectKey, ObjectKind, ObjectRef, Protocol, Rejection, ServicePortKey};

/// A field and what is wrong with it.
pub(super) struct Reason {
    pub(super) field: &'static str,
    pub(super) text: String,
}

/// Why a service port can never be programmed.
pub(super) fn never(key: &ServicePortKey) -> Option<Reason> {
    if key.protocol == Protocol::Sctp {
        let text = format!("port {:?}: SCTP is not forwarded; use TCP or UDP", &*key.port);
        return Some(Reason {
            field: "spec.ports",
            text,
        });
    }
    // Longer than any name that the API server accepts, so the text is only made when it could matter.
    let parts = key.namespace.len() + key.name.len() + key.port.len();
    let too_long = parts + 16 > NAME_BYTES && service_port_name(key).len() > NAME_BYTES;
    too_long.then(|| Reason {
        field: "metadata.name",
        text: format!("namespace, name and port name together are longer than {NAME_BYTES} bytes; shorten one"),
    })
}

/// A table is full.
pub(super) fn full(table: &str, capacity: u64, what: &str) -> Reason {
    Reason {
        field: "spec.ports",
        text: format!("no room in table {table} ({capacity} entries): {what}"),
    }
}

/// A frontend finds no slot.
pub(super) fn no_slot(frontend: &Frontend) -> Reason {
    let field = match frontend.kind {
        FrontendKind::ClusterIp => "spec.clusterIP",
        FrontendKind::LoadBalancerIp => "status.loadBalancer.ingress",
        FrontendKind::ExternalIp => "spec.externalIPs",
        FrontendKind::NodePort => "spec.ports",
    };
    let port = frontend.port;
    let what = frontend
        .address
        .map_or(format!("node port {port}"), |address| format!("{address} port {port}"));
    Reason {
        field,
        text: format!("no room in the frontend table for {what}"),
    }
}

impl Planner {
    /// Records that part of a service port is not programmed; it is tried again in the next cycle.
    pub(super) fn reject(&mut self, key: &ServicePortKey, reason: Reason) {
        let object = ObjectKey {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        let rejection = Rejection {
            object: ObjectRef::namespaced(ObjectKind::Service, &object),
            field: reason.field.into(),
            reason: reason.text,
        };
        self.rejected.entry(key.clone()).or_default().push(rejection);
    }
}
