//! The health and metrics servers of the node's Service proxy, with kube-proxy's ports, paths and answers: plain HTTP, no authentication.
//!
//! In: addresses to bind, and [`Facts`] that the loop keeps up to date. Out: answers. A server reads and never changes anything.
//! An address that is still taken (by kube-proxy, say) is tried again and stops nothing, unless the settings say that it shall.

mod facts;
mod http;
mod metrics;
mod node_ports;
mod probe;
mod process;

use std::io;
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
    /// An address that cannot be had at once is an error.
    pub hard_fail: bool,
}

/// An address that cannot be listened at, where that is not to be.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address} ({field}, --{flag}), and bindAddressHardFail is set")]
pub struct BindError {
    address: SocketAddr,
    field: &'static str,
    flag: &'static str,
    #[source]
    source: io::Error,
}

/// The addresses, each with its socket where that was had already.
#[derive(Debug, Default)]
pub struct Sockets {
    healthz: Option<Socket>,
    metrics: Option<Socket>,
}

#[derive(Debug)]
struct Socket {
    address: SocketAddr,
    listener: Option<TcpListener>,
}

impl Addresses {
    /// Listens where a failure is an error; elsewhere [`run`] will, as soon as it can.
    ///
    /// # Errors
    /// An address cannot be had, and `hard_fail` is set.
    pub async fn listen(self) -> Result<Sockets, BindError> {
        let socket = async |address: Option<SocketAddr>, field, flag| {
            let Some(address) = address else { return Ok(None) };
            let mut listener = None;
            if self.hard_fail {
                let bound = TcpListener::bind(address).await;
                listener = Some(bound.map_err(|source| BindError {
                    address,
                    field,
                    flag,
                    source,
                })?);
            }
            Ok(Some(Socket { address, listener }))
        };
        Ok(Sockets {
            healthz: socket(self.healthz, "healthzBindAddress", "healthz-bind-address").await?,
            metrics: socket(self.metrics, "metricsBindAddress", "metrics-bind-address").await?,
        })
    }
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
pub async fn run(sockets: Sockets, facts: watch::Receiver<Facts>, failed: watch::Sender<FailedChecks>, told: Told) {
    let counts = Arc::new(ProbeCounts::default());
    let mut servers = JoinSet::new();
    if let Some(socket) = sockets.healthz {
        servers.spawn(probes(socket, facts.clone(), Arc::clone(&counts)));
    }
    if let Some(socket) = sockets.metrics {
        let facts = facts.clone();
        servers.spawn(async move {
            let listener = bind(socket, "metrics").await;
            serve(listener, move |path| {
                metrics::answer(path, &told, &facts.borrow(), &counts)
            })
            .await;
        });
    }
    node_ports(facts, failed).await;
}

async fn probes(socket: Socket, facts: watch::Receiver<Facts>, counts: Arc<ProbeCounts>) {
    let listener = bind(socket, "healthz").await;
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

/// The socket, as soon as its address can be had.
async fn bind(socket: Socket, server: &str) -> TcpListener {
    let Socket { address, listener } = socket;
    if let Some(listener) = listener {
        return listener;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_taken_is_waited_for_or_an_error_that_names_it() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = other.local_addr().unwrap();
        let hard = Addresses {
            metrics: Some(address),
            hard_fail: true,
            ..Addresses::default()
        };
        let error = hard.listen().await.unwrap_err().to_string();
        assert!(
            error.contains("--metrics-bind-address") && error.contains(&address.to_string()),
            "{error}"
        );
        let soft = Addresses {
            hard_fail: false,
            ..hard
        };
        let socket = soft.listen().await.unwrap().metrics.unwrap();
        tokio::time::pause();
        let waiting = tokio::spawn(bind(socket, "metrics"));
        sleep(RETRY * 2).await;
        assert!(!waiting.is_finished());
        drop(other);
        assert_eq!(waiting.await.unwrap().local_addr().unwrap(), address);
        // Once it is free, what must have it has it at once.
        let sockets = hard.listen().await.unwrap();
        assert!(sockets.metrics.unwrap().listener.is_some());
    }
}
