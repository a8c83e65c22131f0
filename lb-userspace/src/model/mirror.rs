//! Legacy Endpoints turned into slices, as the EndpointSlice mirroring controller would.
//!
//! In a cluster that controller writes the slices; a folder of files has no controllers. Each subset becomes one slice
//! per family: `addresses` are ready, `notReadyAddresses` are not, there are no hints and no zones. Not mirrored are
//! objects that opt out and leader-election records. That Endpoints of a Service *with* a selector are not mirrored
//! either needs the Service and is up to [`super::build()`]. The controller's limit of 1000 addresses a subset, which
//! protects the API server, is not kept. Source: kubernetes `pkg/controller/endpointslicemirroring`.

use k8s_openapi::api::core::v1::{self as core, Endpoints};

use super::address::{Family, parse_address};
use super::names::Names;
use super::object::{ObjectKey, ObjectKind, Rejection, Report};
use super::port::check_port;
use super::service::namespaced_name;
use super::service_address::not_an_address;
use super::slice::{Conditions, EndpointObject, SliceObject, SlicePort, endpoint_address, is_headless, label, shared};

/// The label that opts an object out of mirroring.
const SKIP_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
/// The annotation of a leader-election record.
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";

impl SliceObject {
    /// Turns Endpoints into slices. Their names hold a `/`, so that they never meet a slice of the API.
    pub fn mirror(object: &Endpoints, names: &mut Names, rejections: &mut Vec<Rejection>) -> Vec<(ObjectKey, Self)> {
        let metadata = &object.metadata;
        let (namespace, name) = namespaced_name(metadata);
        let mut report = Report::new(ObjectKind::Endpoints, namespace, name, rejections);
        let leader = metadata
            .annotations
            .as_ref()
            .is_some_and(|all| all.contains_key(LEADER_ANNOTATION));
        if leader || label(metadata, SKIP_LABEL) == Some("true") || !report.name_is_valid() {
            return Vec::new();
        }
        let mut slices = Vec::new();
        for (index, subset) in object.subsets.as_deref().unwrap_or_default().iter().enumerate() {
            let ports = ports(subset, index, names, &mut report);
            let endpoints = endpoints(subset, index, names, &mut report);
            for family in Family::BOTH {
                let of_family = |endpoint: &&EndpointObject| Family::of(endpoint.address) == family;
                let endpoints: Box<[_]> = endpoints.iter().filter(of_family).cloned().collect();
                if endpoints.is_empty() {
                    continue;
                }
                let key = ObjectKey {
                    namespace: names.text(namespace),
                    name: format!("{name}/{index}/{family}").into(),
                };
                slices.push((
                    key,
                    Self {
                        service: names.text(name),
                        mirrored: true,
                        headless: is_headless(metadata),
                        family,
                        triggered_at: None,
                        ports: ports.clone(),
                        endpoints,
                    },
                ));
            }
        }
        slices
    }
}

fn ports(
    subset: &core::EndpointSubset,
    subset_index: usize,
    names: &mut Names,
    report: &mut Report<'_>,
) -> Box<[SlicePort]> {
    let mut ports = Vec::new();
    for (index, port) in subset.ports.as_deref().unwrap_or_default().iter().enumerate() {
        match check_port(
            port.name.as_deref().unwrap_or_default(),
            port.protocol.as_deref(),
            port.port,
        ) {
            Ok((name, protocol, port)) => ports.push(SlicePort {
                name: names.text(name),
                protocol,
                port,
            }),
            Err((field, reason)) => report.reject(format!("subsets[{subset_index}].ports[{index}].{field}"), reason),
        }
    }
    ports.into()
}

fn endpoints(
    subset: &core::EndpointSubset,
    subset_index: usize,
    names: &mut Names,
    report: &mut Report<'_>,
) -> Vec<EndpointObject> {
    let lists = [
        ("addresses", &subset.addresses, true),
        ("notReadyAddresses", &subset.not_ready_addresses, false),
    ];
    let mut endpoints = Vec::new();
    for (list, addresses, ready) in lists {
        for (index, endpoint) in addresses.as_deref().unwrap_or_default().iter().enumerate() {
            let checked = parse_address(&endpoint.ip)
                .ok_or_else(|| not_an_address(&endpoint.ip))
                .and_then(|address| endpoint_address(&endpoint.ip, Family::of(address)));
            match checked {
                Ok(address) => endpoints.push(EndpointObject {
                    address,
                    conditions: Conditions {
                        ready,
                        serving: true,
                        terminating: false,
                    },
                    node: shared(endpoint.node_name.as_deref(), names),
                    zone: None,
                    hints: None,
                }),
                Err(reason) => report.reject(format!("subsets[{subset_index}].{list}[{index}].ip"), reason),
            }
        }
    }
    endpoints
}
