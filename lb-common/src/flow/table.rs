//! Finding, inserting, refreshing and freeing flow entries in a table of sets that all CPUs and user space share.
//!
//! Protocol. *Readers* take no lock: a slot is consistent when all its words carry the control word's version; one seen
//! changing that may be the reader's own is read again at most [`TRIES`] times, then [`Found::Busy`]. *Writers* take a slot by
//! compare-and-swap of its control word to BUSY under the next version, write the other words, and publish by a second one.
//! Whoever has published scans the key's candidate slots once more; of two equal keys the one that stands later is freed, by
//! whoever sees both. *Freeing* is one compare-and-swap, which fails if a packet refreshed the entry meanwhile. Nothing spins.
//!
//! What only the slow stage calls is not inlined for the kernel: its stack frame comes and goes with the call.
//!
//! A pair is inserted reply half first; if the forward half cannot be had, the reply half is taken back. Eviction takes pairs.

use crate::access::{SetRef, Slots, TableFamily, Tables};
use crate::flow::slot::{self, Entry, Key, Place, Rewrite};
use crate::flow::state::{self, BUSY, Control, FREE, LIVE, PHASE, SHARED};
use crate::layout::{SET_SLOTS, config};
use crate::slots::{afresh, candidates, probe};

/// How often a changing slot is read again, and a lost race for a control word is run again.
pub const TRIES: usize = 4;
/// How often another slot is tried when a race for one was lost; each costs the verifier a walk through all of it.
const INSERT_TRIES: usize = 2;

/// What a look-up found, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// What was found; the rest means something for [`Found::Entry`] alone.
    pub found: Found,
    /// Index of the set.
    pub set: u32,
    /// Index of the slot's control word in the set.
    pub base: u32,
    /// The control word that was read.
    pub control: Control,
}

/// Kind of a look-up's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Found {
    /// No entry.
    Nothing,
    /// A slot that may be ours kept changing.
    Busy,
    /// The entry.
    Entry,
}

impl Spot {
    /// A result without an entry.
    #[inline(always)]
    const fn none(found: Found) -> Self {
        Self {
            found,
            set: 0,
            base: 0,
            control: Control {
                version: 0,
                state: 0,
                last_seen: 0,
            },
        }
    }

    /// An entry's spot.
    #[inline(always)]
    const fn new(set: u32, base: usize, control: Control) -> Self {
        Self {
            found: Found::Entry,
            set,
            base: base as u32,
            control,
        }
    }

    /// Replaces the control word if nobody changed it since it was read.
    #[inline(always)]
    fn swap<F: TableFamily, T: Tables>(&self, tables: &T, new: Control) -> bool {
        let old = self.control.word();
        tables
            .flows::<F>()
            .set(self.set)
            .is_some_and(|set| set.cas(self.base as usize, old, new.word()) == old)
    }

    /// Frees the entry if nobody changed it since it was read.
    #[inline(always)]
    pub fn free<F: TableFamily, T: Tables>(&self, tables: &T) -> bool {
        self.swap::<F, T>(
            tables,
            Control {
                version: self.control.next_version(),
                state: FREE,
                last_seen: 0,
            },
        )
    }
}

/// What came of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// Both halves stand.
    Pair,
    /// Another CPU inserted the same flow, or one with the same reply key, in another form at the same time; nothing of ours stands.
    Conflict,
    /// No slot could be had.
    Full,
}

/// Finds `key` and reads its entry's rewrite and place, in one pass; `hash` is the key's hash under the table's seed.
/// [`Found::Busy`]: a slot was changing; [`locate`] looks again.
#[inline(always)]
pub fn find<F: TableFamily, T: Tables>(
    tables: &T,
    key: &Key<F>,
    hash: u64,
) -> (Found, Control, Option<(Rewrite<F>, Place)>) {
    let table = tables.flows::<F>();
    let nothing = Control {
        version: 0,
        state: 0,
        last_seen: 0,
    };
    let mut found = Found::Nothing;
    for index in candidates(hash, table.mask()) {
        let Some(set) = table.set(index) else { break };
        for i in 0..SET_SLOTS {
            let base = probe(hash, i) * F::SLOT_WORDS;
            let control = Control::from_word(set.load(base));
            if control.phase() == LIVE {
                if slot::holds(set, base, control.version, key) {
                    return match slot::read(set, base, control.version) {
                        Some(read) => (Found::Entry, control, Some(read)),
                        None => (Found::Busy, nothing, None),
                    };
                }
            } else if control.phase() == BUSY && control.last_seen == tag(hash) {
                found = Found::Busy;
            }
        }
    }
    (found, nothing, None)
}

/// Finds the key of `entry` and completes the entry; for the later stages.
#[inline(always)]
pub fn complete<F: TableFamily, T: Tables>(tables: &T, entry: &mut Entry<F>) -> Spot {
    let spot = locate(tables, &entry.key);
    if spot.found == Found::Entry {
        let set = tables.flows::<F>().set(spot.set);
        match set.and_then(|set| slot::read(set, spot.base as usize, spot.control.version)) {
            Some((rewrite, place)) => {
                entry.rewrite = rewrite;
                entry.place = place;
            }
            None => return Spot::none(Found::Busy),
        }
    }
    spot
}

/// Finds where `key` stands; for the later stages.
#[inline(always)]
pub fn locate<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>) -> Spot {
    let mut spot = Spot::none(Found::Nothing);
    spot.found = tables.scan(key, &mut spot);
    spot
}

/// [`locate`] behind [`Tables::scan`]: a scalar comes back, the rest by reference.
#[inline(always)]
pub fn scan<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>, into: &mut Spot) -> Found {
    let hash = key.hash(tables.config(config::TABLE_SEED));
    let table = tables.flows::<F>();
    let sets = candidates(hash, table.mask());
    for _ in 0..TRIES {
        let mut changing = false;
        for index in sets {
            let Some(set) = table.set(index) else {
                return Found::Nothing;
            };
            for i in 0..SET_SLOTS {
                let base = probe(hash, i) * F::SLOT_WORDS;
                let control = Control::from_word(set.load(base));
                if control.phase() == LIVE {
                    if slot::holds(set, base, control.version, afresh(key)) {
                        *into = Spot::new(index, base, control);
                        return Found::Entry;
                    }
                } else if control.phase() == BUSY && control.last_seen == tag(hash) {
                    changing = true;
                }
            }
        }
        if !changing {
            return Found::Nothing;
        }
    }
    Found::Busy
}

/// What a slot being written shows instead of a time: enough of the hash to know one's own.
#[inline(always)]
const fn tag(hash: u64) -> u32 {
    (hash >> 28) as u32
}

/// True when the entry at `spot` is the twin of an entry whose key is `key`.
#[inline(always)]
pub fn is_twin<F: TableFamily, T: Tables>(tables: &T, spot: &Spot, key: &Key<F>) -> bool {
    rewrites_to(tables, spot, &key.twin_rewrite())
}

/// True when the entry at `spot` rewrites to `rewrite`.
#[inline(always)]
fn rewrites_to<F: TableFamily, T: Tables>(tables: &T, spot: &Spot, rewrite: &Rewrite<F>) -> bool {
    let set = tables.flows::<F>().set(spot.set);
    set.is_some_and(|set| slot::rewrites_to(set, spot.base as usize, spot.control.version, rewrite))
}

/// Inserts both halves of a flow. `entry` is the forward half (and is again afterwards), `flow_state` its initial state,
/// `spare` room to work in.
///
/// `reply_stands` says that the caller found the very same reply half already (an orphan, or another CPU's): it is kept.
#[inline(always)]
pub fn insert_pair<F: TableFamily, T: Tables>(
    tables: &T,
    entry: &mut Entry<F>,
    spare: &mut Entry<F>,
    reply_place: Place,
    flow_state: u16,
    reply_stands: bool,
) -> Inserted {
    let forward_place = entry.place;
    if !reply_stands {
        entry.turn(reply_place);
        let half = tables.insert(entry, spare, flow_state | state::REPLY_HALF);
        entry.turn(forward_place);
        match half {
            Half::Stands | Half::Same => {}
            Half::Other => return Inserted::Conflict,
            Half::Full => return Inserted::Full,
        }
    }
    let result = match tables.insert(entry, spare, flow_state) {
        Half::Stands | Half::Same => return Inserted::Pair,
        Half::Other => Inserted::Conflict,
        Half::Full => Inserted::Full,
    };
    free_twin(tables, entry, spare);
    result
}

/// Inserts the reply half of a forward entry whose own was lost. True when it stands now. `entry` is turned and turned back.
#[inline(always)]
pub fn insert_reply<F: TableFamily, T: Tables>(
    tables: &T,
    entry: &mut Entry<F>,
    spare: &mut Entry<F>,
    reply_place: Place,
    flow_state: u16,
) -> bool {
    let forward_place = entry.place;
    entry.turn(reply_place);
    let half = tables.insert(entry, spare, flow_state | state::REPLY_HALF);
    entry.turn(forward_place);
    matches!(half, Half::Stands | Half::Same)
}

/// What came of one half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Half {
    /// It stands.
    Stands,
    /// The same entry stood elsewhere, earlier; ours was taken back.
    Same,
    /// The same key with another rewrite stood elsewhere, earlier; ours was taken back.
    Other,
    /// No slot could be had.
    Full,
}

impl Half {
    /// Reads the number; unknown numbers mean that no slot could be had.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Stands,
            1 => Self::Same,
            2 => Self::Other,
            _ => Self::Full,
        }
    }
}

/// Inserts one entry; `spare` holds an evicted entry while its twin is freed. Called through [`Tables::insert`].
#[inline(always)]
pub fn insert<F: TableFamily, T: Tables>(tables: &T, entry: &Entry<F>, spare: &mut Entry<F>, flow_state: u16) -> Half {
    let hash = entry.key.hash(tables.config(config::TABLE_SEED));
    for _ in 0..INSERT_TRIES {
        let mut spot = Spot::none(Found::Nothing);
        if !tables.choose::<F>(hash, &mut spot) {
            return Half::Full;
        }
        let Some(set) = tables.flows::<F>().set(spot.set) else {
            return Half::Full;
        };
        let base = spot.base as usize;
        let evicts = spot.control.phase() == LIVE && slot::decode_into(&set, base, spot.control.version, spare);
        let taken = Control {
            version: spot.control.next_version(),
            state: BUSY,
            last_seen: tag(hash),
        };
        if !spot.swap::<F, T>(tables, taken) {
            continue;
        }
        spot.control = taken;
        if evicts {
            evict_twin(tables, spare);
        }
        slot::write(&set, base, taken.version, entry);
        let live = Control {
            version: taken.version,
            state: (flow_state & !PHASE) | LIVE,
            last_seen: tables.now(),
        };
        spot.swap::<F, T>(tables, live);
        spot.control = live;
        return tables.settle(entry, &spot);
    }
    Half::Full
}

/// Frees the twin of an entry that is being evicted.
#[inline(always)]
fn evict_twin<F: TableFamily, T: Tables>(tables: &T, victim: &mut Entry<F>) {
    victim.turn(victim.place);
    let twin = locate(tables, &victim.key);
    if twin.found == Found::Entry && rewrites_to(tables, &twin, &victim.rewrite) {
        twin.free::<F, T>(tables);
    }
}

/// The slot for a newcomer (false where there is none): free, else expired, else the least valuable that a newcomer may displace.
///
/// A settled flow is never displaced. Among established but unsettled flows the newest goes first (a flood of whole handshakes
/// is its own victim), in every other class the oldest. Called through [`Tables::choose`].
#[inline(always)]
pub fn choose<F: TableFamily, T: Tables>(tables: &T, hash: u64, into: &mut Spot) -> bool {
    let table = tables.flows::<F>();
    let now = tables.now();
    let mut best_rank = u64::MAX;
    for index in candidates(hash, table.mask()) {
        let Some(set) = table.set(index) else { break };
        for i in 0..SET_SLOTS {
            let base = probe(hash, i) * F::SLOT_WORDS;
            let control = Control::from_word(set.load(base));
            if control.phase() == FREE {
                *into = Spot::new(index, base, control);
                return true;
            }
            let rank = rank(tables, control, now);
            if rank < best_rank {
                best_rank = rank;
                *into = Spot::new(index, base, control);
            }
        }
    }
    best_rank != u64::MAX
}

/// Order of displacement, lowest first; `u64::MAX` = never.
#[inline(always)]
fn rank<T: Tables>(tables: &T, control: Control, now: u32) -> u64 {
    if control.phase() != LIVE {
        return u64::MAX;
    }
    if state::expired(tables, control, now) {
        return 0;
    }
    let age = control.age(now);
    match state::class(control.state) {
        4.. => u64::MAX,
        3 => 4 << 32 | age as u64,
        class => (class as u64 + 1) << 32 | (u32::MAX - age) as u64,
    }
}

/// After publishing: frees the later of two entries with equal keys. Called through [`Tables::settle`].
#[inline(always)]
pub fn settle<F: TableFamily, T: Tables>(tables: &T, entry: &Entry<F>, own: &Spot) -> Half {
    let hash = entry.key.hash(tables.config(config::TABLE_SEED));
    let table = tables.flows::<F>();
    let sets = candidates(hash, table.mask());
    let mut own_seen = false;
    for index in [sets[0].min(sets[1]), sets[0].max(sets[1])] {
        let Some(set) = table.set(index) else { break };
        for slot in 0..SET_SLOTS {
            let base = slot * F::SLOT_WORDS;
            let control = Control::from_word(set.load(base));
            if control.phase() != LIVE || !slot::holds(set, base, control.version, afresh(&entry.key)) {
                continue;
            }
            if base == own.base as usize && index == own.set {
                own_seen = true;
            } else if own_seen {
                Spot::new(index, base, control).free::<F, T>(tables);
            } else {
                let same = slot::rewrites_to(set, base, control.version, &entry.rewrite);
                own.free::<F, T>(tables);
                return if same { Half::Same } else { Half::Other };
            }
        }
    }
    Half::Stands
}

/// Frees the twin of an entry, if it stands and is its twin. `spare` is room to work in.
#[inline(always)]
pub fn free_twin<F: TableFamily, T: Tables>(tables: &T, entry: &Entry<F>, spare: &mut Entry<F>) {
    spare.key = entry.key.twin(entry.rewrite);
    let twin = locate(tables, &spare.key);
    if twin.found == Found::Entry && is_twin(tables, &twin, &entry.key) {
        twin.free::<F, T>(tables);
    }
}

/// Notes a packet on an entry: sets `add` state bits and the time, and returns the state that stands then. Lost races are
/// harmless and not repeated more than [`TRIES`] times.
#[inline(always)]
pub fn touch<F: TableFamily, T: Tables>(tables: &T, spot: &Spot, add: u16, now: u32) -> u16 {
    let mut seen = spot.control;
    let Some(set) = tables.flows::<F>().set(spot.set) else {
        return seen.state;
    };
    for _ in 0..TRIES {
        let new = Control {
            state: seen.state | add,
            last_seen: now,
            ..seen
        };
        let found = Control::from_word(set.cas(spot.base as usize, seen.word(), new.word()));
        if found == seen {
            return new.state;
        }
        if found.version != seen.version || found.phase() != LIVE {
            break;
        }
        seen = found;
    }
    seen.state
}

/// Notes on the twin what was noted on an entry. False when the twin is lost. `spare` is room to work in.
#[inline(always)]
pub fn touch_twin<F: TableFamily, T: Tables>(
    tables: &T,
    entry: &Entry<F>,
    spare: &mut Entry<F>,
    shared: u16,
    now: u32,
) -> bool {
    spare.key = entry.key.twin(entry.rewrite);
    let twin = locate(tables, &spare.key);
    if twin.found == Found::Entry && is_twin(tables, &twin, &entry.key) {
        touch::<F, T>(tables, &twin, shared & SHARED, now);
    }
    twin.found != Found::Nothing
}
