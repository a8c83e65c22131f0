//! The sweep of the real flow tables, at the kernel's time.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::upkeep::{Sweep, Swept};
use crate::datapath::clock::Clock;
use crate::flows::{CLASSES, FlowCounts, Sweeper};
use crate::maps::{MapStore, Table};
use crate::status::report::{FlowSummary, TableFill};

/// Frees what has timed out and tells what the rest refers to.
#[derive(Debug)]
pub(super) struct FlowSweep {
    clock: Clock,
    /// What one sweep remembers for the next; sweeps never run at the same time.
    sweeper: Mutex<Sweeper>,
}

impl FlowSweep {
    pub(super) fn new(clock: Clock) -> Self {
        let sweeper = Mutex::new(Sweeper::default());
        Self { clock, sweeper }
    }
}

impl Sweep for FlowSweep {
    fn sweep(&self, store: &dyn MapStore) -> Result<Swept, String> {
        let now = self.clock.jiffies().map_err(|error| super::tell::chain(&error))?;
        let mut sweeper = self.sweeper.lock().unwrap_or_else(PoisonError::into_inner);
        let swept = sweeper.sweep(store, now);
        let tables = [(Table::FlowsV4, &swept.v4), (Table::FlowsV6, &swept.v6)];
        Ok(Swept {
            fill: tables.map(|(table, counts)| fill(store, table, counts)).into(),
            flows: [("IPv4", &swept.v4), ("IPv6", &swept.v6)]
                .map(|(family, counts)| summary(family, counts))
                .into(),
            services: swept.services,
            referred: swept.referred,
        })
    }
}

fn fill(store: &dyn MapStore, table: Table, counts: &FlowCounts) -> TableFill {
    let bytes = store.words(table).len() as u64 * 8;
    TableFill {
        name: table.name().to_owned(),
        used: counts.used,
        capacity: counts.slots,
        bytes,
    }
}

fn summary(family: &str, counts: &FlowCounts) -> FlowSummary {
    let classes: BTreeMap<String, u64> = CLASSES
        .iter()
        .map(|name| (*name).to_owned())
        .zip(counts.flows)
        .collect();
    FlowSummary {
        family: family.to_owned(),
        classes,
        expired: counts.expired,
    }
}
