//! The part of a cycle that computes and writes: model, plan, operations. Blocking; runs on a thread of its own.
//!
//! In: everything that the desired state depends on, as values. Out: what was published, or the error after which the next
//! cycle begins with a planner that adopts a fresh dump. Nothing here waits for a grace period.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::summary::Summary;
use super::words;
use crate::clock::{Instant, now};
use crate::config::Config;
use crate::datapath::interfaces::InterfaceTable;
use crate::datapath::steer::SteerDevice;
use crate::maps::{Dump, MapError, MapStore};
use crate::model::{self, DesiredState, Model, ModelConfig, Rejection, Snapshot};
use crate::plan::{NodeTables, Planner};
use crate::source::SourceState;

/// What stays the same from cycle to cycle.
#[derive(Debug)]
pub(super) struct Fixed {
    pub(super) config: Config,
    pub(super) model: ModelConfig,
    /// Jiffies a second.
    pub(super) hz: u32,
    /// Seed for tables that have none yet.
    pub(super) seed: u64,
}

impl Fixed {
    pub(super) fn new(config: Config, hz: u32, seed: u64) -> Self {
        let model = ModelConfig {
            nodeport_addresses: config.nodeport_addresses.clone(),
            bind_address: config.bind_address,
            allow_external_ips: config.external_ips,
            ..ModelConfig::new(&config.node_name)
        };
        Self {
            config,
            model,
            hz,
            seed,
        }
    }
}

/// What one cycle hands to the next to save it work. An empty one leads to the same.
#[derive(Debug)]
pub(super) struct Memory {
    model: Model,
    summary: Summary,
}

impl Memory {
    pub(super) fn new(fixed: &Fixed) -> Self {
        Self {
            model: Model::new(fixed.model.clone()),
            summary: Summary::default(),
        }
    }
}

/// What one cycle works on.
pub(super) struct Work {
    pub(super) fixed: Arc<Fixed>,
    pub(super) store: Arc<dyn MapStore>,
    /// The planner of the last cycle; `None` begins with a fresh dump.
    pub(super) planner: Option<Planner>,
    pub(super) memory: Memory,
    pub(super) objects: Arc<SourceState>,
    pub(super) table: Arc<InterfaceTable>,
    pub(super) steer: Option<SteerDevice>,
}

/// How long the parts of a publication took, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Reading the tables back, where a planner was made anew.
    pub(super) adopt: u64,
    /// From objects to the desired state.
    pub(super) model: u64,
    /// From there to operations.
    pub(super) plan: u64,
    /// Carrying them out.
    pub(super) write: u64,
}

/// What a cycle published.
pub(super) struct Published {
    pub(super) planner: Planner,
    pub(super) memory: Memory,
    pub(super) desired: Arc<DesiredState>,
    /// All rejections: of the source, the model and the plan.
    pub(super) rejections: Vec<Rejection>,
    /// VIPs: no source of packets of ours.
    pub(super) vips: Arc<BTreeSet<IpAddr>>,
    /// Those that host processes must reach by our device.
    pub(super) routed: Arc<BTreeSet<IpAddr>>,
    /// This node's addresses that serve NodePorts.
    pub(super) nodeport_addresses: BTreeSet<IpAddr>,
    pub(super) operations: usize,
    pub(super) times: Times,
    /// Something was left out that may fit soon.
    pub(super) starved: bool,
    /// Devices without room.
    pub(super) devices_left_out: usize,
    /// Service ports with policy Local that have endpoints elsewhere alone: internal and external, by family.
    pub(super) no_local_endpoints: [[u64; 2]; 2],
    /// True when the planner was made from a dump.
    pub(super) adopted: bool,
}

impl Work {
    pub(super) fn run(self) -> Result<Published, MapError> {
        let Self {
            fixed,
            store,
            planner,
            mut memory,
            objects,
            table,
            steer,
        } = self;
        let adopted = planner.is_none();
        let began = now();
        let mut planner = match planner {
            Some(planner) => planner,
            None => Planner::adopt(Dump::of(store.as_ref())?, fixed.seed),
        };
        let adopted_at = now();
        let snapshot = if fixed.config.drain {
            Arc::new(drained(&objects.snapshot))
        } else {
            Arc::clone(&objects.snapshot)
        };
        let desired = memory.model.build(&snapshot);
        memory.summary.follow(&desired);
        let built_at = now();
        let (vips, routed) = (Arc::clone(memory.summary.vips()), Arc::clone(memory.summary.routed()));
        let node = node_tables(&fixed, &desired, &table, steer, &vips);
        let plan = planner.plan(&desired, &node);
        let planned_at = now();
        plan.apply(store.as_ref())?;
        let written_at = now();
        let ms = |from: Instant, to: Instant| (to - from).as_millis() as u64;
        let times = Times {
            adopt: ms(began, adopted_at),
            model: ms(adopted_at, built_at),
            plan: ms(built_at, planned_at),
            write: ms(planned_at, written_at),
        };
        let mut rejections: Vec<Rejection> = objects
            .rejections
            .iter()
            .chain(&desired.rejections)
            .chain(&plan.rejections)
            .cloned()
            .collect();
        rejections.sort();
        rejections.dedup();
        Ok(Published {
            no_local_endpoints: memory.summary.no_local_endpoints(),
            planner,
            memory,
            desired,
            rejections,
            vips,
            routed,
            nodeport_addresses: node.nodeport_addresses,
            operations: plan.len(),
            times,
            starved: plan.starved,
            devices_left_out: plan.devices_left_out,
            adopted,
        })
    }
}

/// The node without Services. Flows outlive their Service: known ones go on, and packets that begin one are nobody's here.
fn drained(snapshot: &Snapshot) -> Snapshot {
    Snapshot {
        node: snapshot.node.clone(),
        ..Snapshot::default()
    }
}

fn node_tables(
    fixed: &Fixed,
    desired: &DesiredState,
    table: &InterfaceTable,
    steer: Option<SteerDevice>,
    vips: &BTreeSet<IpAddr>,
) -> NodeTables {
    let local: Vec<IpAddr> = table.local_addresses.iter().copied().collect();
    let nodeport = model::nodeport_addresses(&fixed.model, &desired.node, &local);
    NodeTables {
        addresses: table.local_addresses.clone(),
        nodeport_addresses: nodeport.into_iter().collect(),
        config: words::config_words(&fixed.config, table, steer, fixed.hz),
        devices: words::devices(table, &desired.node, vips),
    }
}
