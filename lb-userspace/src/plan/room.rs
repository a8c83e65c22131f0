//! Whether a service port fits onto the tables, before anything of it is written.
//!
//! Degrading, each with a rejection: a service port that is new and does not fit as a whole is left out; one that is
//! published keeps what fits: new endpoints or frontends without room are left out, and without room for a new block or for
//! source ranges it stays as it is.

use ipnet::IpNet;
use lb_common::layout::{self, BACKEND_WORDS};

use super::Planner;
use super::arena::Block;
use super::block::{self, Shape};
use super::image::Draft;
use super::reject;
use super::service::{ServiceState, backend_address};
use super::slot::{FrontendKey, Slot};
use super::wanted::{self, Own};
use crate::maps::Table;
use crate::model::{EndpointAddress, Family, Frontend, ServicePort, ServicePortKey};

/// A backend as it shall be.
pub(super) struct Member {
    /// Its id; `None` while it has none.
    pub(super) id: Option<u32>,
    pub(super) at: EndpointAddress,
    pub(super) state: u8,
    pub(super) flags: u16,
}

/// Where a frontend goes.
pub(super) struct Placed {
    pub(super) frontend: Frontend,
    pub(super) key: FrontendKey,
    pub(super) slot: Slot,
}

/// The outcome of looking for room.
pub(super) struct Fit {
    pub(super) members: Vec<Member>,
    pub(super) frontends: Vec<Placed>,
    pub(super) ranges: Vec<IpNet>,
}

impl Planner {
    /// Whether and how far a service port fits; `None` when it stays as it is.
    pub(super) fn find_room(
        &mut self,
        key: &ServicePortKey,
        known: Option<u32>,
        wanted: &ServicePort,
        own: Own<'_>,
    ) -> Option<Fit> {
        let state = known.and_then(|id| self.services.get(id));
        let is_live = state.is_some_and(ServiceState::is_live);
        let mut reasons = Vec::new();
        let whole = |draft: &Draft, table: Table, entry: usize| u64::from(draft.length(table)) / entry as u64;

        if known.is_none() && !self.services.has_room() {
            self.starved |= !self.gone_services.is_empty();
            let capacity = whole(&self.draft, Table::Services, 1);
            self.reject(
                key,
                reject::full(Table::Services.name(), capacity, "the port is left out"),
            );
            return None;
        }

        let family = usize::from(key.family == Family::V6);
        let ranges = wanted::source_ranges(wanted, key.family, own).unwrap_or_default();
        let old_ranges = state.map_or(&[][..], |state| &state.ranges);
        let added = ranges
            .iter()
            .filter(|range| old_ranges.binary_search(range).is_err())
            .count();
        if self.ranges[family] + added > layout::RANGE_ENTRIES as usize {
            let what = if is_live {
                "the port stays as it was"
            } else {
                "the port is left out"
            };
            self.reject(
                key,
                reject::full(layout::map::RANGES, layout::RANGE_ENTRIES.into(), what),
            );
            return None;
        }

        let mut members = self.members(state, key.family, wanted, own);
        let missing = members.iter().filter(|member| member.id.is_none()).count();
        let room = self.backend_ids.available();
        if missing > room {
            self.starved |= !self.gone_backends.is_empty();
            let capacity = whole(&self.draft, Table::Backends, BACKEND_WORDS);
            let what = if is_live {
                "some endpoints are left out"
            } else {
                "the port is left out"
            };
            let reason = reject::full(Table::Backends.name(), capacity, what);
            if !is_live {
                self.reject(key, reason);
                return None;
            }
            reasons.push(reason);
            let mut room = room;
            members.retain(|member| {
                member.id.is_some() || {
                    let fits = room > 0;
                    room = room.saturating_sub(1);
                    fits
                }
            });
        }

        let mut shape = Shape::EMPTY;
        for member in &members {
            shape.add(member.state);
        }
        let units = Block::units_for(shape.ids() as usize);
        if !self.arena.has_room(units) && !self.block_stands(known, wanted, shape, &members) {
            self.starved |= self.arena.could_have_room(units);
            let capacity = self.draft.length(Table::Arena).into();
            let what = if is_live {
                "the port stays as it was"
            } else {
                "the port is left out"
            };
            self.reject(key, reject::full(Table::Arena.name(), capacity, what));
            return None;
        }

        let (frontends, unplaced) = self.places(state, key, wanted, own);
        reasons.extend(unplaced.iter().map(reject::no_slot));
        for reason in reasons {
            self.reject(key, reason);
        }
        (is_live || unplaced.is_empty()).then_some(Fit {
            members,
            frontends,
            ranges,
        })
    }

    /// All backends that a service port shall have, by address and port. One that serves without being chosen is only kept
    /// where it was chosen before.
    fn members(&self, state: Option<&ServiceState>, family: Family, wanted: &ServicePort, own: Own<'_>) -> Vec<Member> {
        let v6 = family == Family::V6;
        let ids = state.map_or(&[][..], |state| &state.backends);
        let mut ids = ids
            .iter()
            .map(|id| (*id, backend_address(&self.draft, v6, *id)))
            .peekable();
        let member = |(at, backend): (&EndpointAddress, _)| {
            while ids.next_if(|(_, before)| before < at).is_some() {}
            let id = ids.next_if(|(_, same)| same == at).map(|(id, _)| id);
            let state = wanted::backend_state(backend);
            let flags = wanted::backend_flags(at, backend, own);
            let stands = id.is_some_and(|id| self.draft.control(id).state != 0);
            let needed = wanted::is_chosen(state) || (stands && state != 0);
            needed.then_some(Member {
                id,
                at: *at,
                state,
                flags,
            })
        };
        wanted.backends.iter().filter_map(member).collect()
    }

    /// Whether the block of a service port is already as it shall be.
    fn block_stands(&self, id: Option<u32>, wanted: &ServicePort, shape: Shape, members: &[Member]) -> bool {
        let Some((id, state)) = id.and_then(|id| Some((id, self.services.get(id)?))) else {
            return false;
        };
        let Some(block) = state.block else { return false };
        let Some(ids) = members
            .iter()
            .map(|member| Some((member.id?, member.state)))
            .collect::<Option<Vec<_>>>()
        else {
            return false;
        };
        let words = block::words(id, state.generation, wanted, shape, &ids);
        (block.offset()..)
            .zip(&words)
            .all(|(index, word)| self.draft.word(Table::Arena, index) == *word)
    }

    /// Slots for the frontends of a service port, and those that find none.
    fn places(
        &self,
        state: Option<&ServiceState>,
        key: &ServicePortKey,
        wanted: &ServicePort,
        own: Own<'_>,
    ) -> (Vec<Placed>, Vec<Frontend>) {
        let (mut placed, mut unplaced, mut taken) = (Vec::new(), Vec::new(), Vec::new());
        let published = state.map_or(&[][..], |state| &state.frontends);
        for frontend in wanted
            .frontends
            .iter()
            .filter(|frontend| wanted::is_published(frontend, own))
        {
            let (entry, _) = wanted::frontend_entry(key, frontend, 0);
            let present = published
                .binary_search_by(|(other, _)| other.cmp(frontend))
                .ok()
                .map(|index| published[index].1);
            let slot = present.or_else(|| entry.find(&self.draft)).or_else(|| {
                let free = entry.free(&self.draft, &taken);
                taken.extend(free);
                free
            });
            match slot {
                Some(slot) => placed.push(Placed {
                    frontend: *frontend,
                    key: entry,
                    slot,
                }),
                None => unplaced.push(*frontend),
            }
        }
        (placed, unplaced)
    }
}
