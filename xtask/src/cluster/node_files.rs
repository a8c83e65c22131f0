//! What a worker's programs are configured with. Pure: numbers and addresses in, texts out.

use std::path::Path;

use serde_json::{Value, json};

use super::layout::{DNS, Families, Worker};

/// The image of every pod's first process, which containerd must know by name.
pub(super) const PAUSE: &str = "registry.k8s.io/pause:3.10.2";

/// The network of the worker's pods: a link a pod and host routes, addresses from fixed ranges, host ports.
pub(super) fn cni(worker: Worker, families: Families) -> String {
    let ranges: Vec<Value> = families
        .of(worker.pods())
        .iter()
        .map(|range| json!([{ "subnet": range }]))
        .collect();
    let routes: Vec<Value> = families
        .of(["0.0.0.0/0", "::/0"])
        .iter()
        .map(|all| json!({ "dst": all }))
        .collect();
    json!({ "cniVersion": "0.4.0", "name": "cluster", "plugins": [
        { "type": "ptp", "ipMasq": false, "mtu": 1500,
            "ipam": { "type": "host-local", "dataDir": "/run/cni-ipam", "ranges": ranges, "routes": routes } },
        { "type": "portmap", "capabilities": { "portMappings": true } },
    ] })
    .to_string()
}

/// containerd: Debian's runc, no systemd, images that are there already.
pub(super) fn containerd(may_raise_oom_score: bool) -> String {
    format!(
        r"version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{PAUSE}'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = {}
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['/opt/cni/bin']
  conf_dir = '/etc/cni/net.d'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = false
",
        !may_raise_oom_score
    )
}

/// kubelet: also on hybrid cgroups, and with little disk left.
pub(super) fn kubelet(authority: &Path) -> String {
    json!({ "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": true }, "x509": { "clientCAFile": authority } },
        "authorization": { "mode": "Webhook" },
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": "/run/resolv.conf",
        "failSwapOn": false,
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "200Mi", "nodefs.inodesFree": "1%", "imagefs.available": "200Mi" },
        "serializeImagePulls": false,
        "nodeStatusUpdateFrequency": "5s" })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_of_one_family_gives_pods_one_address() {
        let count = |families| {
            let config: Value = serde_json::from_str(&cni(Worker(1), families)).unwrap();
            config["plugins"][0]["ipam"]["ranges"].as_array().unwrap().len()
        };
        assert_eq!((count(Families::V4), count(Families::Dual)), (1, 2));
    }

    #[test]
    fn a_machine_that_forbids_lower_scores_is_told_to_containerd() {
        assert!(containerd(false).contains("restrict_oom_score_adj = true"));
        assert!(containerd(true).contains("restrict_oom_score_adj = false"));
    }
}
