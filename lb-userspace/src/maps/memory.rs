//! The tables in this process's own memory: what tests publish to and, through [`super::HostTables`], run packets on.
//!
//! Behaves as the kernel's maps do, word for word; only a full hash map does not occur, and affinity is never evicted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lb_common::layout::{ARENA_WORDS, AffinityValue, Device, FLOW_SETS, FragmentKey, NAME_BYTES};
use lb_common::verdict::{REASONS, Reason};

use super::{Grace, MapError, MapStore, SourceRange, Table, Words};

/// Sizes of the tables that a test may want small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySizes {
    /// Sets of each frontend table; a power of two from two on.
    pub frontend_sets: u32,
    /// Service words.
    pub services: u32,
    /// Words of the arena.
    pub arena_words: u32,
    /// Backend records.
    pub backends: u32,
    /// Sets of each flow table; a power of two from two on.
    pub flow_sets: u32,
}

impl Default for MemorySizes {
    /// The sizes of the kernel's maps. Memory is taken as it is used.
    fn default() -> Self {
        Self {
            frontend_sets: Table::FrontendsV4.values(),
            services: Table::Services.values(),
            arena_words: ARENA_WORDS,
            backends: Table::Backends.values(),
            flow_sets: FLOW_SETS,
        }
    }
}

impl MemorySizes {
    fn values(self, table: Table) -> u32 {
        match table {
            Table::FrontendsV4 | Table::FrontendsV6 => self.frontend_sets,
            Table::Services => self.services,
            Table::Arena => self.arena_words / Table::Arena.value_words() as u32,
            Table::Backends => self.backends,
            Table::FlowsV4 | Table::FlowsV6 => table.values_of(self.flow_sets),
            Table::Config | Table::ForwardBits | Table::ReplyBits | Table::Epoch => table.values(),
        }
    }
}

/// Client (see `lb_common::layout::AffinityKey`) and service port id.
pub(super) type AffinityKey = ([u64; 2], u64);

/// Source, destination and identification of a datagram.
type DatagramKey = ([u64; 2], [u64; 2], u64);

/// Tables in memory.
#[derive(Debug)]
pub struct MemoryStore {
    tables: Vec<Words>,
    ranges: Mutex<BTreeSet<SourceRange>>,
    devices: Mutex<BTreeMap<u32, Device>>,
    names: Mutex<BTreeMap<u32, String>>,
    affinity: [Mutex<BTreeMap<AffinityKey, AffinityValue>>; 2],
    fragments: [Mutex<BTreeMap<DatagramKey, u64>>; 2],
    reasons: [AtomicU64; REASONS],
    operations: AtomicU64,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(MemorySizes::default()).expect("address space for the tables")
    }
}

/// A test that panicked while it held the lock has failed already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryStore {
    /// Empty tables.
    pub fn new(sizes: MemorySizes) -> io::Result<Self> {
        let words = |table: Table| Words::zeroed(sizes.values(table) as usize * table.value_words());
        Ok(Self {
            tables: Table::ALL.into_iter().map(words).collect::<Result<_, _>>()?,
            ranges: Mutex::default(),
            devices: Mutex::default(),
            names: Mutex::default(),
            affinity: Default::default(),
            fragments: Default::default(),
            reasons: [const { AtomicU64::new(0) }; REASONS],
            operations: AtomicU64::new(0),
        })
    }

    fn operation(&self) {
        self.operations.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn device(&self, ifindex: u32) -> Option<Device> {
        lock(&self.devices).get(&ifindex).copied()
    }

    pub(super) fn has_range(&self, wanted: impl Fn(&SourceRange) -> bool) -> bool {
        lock(&self.ranges).iter().any(wanted)
    }

    pub(super) fn affinity(&self, v6: bool, key: AffinityKey) -> Option<AffinityValue> {
        lock(&self.affinity[usize::from(v6)]).get(&key).copied()
    }

    pub(super) fn remember_affinity(&self, v6: bool, key: AffinityKey, value: AffinityValue) {
        lock(&self.affinity[usize::from(v6)]).insert(key, value);
    }

    pub(super) fn fragment(&self, v6: bool, key: &FragmentKey) -> Option<u64> {
        lock(&self.fragments[usize::from(v6)])
            .get(&(key.src, key.dst, key.id))
            .copied()
    }

    pub(super) fn remember_fragment(&self, v6: bool, key: &FragmentKey, ports: u64) {
        lock(&self.fragments[usize::from(v6)]).insert((key.src, key.dst, key.id), ports);
    }

    pub(super) fn count(&self, reason: Reason) {
        if let Some(counter) = self.reasons.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl MapStore for MemoryStore {
    fn words(&self, table: Table) -> &Words {
        &self.tables[table as usize]
    }

    fn write(&self, table: Table, index: u32, words: &[u64]) -> Result<(), MapError> {
        self.operation();
        store_words(self.words(table), table, index, words)
    }

    fn put_ranges(&self, ranges: &[SourceRange]) -> Result<(), MapError> {
        self.operation();
        lock(&self.ranges).extend(ranges);
        Ok(())
    }

    fn remove_ranges(&self, ranges: &[SourceRange]) -> Result<(), MapError> {
        self.operation();
        let mut present = lock(&self.ranges);
        for range in ranges {
            present.remove(range);
        }
        Ok(())
    }

    fn ranges(&self) -> Result<BTreeSet<SourceRange>, MapError> {
        Ok(lock(&self.ranges).clone())
    }

    fn put_device(&self, ifindex: u32, device: Device) -> Result<(), MapError> {
        self.operation();
        lock(&self.devices).insert(ifindex, device);
        Ok(())
    }

    fn remove_device(&self, ifindex: u32) -> Result<(), MapError> {
        self.operation();
        lock(&self.devices).remove(&ifindex);
        Ok(())
    }

    fn devices(&self) -> Result<BTreeMap<u32, Device>, MapError> {
        Ok(lock(&self.devices).clone())
    }

    fn put_names(&self, names: &[(u32, Arc<str>)]) -> Result<(), MapError> {
        self.operation();
        for (id, name) in names {
            if name.len() > NAME_BYTES {
                return Err(MapError::NameTooLong {
                    id: *id,
                    name: name.as_ref().into(),
                });
            }
            lock(&self.names).insert(*id, name.as_ref().into());
        }
        Ok(())
    }

    fn remove_names(&self, ids: &[u32]) -> Result<(), MapError> {
        self.operation();
        let mut names = lock(&self.names);
        for id in ids {
            names.remove(id);
        }
        Ok(())
    }

    fn names(&self) -> Result<BTreeMap<u32, String>, MapError> {
        Ok(lock(&self.names).clone())
    }

    fn forget_affinity(&self, backends: &[u64]) -> Result<(), MapError> {
        self.operation();
        for family in &self.affinity {
            lock(family).retain(|_, value| backends.binary_search(&value.backend).is_err());
        }
        Ok(())
    }

    fn reasons(&self) -> Result<Vec<u64>, MapError> {
        Ok(self
            .reasons
            .iter()
            .map(|counter| counter.load(Ordering::Relaxed))
            .collect())
    }

    fn grace(&self) -> Grace {
        Grace::default()
    }

    fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }
}

/// Stores words in ascending order; nothing when they would not all fit.
pub(super) fn store_words(memory: &Words, table: Table, index: u32, words: &[u64]) -> Result<(), MapError> {
    if index as usize + words.len() > memory.len() {
        return Err(MapError::OutOfRange {
            table,
            index,
            count: words.len(),
        });
    }
    for (offset, word) in words.iter().enumerate() {
        memory.store(index as usize + offset, *word);
    }
    Ok(())
}
