//! A store that fails where a test wants it to.
//!
//! Steps are counted as a crash could separate them: each word of a write is one, every other changing call is one. At the
//! chosen step [`Fault::Once`] refuses and then recovers; [`Fault::Dead`] lets nothing through from then on, which leaves the
//! tables as a killed agent would; [`Fault::Killed`] is that kill.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::layout::Device;
use nix::sys::signal::{Signal, raise};

use super::{Grace, MapError, MapStore, SourceRange, Table, Words};

/// What happens at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The step is refused, all later ones work.
    Once,
    /// Nothing changes any more.
    Dead,
    /// The process is ended by SIGKILL.
    Killed,
}

/// Wraps a store.
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: S,
    fault: Fault,
    at: u64,
    steps: AtomicU64,
}

impl<S> FaultyStore<S> {
    /// Fails at step `at`, counted from 1; 0 never fails.
    pub fn new(inner: S, fault: Fault, at: u64) -> Self {
        Self {
            inner,
            fault,
            at,
            steps: AtomicU64::new(0),
        }
    }

    /// Steps asked for so far.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// The store inside.
    pub fn into_inner(self) -> S {
        self.inner
    }

    fn step(&self) -> Result<(), MapError> {
        let step = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
        let fails = self.at != 0
            && match self.fault {
                Fault::Once | Fault::Killed => step == self.at,
                Fault::Dead => step >= self.at,
            };
        if !fails {
            return Ok(());
        }
        if self.fault == Fault::Killed {
            // There is no return from it.
            let _never = raise(Signal::SIGKILL);
        }
        Err(MapError::Injected { step })
    }
}

impl<S: MapStore> MapStore for FaultyStore<S> {
    fn words(&self, table: Table) -> &Words {
        self.inner.words(table)
    }

    fn write(&self, table: Table, index: u32, words: &[u64]) -> Result<(), MapError> {
        for (offset, word) in words.iter().enumerate() {
            self.step()?;
            self.inner
                .write(table, index + offset as u32, std::slice::from_ref(word))?;
        }
        Ok(())
    }

    fn put_ranges(&self, ranges: &[SourceRange]) -> Result<(), MapError> {
        self.step()?;
        self.inner.put_ranges(ranges)
    }

    fn remove_ranges(&self, ranges: &[SourceRange]) -> Result<(), MapError> {
        self.step()?;
        self.inner.remove_ranges(ranges)
    }

    fn ranges(&self) -> Result<BTreeSet<SourceRange>, MapError> {
        self.inner.ranges()
    }

    fn put_device(&self, ifindex: u32, device: Device) -> Result<(), MapError> {
        self.step()?;
        self.inner.put_device(ifindex, device)
    }

    fn remove_device(&self, ifindex: u32) -> Result<(), MapError> {
        self.step()?;
        self.inner.remove_device(ifindex)
    }

    fn devices(&self) -> Result<BTreeMap<u32, Device>, MapError> {
        self.inner.devices()
    }

    fn put_names(&self, names: &[(u32, Arc<str>)]) -> Result<(), MapError> {
        self.step()?;
        self.inner.put_names(names)
    }

    fn remove_names(&self, ids: &[u32]) -> Result<(), MapError> {
        self.step()?;
        self.inner.remove_names(ids)
    }

    fn names(&self) -> Result<BTreeMap<u32, String>, MapError> {
        self.inner.names()
    }

    fn forget_affinity(&self, backends: &[u64]) -> Result<(), MapError> {
        self.step()?;
        self.inner.forget_affinity(backends)
    }

    fn reasons(&self) -> Result<Vec<u64>, MapError> {
        self.inner.reasons()
    }

    fn grace(&self) -> Grace {
        self.inner.grace()
    }

    fn operations(&self) -> u64 {
        self.inner.operations()
    }
}
