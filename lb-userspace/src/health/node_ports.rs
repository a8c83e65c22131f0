//! Health check node ports: one server for each Service of type LoadBalancer with external policy Local, on this node's NodePort
//! addresses. Source: kube-proxy `pkg/proxy/healthcheck/service_health.go`.
//!
//! Any path and method answers: 200 while the Service has ready endpoints on this node and changes get programmed, else 503. A
//! port that cannot be bound is told once and tried again; nothing else waits for it. Servers come and go with the Services.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::facts::{Check, Facts};
use super::http::{Answer, serve};
use crate::clock::now;

/// The running servers.
#[derive(Default)]
pub(super) struct NodePortServers {
    running: BTreeMap<SocketAddr, JoinHandle<()>>,
    /// Ports that could not be bound.
    failed: BTreeMap<SocketAddr, String>,
}

impl NodePortServers {
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
                    let reason = error.to_string();
                    if self.failed.insert(address, reason.clone()).as_ref() != Some(&reason) {
                        let service = facts.borrow().checks.get(&address).map(service_name);
                        warn!(%address, service, error = reason, "health check node port cannot be served, tried again");
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

fn service_name(check: &Check) -> String {
    format!("{}/{}", check.namespace, check.name)
}

/// The answer of the server at `address`; its Service may have gone a moment ago.
fn answer(facts: &Facts, address: SocketAddr) -> Answer {
    let Some(check) = facts.checks.get(&address) else {
        return Answer::text(503, "no such Service\n");
    };
    let healthy = facts.is_healthy(now());
    let count = check.local_endpoints;
    let text = |text: &str| Value::from(text).to_string();
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        text(&check.namespace),
        text(&check.name),
    );
    let mut answer = Answer::json(if healthy && count > 0 { 200 } else { 503 }, body);
    answer
        .headers
        .push(("X-Load-Balancing-Endpoint-Weight", count.to_string()));
    answer
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            assert_eq!(answer.status, status);
            assert!(
                answer
                    .headers
                    .contains(&("X-Load-Balancing-Endpoint-Weight", count.to_string()))
            );
            let body: Value = serde_json::from_str(&answer.body).unwrap();
            let expected = json!({ "service": { "namespace": "ns", "name": "web" }, "localEndpoints": count, "serviceProxyHealthy": true });
            assert_eq!(body, expected);
        }
        assert_eq!(answer(&Facts::default(), address).status, 503);
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
