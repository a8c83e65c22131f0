//! The way out: what is not wanted any more leaves the tables in the reverse order of the way in.

use lb_common::layout::{BACKEND_WORDS, BackendControl};

use super::image::Phase;
use super::slot::Slot;
use super::{Leftovers, Planner};
use crate::maps::{MapOp, SourceRange, Table};
use crate::model::Family;

impl Planner {
    /// Takes a whole service port off the tables. Id, name and backends stay until the last flow has gone.
    pub(super) fn withdraw(&mut self, id: u32, leftovers: &mut Leftovers) {
        let Some(state) = self.services.get_mut(id) else { return };
        let (frontends, ranges) = (std::mem::take(&mut state.frontends), std::mem::take(&mut state.ranges));
        let backends = state.backends.clone();
        let remembered = self
            .services
            .get(id)
            .is_some_and(|state| state.has_affinity(&self.draft));
        for (frontend, slot) in frontends {
            self.drop_frontend(&frontend, slot, leftovers);
        }
        for backend in backends {
            self.let_go(backend, remembered, leftovers);
        }
        leftovers.services.push(id);
        leftovers
            .ranges
            .extend(ranges.into_iter().map(|range| SourceRange { service: id, range }));
        self.gone_services.insert(id, self.epoch);
        if let Some(block) = self.services.get_mut(id).and_then(|state| state.block.take()) {
            self.arena.give_back(block, self.epoch);
        }
    }

    /// Writes everything that leaves, and what a grace period or a sweep has set free.
    pub(super) fn take_away(&mut self, leftovers: Leftovers) {
        let Leftovers {
            slots,
            services,
            mut states,
            mut ranges,
            mut affinity,
            stray_backends,
        } = leftovers;
        for slot in slots {
            if !self.is_slot_in_use(slot) {
                slot.clear(&mut self.draft, Phase::FrontendsGone);
            }
        }
        // What was found astray may have become part of a service port that is published again.
        for id in services {
            if self.services.get(id).is_none_or(|state| !state.is_live()) {
                self.draft.write(Phase::ServicesGone, Table::Services, id, &[0]);
            }
        }
        states.extend(
            stray_backends
                .into_iter()
                .filter(|id| !self.is_in_use(*id))
                .map(|id| (id, 0)),
        );
        for (id, state) in states {
            let control = BackendControl {
                state,
                ..self.draft.control(id)
            };
            self.draft.write(
                Phase::BackendsGone,
                Table::Backends,
                id * BACKEND_WORDS as u32,
                &[control.word()],
            );
            if state == 0 {
                self.gone_backends.insert(id, self.epoch);
            }
        }
        if !affinity.is_empty() {
            affinity.sort_unstable();
            self.draft
                .push(Phase::AffinityGone, MapOp::ForgetAffinity(affinity.into()));
        }
        if !ranges.is_empty() {
            ranges.sort_unstable();
            for range in &ranges {
                let family = usize::from(Family::of_range(&range.range) == Family::V6);
                self.ranges[family] = self.ranges[family].saturating_sub(1);
            }
            ranges.retain(|SourceRange { service, range }| {
                let state = self.services.get(*service).filter(|state| state.is_live());
                state.is_none_or(|state| state.ranges.binary_search(range).is_err())
            });
        }
        if !ranges.is_empty() {
            self.draft.push(Phase::RangesGone, MapOp::RemoveRanges(ranges.into()));
        }
        for id in std::mem::take(&mut self.freed_backends) {
            let control = BackendControl {
                state: 0,
                service: 0,
                ..self.draft.control(id)
            };
            self.draft.write(
                Phase::BackendsFreed,
                Table::Backends,
                id * BACKEND_WORDS as u32,
                &[control.word()],
            );
        }
        self.forward.release(&mut self.draft);
        self.reply.release(&mut self.draft);
        let names: Box<[u32]> = std::mem::take(&mut self.gone_names).into_iter().collect();
        if !names.is_empty() {
            for id in &names {
                self.names.remove(id);
            }
            self.draft.push(Phase::NamesGone, MapOp::RemoveNames(names));
        }
    }

    /// Whether somebody has a slot, who may have taken it over in this cycle.
    fn is_slot_in_use(&self, slot: Slot) -> bool {
        match slot.value(&self.draft).service {
            0 => self.addresses.has_slot(slot),
            id => {
                let frontends = self.services.get(id).map_or(&[][..], |state| &state.frontends);
                frontends.iter().any(|(_, own)| *own == slot)
            }
        }
    }

    /// Whether a backend belongs to a published service port.
    fn is_in_use(&self, id: u32) -> bool {
        let state = self.services.get(self.draft.control(id).service);
        state.is_some_and(|state| state.is_live() && state.backends.contains(&id))
    }
}
