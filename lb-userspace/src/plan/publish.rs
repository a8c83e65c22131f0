//! One service port onto the tables: first whether it fits, then the way in. What has to go is left for later.
//!
//! Degrading, each with a rejection: a service port that is new and does not fit as a whole is left out; one that is
//! published keeps what fits: new endpoints or frontends without room are left out, and without room for a new block or for
//! source ranges it stays as it is.

use std::sync::Arc;

use ipnet::IpNet;
use lb_common::layout::{self, BACKEND_WORDS, BackendControl, ServiceWord, backend_port_word, backend_ref};

use super::arena::Block;
use super::bits::bit_of;
use super::image::Phase;
use super::name::service_port_name;
use super::reject;
use super::service::{ServiceState, backend_address};
use super::slot::{FrontendKey, Slot};
use super::wanted::{self, Own, Shape};
use super::{Leftovers, Planner};
use crate::maps::{MapOp, SourceRange, Table, address_words};
use crate::model::{EndpointAddress, Family, Frontend, ServicePort, ServicePortKey};

/// A backend as it shall be.
struct Member {
    /// Its id; `None` while it has none.
    id: Option<u32>,
    at: EndpointAddress,
    state: u8,
    flags: u16,
}

/// Where a frontend goes.
struct Placed {
    frontend: Frontend,
    key: FrontendKey,
    slot: Slot,
}

/// The outcome of looking for room.
struct Fit {
    members: Vec<Member>,
    frontends: Vec<Placed>,
    ranges: Vec<IpNet>,
}

impl Planner {
    /// Publishes a service port, or as much of it as fits.
    pub(super) fn publish(
        &mut self,
        key: &ServicePortKey,
        wanted: &ServicePort,
        own: Own<'_>,
        names: &mut Vec<(u32, Arc<str>)>,
        leftovers: &mut Leftovers,
    ) {
        let known = self.services.id(key);
        let Some(fit) = self.find_room(key, known, wanted, own) else {
            return;
        };
        let Some(id) = known.or_else(|| self.services.begin(key)) else {
            return;
        };
        let Some(state) = self.services.get_mut(id) else { return };
        let mut state = std::mem::replace(state, ServiceState::new(key.clone(), 0));
        // The last owner's name may still stand there, about to be removed.
        let is_stale = self.gone_names.remove(&id);
        if self.names.insert(id) || is_stale {
            names.push((id, service_port_name(key).into()));
        }
        self.gone_services.remove(&id);
        self.write_ranges(id, &mut state, fit.ranges, leftovers);
        let shape = self.write_backends(id, &mut state, fit.members, leftovers);
        self.write_block(id, &mut state, wanted, shape);
        self.write_frontends(id, &mut state, fit.frontends, leftovers);
        if let Some(place) = self.services.get_mut(id) {
            *place = state;
        }
    }

    /// Whether and how far a service port fits; `None` when it stays as it is.
    fn find_room(
        &mut self,
        key: &ServicePortKey,
        known: Option<u32>,
        wanted: &ServicePort,
        own: Own<'_>,
    ) -> Option<Fit> {
        let state = known.and_then(|id| self.services.get(id));
        let is_live = state.is_some_and(ServiceState::is_live);
        let mut reasons = Vec::new();
        let whole = |draft: &super::Draft, table: Table, entry: usize| u64::from(draft.length(table)) / entry as u64;

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
        let words = block_words(id, state.generation, wanted, shape, &ids);
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

    fn write_ranges(&mut self, id: u32, state: &mut ServiceState, ranges: Vec<IpNet>, leftovers: &mut Leftovers) {
        let entry = |range: &IpNet| SourceRange {
            service: id,
            range: *range,
        };
        let family = usize::from(state.key.family == Family::V6);
        let added = ranges
            .iter()
            .filter(|range| state.ranges.binary_search(range).is_err())
            .map(entry);
        let added: Box<[SourceRange]> = added.collect();
        let gone = state
            .ranges
            .iter()
            .filter(|range| ranges.binary_search(range).is_err())
            .map(entry);
        leftovers.ranges.extend(gone);
        if !added.is_empty() {
            self.ranges[family] += added.len();
            self.draft.push(Phase::Ranges, MapOp::PutRanges(added));
        }
        state.ranges = ranges;
    }

    /// Writes records and wider states of the backends; narrower states are left for later. Gives the block's shape.
    fn write_backends(
        &mut self,
        service: u32,
        state: &mut ServiceState,
        members: Vec<Member>,
        leftovers: &mut Leftovers,
    ) -> (Shape, Vec<(u32, u8)>) {
        let v6 = state.key.family == Family::V6;
        let remembered = state.has_affinity(&self.draft);
        let mut shape = Shape::EMPTY;
        let mut chosen = Vec::with_capacity(members.len());
        let mut old = std::mem::take(&mut state.backends).into_iter().peekable();
        let mut all = Vec::with_capacity(members.len().max(old.len()));
        for member in members {
            while let Some(id) = old.next_if(|id| backend_address(&self.draft, v6, *id) < member.at) {
                self.let_go(id, remembered, leftovers);
                all.push(id);
            }
            let id = match member.id {
                Some(id) => {
                    old.next_if_eq(&id);
                    self.change_backend(id, &member, leftovers);
                    id
                }
                None => match self.backend_ids.take() {
                    Some(id) => {
                        self.begin_backend(id, service, &member);
                        id
                    }
                    None => continue,
                },
            };
            all.push(id);
            shape.add(member.state);
            chosen.push((id, member.state));
        }
        for id in old {
            self.let_go(id, remembered, leftovers);
            all.push(id);
        }
        all.shrink_to_fit();
        state.backends = all;
        (shape, chosen)
    }

    fn begin_backend(&mut self, id: u32, service: u32, member: &Member) {
        let generation = self.draft.control(id).generation.checked_add(1).unwrap_or(1);
        let control = BackendControl {
            generation,
            state: member.state,
            service,
        };
        let [first, second] = address_words(member.at.address);
        let record = [
            control.word(),
            first,
            second,
            backend_port_word(member.at.port, member.flags),
        ];
        self.freed_backends.remove(&id);
        self.reply.add(&mut self.draft, bit_of(member.at.address));
        self.draft
            .write(Phase::Backends, Table::Backends, id * BACKEND_WORDS as u32, &record);
    }

    fn change_backend(&mut self, id: u32, member: &Member, leftovers: &mut Leftovers) {
        self.gone_backends.remove(&id);
        let base = id * BACKEND_WORDS as u32;
        let port = backend_port_word(member.at.port, member.flags);
        self.draft.write(Phase::Backends, Table::Backends, base + 3, &[port]);
        let control = self.draft.control(id);
        let wide = BackendControl {
            state: control.state | member.state,
            ..control
        };
        self.draft.write(Phase::Backends, Table::Backends, base, &[wide.word()]);
        if wide.state != member.state {
            leftovers.states.push((id, member.state));
        }
    }

    /// A backend that is not wanted any more; `remembered` tells whether clients may remember it.
    pub(super) fn let_go(&mut self, id: u32, remembered: bool, leftovers: &mut Leftovers) {
        let control = self.draft.control(id);
        if control.state != 0 {
            leftovers.states.push((id, 0));
            if remembered {
                leftovers.affinity.push(backend_ref(id, control.generation));
            }
        }
    }

    /// Writes a fresh block, if it differs from the present one, and switches the service port to it.
    fn write_block(
        &mut self,
        id: u32,
        state: &mut ServiceState,
        wanted: &ServicePort,
        (shape, ids): (Shape, Vec<(u32, u8)>),
    ) {
        let words = block_words(id, state.generation, wanted, shape, &ids);
        let stands = state.block.is_some_and(|block| {
            (block.offset()..)
                .zip(&words)
                .all(|(index, word)| self.draft.word(Table::Arena, index) == *word)
        });
        if !stands {
            let Some(block) = self.arena.take(Block::units_for(shape.ids() as usize)) else {
                return;
            };
            self.draft.write(Phase::Blocks, Table::Arena, block.offset(), &words);
            if let Some(old) = state.block.replace(block) {
                self.arena.give_back(old, self.epoch);
            }
        }
        if let Some(block) = state.block {
            let word = ServiceWord {
                generation: state.generation,
                offset: block.offset(),
            };
            self.draft.write(Phase::Services, Table::Services, id, &[word.word()]);
        }
    }

    fn write_frontends(&mut self, id: u32, state: &mut ServiceState, placed: Vec<Placed>, leftovers: &mut Leftovers) {
        let old = std::mem::take(&mut state.frontends);
        for (frontend, slot) in &old {
            if placed.binary_search_by(|placed| placed.frontend.cmp(frontend)).is_err() {
                self.drop_frontend(id, frontend, *slot, leftovers);
            }
        }
        for Placed {
            frontend,
            key: entry,
            slot,
        } in placed
        {
            let (_, value) = wanted::frontend_entry(&state.key, &frontend, id);
            if old.binary_search_by(|(other, _)| other.cmp(&frontend)).is_err() {
                self.addresses.add_frontend(&frontend);
                if let Some(address) = frontend.address {
                    self.forward.add(&mut self.draft, bit_of(address));
                }
            }
            if slot.is_valid(&self.draft) {
                slot.revalue(&mut self.draft, Phase::Frontends, value);
            } else {
                slot.fill(&mut self.draft, Phase::Frontends, &entry, value);
            }
            state.frontends.push((frontend, slot));
        }
        state.frontends.shrink_to_fit();
    }

    /// A frontend that service port `id` does not have any more. Its slot goes unless another service port has taken it over,
    /// or does so later in this cycle.
    pub(super) fn drop_frontend(&mut self, id: u32, frontend: &Frontend, slot: Slot, leftovers: &mut Leftovers) {
        if slot.value(&self.draft).service == id {
            leftovers.slots.push((slot, slot.word(&self.draft)));
        }
        self.addresses.remove_frontend(frontend);
        if let Some(address) = frontend.address {
            self.forward.remove(bit_of(address), self.epoch);
        }
    }
}

/// The words of a block: header, ids of the cluster set, ids of the local set unless both are the same; two ids a word, the
/// rest of the last unit zero. `ids` are in order of address and port, which is the same on every node.
fn block_words(id: u32, generation: u16, wanted: &ServicePort, shape: Shape, ids: &[(u32, u8)]) -> Vec<u64> {
    let mut words = wanted::header(id, generation, wanted, shape).to_vec();
    let of_set = |bit: u8| ids.iter().filter(move |(_, state)| state & bit != 0).map(|(id, _)| *id);
    let cluster = of_set(layout::BACKEND_IN_CLUSTER);
    let local = of_set(layout::BACKEND_IN_LOCAL).filter(|_| !shape.same);
    let mut half = None;
    for id in cluster.chain(local) {
        match half.take() {
            None => half = Some(id),
            Some(low) => words.push(u64::from(id) << 32 | u64::from(low)),
        }
    }
    words.extend(half.map(u64::from));
    words.resize(
        (Block::units_for(shape.ids() as usize) * super::arena::UNIT) as usize,
        0,
    );
    words
}
