//! What is published of one service port, and all of those that have an id.

use std::collections::BTreeMap;

use ipnet::IpNet;
use lb_common::layout::{self, BACKEND_V6, BACKEND_WORDS};

use super::arena::Block;
use super::bits::bit_of;
use super::ids::IdPool;
use super::image::Draft;
use super::slot::Slot;
use crate::maps::{Table, address_of_words};
use crate::model::{EndpointAddress, Frontend, ServicePortKey};

/// A service port with an id.
#[derive(Clone, Debug)]
pub(super) struct ServiceState {
    pub(super) key: ServicePortKey,
    pub(super) generation: u16,
    /// Its block; `None` while it is withdrawn and waits for its last flow.
    pub(super) block: Option<Block>,
    /// Its backends by address and port, also those that are gone but may have flows.
    pub(super) backends: Vec<u32>,
    /// Its frontends, sorted, and where they stand.
    pub(super) frontends: Vec<(Frontend, Slot)>,
    /// Its source ranges, sorted.
    pub(super) ranges: Vec<IpNet>,
}

impl ServiceState {
    /// A service port of which nothing is published.
    pub(super) fn new(key: ServicePortKey, generation: u16) -> Self {
        Self {
            key,
            generation,
            block: None,
            backends: Vec::new(),
            frontends: Vec::new(),
            ranges: Vec::new(),
        }
    }

    /// Whether packets can reach it.
    pub(super) fn is_live(&self) -> bool {
        self.block.is_some()
    }

    /// The header word of its block; zero when it has none.
    pub(super) fn header_word(&self, draft: &Draft, word: u32) -> u64 {
        self.block
            .map_or(0, |block| draft.word(Table::Arena, block.offset() + word))
    }

    /// Whether clients are remembered.
    pub(super) fn has_affinity(&self, draft: &Draft) -> bool {
        self.header_word(draft, layout::block::AFFINITY) != 0
    }
}

/// A word of a backend record.
pub(super) fn backend_word(draft: &Draft, id: u32, word: u32) -> u64 {
    draft.word(Table::Backends, id * BACKEND_WORDS as u32 + word)
}

/// The bit of a backend's address.
pub(super) fn backend_bit(draft: &Draft, id: u32) -> u32 {
    bit_of(backend_address(draft, is_v6(draft, id), id).address)
}

/// Whether a backend's record says that it is IPv6.
pub(super) fn is_v6(draft: &Draft, id: u32) -> bool {
    backend_word(draft, id, 3) >> 16 & u64::from(BACKEND_V6) != 0
}

/// Where a backend is.
pub(super) fn backend_address(draft: &Draft, v6: bool, id: u32) -> EndpointAddress {
    let address = address_of_words(v6, [backend_word(draft, id, 1), backend_word(draft, id, 2)]);
    EndpointAddress {
        address,
        port: backend_word(draft, id, 3) as u16,
    }
}

/// All service ports with an id.
#[derive(Clone, Debug)]
pub(super) struct Services {
    ids: BTreeMap<ServicePortKey, u32>,
    states: Vec<Option<Box<ServiceState>>>,
    generations: Vec<u16>,
    pool: IdPool,
}

impl Services {
    /// The adopted ones by id.
    pub(super) fn new(states: Vec<Option<Box<ServiceState>>>, end: u32, taken: &[u32]) -> Self {
        let ids = (0..)
            .zip(&states)
            .filter_map(|(id, state)| Some((state.as_ref()?.key.clone(), id)))
            .collect();
        let generations = vec![0; states.len()];
        Self {
            ids,
            states,
            generations,
            pool: IdPool::without(end, taken),
        }
    }

    /// The id of a service port.
    pub(super) fn id(&self, key: &ServicePortKey) -> Option<u32> {
        self.ids.get(key).copied()
    }

    /// Ids and keys in order of the keys.
    pub(super) fn by_key(&self) -> impl Iterator<Item = (&ServicePortKey, u32)> {
        self.ids.iter().map(|(key, id)| (key, *id))
    }

    /// The state of an id.
    pub(super) fn get(&self, id: u32) -> Option<&ServiceState> {
        self.states.get(id as usize)?.as_deref()
    }

    /// The state of an id, to be changed.
    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut ServiceState> {
        self.states.get_mut(id as usize)?.as_deref_mut()
    }

    /// Number of ids in use.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether a new service port can have an id.
    pub(super) fn has_room(&self) -> bool {
        self.pool.available() > 0
    }

    /// Gives a service port an id and a generation of it.
    pub(super) fn begin(&mut self, key: &ServicePortKey) -> Option<u32> {
        let id = self.pool.take()?;
        let index = id as usize;
        if self.states.len() <= index {
            self.states.resize(index + 1, None);
        }
        if self.generations.len() <= index {
            self.generations.resize(index + 1, 0);
        }
        self.generations[index] = self.generations[index].checked_add(1).unwrap_or(1);
        self.states[index] = Some(Box::new(ServiceState::new(key.clone(), self.generations[index])));
        self.ids.insert(key.clone(), id);
        Some(id)
    }

    /// Sorts the frontends of all states, which adoption finds in the order of their slots.
    pub(super) fn sort_frontends(&mut self) {
        self.states
            .iter_mut()
            .flatten()
            .for_each(|state| state.frontends.sort_unstable());
    }

    /// Frees an id that nothing refers to.
    pub(super) fn end(&mut self, id: u32) {
        if let Some(state) = self.states.get_mut(id as usize).and_then(Option::take) {
            self.ids.remove(&state.key);
            if let Some(generation) = self.generations.get_mut(id as usize) {
                *generation = state.generation;
            }
            self.give(id);
        }
    }

    /// Frees an id that never had a state here.
    pub(super) fn give(&mut self, id: u32) {
        self.pool.give(id);
    }

    /// Bytes of heap of the states, without the texts of the keys, which the model shares.
    pub(super) fn heap_bytes(&self) -> usize {
        let own = |state: &ServiceState| {
            size_of::<ServiceState>()
                + state.backends.capacity() * size_of::<u32>()
                + state.frontends.capacity() * size_of::<(Frontend, Slot)>()
                + state.ranges.capacity() * size_of::<IpNet>()
        };
        self.states.iter().flatten().map(|state| own(state)).sum::<usize>()
            + self.states.capacity() * size_of::<usize>()
            + self.generations.capacity() * size_of::<u16>()
            + self.ids.len() * (size_of::<ServicePortKey>() + size_of::<u32>()) * 3 / 2
    }
}
