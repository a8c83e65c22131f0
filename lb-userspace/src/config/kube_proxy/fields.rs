//! Every field of `KubeProxyConfiguration` v1alpha1 and every flag of kube-proxy that is no setting of ours by the same name, with what it means here.
//!
//! Source: `k8s.io/kube-proxy/config/v1alpha1/types.go`, `cmd/kube-proxy/app/options.go`, Kubernetes 1.36.

/// How a value is written in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A text.
    Text,
    /// A number.
    Number,
    /// True or false.
    Truth,
    /// A time in Go's form, as `1h30m`.
    Time,
    /// A list of texts; as a flag, with commas.
    Texts,
    /// Names that are true or false; as a flag, `A=true,B=false`.
    Gates,
    /// Whatever it is, it is not read.
    Any,
}

/// What a field means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The same as this setting.
    Is(&'static str),
    /// It decides together with others; see the translation.
    Joint,
    /// Nothing, for this reason.
    Nothing(&'static str),
}

/// A field and its flag; one of them may be empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    /// Path in the file; for what is a flag alone, a name that no file has.
    pub(super) path: &'static str,
    /// The flag without its dashes; empty where kube-proxy has none.
    pub(super) flag: &'static str,
    pub(super) form: Form,
    pub(super) meaning: Meaning,
}

const fn field(path: &'static str, flag: &'static str, form: Form, meaning: Meaning) -> Field {
    Field {
        path,
        flag,
        form,
        meaning,
    }
}

/// Paths that only flags have begin with this.
pub(super) const FLAG_ONLY: char = '-';

const RULES: &str = "no netfilter rules are made and no packet is marked";
const SOURCES: &str =
    "a source is translated where answers would not come back by themselves, and kept everywhere else";
const LOOPBACK: &str = "NodePorts are never served on the loopback, as in kube-proxy's nftables mode";
const IPVS: &str = "there is no IPVS here";
const WINDOWS: &str = "it is for Windows";
const WATCHES: &str = "objects are followed by one watch a kind, in JSON: there is no rate of requests to bound";
const LOGS: &str = "log lines go to standard error at once, filtered by level alone";

use Form::{Any, Gates, Number, Text, Texts, Time, Truth};
use Meaning::{Is, Joint, Nothing};

pub(super) const FIELDS: &[Field] = &[
    field("featureGates", "feature-gates", Gates, Joint),
    field("clientConnection.kubeconfig", "kubeconfig", Text, Is("kubeconfig")),
    field("clientConnection.acceptContentTypes", "", Text, Nothing(WATCHES)),
    field(
        "clientConnection.contentType",
        "kube-api-content-type",
        Text,
        Nothing(WATCHES),
    ),
    field("clientConnection.qps", "kube-api-qps", Number, Nothing(WATCHES)),
    field("clientConnection.burst", "kube-api-burst", Number, Nothing(WATCHES)),
    field("-master", "master", Text, Is("api-server")),
    field("logging.format", "logging-format", Text, Is("log-format")),
    field("logging.flushFrequency", "log-flush-frequency", Any, Nothing(LOGS)),
    field("logging.verbosity", "v", Number, Joint),
    field("logging.vmodule", "vmodule", Any, Nothing(LOGS)),
    field("logging.options", "", Any, Nothing(LOGS)),
    field("hostnameOverride", "hostname-override", Text, Is("node-name")),
    field("bindAddress", "bind-address", Text, Is("bind-address")),
    field(
        "healthzBindAddress",
        "healthz-bind-address",
        Text,
        Is("healthz-bind-address"),
    ),
    field(
        "metricsBindAddress",
        "metrics-bind-address",
        Text,
        Is("metrics-bind-address"),
    ),
    field("-healthz-port", "healthz-port", Number, Joint),
    field("-metrics-port", "metrics-port", Number, Joint),
    field(
        "bindAddressHardFail",
        "bind-address-hard-fail",
        Truth,
        Is("bind-address-hard-fail"),
    ),
    field(
        "enableProfiling",
        "profiling",
        Truth,
        Nothing("there is no profile of Go to offer"),
    ),
    field(
        "showHiddenMetricsForVersion",
        "show-hidden-metrics-for-version",
        Text,
        Nothing("no metric is hidden"),
    ),
    field("mode", "proxy-mode", Text, Joint),
    field(
        "iptables.masqueradeBit",
        "iptables-masquerade-bit",
        Number,
        Nothing(RULES),
    ),
    field("iptables.masqueradeAll", "masquerade-all", Truth, Nothing(SOURCES)),
    field(
        "iptables.localhostNodePorts",
        "iptables-localhost-nodeports",
        Truth,
        Nothing(LOOPBACK),
    ),
    field("iptables.syncPeriod", "iptables-sync-period", Time, Joint),
    field("iptables.minSyncPeriod", "iptables-min-sync-period", Time, Joint),
    field("ipvs.syncPeriod", "ipvs-sync-period", Time, Joint),
    field("ipvs.minSyncPeriod", "ipvs-min-sync-period", Time, Joint),
    field("ipvs.scheduler", "ipvs-scheduler", Text, Nothing(IPVS)),
    field("ipvs.excludeCIDRs", "ipvs-exclude-cidrs", Texts, Nothing(IPVS)),
    field("ipvs.strictARP", "ipvs-strict-arp", Truth, Nothing(IPVS)),
    field("ipvs.tcpTimeout", "ipvs-tcp-timeout", Time, Nothing(IPVS)),
    field("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout", Time, Nothing(IPVS)),
    field("ipvs.udpTimeout", "ipvs-udp-timeout", Time, Nothing(IPVS)),
    field("nftables.masqueradeBit", "", Number, Nothing(RULES)),
    field("nftables.masqueradeAll", "", Truth, Nothing(SOURCES)),
    field("nftables.syncPeriod", "", Time, Joint),
    field("nftables.minSyncPeriod", "", Time, Joint),
    field("winkernel.networkName", "network-name", Text, Nothing(WINDOWS)),
    field("winkernel.sourceVip", "source-vip", Text, Nothing(WINDOWS)),
    field("winkernel.enableDSR", "enable-dsr", Truth, Nothing(WINDOWS)),
    field(
        "winkernel.rootHnsEndpointName",
        "root-hnsendpoint-name",
        Text,
        Nothing(WINDOWS),
    ),
    field(
        "winkernel.forwardHealthCheckVip",
        "forward-healthcheck-vip",
        Truth,
        Nothing(WINDOWS),
    ),
    field("detectLocalMode", "detect-local-mode", Text, Joint),
    field("detectLocal.bridgeInterface", "pod-bridge-interface", Text, Joint),
    field(
        "detectLocal.interfaceNamePrefix",
        "pod-interface-name-prefix",
        Text,
        Joint,
    ),
    field("clusterCIDR", "cluster-cidr", Text, Joint),
    field(
        "nodePortAddresses",
        "nodeport-addresses",
        Texts,
        Is("nodeport-addresses"),
    ),
    field(
        "oomScoreAdj",
        "oom-score-adj",
        Number,
        Nothing(
            "the priority class system-node-critical of the agent's pod gives it, and forwarding outlives the agent",
        ),
    ),
    field(
        "conntrack.maxPerCore",
        "conntrack-max-per-core",
        Number,
        Is("conntrack-max-per-core"),
    ),
    field("conntrack.min", "conntrack-min", Number, Is("conntrack-min")),
    field(
        "conntrack.tcpEstablishedTimeout",
        "conntrack-tcp-timeout-established",
        Time,
        Is("conntrack-tcp-timeout-established"),
    ),
    field(
        "conntrack.tcpCloseWaitTimeout",
        "conntrack-tcp-timeout-close-wait",
        Time,
        Is("conntrack-tcp-timeout-close-wait"),
    ),
    field(
        "conntrack.tcpBeLiberal",
        "conntrack-tcp-be-liberal",
        Truth,
        Is("conntrack-tcp-be-liberal"),
    ),
    field(
        "conntrack.udpTimeout",
        "conntrack-udp-timeout",
        Time,
        Is("conntrack-udp-timeout"),
    ),
    field(
        "conntrack.udpStreamTimeout",
        "conntrack-udp-timeout-stream",
        Time,
        Is("conntrack-udp-timeout-stream"),
    ),
    field(
        "configSyncPeriod",
        "config-sync-period",
        Time,
        Nothing("a watch that missed something lists anew; nothing is read again for its own sake"),
    ),
    field(
        "portRange",
        "proxy-port-range",
        Text,
        Nothing("no proxy in user space opens ports"),
    ),
    field("windowsRunAsService", "windows-service", Truth, Nothing(WINDOWS)),
];

/// kube-proxy's feature gates that change nothing here need no further word than this.
pub(super) const GATE: &str = "this gate of kube-proxy's changes nothing here";
/// The gate that decides about external addresses.
pub(super) const GATE_EXTERNAL_IPS: &str = "AllowServiceExternalIPs";
