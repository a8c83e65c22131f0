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

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

pub use facts::{Check, Facts};

use crate::clock::{now, wall};
use crate::status::report::Report;
use http::{Answer, Asked, serve};
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

/// Serves probes, metrics (which also tell of `report`) and all health check node ports, until the sender of the facts is
/// dropped.
pub async fn run(
    addresses: Addresses,
    facts: watch::Receiver<Facts>,
    report: impl Fn() -> Report + Send + Sync + 'static,
) {
    let counts = Arc::new(ProbeCounts::default());
    let mut servers = JoinSet::new();
    if let Some(address) = addresses.healthz {
        servers.spawn(probes(address, facts.clone(), Arc::clone(&counts)));
    }
    if let Some(address) = addresses.metrics {
        let facts = facts.clone();
        servers.spawn(async move {
            let listener = bind(address, "metrics").await;
            serve(listener, move |asked| {
                metrics::answer(asked, &report, &facts.borrow(), &counts)
            })
            .await;
        });
    }
    node_ports(facts).await;
}

async fn probes(address: SocketAddr, facts: watch::Receiver<Facts>, counts: Arc<ProbeCounts>) {
    let listener = bind(address, "healthz").await;
    serve(listener, move |asked: &Asked| {
        let probe = match asked.path.as_str() {
            "/healthz" => Probe::Ready,
            "/livez" => Probe::Live,
            _ => return Answer::text(404, "404 page not found\n"),
        };
        let answer = probe::answer(probe, &facts.borrow(), now(), wall());
        counts.count(probe, answer.status);
        answer
    })
    .await;
}

async fn node_ports(mut facts: watch::Receiver<Facts>) {
    let mut servers = NodePortServers::default();
    loop {
        facts.borrow_and_update();
        let ended = if servers.follow(&facts).await {
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
