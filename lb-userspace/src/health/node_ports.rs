//! Health check node ports: one server for each Service of type LoadBalancer with external policy Local, on this node's NodePort
//! addresses. Source: kube-proxy `pkg/proxy/healthcheck/service_health.go`.
//!
//! Any path and method answers: 200 while the Service has ready endpoints on this node and changes get programmed, else 503. A
//! port that cannot be bound is told once and tried again; nothing else waits for it. Servers come and go with the Services.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use http::StatusCode;
use http::header::HeaderName;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::facts::{Check, Facts};
use super::http::{Answer, json, serve, text};
use crate::clock::now;

/// The header by which a load balancer learns how many endpoints there are.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The running servers.
#[derive(Default)]
pub(super) struct NodePortServers {
    running: BTreeMap<SocketAddr, JoinHandle<()>>,
    /// Ports that could not be bound.
    failed: FailedChecks,
}

/// Health check node ports that cannot be served at present.
pub type FailedChecks = BTreeMap<SocketAddr, FailedCheck>;

/// Whose health check node port cannot be served, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedCheck {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// Why.
    pub reason: String,
}

impl NodePortServers {
    /// What cannot be served at present.
    pub(super) fn failed(&self) -> &FailedChecks {
        &self.failed
    }

    /// Starts and ends servers, so that those run that the facts want. Returns whether all of them do.
    pub(super) async fn follow(&mut self, facts: &watch::Receiver<Facts>) -> bool {
        let wanted: Vec<SocketAddr> = facts.borrow().checks.keys().copied().collect();
        let gone = self.running.extract_if(.., |address, _| !wanted.contains(address));
        gone.for_each(|(_, server)| server.abort());
        self.failed.retain(|address, _| wanted.contains(address));
        for address in wanted {
            if self.running.contains_key(&address) {
                continue;
            }
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    let facts = facts.clone();
                    let server = serve(listener, move |_| answer(&facts.borrow(), address));
                    self.running.insert(address, tokio::spawn(server));
                    if self.failed.remove(&address).is_some() {
                        info!(%address, "health check node port is served now");
                    }
                }
                Err(error) => {
                    let check = facts.borrow().checks.get(&address).cloned();
                    let Some(Check { namespace, name, .. }) = check else {
                        continue;
                    };
                    let reason = error.to_string();
                    let failure = FailedCheck {
                        namespace,
                        name,
                        reason,
                    };
                    if self.failed.get(&address) != Some(&failure) {
                        let FailedCheck {
                            namespace,
                            name,
                            reason,
                        } = &failure;
                        warn!(%address, namespace, name, error = reason, "health check node port cannot be served, tried again");
                        self.failed.insert(address, failure);
                    }
                }
            }
        }
        self.failed.is_empty()
    }
}

impl Drop for NodePortServers {
    fn drop(&mut self) {
        self.running.values().for_each(JoinHandle::abort);
    }
}

/// The answer of the server at `address`; its Service may have gone a moment ago.
fn answer(facts: &Facts, address: SocketAddr) -> Answer {
    let Some(check) = facts.checks.get(&address) else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "no such Service\n");
    };
    let healthy = facts.is_healthy(now());
    let count = check.local_endpoints;
    let quoted = |text: &str| Value::from(text).to_string();
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        quoted(&check.namespace),
        quoted(&check.name),
    );
    let status = if healthy && count > 0 {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut answer = json(status, body);
    answer.headers_mut().insert(WEIGHT, count.into());
    answer
}

#[cfg(test)]
mod tests {
    use serde_json::json as object;

    use super::*;

    fn facts(address: SocketAddr, local_endpoints: usize) -> Facts {
        let check = Check {
            namespace: "ns".to_owned(),
            name: "web".to_owned(),
            local_endpoints,
        };
        Facts {
            checks: BTreeMap::from([(address, check)]),
            ..Facts::default()
        }
    }

    #[test]
    fn local_endpoints_decide_and_are_told_as_weight() {
        let address = "127.0.0.1:1".parse().unwrap();
        for (count, status) in [(0, 503), (2, 200)] {
            let answer = answer(&facts(address, count), address);
            assert_eq!(answer.status(), status);
            assert_eq!(answer.headers()[WEIGHT], count.to_string());
            let body: Value = serde_json::from_str(answer.body()).unwrap();
            let expected = object!({ "service": { "namespace": "ns", "name": "web" }, "localEndpoints": count, "serviceProxyHealthy": true });
            assert_eq!(body, expected);
        }
        assert_eq!(answer(&Facts::default(), address).status(), 503);
    }

    #[tokio::test]
    async fn servers_come_and_go_and_a_taken_port_is_tried_again() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let (send, receive) = watch::channel(facts(address, 1));
        let mut servers = NodePortServers::default();
        assert!(!servers.follow(&receive).await);
        drop(taken);
        assert!(servers.follow(&receive).await && servers.running.len() == 1);
        assert!(servers.follow(&receive).await, "it runs already");
        send.send_replace(Facts::default());
        assert!(servers.follow(&receive).await && servers.running.is_empty());
        // The aborted task lets go of the port when it is next scheduled.
        tokio::task::yield_now().await;
        assert!(TcpListener::bind(address).await.is_ok());
    }
}
