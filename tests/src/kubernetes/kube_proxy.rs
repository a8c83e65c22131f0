//! The real kube-proxy on a node of the world: what Steerway is compared with.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::ControlPlane;
use super::process::Process;
use crate::netns::Netns;
use crate::world::{CLUSTER_CIDR, Node};

/// A running kube-proxy; it ends when dropped, and its rules go with the namespace.
#[derive(Debug)]
pub struct KubeProxy {
    netns: Netns,
    process: Process,
    _folder: TempDir,
}

impl KubeProxy {
    /// Starts kube-proxy in its nftables mode for the Node `node`, with ports of health and metrics that no agent has.
    #[track_caller]
    pub fn start(cluster: &ControlPlane, node: &Node) -> Self {
        Self::start_in("nftables", &cluster.kube_proxy(), node)
    }

    /// Starts it as clusters have it: with the ports of health and metrics that an agent has, too.
    #[track_caller]
    pub fn start_with_its_ports(cluster: &ControlPlane, node: &Node) -> Self {
        Self::start_at("nftables", &cluster.kube_proxy(), node, [10256, 10249])
    }

    /// Starts it in any mode, with any kubeconfig.
    #[track_caller]
    pub fn start_in(mode: &str, kubeconfig: &Path, node: &Node) -> Self {
        Self::start_at(mode, kubeconfig, node, [20256, 20249])
    }

    #[track_caller]
    fn start_at(mode: &str, kubeconfig: &Path, node: &Node, [healthz, metrics]: [u16; 2]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let file = folder.path().join("configuration.json");
        let at = |address: Ipv4Addr, port| std::net::SocketAddr::from((address, port)).to_string();
        let (any, loopback) = (
            |port| at(Ipv4Addr::UNSPECIFIED, port),
            |port| at(Ipv4Addr::LOCALHOST, port),
        );
        let config = json!({ "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": mode, "clusterCIDR": CLUSTER_CIDR, "hostnameOverride": node.name,
            "clientConnection": { "kubeconfig": kubeconfig },
            "healthzBindAddress": any(healthz), "metricsBindAddress": loopback(metrics),
            // Only the first network namespace may write it.
            "conntrack": { "maxPerCore": 0, "min": 0 },
            "nftables": { "minSyncPeriod": "100ms" }, "iptables": { "minSyncPeriod": "100ms" } });
        fs::write(&file, config.to_string()).expect("kube-proxy's configuration");
        let process = Process::start(
            &node.ns,
            "kube-proxy",
            folder.path(),
            &[format!("--config={}", file.display())],
        );
        Self {
            netns: node.ns.clone(),
            process,
            _folder: folder,
        }
    }

    /// The end of its log.
    pub fn log_end(&self) -> String {
        self.process.log_end()
    }

    /// Its tables of both families as nft tells them; an error while they are not there.
    ///
    /// # Errors
    /// What nft said, or the end of kube-proxy's log.
    pub fn tables(&self) -> Result<[Value; 2], String> {
        let table = |family| {
            let output = self.netns.cmd(&["nft", "-j", "list", "table", family, "kube-proxy"]);
            if output.status.success() {
                return serde_json::from_slice(&output.stdout).map_err(|error| format!("JSON of nft: {error}"));
            }
            Err(format!(
                "{}{}",
                String::from_utf8_lossy(&output.stderr),
                self.process.log_end()
            ))
        };
        Ok([table("ip")?, table("ip6")?])
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "=== end of the log of {}\n{}",
                self.process.name(),
                self.process.log_end()
            );
        }
    }
}
