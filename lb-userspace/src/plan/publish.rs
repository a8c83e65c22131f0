//! One service port onto the tables: the way in, after [`super::room`] has found that and how far it fits. What has to go is
//! left for later.

use std::sync::Arc;

use ipnet::IpNet;
use lb_common::layout::{BACKEND_WORDS, BackendControl, ServiceWord, backend_port_word, backend_ref};

use super::arena::Block;
use super::bits::bit_of;
use super::block::{self, Shape};
use super::image::Phase;
use super::name::service_port_name;
use super::room::{Member, Placed};
use super::service::{ServiceState, backend_address};
use super::slot::Slot;
use super::wanted::{self, Own};
use super::{Leftovers, Planner};
use crate::maps::{MapOp, SourceRange, Table, address_words};
use crate::model::{Family, Frontend, ServicePort, ServicePortKey};

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
            generation: control.generation.max(1),
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
        let words = block::words(id, state.generation, wanted, shape, &ids);
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
                self.drop_frontend(frontend, *slot, leftovers);
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

    /// A frontend that its service port does not have any more. Its slot goes unless another service port takes it over.
    pub(super) fn drop_frontend(&mut self, frontend: &Frontend, slot: Slot, leftovers: &mut Leftovers) {
        leftovers.slots.push(slot);
        self.addresses.remove_frontend(frontend);
        if let Some(address) = frontend.address {
            self.forward.remove(bit_of(address), self.epoch);
        }
    }
}
