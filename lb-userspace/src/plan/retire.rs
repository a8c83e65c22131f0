//! When what was given up may be used anew.
//!
//! A block and a service port's id: after a grace period, when no packet can still be reading them (a service port's id also
//! waits for its last backend, since flows are shown and counted under it). A backend id and an address bit: when a sweep that
//! began after that grace period has found no flow with them; a flow that begins later cannot have them.

use std::collections::{BTreeMap, BTreeSet};

use super::service::backend_bit;
use super::{Mark, Planner, SweepMark};
use crate::maps::Referred;

impl Planner {
    /// Now, for [`Planner::grace_passed`]: take it after the operations of the last plan were carried out, and before waiting
    /// for the grace period begins.
    pub fn mark(&self) -> Mark {
        Mark(self.epoch)
    }

    /// What is out of all packets' sight by now, for [`Planner::swept`]: take it before the sweep begins.
    pub fn sweep_mark(&self) -> SweepMark {
        SweepMark(self.graced)
    }

    /// True when something waits for a grace period.
    pub fn needs_grace(&self) -> bool {
        let waits = |gone: &BTreeMap<u32, u64>| gone.values().any(|since| *since > self.graced);
        self.arena.is_waiting()
            || waits(&self.gone_services)
            || waits(&self.gone_backends)
            || self.forward.is_waiting_since(self.graced)
            || self.reply.is_waiting_since(self.graced)
    }

    /// True when something waits for a sweep.
    pub fn needs_sweep(&self) -> bool {
        !self.gone_backends.is_empty() || self.forward.is_waiting() || self.reply.is_waiting()
    }

    /// True when the next plan has something to do even if nothing changes.
    pub fn has_freed(&self) -> bool {
        self.forward.has_unused()
            || self.reply.has_unused()
            || !self.gone_names.is_empty()
            || !self.freed_backends.is_empty()
    }

    /// A grace period that began at `mark` is over.
    pub fn grace_passed(&mut self, mark: Mark) {
        self.graced = self.graced.max(mark.0);
        self.arena.grace_passed(self.graced);
        self.end_services();
    }

    /// A sweep of both flow tables that began at `mark` has found `referred`.
    pub fn swept(&mut self, mark: SweepMark, referred: &Referred) {
        let until = mark.0;
        self.forward.swept(until, &referred.forward_bits);
        self.reply.swept(until, &referred.reply_bits);
        let is_free = |(id, since): (&u32, &u64)| *since <= until && !referred.backends.contains(*id);
        let free: Vec<u32> = self
            .gone_backends
            .iter()
            .filter(|entry| is_free(*entry))
            .map(|(id, _)| *id)
            .collect();
        let mut by_service: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for id in free {
            self.gone_backends.remove(&id);
            self.reply.remove(backend_bit(&self.draft, id), self.epoch);
            self.backend_ids.give(id);
            self.freed_backends.insert(id);
            by_service.entry(self.draft.control(id).service).or_default().insert(id);
        }
        for (service, ids) in by_service {
            if let Some(state) = self.services.get_mut(service) {
                state.backends.retain(|id| !ids.contains(id));
            }
        }
        self.end_services();
    }

    /// Frees the ids of withdrawn service ports that nothing refers to any more.
    fn end_services(&mut self) {
        let (services, graced) = (&self.services, self.graced);
        let is_over = |id: u32| services.get(id).is_none_or(|state| state.backends.is_empty());
        let over: Vec<u32> = self
            .gone_services
            .iter()
            .filter(|(id, since)| **since <= graced && is_over(**id))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.gone_services.remove(&id);
            if self.services.get(id).is_some() {
                self.services.end(id);
            } else {
                self.services.give(id);
            }
            if self.names.contains(&id) {
                self.gone_names.insert(id);
            }
        }
    }
}
