//! The configuration in force as kube-proxy would show its own: the answer of `/configz`.

use std::time::Duration;

use serde_json::{Value, json};
use tracing::Level;

use super::{Config, LogFormat, Source, kube_proxy};
use crate::model::NodePortAddresses;
use crate::source::kubernetes::Access;

impl Config {
    /// What of the configuration has a field in `KubeProxyConfiguration` v1alpha1, under the name that kube-proxy uses.
    pub fn configz(&self) -> Value {
        let kubeconfig = match &self.source {
            Source::Kubernetes(Access::Kubeconfig { file, .. }) => file.display().to_string(),
            Source::Kubernetes(Access::ServiceAccount { .. }) | Source::Folder(_) => String::new(),
        };
        // The one way to tell pods that both have.
        let prefix = match self.interfaces.pod.as_slice() {
            [pattern] => pattern.strip_suffix('*').filter(|prefix| !prefix.contains(['*', '?'])),
            _ => None,
        };
        let node_ports = match &self.nodeport_addresses {
            NodePortAddresses::Primary => vec!["primary".to_owned()],
            NodePortAddresses::Ranges(ranges) => ranges.iter().map(ToString::to_string).collect(),
        };
        let listen = |address: Option<std::net::SocketAddr>| address.map_or_else(String::new, |a| a.to_string());
        let conntrack = &self.conntrack;
        json!({ "kubeproxy.config.k8s.io": {
            "apiVersion": kube_proxy::API_VERSION,
            "kind": kube_proxy::KIND,
            "bindAddress": self.bind_address.map_or_else(String::new, |address| address.to_string()),
            "bindAddressHardFail": self.listen.hard_fail,
            "clientConnection": { "kubeconfig": kubeconfig },
            "clusterCIDR": "",
            "conntrack": {
                "maxPerCore": conntrack.max_per_core,
                "min": conntrack.min,
                "tcpBeLiberal": conntrack.tcp_be_liberal,
                "tcpCloseWaitTimeout": go_time(conntrack.tcp_close_wait),
                "tcpEstablishedTimeout": go_time(conntrack.tcp_established),
                "udpStreamTimeout": go_time(conntrack.udp_stream),
                "udpTimeout": go_time(conntrack.udp),
            },
            "detectLocal": { "bridgeInterface": "", "interfaceNamePrefix": prefix.unwrap_or_default() },
            "detectLocalMode": if prefix.is_some() { "InterfaceNamePrefix" } else { "" },
            "featureGates": { "AllowServiceExternalIPs": self.external_ips },
            "healthzBindAddress": listen(self.listen.healthz),
            "hostnameOverride": self.node_name,
            "logging": {
                "format": match self.log.format { LogFormat::Text => "text", LogFormat::Json => "json" },
                "verbosity": match self.log.level { Level::TRACE => 6, Level::DEBUG => 4, _ => 0 },
            },
            "metricsBindAddress": listen(self.listen.metrics),
            "mode": kube_proxy::MODE,
            "nftables": { "minSyncPeriod": go_time(self.min_sync_period), "syncPeriod": go_time(self.sync_period) },
            "nodePortAddresses": node_ports,
        } })
    }

    /// The same as a file that `--config` takes, for kube-proxy's `--write-config-to`.
    ///
    /// # Errors
    /// A value has no form in YAML.
    pub fn kube_proxy_file(&self) -> Result<String, serde_saphyr::ser::Error> {
        serde_saphyr::to_string(&self.configz()["kubeproxy.config.k8s.io"])
    }
}

/// A time in the form of Go's `Duration`.
fn go_time(time: Duration) -> String {
    let (seconds, millis) = (time.as_secs(), time.subsec_millis());
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = if millis == 0 {
        String::new()
    } else {
        format!(".{millis:03}").trim_end_matches('0').to_owned()
    };
    match (hours, minutes) {
        (0, 0) => format!("{rest}{fraction}s"),
        (0, minutes) => format!("{minutes}m{rest}{fraction}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_gos() {
        let shown = [0, 1500, 30_000, 90_000, 86_400_000].map(|ms| go_time(Duration::from_millis(ms)));
        assert_eq!(shown, ["0s", "1.5s", "30s", "1m30s", "24h0m0s"]);
    }
}
