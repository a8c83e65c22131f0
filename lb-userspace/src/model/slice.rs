//! The reduced form of an EndpointSlice, and its conversion from the API's type.
//!
//! A wrong endpoint or port is rejected and left out; the rest of the slice stays. Absent conditions have their API
//! meaning: ready and serving default to true, terminating to false. Source: kube-proxy `pkg/proxy/endpointslicecache.go`,
//! KEP-1672 (conditions), KEP-2433 and KEP-4444 (hints).

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{self as discovery, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::address::{Family, parse_address, unusable_endpoint};
use super::names::Names;
use super::object::{ObjectKey, ObjectKind, Rejection, Report, quoted};
use super::port::{CheckedPort, PortFault, Protocol, check_port};
use super::service::namespaced_name;
use super::service_address::not_an_address;

/// The label that names a slice's Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The annotation that tells when what changed a slice last happened.
pub const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The label that keeps a slice from proxies; its mere presence counts.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// An EndpointSlice as far as the model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceObject {
    /// The Service that the endpoints belong to, in the slice's namespace.
    pub service: Arc<str>,
    /// Whether it came from legacy Endpoints, as the mirroring controller would have made it.
    pub mirrored: bool,
    /// Whether the label `service.kubernetes.io/headless` hides it from proxies.
    pub headless: bool,
    /// The family of every address in it.
    pub family: Family,
    /// When what changed it last happened, as the controller noted, in microseconds since 1970; never used for selection.
    pub triggered_at: Option<i64>,
    /// The ports that every endpoint in it has.
    pub ports: Box<[SlicePort]>,
    /// The endpoints.
    pub endpoints: Box<[EndpointObject]>,
}

/// One port of a slice, joined to a Service port by name and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name; empty joins the Service port without a name.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port number on the endpoints.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointObject {
    /// Its address: the first of the list, as for kube-proxy.
    pub address: IpAddr,
    /// Its conditions.
    pub conditions: Conditions,
    /// The node it is on.
    pub node: Option<Arc<str>>,
    /// The zone it is in; shown, never used for selection (hints are).
    pub zone: Option<Arc<str>>,
    /// The topology hints, if it has any.
    pub hints: Option<Arc<Hints>>,
}

/// The conditions of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conditions {
    /// It shall get traffic.
    pub ready: bool,
    /// It answers traffic.
    pub serving: bool,
    /// It is shutting down.
    pub terminating: bool,
}

impl Conditions {
    /// Whether it may stand in when no endpoint is ready (KEP-1669): it still serves while it shuts down.
    pub fn is_draining(self) -> bool {
        self.serving && self.terminating
    }

    /// Whether any rule can ever choose it.
    pub fn is_usable(self) -> bool {
        self.ready || self.is_draining()
    }
}

/// For whom the EndpointSlice controller meant an endpoint; an empty list is no hint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// The zones that should use it.
    pub zones: Box<[Arc<str>]>,
    /// The nodes that should use it.
    pub nodes: Box<[Arc<str>]>,
}

impl SliceObject {
    /// Reduces a slice. `None` when it belongs to no Service, has a type without IP addresses, or no usable name.
    pub fn convert(
        object: &EndpointSlice,
        names: &mut Names,
        rejections: &mut Vec<Rejection>,
    ) -> Option<(ObjectKey, Self)> {
        let (namespace, name) = namespaced_name(&object.metadata);
        let mut report = Report::new(ObjectKind::EndpointSlice, namespace, name, rejections);
        if !report.name_is_valid() {
            return None;
        }
        if object.address_type == "FQDN" {
            return None;
        }
        let Some(family) = Family::parse(&object.address_type) else {
            let reason = format!("{} is unknown; use IPv4 or IPv6", quoted(&object.address_type));
            report.reject("addressType", reason);
            return None;
        };
        let owner = label(&object.metadata, SERVICE_NAME_LABEL).unwrap_or_default();
        if owner.is_empty() {
            let field = format!("metadata.labels[{SERVICE_NAME_LABEL:?}]");
            report.reject(
                field,
                "is missing; set it to the name of the Service that the endpoints belong to",
            );
            return None;
        }
        let slice = Self {
            service: names.text(owner),
            mirrored: false,
            headless: is_headless(&object.metadata),
            family,
            triggered_at: triggered_at(&object.metadata),
            ports: ports(object, names, &mut report),
            endpoints: endpoints(object, family, names, &mut report),
        };
        Some((
            ObjectKey {
                namespace: names.text(namespace),
                name: name.into(),
            },
            slice,
        ))
    }
}

/// Whether proxies must not see the object's endpoints.
pub(super) fn is_headless(metadata: &ObjectMeta) -> bool {
    label(metadata, HEADLESS_LABEL).is_some()
}

/// The time of the annotation that the EndpointSlice controller writes; none that cannot be read.
fn triggered_at(metadata: &ObjectMeta) -> Option<i64> {
    let text = metadata.annotations.as_ref()?.get(TRIGGER_ANNOTATION)?;
    text.parse::<Timestamp>().ok().map(Timestamp::as_microsecond)
}

/// The value of a label.
pub(super) fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn ports(object: &EndpointSlice, names: &mut Names, report: &mut Report<'_>) -> Box<[SlicePort]> {
    let mut ports = Vec::new();
    for (index, port) in object.ports.as_deref().unwrap_or_default().iter().enumerate() {
        match checked_port(port) {
            Ok((name, protocol, port)) => ports.push(SlicePort {
                name: names.text(name),
                protocol,
                port,
            }),
            Err((field, reason)) => report.reject(format!("ports[{index}].{field}"), reason),
        }
    }
    ports.into()
}

fn checked_port(port: &discovery::EndpointPort) -> Result<CheckedPort<'_>, PortFault> {
    let name = port
        .name
        .as_deref()
        .ok_or(("name", "is missing; use \"\" for a port without a name".to_owned()))?;
    let number = port.port.ok_or((
        "port",
        "is missing; a Service needs a port number from 1 to 65535".to_owned(),
    ))?;
    check_port(name, port.protocol.as_deref(), number)
}

fn endpoints(
    object: &EndpointSlice,
    family: Family,
    names: &mut Names,
    report: &mut Report<'_>,
) -> Box<[EndpointObject]> {
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        let address = match first_address(endpoint, family) {
            Ok(address) => address,
            Err(reason) => {
                report.reject(format!("endpoints[{index}].addresses[0]"), reason);
                continue;
            }
        };
        let conditions = endpoint.conditions.as_ref();
        endpoints.push(EndpointObject {
            address,
            conditions: Conditions {
                ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
                serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
                terminating: conditions
                    .and_then(|conditions| conditions.terminating)
                    .unwrap_or(false),
            },
            node: shared(endpoint.node_name.as_deref(), names),
            zone: shared(endpoint.zone.as_deref(), names),
            hints: hints(endpoint, names),
        });
    }
    endpoints.into()
}

fn first_address(endpoint: &discovery::Endpoint, family: Family) -> Result<IpAddr, String> {
    let text = endpoint
        .addresses
        .first()
        .ok_or("is missing; an endpoint needs one address")?;
    endpoint_address(text, family)
}

/// Reads an endpoint's address. The error is the reason of a rejection.
pub(super) fn endpoint_address(text: &str, family: Family) -> Result<IpAddr, String> {
    let address = parse_address(text).ok_or_else(|| not_an_address(text))?;
    if Family::of(address) != family {
        return Err(format!(
            "{address} is not {family}; move it to a slice of its own family"
        ));
    }
    match unusable_endpoint(address) {
        Some(reason) => Err(format!("{address} {reason}; use the address of a pod or host")),
        None => Ok(address),
    }
}

/// The shared copy of a text that is not empty.
pub(super) fn shared(text: Option<&str>, names: &mut Names) -> Option<Arc<str>> {
    text.filter(|text| !text.is_empty()).map(|text| names.text(text))
}

fn hints(endpoint: &discovery::Endpoint, names: &mut Names) -> Option<Arc<Hints>> {
    let given = endpoint.hints.as_ref()?;
    let zones = given
        .for_zones
        .as_deref()
        .unwrap_or_default()
        .iter()
        .map(|zone| &zone.name);
    let nodes = given
        .for_nodes
        .as_deref()
        .unwrap_or_default()
        .iter()
        .map(|node| &node.name);
    let hints = Hints {
        zones: zones.map(|zone| names.text(zone)).collect(),
        nodes: nodes.map(|node| names.text(node)).collect(),
    };
    (hints != Hints::default()).then(|| names.hints(hints))
}
