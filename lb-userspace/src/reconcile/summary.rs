//! What follows from a desired state as a whole, kept in step with what changes in it. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{
    BackendSet, DesiredState, Family, FrontendKind, ObjectKey, OrdMap, ServicePort, ServicePortKey, TrafficPolicy,
};

/// Of the desired state that was followed last.
#[derive(Debug, Default)]
pub(super) struct Summary {
    service_ports: OrdMap<ServicePortKey, Arc<ServicePort>>,
    cluster_ips: OrdMap<IpAddr, ObjectKey>,
    other_nodes: BTreeSet<IpAddr>,
    vips: Arc<BTreeSet<IpAddr>>,
    routed: Arc<BTreeSet<IpAddr>>,
    no_local_endpoints: [[u64; 2]; 2],
}

impl Summary {
    /// Takes over what is different in `desired`.
    pub(super) fn follow(&mut self, desired: &DesiredState) {
        let mut vips_may_differ = self.cluster_ips != desired.cluster_ips;
        for change in self.service_ports.changes(&desired.service_ports) {
            let family = usize::from(change.key.family == Family::V6);
            let [before, after] = [change.before, change.after].map(|port| port.map(|port| &**port));
            let now = after.map(lacks_local_endpoints).unwrap_or_default();
            let then = before.map(lacks_local_endpoints).unwrap_or_default();
            for (count, (now, then)) in self.no_local_endpoints.iter_mut().zip(now.into_iter().zip(then)) {
                count[family] = count[family] + u64::from(now) - u64::from(then);
            }
            vips_may_differ |= before.map(|port| &port.frontends) != after.map(|port| &port.frontends);
        }
        self.service_ports = desired.service_ports.clone();
        self.cluster_ips = desired.cluster_ips.clone();
        if vips_may_differ {
            self.vips = Arc::new(vips(desired));
        }
        if vips_may_differ || self.other_nodes != desired.other_nodes {
            self.other_nodes.clone_from(&desired.other_nodes);
            self.routed = routed(&self.vips, &self.other_nodes);
        }
    }

    /// VIPs: every address that belongs to a Service, NodePorts excepted.
    pub(super) fn vips(&self) -> &Arc<BTreeSet<IpAddr>> {
        &self.vips
    }

    /// Those that are not another node's own address: everything of that node would come here.
    pub(super) fn routed(&self) -> &Arc<BTreeSet<IpAddr>> {
        &self.routed
    }

    /// Service ports with policy Local that have endpoints elsewhere alone: internal and external, by family.
    pub(super) fn no_local_endpoints(&self) -> [[u64; 2]; 2] {
        self.no_local_endpoints
    }
}

/// Whether internal and external traffic of a service port finds no endpoint, although there are some on other nodes.
fn lacks_local_endpoints(port: &ServicePort) -> [bool; 2] {
    if !port.has_any || port.set(BackendSet::Local).next().is_some() {
        return [false; 2];
    }
    let external = port.frontends.iter().any(|f| f.kind != FrontendKind::ClusterIp);
    [(true, port.internal_policy), (external, port.external_policy)]
        .map(|(applies, policy)| applies && policy == TrafficPolicy::Local)
}

fn vips(desired: &DesiredState) -> BTreeSet<IpAddr> {
    let frontends = desired.service_ports.values().flat_map(|port| &port.frontends);
    frontends
        .filter_map(|frontend| frontend.address)
        .chain(desired.cluster_ips.keys().copied())
        .collect()
}

fn routed(vips: &Arc<BTreeSet<IpAddr>>, other_nodes: &BTreeSet<IpAddr>) -> Arc<BTreeSet<IpAddr>> {
    if vips.is_disjoint(other_nodes) {
        return Arc::clone(vips);
    }
    Arc::new(vips.difference(other_nodes).copied().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::model::{Model, ModelConfig};
    use crate::test_objects::{NODE, node, service, slice, source_state};

    /// A Service of policy Local with one endpoint, on this node or elsewhere.
    fn local(name: &str, cluster_ip: &str, here: bool) -> [Value; 2] {
        let (mut service, mut slice) = (service(name, cluster_ip), slice(name, &["10.244.0.1"]));
        service["spec"]["internalTrafficPolicy"] = "Local".into();
        if !here {
            slice["endpoints"][0]["nodeName"] = "elsewhere".into();
        }
        [service, slice]
    }

    #[test]
    fn it_is_the_same_from_step_to_step_as_at_once() {
        let states = [
            vec![node()],
            [
                vec![node()],
                local("a", "10.96.0.1", false).into(),
                local("b", "10.96.0.2", false).into(),
            ]
            .concat(),
            [
                vec![node()],
                local("a", "10.96.0.1", true).into(),
                local("b", "10.96.0.2", false).into(),
            ]
            .concat(),
            [vec![node()], local("b", "10.96.0.3", false).into()].concat(),
        ];
        let (mut model, mut summary) = (Model::new(ModelConfig::new(NODE)), Summary::default());
        let mut counts = Vec::new();
        for (step, objects) in states.into_iter().enumerate() {
            let desired = model.build(&source_state(&objects).snapshot);
            let mut desired = DesiredState::clone(&desired);
            if step == 3 {
                desired.other_nodes = ["10.96.0.3".parse().unwrap()].into();
            }
            summary.follow(&desired);
            let mut anew = Summary::default();
            anew.follow(&desired);
            assert_eq!(summary.vips(), anew.vips());
            assert_eq!(summary.routed(), anew.routed());
            assert_eq!(summary.no_local_endpoints(), anew.no_local_endpoints());
            counts.push((
                summary.no_local_endpoints()[0][0],
                summary.vips().len(),
                summary.routed().len(),
            ));
            let before = Arc::clone(summary.routed());
            summary.follow(&desired);
            assert!(Arc::ptr_eq(&before, summary.routed()), "nothing changed");
        }
        assert_eq!(counts, [(0, 0, 0), (2, 2, 2), (1, 2, 2), (1, 1, 0)]);
    }
}
