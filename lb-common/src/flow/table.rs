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
//! A pair is inserted reply half first; if the forward half cannot be had, the reply half is taken back, and if the reply half
//! is gone when the forward half stands, that one. Eviction takes pairs.

use crate::access::{SetRef, Slots, TableFamily, Tables};
use crate::family::Side;
use crate::flow::contend::{self, Half};
use crate::flow::slot::{self, Entry, Key, Place, Rewrite, Seen};
use crate::flow::state::{self, BUSY, Control, FREE, LIVE, PHASE, SHARED};
use crate::layout::{SET_SLOTS, config};
use crate::slots::{afresh, candidates, probe};

/// How often a changing slot is read again, and a lost race for a control word is run again.
pub const TRIES: usize = 4;
/// How often another slot is tried when a race for one was lost; each costs the verifier a walk through all of it.
const INSERT_TRIES: usize = 2;
/// How often the twin of an evicted entry is freed, should packets refresh it just then.
const EVICT_TRIES: usize = 2;

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
    pub(crate) const fn none(found: Found) -> Self {
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
    pub(super) const fn new(set: u32, base: usize, control: Control) -> Self {
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
        let free = Control {
            version: self.control.next_version(),
            state: FREE,
            last_seen: 0,
        };
        self.swap::<F, T>(tables, free)
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
    spot.found = scan(tables, key, &mut spot);
    spot
}

/// [`locate`]: a scalar comes back, the rest by reference.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn scan<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>, into: &mut Spot) -> Found {
    let hash = key.hash(tables.config(config::TABLE_SEED));
    let sets = candidates(hash, tables.flows::<F>().mask());
    for _ in 0..TRIES {
        let mut changing = false;
        for index in sets {
            match tables.scan_set(index, hash, key, into) {
                Found::Entry => return Found::Entry,
                Found::Busy => changing = true,
                Found::Nothing => {}
            }
        }
        if !changing {
            return Found::Nothing;
        }
    }
    Found::Busy
}

/// Looks for `key`, whose hash is `hash`, in one set; [`Found::Busy`] where a slot is changing that may be the key's. Called through
/// [`Tables::scan_set`].
#[inline(always)]
pub fn scan_set<F: TableFamily, T: Tables>(tables: &T, index: u32, hash: u64, key: &Key<F>, into: &mut Spot) -> Found {
    let Some(set) = tables.flows::<F>().set(index) else {
        return Found::Nothing;
    };
    let mut found = Found::Nothing;
    for i in 0..SET_SLOTS {
        let base = probe(hash, i) * F::SLOT_WORDS;
        let control = Control::from_word(set.load(base));
        if control.phase() == LIVE {
            if slot::holds(set, base, control.version, afresh(key)) {
                *into = Spot::new(index, base, control);
                return Found::Entry;
            }
        } else if control.phase() == BUSY && control.last_seen == tag(hash) {
            found = Found::Busy;
        }
    }
    found
}

/// What a slot being written shows instead of a time: enough of the hash to know one's own.
#[inline(always)]
const fn tag(hash: u64) -> u32 {
    (hash >> 28) as u32
}

/// Finds where `key` stands and whether it is rewritten to `src` and `dst` there. Called through [`Tables::seek`].
#[inline(always)]
pub fn seek<F: TableFamily, T: Tables>(
    tables: &T,
    key: &Key<F>,
    src: &Side<F>,
    dst: &Side<F>,
    into: &mut Spot,
) -> Seen {
    match scan(tables, key, into) {
        Found::Nothing => Seen::Nothing,
        Found::Busy => Seen::Changing,
        Found::Entry => match tables.flows::<F>().set(into.set) {
            Some(set) => slot::translates(set, into.base as usize, into.control.version, src, dst),
            None => Seen::Changing,
        },
    }
}

/// Finds where the twin of an entry stands whose key is `key`; `twin` is its twin's.
#[inline(always)]
pub fn seek_twin<F: TableFamily, T: Tables>(tables: &T, twin: &Key<F>, key: &Key<F>, into: &mut Spot) -> Seen {
    tables.seek(twin, &key.dst, &key.src, into)
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
    let mut reply = Half::Same;
    if !reply_stands {
        entry.turn(reply_place);
        reply = insert_half(tables, entry, spare, flow_state | state::REPLY_HALF);
        entry.turn(forward_place);
        match reply {
            Half::Stands | Half::Same => {}
            Half::Other => return Inserted::Conflict,
            Half::Full => return Inserted::Full,
        }
    }
    let forward = insert_half(tables, entry, spare, flow_state);
    if forward == Half::Other || forward == Half::Full {
        // Another's reply half is not ours to take back.
        if reply == Half::Stands {
            free_twin(tables, entry, spare);
        }
        return if forward == Half::Other {
            Inserted::Conflict
        } else {
            Inserted::Full
        };
    }
    if reply_beside(tables, entry, spare) {
        return Inserted::Pair;
    }
    let mut own = Spot::none(Found::Nothing);
    if tables.seek(&entry.key, &entry.rewrite.src, &entry.rewrite.dst, &mut own) == Seen::Same {
        own.free::<F, T>(tables);
    }
    Inserted::Conflict
}

/// Whether the reply half still stands now that the forward half `entry` does: it may have been displaced before. `spare` is
/// room to work in.
///
/// Looked for more than once: of two equal halves one may appear behind the reader's back and the other go before its eyes,
/// and another flow's may stand there for as long as its CPU needs to take it back.
#[inline(always)]
fn reply_beside<F: TableFamily, T: Tables>(tables: &T, entry: &Entry<F>, spare: &mut Entry<F>) -> bool {
    spare.key = entry.key.twin(entry.rewrite);
    let mut spot = Spot::none(Found::Nothing);
    for _ in 0..TRIES {
        let twin = seek_twin(tables, &spare.key, &entry.key, &mut spot);
        if matches!(twin, Seen::Same | Seen::Changing) {
            return true;
        }
        let own = scan(tables, &entry.key, &mut spot);
        if let (Found::Entry, Some(set)) = (own, tables.flows::<F>().set(spot.set)) {
            // For its barrier.
            contend::confirmed(set, spot.base as usize, spot.control);
        }
    }
    false
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
    let half = insert_half(tables, entry, spare, flow_state | state::REPLY_HALF);
    entry.turn(forward_place);
    matches!(half, Half::Stands | Half::Same)
}

/// Inserts one entry and settles with its equals. `spare` is room to work in.
#[inline(always)]
pub fn insert_half<F: TableFamily, T: Tables>(
    tables: &T,
    entry: &Entry<F>,
    spare: &mut Entry<F>,
    flow_state: u16,
) -> Half {
    let mut spot = Spot::none(Found::Nothing);
    if tables.insert(entry, spare, flow_state, &mut spot) {
        tables.settle(entry, &spot)
    } else {
        Half::Full
    }
}

/// Inserts one entry, never in place of its own twin, and tells its spot (false where no slot could be had); `spare` holds an
/// evicted entry while its twin is freed. Called through [`Tables::insert`].
#[inline(always)]
pub fn insert<F: TableFamily, T: Tables>(
    tables: &T,
    entry: &Entry<F>,
    spare: &mut Entry<F>,
    flow_state: u16,
    spot: &mut Spot,
) -> bool {
    let hash = entry.key.hash(tables.config(config::TABLE_SEED));
    let mut twin = Spot::none(Found::Nothing);
    for _ in 0..INSERT_TRIES {
        if !tables.choose::<F>(hash, &twin, spot) {
            return false;
        }
        // Only who displaces another may meet its own twin.
        if spot.control.phase() != FREE {
            spare.key = entry.key.twin(entry.rewrite);
            twin.found = scan(tables, &spare.key, &mut twin);
            if twin.found == Found::Entry && !tables.choose::<F>(hash, &twin, spot) {
                return false;
            }
        }
        let Some(set) = tables.flows::<F>().set(spot.set) else {
            return false;
        };
        let base = spot.base as usize;
        let victim = spot.control;
        let taken = Control {
            version: victim.next_version(),
            state: BUSY,
            last_seen: tag(hash),
        };
        if !spot.swap::<F, T>(tables, taken) {
            continue;
        }
        spot.control = taken;
        // The words are the victim's until they are written, and whoever has won the slot sees them whole.
        if victim.phase() == LIVE && slot::decode_into(&set, base, victim.version, spare) {
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
        return true;
    }
    false
}

/// Frees the twin of an entry that is being evicted, also if a packet refreshes it meanwhile. Turns `victim`.
#[inline(always)]
fn evict_twin<F: TableFamily, T: Tables>(tables: &T, victim: &mut Entry<F>) {
    victim.turn(victim.place);
    let mut twin = Spot::none(Found::Nothing);
    for _ in 0..EVICT_TRIES {
        let seen = tables.seek(&victim.key, &victim.rewrite.src, &victim.rewrite.dst, &mut twin);
        if seen != Seen::Same || twin.free::<F, T>(tables) {
            break;
        }
    }
}

/// Frees the entry at `spot`, whose key is that of `spare`, and its twin, unless a packet came meanwhile. Fills `spare`; its key
/// stays.
#[inline(always)]
pub fn free_pair<F: TableFamily, T: Tables>(tables: &T, spot: &Spot, spare: &mut Entry<F>) -> bool {
    let set = tables.flows::<F>().set(spot.set);
    let freed = set.is_some_and(|set| slot::decode_into(&set, spot.base as usize, spot.control.version, spare))
        && spot.free::<F, T>(tables);
    if freed {
        evict_twin(tables, spare);
        spare.turn(spare.place);
    }
    freed
}

/// Frees the twin of an entry, if it stands and is its twin. `spare` is room to work in.
#[inline(always)]
pub fn free_twin<F: TableFamily, T: Tables>(tables: &T, entry: &Entry<F>, spare: &mut Entry<F>) {
    spare.key = entry.key.twin(entry.rewrite);
    let mut twin = Spot::none(Found::Nothing);
    if seek_twin(tables, &spare.key, &entry.key, &mut twin) == Seen::Same {
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

/// What became of an entry's twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twin {
    /// It stands, or may stand.
    Stands,
    /// It is gone.
    Lost,
    /// It is gone, and another flow has its key.
    Taken,
}

/// Notes on the twin what was noted on an entry. `spare` is room to work in.
#[inline(always)]
pub fn touch_twin<F: TableFamily, T: Tables>(
    tables: &T,
    entry: &Entry<F>,
    spare: &mut Entry<F>,
    shared: u16,
    now: u32,
) -> Twin {
    spare.key = entry.key.twin(entry.rewrite);
    let mut twin = Spot::none(Found::Nothing);
    match seek_twin(tables, &spare.key, &entry.key, &mut twin) {
        Seen::Nothing => Twin::Lost,
        Seen::Other => Twin::Taken,
        Seen::Changing => Twin::Stands,
        Seen::Same => {
            touch::<F, T>(tables, &twin, shared & SHARED, now);
            Twin::Stands
        }
    }
}
