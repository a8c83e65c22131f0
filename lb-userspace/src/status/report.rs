//! What agent and command line tell about the state: plain data with stable field names, the JSON of `-o json`.
//!
//! Ages are seconds that have passed, so that neither side needs the other's clock. Absent values are left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::Rejection;
use crate::source::FileError;

/// Most rejections and file errors listed in a [`Report`]; their totals are exact.
pub const MAX_LISTED: usize = 1000;

/// The state of an agent, or of its pins while none runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// The agent; absent while none runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
    /// True when everything the source holds is programmed, or rejected, and all interfaces that should be are hooked.
    pub ready: bool,
    /// Why not.
    pub not_ready: Vec<NotReady>,
    /// What works, but should be looked at.
    pub warnings: Vec<String>,
    /// Settings that were given and have no effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unused_settings: Vec<UnusedSetting>,
    /// The source; absent while no agent runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceState>,
    /// The loop; absent while no agent runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<ReconcileState>,
    /// Parts of objects that are not programmed.
    pub rejections: Listed<Rejection>,
    /// Files of the source that could not be read.
    pub file_errors: Listed<FileError>,
    /// Attached programs.
    pub attachments: Vec<Attachment>,
    /// How full the tables are.
    pub tables: Vec<TableFill>,
    /// Flows by family and class, as of the last sweep.
    pub flows: Vec<FlowSummary>,
    /// Packets by reason, summed over the CPUs; every reason is there.
    pub reasons: BTreeMap<String, u64>,
}

/// A setting that was given and has no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UnusedSetting {
    /// Where it was given.
    pub setting: String,
    /// Its value.
    pub value: String,
    /// Why it has none, or what to do about it.
    pub reason: String,
    /// Whether it should be corrected.
    pub wrong: bool,
}

/// A list that may be cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed<T> {
    /// Number of all items.
    pub total: usize,
    /// The first [`MAX_LISTED`] items.
    pub items: Vec<T>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self {
            total: 0,
            items: Vec::new(),
        }
    }
}

impl<T> FromIterator<T> for Listed<T> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        let mut listed = Self::default();
        for item in all {
            listed.total += 1;
            if listed.items.len() < MAX_LISTED {
                listed.items.push(item);
            }
        }
        listed
    }
}

/// The process that serves a pin folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The node it works for.
    pub node_name: String,
    /// Seconds since its start.
    pub age_seconds: u64,
    /// Whether it leaves connections that netfilter began to netfilter.
    pub takeover: bool,
}

/// One cause for not being ready.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotReady {
    /// A stable word.
    pub cause: Cause,
    /// What is missing and what ends it, for a person.
    pub message: String,
}

/// Why an agent is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cause {
    /// No agent runs; what was programmed goes on forwarding.
    AgentStopped,
    /// The agent has not loaded its programs yet.
    Starting,
    /// The source has not delivered everything once.
    SourceNotSynced,
    /// The source cannot be read at present; what it held last stays in force.
    SourceUnreadable,
    /// There is no Node object of this node.
    NodeMissing,
    /// This node has no address.
    NoNodeAddress,
    /// No interface is an uplink.
    NoUplink,
    /// The last write into the tables failed.
    WriteFailed,
    /// A program could not be attached, or a device or route of ours could not be set up.
    AttachFailed,
    /// A newer state of the source is being written.
    Converging,
}

impl Cause {
    /// The word as it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::AgentStopped => "AgentStopped",
            Self::Starting => "Starting",
            Self::SourceNotSynced => "SourceNotSynced",
            Self::SourceUnreadable => "SourceUnreadable",
            Self::NodeMissing => "NodeMissing",
            Self::NoNodeAddress => "NoNodeAddress",
            Self::NoUplink => "NoUplink",
            Self::WriteFailed => "WriteFailed",
            Self::AttachFailed => "AttachFailed",
            Self::Converging => "Converging",
        }
    }
}

/// The source as the agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceState {
    /// `folder` or `kubernetes`.
    pub kind: String,
    /// Where it reads.
    pub location: String,
    /// True when it has delivered everything once.
    pub synced: bool,
    /// Newest generation that was seen.
    pub generation_seen: u64,
    /// Newest generation whose objects are programmed or rejected.
    pub generation_programmed: u64,
    /// Seconds since the newest generation was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_age_seconds: Option<u64>,
    /// Services in it.
    pub services: usize,
    /// EndpointSlices in it.
    pub endpoint_slices: usize,
}

/// The loop's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReconcileState {
    /// Cycles that ended well.
    pub cycles: u64,
    /// Cycles that failed.
    pub failures: u64,
    /// Operations applied to the tables since the agent's start.
    pub operations: u64,
    /// Operations of the last cycle that had any.
    pub last_operations: u64,
    /// Milliseconds that cycle took.
    pub last_milliseconds: u64,
    /// Seconds since the last cycle that ended well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_age_seconds: Option<u64>,
    /// The error that is being retried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Programs at one interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Interface name.
    pub interface: String,
    /// Interface index.
    pub ifindex: u32,
    /// Its role: uplink, tunnel, pod, steer0 or lo; without an agent, `pinned` for a link and `filter` for a filter.
    pub role: String,
    /// `ingress`, `egress` or `xdp`.
    pub direction: String,
    /// `tcx` or `clsact`; at XDP `native`, `generic` or `off`.
    pub method: String,
    /// Why it is not attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Flows of a family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowSummary {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Flows by class, from the first to be evicted to the last.
    pub classes: BTreeMap<String, u64>,
    /// Flows that timed out since the agent's start.
    pub expired: u64,
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableFill {
    /// The table's name.
    pub name: String,
    /// Entries in use.
    pub used: u64,
    /// Entries that fit.
    pub capacity: u64,
    /// Bytes of memory, where they are charged at creation.
    pub bytes: u64,
}

/// Which service ports to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceFilter {
    /// Only this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Only this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ServiceFilter {
    /// Whether a Service passes.
    pub fn admits(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_deref().is_none_or(|n| n == namespace) && self.name.as_deref().is_none_or(|n| n == name)
    }
}

/// One service port of one address family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceItem {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port; empty for an unnamed one.
    pub port_name: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Type of the Service; absent where only the pins were read.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub service_type: Option<String>,
    /// What clients connect to.
    pub frontends: Vec<FrontendItem>,
    /// Whether hints keep traffic of the whole cluster to this node or zone; absent where they do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<String>,
    /// `Cluster` or `Local`; absent where only the pins were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    /// `Cluster` or `Local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<String>,
    /// Time-out of ClientIP session affinity; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// `loadBalancerSourceRanges` that apply to this family.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<String>,
    /// Flows that go through it, as of the last look through the flow tables; absent before the first and where only the pins were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flows: Option<u32>,
    /// Its endpoints.
    pub endpoints: Vec<EndpointItem>,
}

/// One frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendItem {
    /// `ClusterIP`, `NodePort`, `ExternalIP` or `LoadBalancerIP`.
    pub kind: String,
    /// The address; absent for a NodePort, which every serving address of the node has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The port.
    pub port: u16,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointItem {
    /// Its address.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// Its node, where the source names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its zone, where the source names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// True when it runs on this node.
    pub local: bool,
    /// `Ready`, `Terminating` or `NotReady`.
    pub state: String,
    /// True when new flows may get it.
    pub used: bool,
    /// For whom it is used, or why it is not, for a person.
    pub why: String,
}
