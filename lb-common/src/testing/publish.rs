//! Writes what user space publishes, word for word as `crate::layout` says: frontends, service words, blocks, backends, bits.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use super::tables::{load, store};
use super::{HostTables, side, words};
use crate::access::{SetRef as _, Slots as _, TableFamily};
use crate::family::{Family, Side, V4, V6};
use crate::hash;
use crate::layout::{
    BACKEND_WORDS, BLOCK_HEADER_WORDS, BackendControl, FRONTEND_VALID, FrontendValue, Run, SET_SLOTS, ServiceWord,
    VERSION_MASK, VERSION_SHIFT, backend_port_word, block, config, owner_word,
};
use crate::slots::{candidates, probe};

/// The block of a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// `layout::BLOCK_*` flags.
    pub flags: u16,
    /// Backend ids of the run for ClusterIP frontends.
    pub internal: Vec<u32>,
    /// Backend ids of the run for external frontends and sources.
    pub external: Vec<u32>,
    /// Backend ids of the run for external frontends and sources inside the cluster.
    pub inside: Vec<u32>,
    /// Session affinity in seconds; 0 = none.
    pub affinity: u32,
}

impl Block {
    /// A block whose three runs are the same.
    pub fn of(backends: &[u32]) -> Self {
        Self {
            internal: backends.to_vec(),
            external: backends.to_vec(),
            inside: backends.to_vec(),
            ..Self::default()
        }
    }

    /// Words that the block takes in the arena.
    pub fn length(&self) -> u32 {
        let ids = self.internal.len() + self.external.len() + self.inside.len();
        (BLOCK_HEADER_WORDS + ids.div_ceil(2) as u32).next_multiple_of(8)
    }
}

/// A backend as its record holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendRecord {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// `layout::BACKEND_*` flags of word 3; `BACKEND_V6` is added.
    pub flags: u16,
    /// Generation, state and owner.
    pub control: BackendControl,
}

impl HostTables {
    /// Writes a block; nothing refers to it yet.
    pub fn write_block(&self, service: u32, generation: u16, offset: u32, content: &Block) {
        let at = |word: u32| (offset + word) as usize;
        let mut first = 0;
        let runs = [
            (block::INTERNAL, &content.internal),
            (block::EXTERNAL, &content.external),
            (block::INSIDE, &content.inside),
        ];
        for (word, ids) in runs {
            let length = ids.len() as u32;
            store(&self.arena, at(word), Run { offset: first, length }.word());
            first += length;
        }
        store(&self.arena, at(block::AFFINITY), u64::from(content.affinity));
        let ids: Vec<u32> = runs.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        for (pair, ids) in (0..).zip(ids.chunks(2)) {
            let second = ids.get(1).copied().unwrap_or_default();
            let word = u64::from(ids[0]) | u64::from(second) << 32;
            store(&self.arena, at(BLOCK_HEADER_WORDS + pair), word);
        }
        let owner = owner_word(service, generation, content.flags);
        store(&self.arena, at(block::OWNER), owner);
    }

    /// Switches a service to a block; `None` = withdraws it.
    pub fn switch(&self, service: u32, word: Option<ServiceWord>) {
        store(&self.services, service as usize, word.map_or(0, ServiceWord::word));
    }

    /// Writes a backend, its control word last.
    pub fn write_backend(&self, id: u32, record: &BackendRecord) {
        let at = id as usize * BACKEND_WORDS;
        let [low, high] = words(record.address);
        let family = if record.address.is_ipv6() {
            crate::layout::BACKEND_V6
        } else {
            0
        };
        store(&self.backends, at + 1, low);
        store(&self.backends, at + 2, high);
        store(
            &self.backends,
            at + 3,
            backend_port_word(record.port, record.flags | family),
        );
        store(&self.backends, at, record.control.word());
    }

    /// The control word of a backend.
    pub fn backend_control(&self, id: u32) -> BackendControl {
        BackendControl::from_word(load(&self.backends, id as usize * BACKEND_WORDS))
    }

    /// Writes the control word of a backend.
    pub fn write_backend_control(&self, id: u32, control: BackendControl) {
        store(&self.backends, id as usize * BACKEND_WORDS, control.word());
    }

    /// Writes a frontend, or removes it where `value` is none. False where both its sets are full.
    pub fn write_frontend(&self, address: IpAddr, port: u16, protocol: u8, value: FrontendValue) -> bool {
        if address.is_ipv6() {
            self.write_slot::<V6>(side(address, port), protocol, value)
        } else {
            self.write_slot::<V4>(side(address, port), protocol, value)
        }
    }

    fn write_slot<F: TableFamily>(&self, side: Side<F>, protocol: u8, value: FrontendValue) -> bool {
        let table = self.frontend_slots::<F>();
        let hash = hash::side(load(&self.config, config::TABLE_SEED), side, protocol);
        let mut free = None;
        for index in candidates(hash, table.mask()) {
            let Some(set) = table.set(index) else { continue };
            for step in 0..SET_SLOTS {
                let base = probe(hash, step) * F::FRONTEND_WORDS;
                let word = set.load(base + F::SIDE_WORDS);
                let found = FrontendValue::from_word(word);
                let version = word & VERSION_MASK;
                let same = found.is_some()
                    && found.protocol == protocol
                    && (0..F::SIDE_WORDS).all(|word| set.load(base + word) == version | F::side_word(side, word));
                if same {
                    free = Some((set, base));
                    break;
                }
                if !found.is_some() && free.is_none() {
                    free = Some((set, base));
                }
            }
        }
        let Some((set, base)) = free else { return false };
        let old = set.load(base + F::SIDE_WORDS);
        let version = (old & VERSION_MASK).wrapping_add(1 << VERSION_SHIFT);
        set.store(base + F::SIDE_WORDS, version);
        for word in 0..F::SIDE_WORDS {
            set.store(base + word, version | F::side_word(side, word));
        }
        let value = FrontendValue { protocol, ..value };
        let valid = value.flags & FRONTEND_VALID != 0;
        set.store(base + F::SIDE_WORDS, version | if valid { value.word() } else { 0 });
        true
    }

    /// Overwrites a word of any table, as no publisher would; table numbers and indices wrap.
    pub(super) fn spoil(&self, table: u8, index: usize, value: u64) {
        let tables: [&[AtomicU64]; 10] = [
            &self.services,
            &self.arena,
            &self.backends,
            &self.config,
            &self.forward_bits,
            &self.reply_bits,
            &self.flows[0],
            &self.flows[1],
            &self.frontends[0],
            &self.frontends[1],
        ];
        let words = tables[usize::from(table) % tables.len()];
        store(words, index % words.len().max(1), value);
    }

    /// Sets the bit by which packets to an address are looked up.
    pub fn mark_forward(&self, address: IpAddr) {
        set_bit(&self.forward_bits, bit(address));
    }

    /// Sets the bit by which packets from an address are looked up.
    pub fn mark_reply(&self, address: IpAddr) {
        set_bit(&self.reply_bits, bit(address));
    }
}

fn set_bit(words: &[AtomicU64], index: u32) {
    let at = (index >> 6) as usize;
    store(words, at, load(words, at) | 1 << (index & 63));
}

fn bit(address: IpAddr) -> u32 {
    if address.is_ipv6() {
        hash::bit::<V6>(V6::from_words(words(address)))
    } else {
        hash::bit::<V4>(V4::from_words(words(address)))
    }
}
