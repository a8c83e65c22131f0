//! A planner that begins with what stands in the tables: after a restart, after a failed operation, and with empty tables.
//!
//! Total: whatever stands there, the first cycle leads from it to the desired state, and with tables as an agent leaves them
//! that takes no operation. Trusted is only what packets could use too: a service port with a name, a block that echoes its
//! id within the arena, frontends that a look-up finds, backends of a known service port. Everything else is a stray and
//! goes; its ids and its room wait like anything given up in this moment.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::layout::{
    ARENA_WORDS, BACKEND_WORDS, BLOCK_HEADER_WORDS, FRONTEND_NODE_PORT, Run, ServiceWord, block, owner_word,
};

use super::addresses::Addresses;
use super::arena::{Arena, Block};
use super::bits::{AddressBits, bit_of};
use super::ids::IdPool;
use super::image::{Draft, Phase};
use super::name::parse_service_port_name;
use super::service::{ServiceState, Services, backend_address, backend_bit, is_v6};
use super::slot::{FrontendKey, Slot};
use super::{Leftovers, NodeTables, Planner, wanted};
use crate::maps::{Dump, Table};
use crate::model::{Family, OrdMap, ServicePortKey};

/// What the tables are brought up with when they have no seed and none is given.
const FALLBACK_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

impl Planner {
    /// A planner for tables that hold what `dump` says. `seed` is for tables that have none yet: the node's secret, at random.
    pub fn adopt(dump: Dump, seed: u64) -> Self {
        let Dump {
            tables,
            lengths,
            ranges,
            devices,
            names,
        } = dump;
        let draft = Draft::new(tables, lengths);
        let mut planner = Self {
            wanted: OrdMap::default(),
            forward: AddressBits::new(Table::ForwardBits, Phase::ForwardBits),
            reply: AddressBits::new(Table::ReplyBits, Phase::ReplyBits),
            services: Services::new(Vec::new(), 1, &[]),
            arena: Arena::around(0, &[], 0, 0),
            backend_ids: IdPool::without(1, &[]),
            addresses: Addresses::default(),
            ranges: [0; 2],
            devices,
            names: names.keys().copied().collect(),
            node: NodeTables::default(),
            seed: if seed == 0 { FALLBACK_SEED } else { seed },
            epoch: 1,
            graced: 0,
            gone_services: BTreeMap::new(),
            gone_backends: BTreeMap::new(),
            freed_backends: BTreeSet::new(),
            gone_names: BTreeSet::new(),
            strays: Leftovers::default(),
            adopted: true,
            rejected: BTreeMap::new(),
            starved: false,
            draft,
        };
        planner.adopt_services(&names);
        planner.adopt_backends();
        planner.adopt_frontends(false);
        planner.adopt_frontends(true);
        for range in ranges {
            planner.ranges[usize::from(range.range.addr().is_ipv6())] += 1;
            match planner.services.get_mut(range.service) {
                Some(state) if state.is_live() && state.key.family == Family::of_range(&range.range) => {
                    state.ranges.push(range.range);
                }
                _ => planner.strays.ranges.push(range),
            }
        }
        planner
    }

    fn adopt_services(&mut self, names: &BTreeMap<u32, String>) {
        let end = self.draft.length(Table::Services);
        let (mut live, mut taken) = (Vec::new(), BTreeSet::new());
        let mut states: Vec<Option<Box<ServiceState>>> = Vec::new();
        let mut owners: BTreeMap<ServicePortKey, u32> = BTreeMap::new();
        let used = self.draft.used(Table::Services).len() as u32;
        let published = |id: u32| self.draft.word(Table::Services, id) != 0;
        // Where two ids have one name, the one that packets use is the right one.
        let (first, second): (Vec<u32>, Vec<u32>) =
            names.keys().filter(|id| **id < end).partition(|id| published(**id));
        for id in first.into_iter().chain(second) {
            let key = names
                .get(&id)
                .and_then(|name| parse_service_port_name(name))
                .filter(|_| id != 0);
            let Some(key) = key.filter(|key| !owners.contains_key(key)) else {
                continue;
            };
            owners.insert(key.clone(), id);
            let word = ServiceWord::from_word(self.draft.word(Table::Services, id));
            let mut state = ServiceState::new(key, word.map_or(1, |word| word.generation.max(1)));
            state.block = word.and_then(|word| self.block_of(id, word));
            if let Some(block) = state.block {
                live.push((block, id));
            }
            if states.len() <= id as usize {
                states.resize(id as usize + 1, None);
            }
            states[id as usize] = Some(Box::new(state));
            taken.insert(id);
        }
        for id in 0..used.max(names.keys().next_back().map_or(0, |last| last + 1)).min(end) {
            let state = states.get_mut(id as usize).and_then(Option::as_deref_mut);
            let is_published = self.draft.word(Table::Services, id) != 0;
            if state.as_ref().is_some_and(|state| state.is_live()) {
                continue;
            }
            if is_published {
                self.strays.services.push(id);
            }
            if id != 0 && (state.is_some() || is_published || names.contains_key(&id)) {
                taken.insert(id);
                self.gone_services.insert(id, self.epoch);
            }
        }
        let stray_names = names.keys().filter(|id| **id == 0 || **id >= end);
        self.gone_names.extend(stray_names);

        live.sort_unstable();
        let mut blocks: Vec<Block> = Vec::new();
        for (block, id) in live {
            let overlaps = blocks.last().is_some_and(|last| last.start + last.units > block.start);
            if overlaps && let Some(state) = states.get_mut(id as usize).and_then(Option::as_deref_mut) {
                state.block = None;
                self.strays.services.push(id);
                self.gone_services.insert(id, self.epoch);
            } else {
                blocks.push(block);
            }
        }
        let arena = self.draft.length(Table::Arena);
        self.arena = Arena::around(arena, &blocks, self.draft.used(Table::Arena).len() as u32, self.epoch);
        let taken: Vec<u32> = taken.into_iter().collect();
        self.services = Services::new(states, end, &taken);
    }

    /// The block that a service word names, if packets could use it.
    fn block_of(&self, id: u32, word: ServiceWord) -> Option<Block> {
        let at = |index: u32| self.draft.word(Table::Arena, word.offset + index);
        let end = self.draft.length(Table::Arena).min(ARENA_WORDS);
        if word.generation == 0
            || !word.offset.is_multiple_of(BLOCK_HEADER_WORDS)
            || word.offset.checked_add(BLOCK_HEADER_WORDS)? > end
        {
            return None;
        }
        if at(block::OWNER) << 16 >> 16 != owner_word(id, word.generation, 0) {
            return None;
        }
        let runs = [block::INTERNAL, block::EXTERNAL, block::INSIDE].map(|run| Run::from_word(at(run)));
        let ids = runs
            .iter()
            .map(|run| u64::from(run.offset) + u64::from(run.length))
            .max()
            .unwrap_or(0);
        let units = Block::units_for(usize::try_from(ids).ok()?);
        let words = u64::from(units) * u64::from(super::arena::UNIT);
        let fits = u64::from(word.offset) + words <= u64::from(end);
        fits.then_some(Block {
            start: word.offset / super::arena::UNIT,
            units,
        })
    }

    fn adopt_backends(&mut self) {
        let end = self.draft.length(Table::Backends) / BACKEND_WORDS as u32;
        let used = (self.draft.used(Table::Backends).len() as u32).div_ceil(BACKEND_WORDS as u32);
        let mut taken = Vec::new();
        for id in 1..used {
            let control = self.draft.control(id);
            if control.service == 0 && control.state == 0 {
                continue;
            }
            taken.push(id);
            self.reply.adopt(backend_bit(&self.draft, id));
            let v6 = is_v6(&self.draft, id);
            let at = backend_address(&self.draft, v6, id);
            let draft = &self.draft;
            let state = self
                .services
                .get_mut(control.service)
                .filter(|state| (state.key.family == Family::V6) == v6);
            let Some(state) = state else {
                self.stray_backend(id, control.state);
                continue;
            };
            match state
                .backends
                .binary_search_by(|other| backend_address(draft, v6, *other).cmp(&at))
            {
                Err(place) => {
                    state.backends.insert(place, id);
                    if control.state == 0 || !state.is_live() {
                        self.stray_backend(id, control.state);
                    }
                }
                // One endpoint twice: the one that packets may choose is the right one.
                Ok(place) => {
                    let other = state.backends[place];
                    let other_state = draft.control(other).state;
                    let loser = if other_state == 0 && control.state != 0 {
                        state.backends[place] = id;
                        (other, other_state)
                    } else {
                        (id, control.state)
                    };
                    self.stray_backend(loser.0, loser.1);
                }
            }
        }
        self.backend_ids = IdPool::without(end, &taken);
    }

    fn stray_backend(&mut self, id: u32, state: u8) {
        if state == 0 {
            self.gone_backends.insert(id, self.epoch);
        } else {
            self.strays.stray_backends.push(id);
        }
    }

    fn adopt_frontends(&mut self, v6: bool) {
        for slot in (0..Slot::count(&self.draft, v6)).map(|index| Slot { v6, index }) {
            if !slot.is_valid(&self.draft) {
                continue;
            }
            self.draft.valid_slots[usize::from(v6)] += 1;
            let value = slot.value(&self.draft);
            // Without a seed nobody finds anything.
            let key = Some(slot)
                .filter(|_| self.draft.seed() != 0)
                .and_then(|slot| slot.key(&self.draft));
            let adopted = match key {
                Some(key) if key == FrontendKey::of_address(key.address) && !key.address.is_unspecified() => {
                    self.addresses.adopt(key.address, slot);
                    self.forward.adopt(bit_of(key.address));
                    true
                }
                Some(key) => self
                    .services
                    .get_mut(value.service)
                    .filter(|state| state.is_live())
                    .is_some_and(|state| {
                        let frontend = wanted::frontend_of_entry(&key, value);
                        let node_port = value.flags & FRONTEND_NODE_PORT != 0;
                        let is_own = (state.key.family == Family::V6) == v6
                            && wanted::frontend_entry(&state.key, &frontend, value.service) == (key, value)
                            && node_port == key.address.is_unspecified();
                        if is_own {
                            state.frontends.push((frontend, slot));
                            self.addresses.add_frontend(&frontend);
                            if let Some(address) = frontend.address {
                                self.forward.adopt(bit_of(address));
                            }
                        }
                        is_own
                    }),
                None => false,
            };
            if !adopted {
                self.strays.slots.push(slot);
            }
        }
        self.services.sort_frontends();
    }
}
