//! The reduced form of a Service, and its conversion from the API's type.
//!
//! Only what selection and forwarding need is kept. A wrong field is rejected and left out; the rest of the Service
//! stays in force. What is no work of ours (another proxy's Service, a headless one, an ExternalName) is kept as a
//! name with a reason, so that it can be shown. Source: kube-proxy `pkg/proxy/serviceport.go`, API validation.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{self as core, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::address::PerFamily;
use super::names::Names;
use super::object::{ObjectKey, ObjectKind, Rejection, Report, quoted};
use super::port::{Protocol, check_port, port_number};
use super::service_address::{cluster_ips, external_ips, load_balancer_ips, source_ranges};

/// The label by which a Service chooses another proxy; its mere presence counts.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Session affinity's time-out when the object names none, in seconds.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// The longest time-out that the API allows: one day, in seconds.
const LONGEST_AFFINITY_SECONDS: u32 = 86_400;

/// A Service as far as the model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceObject {
    /// `metadata.creationTimestamp` in seconds since 1970; `None` in files.
    pub created: Option<i64>,
    /// Why the Service is not proxied at all; then every field below is empty.
    pub not_proxied: Option<NotProxied>,
    /// Its type.
    pub kind: ServiceType,
    /// Whether the Service has a selector, and hence slices of its own.
    pub has_selector: bool,
    /// The ClusterIP of each family.
    pub cluster_ips: PerFamily<Option<IpAddr>>,
    /// The ports; (name, protocol) is unique.
    pub ports: Box<[PortObject]>,
    /// `spec.externalIPs`, both families.
    pub external_ips: Box<[AddressField]>,
    /// The addresses of `status.loadBalancer.ingress` that are captured (ipMode VIP or absent), both families.
    pub load_balancer_ips: Box<[AddressField]>,
    /// `spec.loadBalancerSourceRanges` of each family; `None` allows every source.
    pub source_ranges: PerFamily<Option<Box<[IpNet]>>>,
    /// Session affinity by client address and its time-out in seconds.
    pub affinity_seconds: Option<u32>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`, where the type of the Service honours it, else Cluster.
    pub external_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`, where it is in use.
    pub health_check_node_port: Option<u16>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortObject {
    /// The name that joins it with ports of slices; may be empty.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the Service's own addresses.
    pub port: u16,
    /// The port on node addresses, if any.
    pub node_port: Option<u16>,
    /// Its place in `spec.ports`.
    pub index: u16,
}

/// An address and its place in the list that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressField {
    /// The address.
    pub address: IpAddr,
    /// The index in `spec.externalIPs` or `status.loadBalancer.ingress`.
    pub index: u16,
}

/// `spec.type`, so far as it is proxied; shown, and decides about nothing here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServiceType {
    /// Reached by its ClusterIP.
    #[default]
    ClusterIP,
    /// And by a port of each node.
    NodePort,
    /// And by a load balancer.
    LoadBalancer,
}

impl ServiceType {
    /// The type as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// Which endpoints a traffic policy allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Endpoints of the whole cluster.
    #[default]
    Cluster,
    /// Endpoints on this node only.
    Local,
}

/// Why a Service is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NotProxied {
    /// The label `service.kubernetes.io/service-proxy-name` is set.
    OtherProxy,
    /// The type is ExternalName: a name in DNS, no address.
    ExternalName,
    /// The ClusterIP is `None`.
    Headless,
    /// There is no usable ClusterIP.
    NoClusterIp,
}

impl ServiceObject {
    /// Reduces a Service. `None` when not even its name is usable.
    pub fn convert(object: &Service, names: &mut Names, rejections: &mut Vec<Rejection>) -> Option<(ObjectKey, Self)> {
        let metadata = &object.metadata;
        let (namespace, name) = namespaced_name(metadata);
        let mut report = Report::new(ObjectKind::Service, namespace, name, rejections);
        if !report.name_is_valid() {
            return None;
        }
        let key = ObjectKey {
            namespace: names.text(namespace),
            name: names.text(name),
        };
        let Some(spec) = &object.spec else {
            report.reject("spec", "is missing; a Service needs spec.ports and spec.clusterIP");
            return None;
        };
        let mut service = Self {
            created: metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
            not_proxied: not_proxied(metadata, spec),
            kind: match spec.type_.as_deref() {
                Some("NodePort") => ServiceType::NodePort,
                Some("LoadBalancer") => ServiceType::LoadBalancer,
                _ => ServiceType::ClusterIP,
            },
            has_selector: spec.selector.as_ref().is_some_and(|selector| !selector.is_empty()),
            cluster_ips: PerFamily::default(),
            ports: Box::default(),
            external_ips: Box::default(),
            load_balancer_ips: Box::default(),
            source_ranges: PerFamily::default(),
            affinity_seconds: None,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
        };
        if service.not_proxied.is_some() {
            return Some((key, service));
        }
        service.cluster_ips = cluster_ips(spec, &mut report);
        if service.cluster_ips == PerFamily::default() {
            service.not_proxied = Some(NotProxied::NoClusterIp);
            return Some((key, service));
        }
        service.ports = ports(spec, names, &mut report);
        service.external_ips = external_ips(spec, &mut report);
        service.load_balancer_ips = load_balancer_ips(object, &mut report);
        service.source_ranges = source_ranges(spec, &mut report);
        service.affinity_seconds = affinity_seconds(spec, &mut report);
        service.internal_policy = policy(
            spec.internal_traffic_policy.as_deref(),
            "spec.internalTrafficPolicy",
            &mut report,
        );
        service.external_policy = external_policy(spec, &mut report);
        service.health_check_node_port = health_check_node_port(spec, service.external_policy, &mut report);
        Some((key, service))
    }
}

/// Namespace and name of an object; a missing namespace is `default`, as for `kubectl apply`.
pub(super) fn namespaced_name(metadata: &ObjectMeta) -> (&str, &str) {
    let namespace = metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    (
        namespace.unwrap_or("default"),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

fn not_proxied(metadata: &ObjectMeta, spec: &core::ServiceSpec) -> Option<NotProxied> {
    let labels = metadata.labels.as_ref();
    let first_ip = spec
        .cluster_ip
        .as_deref()
        .or_else(|| spec.cluster_ips.as_deref()?.first().map(String::as_str));
    if labels.is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL)) {
        Some(NotProxied::OtherProxy)
    } else if spec.type_.as_deref() == Some("ExternalName") {
        Some(NotProxied::ExternalName)
    } else if first_ip == Some("None") {
        Some(NotProxied::Headless)
    } else {
        None
    }
}

fn ports(spec: &core::ServiceSpec, names: &mut Names, report: &mut Report<'_>) -> Box<[PortObject]> {
    let given = spec.ports.as_deref().unwrap_or_default();
    if given.is_empty() {
        report.reject("spec.ports", "is empty; name at least one port");
    }
    let mut seen = BTreeSet::new();
    let mut ports = Vec::with_capacity(given.len());
    for (index, port) in given.iter().enumerate() {
        let (name, protocol, number) = match check_port(
            port.name.as_deref().unwrap_or_default(),
            port.protocol.as_deref(),
            port.port,
        ) {
            Ok(checked) => checked,
            Err((field, reason)) => {
                report.reject(format!("spec.ports[{index}].{field}"), reason);
                continue;
            }
        };
        if !seen.insert((name, protocol)) {
            let reason = format!("another {protocol} port has the name {name:?} too; give each port its own name");
            report.reject(format!("spec.ports[{index}].name"), reason);
            continue;
        }
        let node_port = match port.node_port.unwrap_or(0) {
            0 => None,
            value => port_number(value)
                .map_err(|reason| report.reject(format!("spec.ports[{index}].nodePort"), reason))
                .ok(),
        };
        ports.push(PortObject {
            name: names.text(name),
            protocol,
            port: number,
            node_port,
            index: index as u16,
        });
    }
    ports.into()
}

fn affinity_seconds(spec: &core::ServiceSpec, report: &mut Report<'_>) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            report.reject(
                "spec.sessionAffinity",
                format!("{} is unknown; use None or ClientIP", quoted(other)),
            );
            return None;
        }
    }
    let client_ip = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    let Some(given) = client_ip.and_then(|client_ip| client_ip.timeout_seconds) else {
        return Some(DEFAULT_AFFINITY_SECONDS);
    };
    let allowed = u32::try_from(given)
        .ok()
        .filter(|seconds| (1..=LONGEST_AFFINITY_SECONDS).contains(seconds));
    if allowed.is_none() {
        report.reject(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("{given} is out of range, {DEFAULT_AFFINITY_SECONDS} is used; use 1 to {LONGEST_AFFINITY_SECONDS}"),
        );
    }
    Some(allowed.unwrap_or(DEFAULT_AFFINITY_SECONDS))
}

fn policy(text: Option<&str>, field: &str, report: &mut Report<'_>) -> TrafficPolicy {
    match text {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            report.reject(
                field,
                format!("{} is unknown, Cluster is used; use Cluster or Local", quoted(other)),
            );
            TrafficPolicy::Cluster
        }
    }
}

/// The external policy; Local is honoured only by types that can be reached from outside.
fn external_policy(spec: &core::ServiceSpec, report: &mut Report<'_>) -> TrafficPolicy {
    let honoured = match spec.type_.as_deref() {
        Some("NodePort" | "LoadBalancer") => true,
        None | Some("" | "ClusterIP") => spec
            .external_ips
            .as_ref()
            .is_some_and(|addresses| !addresses.is_empty()),
        Some(other) => {
            let reason = format!(
                "{} is unknown and treated as ClusterIP; use ClusterIP, NodePort, LoadBalancer or ExternalName",
                quoted(other)
            );
            report.reject("spec.type", reason);
            false
        }
    };
    let given = policy(
        spec.external_traffic_policy.as_deref(),
        "spec.externalTrafficPolicy",
        report,
    );
    if honoured { given } else { TrafficPolicy::Cluster }
}

fn health_check_node_port(spec: &core::ServiceSpec, external: TrafficPolicy, report: &mut Report<'_>) -> Option<u16> {
    if spec.type_.as_deref() != Some("LoadBalancer") || external != TrafficPolicy::Local {
        return None;
    }
    let given = spec.health_check_node_port.unwrap_or(0);
    port_number(given)
        .map_err(|reason| {
            let reason = format!("{reason}, so that load balancers can ask this node for local endpoints");
            report.reject("spec.healthCheckNodePort", reason);
        })
        .ok()
}
