//! What the loop last told of itself, for the socket: one value, replaced as a whole, read without stopping anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use tokio::sync::watch;

use super::report::{
    Agent, Attachment, Cause, FlowSummary, Listed, NotReady, ReconcileState, Report, ServiceFilter, ServiceItem,
    SourceState, TableFill, UnusedSetting,
};
use super::server::Answers;
use super::services::service_items;
use crate::clock::{Instant, now};
use crate::maps::MapStore;
use crate::model::{DesiredState, Rejection, ServicePortKey};
use crate::observe::{Figures, reason_counters};
use crate::plan::parse_service_port_name;
use crate::source::{FileError, SourceHandle};

/// What the loop tells.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// True when the source has delivered everything once.
    pub synced: bool,
    /// Newest generation of the source.
    pub seen: u64,
    /// When it was seen.
    pub seen_at: Option<Instant>,
    /// When the oldest change was seen that is not programmed yet.
    pub pending_since: Option<Instant>,
    /// Newest generation that is programmed.
    pub programmed: u64,
    /// When a change was last seen, for people.
    pub queued_at: Option<SystemTime>,
    /// What metrics tell of the work so far.
    pub figures: Figures,
    /// When the tables were last written, or found to be as they should.
    pub programmed_at: Option<SystemTime>,
    /// This node's addresses that serve NodePorts.
    pub nodeport_addresses: BTreeSet<IpAddr>,
    /// Services in the source.
    pub services: usize,
    /// EndpointSlices in the source.
    pub endpoint_slices: usize,
    /// Why the agent is not ready, [`Cause::Converging`] and [`Cause::SourceNotSynced`] excepted.
    pub not_ready: Vec<NotReady>,
    /// What should be looked at.
    pub warnings: Vec<String>,
    /// Cycles that ended well.
    pub cycles: u64,
    /// Cycles that failed.
    pub failures: u64,
    /// Operations of the last cycle that had any.
    pub last_operations: u64,
    /// Milliseconds that it took.
    pub last_milliseconds: u64,
    /// When the last cycle ended well.
    pub success_at: Option<Instant>,
    /// What is being retried.
    pub error: Option<String>,
    /// All rejections.
    pub rejections: Arc<[Rejection]>,
    /// Files that cannot be read.
    pub file_errors: Arc<[FileError]>,
    /// Why the source cannot be read at present.
    pub source_error: Option<String>,
    /// What is attached, and what should be.
    pub attachments: Vec<Attachment>,
    /// How full the published tables are.
    pub tables: Vec<TableFill>,
    /// How full the flow tables are, as of the last sweep.
    pub flow_tables: Vec<TableFill>,
    /// Flows by family and class, as of the last sweep.
    pub flows: Vec<FlowSummary>,
    /// Flows by service port id, as of the last sweep; service ports without any are left out.
    pub service_flows: Option<Arc<[(u32, u32)]>>,
    /// What is desired, as of the last cycle that ended well.
    pub desired: Option<Arc<DesiredState>>,
}

impl State {
    /// The state of an agent that does not work yet.
    pub fn starting() -> Self {
        let message = "the kernel checks the programs; what a former agent programmed goes on forwarding".to_owned();
        Self {
            not_ready: vec![NotReady {
                cause: Cause::Starting,
                message,
            }],
            ..Self::default()
        }
    }

    /// All causes for not being ready.
    fn causes(&self) -> Vec<NotReady> {
        let mut causes = self.not_ready.clone();
        let mut add = |cause, message: &str| {
            causes.push(NotReady {
                cause,
                message: message.to_owned(),
            });
        };
        if !self.synced {
            add(
                Cause::SourceNotSynced,
                self.source_error
                    .as_deref()
                    .unwrap_or("the source was not read whole yet"),
            );
        } else if let Some(error) = &self.source_error {
            add(Cause::SourceUnreadable, error);
        } else if self.programmed < self.seen {
            add(Cause::Converging, "a newer state of the source is not programmed yet");
        }
        causes.sort();
        causes
    }
}

/// What never changes while an agent runs.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Version of the agent.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The node it works for.
    pub node_name: String,
    /// Whether it leaves connections that netfilter began to netfilter.
    pub takeover: bool,
    /// When it started.
    pub started: Instant,
    /// Kind of its source.
    pub source_kind: String,
    /// Where the source reads.
    pub source_location: String,
    /// Settings that were given and have no effect.
    pub unused_settings: Vec<UnusedSetting>,
}

/// Answers for the socket.
pub struct Board {
    identity: Identity,
    state: watch::Receiver<State>,
    /// The tables, once they are there.
    store: OnceLock<Arc<dyn MapStore>>,
    source: SourceHandle,
}

impl Board {
    /// Tells what `state` holds.
    pub fn new(identity: Identity, state: watch::Receiver<State>, source: SourceHandle) -> Self {
        Self {
            identity,
            state,
            store: OnceLock::new(),
            source,
        }
    }

    /// From now on tells the counters of `store`, too. Only the first call counts.
    pub fn set_store(&self, store: Arc<dyn MapStore>) {
        self.store.get_or_init(|| store);
    }

    /// Numbers of flows by service port, from those by id; `None` where the names of the ids cannot be read.
    fn by_name(&self, flows: &[(u32, u32)]) -> Option<BTreeMap<ServicePortKey, u32>> {
        let names = self.store.get()?.names().ok()?;
        let named = flows
            .iter()
            .filter_map(|(id, flows)| Some((parse_service_port_name(names.get(id)?)?, *flows)));
        Some(named.collect())
    }

    fn counters(&self) -> (BTreeMap<String, u64>, Option<String>) {
        match self.store.get().map(|store| reason_counters(store.as_ref())) {
            None => (BTreeMap::new(), None),
            Some(Ok(reasons)) => (reasons, None),
            Some(Err(error)) => (BTreeMap::new(), Some(format!("counters cannot be read: {error}"))),
        }
    }
}

fn age(since: Instant) -> u64 {
    now().saturating_duration_since(since).as_secs()
}

impl Answers for Board {
    fn report(&self) -> Report {
        let state = self.state.borrow().clone();
        let not_ready = state.causes();
        let (reasons, unread) = self.counters();
        Report {
            agent: Some(Agent {
                version: self.identity.version.clone(),
                pid: self.identity.pid,
                node_name: self.identity.node_name.clone(),
                age_seconds: age(self.identity.started),
                takeover: self.identity.takeover,
            }),
            ready: not_ready.is_empty(),
            not_ready,
            warnings: state.warnings.into_iter().chain(unread).collect(),
            unused_settings: self.identity.unused_settings.clone(),
            source: Some(SourceState {
                kind: self.identity.source_kind.clone(),
                location: self.identity.source_location.clone(),
                synced: state.synced,
                generation_seen: state.seen,
                generation_programmed: state.programmed,
                change_age_seconds: state.seen_at.map(age),
                services: state.services,
                endpoint_slices: state.endpoint_slices,
            }),
            reconcile: Some(ReconcileState {
                cycles: state.cycles,
                failures: state.failures,
                operations: self.store.get().map_or(0, |store| store.operations()),
                last_operations: state.last_operations,
                last_milliseconds: state.last_milliseconds,
                success_age_seconds: state.success_at.map(age),
                error: state.error,
            }),
            rejections: state.rejections.iter().cloned().collect::<Listed<_>>(),
            file_errors: state.file_errors.iter().cloned().collect(),
            attachments: state.attachments,
            tables: state.tables.into_iter().chain(state.flow_tables).collect(),
            flows: state.flows,
            reasons,
        }
    }

    fn services(&self, filter: &ServiceFilter) -> Vec<ServiceItem> {
        let (desired, flows) = {
            let state = self.state.borrow();
            (state.desired.clone(), state.service_flows.clone())
        };
        let Some(desired) = desired else { return Vec::new() };
        let flows = flows.and_then(|flows| self.by_name(&flows));
        service_items(&desired, flows.as_ref(), filter)
    }

    async fn programmed(&self) -> u64 {
        // Where source or loop have ended, nothing will be programmed any more: wait until the asker gives up.
        let Ok(held) = self.source.refresh().await else {
            return std::future::pending().await;
        };
        let mut state = self.state.clone();
        let done = state
            .wait_for(|state| state.synced && state.programmed >= held.generation)
            .await;
        match done.map(|state| state.programmed) {
            Ok(generation) => generation,
            Err(_) => std::future::pending().await,
        }
    }

    fn pending(&self) -> String {
        let state = self.state.borrow();
        let causes = state.causes().into_iter().map(|cause| cause.message);
        state.error.iter().cloned().chain(causes).collect::<Vec<_>>().join("; ")
    }
}
