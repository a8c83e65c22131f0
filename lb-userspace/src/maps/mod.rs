//! The tables that packets read, as user space reaches them: [`MapStore`] and its implementations.
//!
//! In: [`MapOp`]s, plain stores that leave nothing to decide. Out: a [`Dump`] of what stands. Nothing here knows Services,
//! endpoints or any other desired state. One writer at a time is the caller's promise; readers (packets, the command line)
//! may look at any moment.
//!
//! Invariants: a word is stored whole; the words of one write are stored in ascending order; all that packets can already
//! see changes by single words only (that is the plan's promise, see [`crate::plan`]). A failed operation may have been
//! carried out in part; repeating it is harmless.
//!
//! | implementation | is |
//! |---|---|
//! | [`BpfStore`] | the pinned maps of the kernel programs |
//! | [`MemoryStore`] | the same tables in this process, for tests; [`HostTables`] lets the pipeline run on them |
//! | [`FaultyStore`] | another store that fails or dies at a chosen step |

mod address;
mod bpf;
mod dump;
mod error;
mod faulty;
mod host;
mod memory;
mod mmap;
mod op;
mod referred;
mod syscall;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::layout::Device;

pub use address::{address_of_words, address_words, v4_address, v4_word, v6_address, v6_words};
pub use bpf::{BpfStore, check_pins, pinned_seed};
pub use dump::Dump;
pub use error::{MapError, OpenError};
pub use faulty::{Fault, FaultyStore};
pub use host::{HostTables, Surroundings, WordSet, WordSlots};
pub use memory::{MemorySizes, MemoryStore};
pub use mmap::{Row, Words};
pub use op::{MapOp, OpList};
pub use referred::{BitSet, Referred};
pub use table::{Geometry, MapKind, Table, Values, geometries};

/// A source range of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRange {
    /// The service port's id.
    pub service: u32,
    /// The range; packets from within it may pass.
    pub range: IpNet,
}

/// The tables. All methods may be called from any thread; those that are system calls may take milliseconds.
pub trait MapStore: Send + Sync {
    /// The memory of a table, for reading (and, in the flow tables, for compare-and-swap). Published tables are written by
    /// [`MapStore::write`] only.
    fn words(&self, table: Table) -> &Words;

    /// Stores words from `index` on, in ascending order.
    fn write(&self, table: Table, index: u32, words: &[u64]) -> Result<(), MapError>;

    /// Adds source ranges; one that is there already is left alone.
    fn put_ranges(&self, ranges: &[SourceRange]) -> Result<(), MapError>;
    /// Removes source ranges; one that is absent is no error.
    fn remove_ranges(&self, ranges: &[SourceRange]) -> Result<(), MapError>;
    /// All source ranges.
    fn ranges(&self) -> Result<BTreeSet<SourceRange>, MapError>;

    /// Sets what packets know of a device.
    fn put_device(&self, ifindex: u32, device: Device) -> Result<(), MapError>;
    /// Forgets a device; absent is no error.
    fn remove_device(&self, ifindex: u32) -> Result<(), MapError>;
    /// All devices.
    fn devices(&self) -> Result<BTreeMap<u32, Device>, MapError>;

    /// Names service ports, for people and for a restarted agent.
    fn put_names(&self, names: &[(u32, Arc<str>)]) -> Result<(), MapError>;
    /// Removes names; one that is absent is no error.
    fn remove_names(&self, ids: &[u32]) -> Result<(), MapError>;
    /// All names by service port id.
    fn names(&self) -> Result<BTreeMap<u32, String>, MapError>;

    /// Deletes every session affinity to one of these backends (`lb_common::layout::backend_ref`, sorted).
    fn forget_affinity(&self, backends: &[u64]) -> Result<(), MapError>;

    /// Packets by reason number, summed over the CPUs.
    fn reasons(&self) -> Result<Vec<u64>, MapError>;

    /// What waits until no packet that is under way now can still be reading.
    fn grace(&self) -> Grace;

    /// Number of changing operations since the store was opened: calls of `write`, `put_*`, `remove_*` and
    /// `forget_affinity`.
    fn operations(&self) -> u64;
}

/// Waits for an RCU grace period; independent of its store, so that another thread can wait.
#[derive(Clone, Debug, Default)]
pub struct Grace(Option<Arc<bpf::GraceMap>>);

impl Grace {
    /// Blocks until every program run that had begun before the call has ended: some 8 ms, under load 100 ms. Never call it
    /// on an async thread or while something waits to be published.
    pub fn wait(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |map| map.wait())
    }
}
