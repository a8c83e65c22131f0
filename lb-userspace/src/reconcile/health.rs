//! What the health servers are told, from what the loop tells of itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;

use crate::health::{Check, Facts};
use crate::model::{DesiredState, Family};
use crate::status::State;

/// Keeps facts up to date with the loop's state, until one of both ends.
pub(super) async fn tell(sync_period: Duration, mut state: watch::Receiver<State>, facts: watch::Sender<Facts>) {
    loop {
        let new = Facts {
            stuck_after: sync_period * 2,
            ..of(&state.borrow_and_update())
        };
        facts.send_if_modified(|known| {
            let news = *known != new;
            *known = new;
            news
        });
        if state.changed().await.is_err() {
            return;
        }
    }
}

fn of(state: &State) -> Facts {
    let desired = state.desired.as_deref();
    Facts {
        stuck_after: Duration::ZERO,
        pending_since: state.pending_since,
        queued_at: state.queued_at,
        programmed_at: state.programmed_at,
        figures: state.figures.clone(),
        node_eligible: desired.is_some_and(|desired| desired.node.eligible),
        checks: desired.map(|desired| checks(desired, state)).unwrap_or_default(),
    }
}

/// Every health check node port at each address of its family that serves NodePorts.
fn checks(desired: &DesiredState, state: &State) -> BTreeMap<SocketAddr, Check> {
    let mut checks = BTreeMap::new();
    for (key, check) in &desired.health_checks {
        for (family, count) in &check.local_endpoints {
            let addresses = state.nodeport_addresses.iter();
            for address in addresses.filter(|address| Family::of(**address) == *family) {
                checks.insert(
                    SocketAddr::new(*address, check.port),
                    Check {
                        namespace: key.namespace.as_ref().to_owned(),
                        name: key.name.as_ref().to_owned(),
                        local_endpoints: *count,
                    },
                );
            }
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::model::{ModelConfig, build};
    use crate::test_objects::{NODE, node, service, slice, source_state};

    #[test]
    fn a_health_check_port_is_served_at_the_nodes_addresses_of_its_family() {
        let mut balanced = service("web", "10.96.0.1");
        balanced["spec"]["type"] = "LoadBalancer".into();
        balanced["spec"]["externalTrafficPolicy"] = "Local".into();
        balanced["spec"]["healthCheckNodePort"] = 32000.into();
        balanced["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }] } });
        let source = source_state(&[node(), balanced, slice("web", &["10.244.0.1", "10.244.0.2"])]);
        let state = State {
            desired: Some(Arc::new(build(&source.snapshot, &ModelConfig::new(NODE)))),
            nodeport_addresses: ["192.0.2.1", "2001:db8::1"]
                .map(|address| address.parse().unwrap())
                .into(),
            ..State::default()
        };
        let facts = of(&state);
        assert!(facts.node_eligible);
        let found: Vec<_> = facts
            .checks
            .iter()
            .map(|(at, check)| (at.to_string(), check.local_endpoints))
            .collect();
        assert_eq!(found, [("192.0.2.1:32000".to_owned(), 2)]);
        assert_eq!(of(&State::default()), Facts::default());
    }
}
