//! From a snapshot to the desired state: who is proxied, who owns which frontend, which endpoints belong to what.
//!
//! Total and deterministic; linear in objects but for sorting. Hash maps here are only looked up, never walked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::address::Family;
use super::desired::{DesiredState, Frontend, HealthCheck, ServicePort, ServicePortKey, SourceRanges};
use super::endpoint::{self, Candidate};
use super::frontend::{Claimant, Claims};
use super::node::NodeFacts;
use super::object::{ObjectKey, ObjectKind, ObjectRef, Rejection};
use super::policy::{self, Policies};
use super::service::{AddressField, PortObject, ServiceObject};
use super::slice::SliceObject;
use super::{ModelConfig, Snapshot};

/// Decides what this node should forward.
pub fn build(snapshot: &Snapshot, config: &ModelConfig) -> DesiredState {
    let node = NodeFacts::new(snapshot.node.as_deref(), config);
    let mut rejections = Vec::new();
    let slices = slices_of_services(snapshot, &mut rejections);
    let services = by_precedence(snapshot);

    let mut claims = Claims::default();
    for (key, service) in &services {
        for port in &service.ports {
            claims.reserve_cluster_ips(Claimant { key, service, port });
        }
    }

    let mut service_ports = BTreeMap::new();
    let mut cluster_ips = BTreeMap::new();
    let mut health_checks = BTreeMap::new();
    let mut candidates = Vec::new();
    for (key, service) in services {
        let slices = slices
            .get(&(&*key.namespace, &*key.name))
            .map_or(&[][..], Vec::as_slice);
        let mut health_check = claims
            .health_check_port(key, service, &mut rejections)
            .map(|port| LocalEndpoints::new(port, service));
        for family in Family::BOTH {
            let Some(cluster_ip) = *service.cluster_ips.get(family) else {
                continue;
            };
            cluster_ips.entry(cluster_ip).or_insert_with(|| key.clone());
            for port in &service.ports {
                let claimant = Claimant { key, service, port };
                let frontends = claims.frontends(claimant, family, config.allow_external_ips, &mut rejections);
                let service_port_key = ServicePortKey {
                    namespace: Arc::clone(&key.namespace),
                    name: Arc::clone(&key.name),
                    port: Arc::clone(&port.name),
                    protocol: port.protocol,
                    family,
                };
                endpoint::gather(&service_port_key, slices, &mut candidates);
                if let Some(health_check) = &mut health_check {
                    health_check.count(family, &candidates, &node);
                }
                if !frontends.is_empty() {
                    let policies = policies(service, port, family, config);
                    let service_port = service_port(service, family, frontends, policies, &candidates, &node);
                    service_ports.insert(service_port_key, service_port);
                }
            }
        }
        if let Some(health_check) = health_check {
            health_checks.insert(key.clone(), health_check.finish());
        }
    }
    let service_cidrs = snapshot
        .service_cidrs
        .iter()
        .copied()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    rejections.sort_unstable();
    DesiredState {
        service_ports,
        cluster_ips,
        health_checks,
        node,
        other_nodes: snapshot.other_nodes.clone(),
        service_cidrs,
        rejections,
    }
}

/// The Services that are proxied, in the order in which they may claim frontends: oldest first, those of unknown age last.
fn by_precedence(snapshot: &Snapshot) -> Vec<(&ObjectKey, &ServiceObject)> {
    let proxied = snapshot
        .services
        .iter()
        .filter(|(_, service)| service.not_proxied.is_none());
    let mut services: Vec<_> = proxied.map(|(key, service)| (key, &**service)).collect();
    // The sort is stable: the map's order by namespace and name remains among equals.
    services.sort_by_key(|(_, service)| (service.created.is_none(), service.created));
    services
}

/// The slices that proxies see, by namespace and name of their Service, in order of their own names.
fn slices_of_services<'a>(
    snapshot: &'a Snapshot,
    rejections: &mut Vec<Rejection>,
) -> HashMap<(&'a str, &'a str), Vec<&'a SliceObject>> {
    let mut slices: HashMap<_, Vec<&SliceObject>> = HashMap::with_capacity(snapshot.slices.len());
    for (key, slice) in &snapshot.slices {
        if !slice.headless {
            slices
                .entry((&*key.namespace, &*slice.service))
                .or_default()
                .push(slice);
        }
    }
    for (key, service) in snapshot.services.iter().filter(|(_, service)| service.has_selector) {
        // No mirroring for a Service with a selector: its own slices are the truth.
        let Some(found) = slices.get_mut(&(&*key.namespace, &*key.name)) else {
            continue;
        };
        let before = found.len();
        found.retain(|slice| !slice.mirrored);
        if found.is_empty() && before > 0 && service.not_proxied.is_none() {
            rejections.push(Rejection {
                object: ObjectRef::namespaced(ObjectKind::Endpoints, key),
                field: "subsets".into(),
                reason: "are not mirrored, because the Service has a selector; use an EndpointSlice, or remove \
                         spec.selector from the Service"
                    .into(),
            });
        }
    }
    slices
}

fn policies(service: &ServiceObject, port: &PortObject, family: Family, config: &ModelConfig) -> Policies {
    let in_family = |ips: &[AddressField]| ips.iter().any(|ip| Family::of(ip.address) == family);
    let external_ips = config.allow_external_ips && in_family(&service.external_ips);
    Policies {
        internal: service.internal_policy,
        external: service.external_policy,
        externally_accessible: port.node_port.is_some() || in_family(&service.load_balancer_ips) || external_ips,
    }
}

fn service_port(
    service: &ServiceObject,
    family: Family,
    frontends: Vec<Frontend>,
    policies: Policies,
    candidates: &[Candidate<'_>],
    node: &NodeFacts,
) -> ServicePort {
    let selection = policy::select(candidates, policies, node);
    ServicePort {
        service_type: service.kind,
        frontends,
        backends: selection.backends,
        internal: selection.internal,
        external: selection.external,
        external_from_inside: selection.external_from_inside,
        has_any: selection.has_any,
        affinity_seconds: service.affinity_seconds,
        source_ranges: source_ranges(service, family, node),
        internal_policy: policies.internal,
        external_policy: policies.external,
        topology: selection.topology,
    }
}

fn source_ranges(service: &ServiceObject, family: Family, node: &NodeFacts) -> SourceRanges {
    let Some(ranges) = service.source_ranges.get(family) else {
        return SourceRanges::AllowAll;
    };
    let primary = node.primary.get(family);
    SourceRanges::Ranges {
        ranges: ranges.to_vec(),
        allow_node: primary.is_some_and(|address| ranges.iter().any(|range| range.contains(&address))),
    }
}

/// Counts what a health check server reports: distinct addresses over all ports, local and ready.
struct LocalEndpoints {
    port: u16,
    addresses: BTreeMap<Family, BTreeSet<IpAddr>>,
}

impl LocalEndpoints {
    fn new(port: u16, service: &ServiceObject) -> Self {
        let families = Family::BOTH
            .into_iter()
            .filter(|family| service.cluster_ips.get(*family).is_some());
        Self {
            port,
            addresses: families.map(|family| (family, BTreeSet::new())).collect(),
        }
    }

    fn count(&mut self, family: Family, candidates: &[Candidate<'_>], node: &NodeFacts) {
        let counted = |candidate: &&Candidate<'_>| {
            candidate.endpoint.conditions.ready && candidate.endpoint.node.as_ref() == Some(&node.name)
        };
        let addresses = candidates.iter().filter(counted).map(|candidate| candidate.at.address);
        self.addresses.entry(family).or_default().extend(addresses);
    }

    fn finish(self) -> HealthCheck {
        let count = |(family, addresses): (Family, BTreeSet<IpAddr>)| (family, addresses.len());
        HealthCheck {
            port: self.port,
            local_endpoints: self.addresses.into_iter().map(count).collect(),
        }
    }
}
