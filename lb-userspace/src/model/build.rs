//! From snapshots to desired states: who is proxied, who owns which frontend, which endpoints belong to what.
//!
//! A [`Model`] remembers the last snapshot and what it decided, and decides anew only what a difference may concern: a changed
//! slice its Service; a changed Service itself, and who owns which frontend, which all are asked about; a changed node
//! everything. What comes out the same stays the same copy. Total and deterministic: what was before never shows in the
//! outcome. Linear in what is decided, but for sorting. Hash maps here are only looked up, never walked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::address::Family;
use super::desired::{DesiredState, Frontend, HealthCheck, ServicePort, ServicePortKey, SourceRanges};
use super::endpoint::{self, Candidate};
use super::frontend::{Claimant, Claims};
use super::node::NodeFacts;
use super::object::{ObjectKey, Rejection};
use super::ord_map::OrdMap;
use super::policy::{self, Policies};
use super::service::{AddressField, PortObject, ServiceObject};
use super::service_slices::ServiceSlices;
use super::{ModelConfig, Snapshot};

/// Decides what this node should forward, without a memory.
pub fn build(snapshot: &Snapshot, config: &ModelConfig) -> DesiredState {
    let desired = Model::new(config.clone()).build(&Arc::new(snapshot.clone()));
    Arc::unwrap_or_clone(desired)
}

/// Decides what this node should forward, from one snapshot to the next.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    /// What the rest was decided by.
    snapshot: Arc<Snapshot>,
    slices: ServiceSlices,
    /// What Services could not have beside each other.
    contested: Vec<Rejection>,
    /// Of Services that have Endpoints alone, and a selector.
    unmirrored: BTreeMap<ObjectKey, Rejection>,
    desired: Arc<DesiredState>,
}

impl Model {
    /// A model that has seen nothing.
    pub fn new(config: ModelConfig) -> Self {
        let node = NodeFacts::new(None, &config);
        Self {
            config,
            snapshot: Arc::default(),
            slices: ServiceSlices::default(),
            contested: Vec::new(),
            unmirrored: BTreeMap::new(),
            desired: Arc::new(DesiredState::of_node(node)),
        }
    }

    /// Decides. Equal to what [`build`] gives; an unchanged service port is the copy that was given last.
    pub fn build(&mut self, snapshot: &Arc<Snapshot>) -> Arc<DesiredState> {
        let before = std::mem::replace(&mut self.snapshot, Arc::clone(snapshot));
        let mut new = DesiredState::clone(&self.desired);
        new.node = NodeFacts::new(snapshot.node.as_deref(), &self.config);
        let mut stale = Stale {
            all: new.node != self.desired.node || before.services.is_empty(),
            keys: BTreeSet::new(),
        };
        self.slices
            .follow(&before.slices, &snapshot.slices, |service| stale.add(service));
        let mut services_changed = false;
        for change in before.services.changes(&snapshot.services) {
            services_changed = true;
            if let Some(old) = change.before {
                self.forget(change.key, old, change.after.map(|service| &**service), &mut new);
            }
            stale.add(change.key.clone());
        }
        if services_changed {
            self.decide_owners(snapshot, &stale, &mut new);
        } else {
            for (key, service) in stale.services(snapshot) {
                let granted = Granted::as_before(key, service, &new);
                self.decide(key, service, granted, &mut new);
            }
        }
        new.other_nodes.clone_from(&snapshot.other_nodes);
        let ranges: BTreeSet<_> = snapshot.service_cidrs.iter().copied().collect();
        new.service_cidrs = ranges.into_iter().collect();
        new.rejections = self.contested.iter().chain(self.unmirrored.values()).cloned().collect();
        new.rejections.sort_unstable();
        if new != *self.desired {
            self.desired = Arc::new(new);
        }
        Arc::clone(&self.desired)
    }

    /// Takes away what a Service had that it cannot have any more.
    fn forget(
        &mut self,
        key: &ObjectKey,
        old: &ServiceObject,
        new: Option<&ServiceObject>,
        desired: &mut DesiredState,
    ) {
        let kept = new.into_iter().flat_map(|new| ports_of(key, new));
        let kept: Vec<ServicePortKey> = kept.map(|(port, _)| port).collect();
        for (port, _) in ports_of(key, old).filter(|(port, _)| !kept.contains(port)) {
            desired.service_ports.remove(&port);
        }
        desired.health_checks.remove(key);
        self.unmirrored.remove(key);
    }

    /// Decides who owns what, and about every Service that is stale or owns other things than before.
    fn decide_owners(&mut self, snapshot: &Snapshot, stale: &Stale, new: &mut DesiredState) {
        let services = by_precedence(snapshot);
        let mut claims = Claims::default();
        for (key, service) in &services {
            for port in &service.ports {
                claims.reserve_cluster_ips(Claimant { key, service, port });
            }
        }
        let (mut contested, mut cluster_ips) = (Vec::new(), BTreeMap::new());
        for (key, service) in services {
            for cluster_ip in Family::BOTH
                .iter()
                .filter_map(|family| *service.cluster_ips.get(*family))
            {
                cluster_ips.entry(cluster_ip).or_insert_with(|| key.clone());
            }
            let health_check_port = claims.health_check_port(key, service, &mut contested);
            let mut frontends = |(key_of_port, port): (ServicePortKey, _)| {
                let (family, claimant) = (key_of_port.family, Claimant { key, service, port });
                let frontends = claims.frontends(claimant, family, self.config.allow_external_ips, &mut contested);
                (key_of_port, port, frontends)
            };
            let granted = Granted {
                health_check_port,
                ports: ports_of(key, service).map(&mut frontends).collect(),
            };
            if stale.has(key) || !granted.stands(key, new) {
                self.decide(key, service, granted, new);
            }
        }
        self.contested = contested;
        let cluster_ips: OrdMap<IpAddr, ObjectKey> = cluster_ips.into_iter().collect();
        if new.cluster_ips != cluster_ips {
            new.cluster_ips = cluster_ips;
        }
    }

    /// Decides about the endpoints of one Service.
    fn decide(&mut self, key: &ObjectKey, service: &ServiceObject, granted: Granted<'_>, new: &mut DesiredState) {
        let (slices, unmirrored) = self.slices.of(key, service);
        match unmirrored {
            Some(rejection) => drop(self.unmirrored.insert(key.clone(), rejection)),
            None => drop(self.unmirrored.remove(key)),
        }
        let mut health_check = granted.health_check_port.map(|port| LocalEndpoints::new(port, service));
        let mut candidates = Vec::new();
        for (key, port, frontends) in granted.ports {
            endpoint::gather(&key, &slices, &mut candidates);
            if let Some(health_check) = &mut health_check {
                health_check.count(key.family, &candidates, &new.node);
            }
            if frontends.is_empty() {
                new.service_ports.remove(&key);
                continue;
            }
            let policies = policies(service, port, key.family, &self.config);
            let decided = service_port(service, key.family, frontends, policies, &candidates, &new.node);
            if new.service_ports.get(&key).is_none_or(|known| **known != decided) {
                new.service_ports.insert(key, Arc::new(decided));
            }
        }
        match health_check {
            Some(health_check) => drop(new.health_checks.insert(key.clone(), health_check.finish())),
            None => drop(new.health_checks.remove(key)),
        }
    }
}

/// The Services to decide about anew.
struct Stale {
    all: bool,
    keys: BTreeSet<ObjectKey>,
}

impl Stale {
    fn add(&mut self, key: ObjectKey) {
        if !self.all {
            self.keys.insert(key);
        }
    }

    fn has(&self, key: &ObjectKey) -> bool {
        self.all || self.keys.contains(key)
    }

    /// Those that are proxied.
    fn services<'a>(&'a self, snapshot: &'a Snapshot) -> Vec<(&'a ObjectKey, &'a ServiceObject)> {
        let one = |key: &'a ObjectKey| Some((key, &**snapshot.services.get(key)?));
        let services: Vec<(&ObjectKey, &ServiceObject)> = if self.all {
            snapshot
                .services
                .iter()
                .map(|(key, service)| (key, &**service))
                .collect()
        } else {
            self.keys.iter().filter_map(one).collect()
        };
        let proxied = services
            .into_iter()
            .filter(|(_, service)| service.not_proxied.is_none());
        proxied.collect()
    }
}

/// What a Service may call its own.
struct Granted<'a> {
    health_check_port: Option<u16>,
    /// Each port of each of its families with its frontends.
    ports: Vec<(ServicePortKey, &'a PortObject, Vec<Frontend>)>,
}

impl<'a> Granted<'a> {
    /// What was decided before.
    fn as_before(key: &ObjectKey, service: &'a ServiceObject, desired: &DesiredState) -> Self {
        let frontends = |(key, port): (ServicePortKey, &'a PortObject)| {
            let known = desired.service_ports.get(&key);
            let frontends = known.map(|known| known.frontends.clone()).unwrap_or_default();
            (key, port, frontends)
        };
        Self {
            health_check_port: desired.health_checks.get(key).map(|check| check.port),
            ports: ports_of(key, service).map(frontends).collect(),
        }
    }

    /// Whether that is what was decided before.
    fn stands(&self, key: &ObjectKey, desired: &DesiredState) -> bool {
        let known = |key| desired.service_ports.get(key).map_or(&[][..], |known| &known.frontends);
        self.health_check_port == desired.health_checks.get(key).map(|check| check.port)
            && self.ports.iter().all(|(key, _, frontends)| *frontends == *known(key))
    }
}

/// The ports of a Service in each of its families.
fn ports_of<'a>(key: &ObjectKey, service: &'a ServiceObject) -> impl Iterator<Item = (ServicePortKey, &'a PortObject)> {
    let has = |family: &Family| service.not_proxied.is_none() && service.cluster_ips.get(*family).is_some();
    let port = move |family| {
        service.ports.iter().map(move |port| {
            let key = ServicePortKey {
                namespace: Arc::clone(&key.namespace),
                name: Arc::clone(&key.name),
                port: Arc::clone(&port.name),
                protocol: port.protocol,
                family,
            };
            (key, port)
        })
    };
    Family::BOTH.into_iter().filter(has).flat_map(port)
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
