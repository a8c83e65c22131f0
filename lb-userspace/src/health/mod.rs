//! The health and metrics servers of the node's Service proxy, with kube-proxy's ports, paths and answers: plain HTTP, no authentication.
//!
//! In: addresses to bind, and [`Facts`] that the loop keeps up to date. Out: answers. A server reads and never changes anything.
//! An address that is still taken (by kube-proxy, say) is tried again and stops nothing.

mod facts;
mod http;
mod metrics;
mod node_ports;
mod probe;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

pub use facts::{Check, Facts};
pub use node_ports::{FailedCheck, FailedChecks};

use crate::clock::{now, wall};
use crate::status::report::{Report, ServiceItem};
use http::{not_found, serve};
use metrics::ProbeCounts;
use node_ports::NodePortServers;
use probe::Probe;

/// How soon a port that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Where to listen; nowhere without an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// For `/healthz` and `/livez`.
    pub healthz: Option<SocketAddr>,
    /// For `/metrics`.
    pub metrics: Option<SocketAddr>,
}

/// What the metrics port tells beside the facts, read anew for each request.
pub struct Told {
    /// The agent's state.
    pub report: Box<dyn Fn() -> Report + Send + Sync>,
    /// The service ports, where metrics shall tell of each.
    pub services: Option<Box<dyn Fn() -> Vec<ServiceItem> + Send + Sync>>,
    /// The configuration in force.
    pub configz: Value,
}

/// Serves probes, metrics and all health check node ports, until the sender of the facts is
/// dropped.
pub async fn run(addresses: Addresses, facts: watch::Receiver<Facts>, failed: watch::Sender<FailedChecks>, told: Told) {
    let counts = Arc::new(ProbeCounts::default());
    let mut servers = JoinSet::new();
    if let Some(address) = addresses.healthz {
        servers.spawn(probes(address, facts.clone(), Arc::clone(&counts)));
    }
    if let Some(address) = addresses.metrics {
        let facts = facts.clone();
        servers.spawn(async move {
            let listener = bind(address, "metrics").await;
            serve(listener, move |path| {
                metrics::answer(path, &told, &facts.borrow(), &counts)
            })
            .await;
        });
    }
    node_ports(facts, failed).await;
}

async fn probes(address: SocketAddr, facts: watch::Receiver<Facts>, counts: Arc<ProbeCounts>) {
    let listener = bind(address, "healthz").await;
    serve(listener, move |path| {
        let probe = match path {
            "/healthz" => Probe::Ready,
            "/livez" => Probe::Live,
            _ => return not_found(),
        };
        let answer = probe::answer(probe, &facts.borrow(), now(), wall());
        counts.count(probe, answer.status());
        answer
    })
    .await;
}

async fn node_ports(mut facts: watch::Receiver<Facts>, failed: watch::Sender<FailedChecks>) {
    let mut servers = NodePortServers::default();
    loop {
        facts.borrow_and_update();
        let all = servers.follow(&facts).await;
        failed.send_if_modified(|known| {
            let news = known != servers.failed();
            known.clone_from(servers.failed());
            news
        });
        let ended = if all {
            facts.changed().await.is_err()
        } else {
            timeout(RETRY, facts.changed())
                .await
                .is_ok_and(|changed| changed.is_err())
        };
        if ended {
            return;
        }
    }
}

/// Listens at an address as soon as it can be had.
async fn bind(address: SocketAddr, server: &str) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                if told {
                    info!(%address, server, "listens now");
                }
                return listener;
            }
            Err(error) if !told => {
                warn!(%address, server, %error, "cannot listen, tried again");
                told = true;
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
    }
}
