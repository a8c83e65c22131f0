//! Names, addresses and folders of the test cluster, each once.
//!
//! ```text
//!  client 198.51.100.100 ── router 172.31.0.1 ─┬─ control plane 172.31.0.2
//!                                              ├─ worker1 172.31.0.11, pods 10.244.1.0/24
//!                                              └─ worker2 172.31.0.12, pods 10.244.2.0/24 …
//! ```
//! IPv6 alike. The client is outside the network of the nodes and of their /16: end-to-end tests look at that.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{setup, workspace::Workspace};

/// The API server's URL, as nodes and pods reach it without a Service.
pub(super) const API_SERVER: &str = "https://172.31.0.2:6443";
/// Last part of the addresses of the LAN's router.
pub(super) const ROUTER: u8 = 1;
/// Last part of the addresses of the control plane.
pub(super) const CONTROL_PLANE: u8 = 2;
/// At most so many workers.
pub(super) const MAX_WORKERS: u8 = 9;
/// Where the cluster's DNS answers.
pub(super) const DNS: &str = "10.96.0.10";
/// The first ClusterIPs: the API server's own.
pub(super) const FIRST_CLUSTER_IPS: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];
/// The networks of all pods.
pub(super) const POD_NETWORKS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// Everything of the running cluster: state, logs, disks of the workers.
const STATE: &str = "/tmp/steerway-cluster";
/// Network namespaces and cgroups of the cluster begin like this.
pub(super) const PREFIX: &str = "swc-";

/// Address families of nodes, pods and Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Families {
    V4,
    Dual,
}

impl Families {
    /// The ranges of ClusterIPs.
    pub(super) fn service_ranges(self) -> &'static str {
        match self {
            Self::V4 => "10.96.0.0/16",
            Self::Dual => "10.96.0.0/16,fd00:10:96::/112",
        }
    }

    /// Of a pair of addresses those that are used.
    pub(super) fn of<T>(self, pair: [T; 2]) -> Vec<T> {
        let count = match self {
            Self::V4 => 1,
            Self::Dual => 2,
        };
        pair.into_iter().take(count).collect()
    }
}

/// Addresses on the LAN.
pub(super) fn lan(last: u8) -> [String; 2] {
    [format!("172.31.0.{last}"), format!("fd00:31::{last}")]
}

/// Addresses on the client's own network.
pub(super) fn outside(last: u8) -> [String; 2] {
    [format!("198.51.100.{last}"), format!("fd00:33::{last}")]
}

/// One worker, by its number from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Worker(pub(super) u8);

impl Worker {
    /// Name of the Node, the host and the namespace.
    pub(super) fn name(self) -> String {
        format!("worker{}", self.0)
    }

    /// Last part of its addresses.
    pub(super) fn last(self) -> u8 {
        10 + self.0
    }

    /// The networks of its pods.
    pub(super) fn pods(self) -> [String; 2] {
        [
            format!("10.244.{}.0/24", self.0),
            format!("fd00:10:244:{}::/64", self.0),
        ]
    }

    /// One of three zones.
    pub(super) fn zone(self) -> String {
        format!("zone-{}", (self.0 - 1) % 3 + 1)
    }

    /// The workers 1 to `count`.
    pub(super) fn all(count: u8) -> Vec<Self> {
        (1..=count).map(Self).collect()
    }
}

/// Where things lie.
#[derive(Debug, Clone)]
pub(super) struct Folders {
    /// The checkout.
    pub(super) root: PathBuf,
    /// Everything of the running cluster.
    pub(super) state: PathBuf,
    /// Programs of the control plane.
    pub(super) kubernetes: PathBuf,
    /// Programs of the workers, and tests.
    pub(super) programs: PathBuf,
}

impl Folders {
    pub(super) fn new(workspace: &Workspace) -> Result<Self> {
        Ok(Self {
            root: workspace.root.clone(),
            state: PathBuf::from(STATE),
            kubernetes: setup::kubernetes::folder(workspace)?,
            programs: setup::cluster::folder(workspace)?,
        })
    }

    /// A file of the running cluster.
    pub(super) fn state(&self, file: impl AsRef<Path>) -> PathBuf {
        self.state.join(file)
    }

    /// The credentials of a user.
    pub(super) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.state(format!("{user}.kubeconfig"))
    }

    /// The folder of a worker.
    pub(super) fn worker(&self, worker: Worker) -> PathBuf {
        self.state(worker.name())
    }

    /// The workers that were started.
    pub(super) fn workers(&self) -> Vec<Worker> {
        let all = Worker::all(MAX_WORKERS).into_iter();
        all.filter(|worker| self.worker(*worker).is_dir()).collect()
    }

    /// `PATH` of every process of the cluster.
    pub(super) fn path(&self) -> String {
        format!(
            "{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.programs.display(),
            self.kubernetes.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_from_numbers() {
        let worker = Worker(4);
        assert_eq!((worker.name().as_str(), worker.zone().as_str()), ("worker4", "zone-1"));
        assert_eq!(lan(worker.last()), ["172.31.0.14", "fd00:31::14"]);
        assert_eq!(worker.pods(), ["10.244.4.0/24", "fd00:10:244:4::/64"]);
        assert!(API_SERVER.contains(&lan(CONTROL_PLANE)[0]));
    }

    #[test]
    fn a_cluster_of_one_family_has_no_address_of_the_other() {
        assert_eq!(Families::V4.of(lan(1)), ["172.31.0.1"]);
        assert_eq!(Families::Dual.of(lan(1)).len(), 2);
    }
}
