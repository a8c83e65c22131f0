//! What stands in the tables at one moment, as plain data: where a restarted agent begins, and what a check compares with.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::layout::Device;

use super::{MapError, MapStore, SourceRange, Table};

/// A copy of everything that user space publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// The words of [`Table::PUBLISHED`], in that order, each up to its last word that is not zero.
    pub tables: [Vec<u64>; Table::PUBLISHED.len()],
    /// Number of words that each of these tables has.
    pub lengths: [u32; Table::PUBLISHED.len()],
    /// The source ranges.
    pub ranges: BTreeSet<SourceRange>,
    /// The devices.
    pub devices: BTreeMap<u32, Device>,
    /// The names of service ports.
    pub names: BTreeMap<u32, String>,
}

impl Dump {
    /// Reads the tables. Milliseconds: some megabytes of memory and a few system calls.
    pub fn of(store: &dyn MapStore) -> Result<Self, MapError> {
        Ok(Self {
            tables: Table::PUBLISHED.map(|table| store.words(table).copy_used()),
            lengths: Table::PUBLISHED.map(|table| store.words(table).len() as u32),
            ranges: store.ranges()?,
            devices: store.devices()?,
            names: store.names()?,
        })
    }
}
