//! What a cycle does outside the tables: our device, attached programs, routes. A trait, so that tests run without a kernel.
//!
//! Every method brings one thing into its state and may be repeated; a failure leaves the rest usable and is retried.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::watch;

use crate::config::InterfacePatterns;
use crate::datapath::attach::{AttachError, Attacher, Attachment, Left, Trust};
use crate::datapath::interfaces::{Interface, InterfaceTable, InterfaceWatch, Rules, WatchError};
use crate::datapath::netlink::Netlink;
use crate::datapath::run_dir::RunDir;
use crate::datapath::steer::{RouteError, RouteNeeds, RouteReport, SteerDevice, SteerError, VipRoutes};

/// Why the host's side is not as it should be.
#[derive(Debug, Error)]
pub enum HostError {
    /// Our device.
    #[error(transparent)]
    Device(#[from] SteerError),
    /// A program.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Routes.
    #[error(transparent)]
    Routes(#[from] RouteError),
    /// A fault that a test asked for.
    #[cfg(test)]
    #[error("{0}")]
    Injected(&'static str),
}

/// The host's side of a cycle.
pub trait Host: Send + 'static {
    /// Interface tables as they change.
    fn tables(&self) -> watch::Receiver<Arc<InterfaceTable>>;
    /// Tells which addresses the Node object has; an interface with one of them is an uplink. True if they are new.
    fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> bool;
    /// Makes or repairs our device.
    fn ensure_device(&mut self, mtu: Option<u32>) -> impl Future<Output = Result<SteerDevice, HostError>> + Send;
    /// Attaches programs as the table wants; gives what did not succeed.
    fn attach(&mut self, table: &InterfaceTable, trust: Trust) -> impl Future<Output = Vec<HostError>> + Send;
    /// What is attached.
    fn attached(&self) -> Vec<Attachment>;
    /// Uplinks that tc alone serves, and why.
    fn without_xdp(&self) -> Vec<(Interface, Left)>;
    /// Routes VIPs to our device.
    fn route(&mut self, needs: RouteNeeds, trust: Trust)
    -> impl Future<Output = Result<RouteReport, HostError>> + Send;
}

/// The kernel of this network namespace.
#[derive(Debug)]
pub struct KernelHost {
    rules: watch::Sender<Rules>,
    interfaces: InterfaceWatch,
    attacher: Attacher,
    routes: VipRoutes,
    netlink: Netlink,
    run_dir: RunDir,
}

/// Why the host's side cannot be followed at all.
#[derive(Debug, Error)]
pub enum HostStartError {
    /// No rtnetlink socket.
    #[error("cannot open an rtnetlink socket")]
    Socket(#[source] io::Error),
    /// The first interface table could not be made.
    #[error(transparent)]
    Watch(#[from] WatchError),
}

impl KernelHost {
    /// Starts following interfaces. Touches nothing yet.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn start(
        patterns: InterfacePatterns,
        attacher: Attacher,
        run_dir: RunDir,
    ) -> Result<Self, HostStartError> {
        let rules = watch::Sender::new(Rules {
            patterns,
            node_addresses: BTreeSet::new(),
        });
        let interfaces = InterfaceWatch::start(rules.subscribe()).await?;
        let routes = VipRoutes::new().map_err(HostStartError::Socket)?;
        let netlink = Netlink::open().map_err(HostStartError::Socket)?;
        Ok(Self {
            rules,
            interfaces,
            attacher,
            routes,
            netlink,
            run_dir,
        })
    }
}

impl Host for KernelHost {
    fn tables(&self) -> watch::Receiver<Arc<InterfaceTable>> {
        self.interfaces.tables()
    }

    fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> bool {
        self.rules.send_if_modified(|rules| {
            let changed = rules.node_addresses != addresses;
            rules.node_addresses = addresses;
            changed
        })
    }

    async fn ensure_device(&mut self, mtu: Option<u32>) -> Result<SteerDevice, HostError> {
        Ok(SteerDevice::ensure(self.netlink.handle(), &self.run_dir, mtu).await?)
    }

    async fn attach(&mut self, table: &InterfaceTable, trust: Trust) -> Vec<HostError> {
        self.attacher
            .apply(table, trust)
            .await
            .into_iter()
            .map(HostError::Attach)
            .collect()
    }

    fn attached(&self) -> Vec<Attachment> {
        self.attacher.attached()
    }

    fn without_xdp(&self) -> Vec<(Interface, Left)> {
        let found = self.attacher.without_xdp();
        found.map(|(uplink, left)| (uplink.clone(), left.clone())).collect()
    }

    async fn route(&mut self, needs: RouteNeeds, trust: Trust) -> Result<RouteReport, HostError> {
        if trust == Trust::Nothing {
            self.routes.distrust();
        }
        Ok(self.routes.sync(needs).await?)
    }
}
