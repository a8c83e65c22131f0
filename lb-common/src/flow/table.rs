//! Inserting, refreshing and freeing flow entries in a table of sets that all CPUs and user space share.
//!
//! Protocol. *Readers* take no lock: a slot is consistent when all its words carry the control word's version; one seen
//! changing that may be the reader's own is read again at most [`TRIES`] times, then [`Found::Busy`]. *Writers* take a slot by
//! compare-and-swap of its control word to BUSY under the next version, write the other words, and publish by a second one.
//! Whoever has published scans the key's candidate slots once more; of two equal keys the one that stands later is freed, by
//! whoever sees both. *Freeing* is one compare-and-swap, which fails if a packet refreshed the entry meanwhile. Nothing spins.
//!
//! A key stands in its first set, or *spilled* in its second where the first was full. The first set counts what is spilled from it
//! ([`SPILLED`]): the count rises before the entry is published and falls after it is freed, so that whoever finds it zero need not
//! look into the second set, which would cost as much as the first. A count that could not fall ([`TRIES`] races lost) only costs
//! look-ups; one that cannot rise refuses the newcomer. It changes beside whatever stands in its slot: a writer who has lost
//! against it alone goes on.
//!
//! What only the slow stage calls is not inlined for the kernel: its stack frame comes and goes with the call.
//!
//! A pair is inserted reply half first; if the forward half cannot be had, the reply half is taken back, and if the reply half
//! is gone when the forward half stands, that one. Eviction takes pairs.

use crate::access::{SetRef, Slots, TableFamily, Tables};
use crate::flow::contend::{self, Half};
use crate::flow::search::{Found, scan, seek_twin, tag};
use crate::flow::slot::{self, Entry, Key, Seen};
use crate::flow::state::{self, BUSY, Control, FREE, LIVE, PHASE, SHARED, SPILLED, SPILLED_ONE};
use crate::layout::config;
use crate::slots;

/// How often a changing slot is read again, and a lost race for a control word is run again.
pub const TRIES: usize = 4;
/// How often another slot is tried when a race for one was lost; each costs the verifier a walk through all of it.
const INSERT_TRIES: usize = 2;
/// How often the twin of an evicted entry is freed, should packets refresh it just then.
const EVICT_TRIES: usize = 2;
/// How often a slot is freed, should the count of spilled entries beside its state change just then.
const FREE_TRIES: usize = 3;

/// What a look-up found, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// What was found; the rest means something for [`Found::Entry`], or where it is vacant.
    pub found: Found,
    /// A free slot of the key's first set, in which the entry can be entered that was not found.
    pub vacant: bool,
    /// Index of the slot's control word in the set.
    pub base: u16,
    /// Index of the set.
    pub set: u32,
    /// Hash of the key under the table's seed; what is looked for or inserted begins with it.
    pub hash: u64,
    /// The control word that was read.
    pub control: Control,
}

impl Spot {
    /// A result without an entry.
    #[inline(always)]
    pub const fn none(found: Found) -> Self {
        Self {
            found,
            vacant: false,
            base: 0,
            set: 0,
            hash: 0,
            control: Control {
                version: 0,
                state: 0,
                last_seen: 0,
            },
        }
    }

    /// An entry's spot.
    #[inline(always)]
    pub(super) const fn new(set: u32, hash: u64, base: usize, control: Control) -> Self {
        Self {
            found: Found::Entry,
            vacant: false,
            base: base as u16,
            set,
            hash,
            control,
        }
    }

    /// Nothing yet of a key.
    #[inline(always)]
    pub fn of_key<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>) -> Self {
        let mut spot = Self::none(Found::Nothing);
        spot.aim(tables, key);
        spot
    }

    /// Aims at a key: it is looked for or inserted next.
    #[inline(always)]
    pub fn aim<F: TableFamily, T: Tables>(&mut self, tables: &T, key: &Key<F>) {
        self.vacant = false;
        self.hash = hash(tables, key);
    }

    /// Index of the key's first set.
    #[inline(always)]
    pub fn home<F: TableFamily, T: Tables>(&self, tables: &T) -> u32 {
        slots::home(self.hash, tables.flows::<F>().mask())
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
        tables.flows::<F>().set(self.set).is_some_and(|set| {
            let freed = free(set, self.base as usize, self.control);
            let home = self.home::<F, T>(tables);
            if freed && self.set != home {
                tables.recount::<F>(home, false);
            }
            freed
        })
    }
}

/// The hash of a key in the table.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub(super) fn hash<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>) -> u64 {
    key.hash(tables.config(config::TABLE_SEED))
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

/// Frees the slot at `base` if its entry is as it was seen to be. Where it was spilled, that is the caller's to count.
#[inline(always)]
pub fn free<S: SetRef>(set: S, base: usize, seen: Control) -> bool {
    let mut seen = seen;
    for _ in 0..FREE_TRIES {
        let found = Control::from_word(set.cas(base, seen.word(), seen.freed().word()));
        if found == seen {
            return true;
        }
        // A count of spilled entries is no change of this one.
        if (found.word() ^ seen.word()) & !((SPILLED as u64) << 32) != 0 {
            return false;
        }
        seen = found;
    }
    false
}

/// Counts one spilled entry more, or one less, of a first set; false where it cannot be counted. Called through
/// [`Tables::recount`].
#[inline(always)]
pub fn recount<F: TableFamily, T: Tables>(tables: &T, home: u32, more: bool) -> bool {
    recount_in(tables.flows::<F>(), home, more)
}

/// [`recount`] in a table.
#[inline(always)]
pub fn recount_in<S: Slots>(table: S, home: u32, more: bool) -> bool {
    let Some(set) = table.set(home) else {
        return false;
    };
    for _ in 0..TRIES {
        let seen = Control::from_word(set.load(0));
        let count = seen.state & SPILLED;
        if count == if more { SPILLED } else { 0 } {
            return false;
        }
        let state = if more {
            seen.state + SPILLED_ONE
        } else {
            seen.state - SPILLED_ONE
        };
        let new = Control { state, ..seen };
        if set.cas(0, seen.word(), new.word()) == seen.word() {
            return true;
        }
    }
    false
}

/// Inserts both halves of a flow, `entry` and `reply`. `flow_state` is its initial state, `spare` room to work in; `spots` are those of reply
/// and forward half, which tell the half's hash and perhaps what a look-up for it has left vacant, and one more as room.
///
/// `reply_stands` says that the caller found the very same reply half already (an orphan, or another CPU's): it is kept.
#[inline(always)]
pub fn insert_pair<F: TableFamily, T: Tables>(
    tables: &T,
    entry: &Entry<F>,
    reply: &Entry<F>,
    spare: &mut Entry<F>,
    spots: &mut [Spot; 3],
    flow_state: u16,
    reply_stands: bool,
) -> Inserted {
    let [reply_spot, own, twin] = spots;
    let mut answers = Half::Same;
    if !reply_stands {
        answers = insert_half(tables, reply, spare, flow_state | state::REPLY_HALF, reply_spot, twin);
        match answers {
            Half::Stands | Half::Same => {}
            Half::Other => return Inserted::Conflict,
            Half::Full => return Inserted::Full,
        }
    }
    let forward = insert_half(tables, entry, spare, flow_state, own, twin);
    if forward == Half::Other || forward == Half::Full {
        // Another's reply half is not ours to take back.
        if answers == Half::Stands {
            free_twin(tables, entry, spare, twin);
        }
        return if forward == Half::Other {
            Inserted::Conflict
        } else {
            Inserted::Full
        };
    }
    if answers == Half::Stands && stands_still::<F, T>(tables, reply_spot) || reply_beside(tables, entry, spare, own) {
        return Inserted::Pair;
    }
    if tables.seek(&entry.key, &entry.rewrite.src, &entry.rewrite.dst, own) == Seen::Same {
        own.free::<F, T>(tables);
    }
    Inserted::Conflict
}

/// Whether an entry stands where it was entered just now; if so it need not be looked for.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn stands_still<F: TableFamily, T: Tables>(tables: &T, spot: &Spot) -> bool {
    let set = tables.flows::<F>().set(spot.set);
    set.is_some_and(|set| contend::confirmed(set, spot.base as usize, spot.control).phase() == LIVE)
}

/// Whether the reply half still stands now that the forward half `entry` does: it may have been displaced before. `spare` is
/// room to work in, `own` the slot that the forward half was entered in.
///
/// Looked for more than once: of two equal halves one may appear behind the reader's back and the other go before its eyes,
/// and another flow's may stand there for as long as its CPU needs to take it back.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn reply_beside<F: TableFamily, T: Tables>(tables: &T, entry: &Entry<F>, spare: &mut Entry<F>, own: &Spot) -> bool {
    spare.key = entry.key.twin(entry.rewrite);
    let mut spot = Spot::of_key(tables, &spare.key);
    for _ in 0..TRIES {
        let twin = seek_twin(tables, &spare.key, &entry.key, &mut spot);
        if matches!(twin, Seen::Same | Seen::Changing) {
            return true;
        }
        if let Some(set) = tables.flows::<F>().set(own.set) {
            contend::order(set, own.base as usize);
        }
    }
    false
}

/// Inserts the reply half of a forward entry whose own was lost. True when it stands now. The first of `spots` tells its hash.
#[inline(always)]
pub fn insert_reply<F: TableFamily, T: Tables>(
    tables: &T,
    reply: &Entry<F>,
    spare: &mut Entry<F>,
    spots: &mut [Spot; 3],
    flow_state: u16,
) -> bool {
    let [spot, _, twin] = spots;
    let half = insert_half(tables, reply, spare, flow_state | state::REPLY_HALF, spot, twin);
    matches!(half, Half::Stands | Half::Same)
}

/// Inserts one entry, tells its spot, and settles with its equals. `spot` is as for [`insert`]; `spare` and `twin` are room to work in.
#[inline(always)]
pub fn insert_half<F: TableFamily, T: Tables>(
    tables: &T,
    entry: &Entry<F>,
    spare: &mut Entry<F>,
    flow_state: u16,
    spot: &mut Spot,
    twin: &mut Spot,
) -> Half {
    if tables.insert(entry, spare, flow_state, spot, twin) {
        tables.settle(entry, spot)
    } else {
        Half::Full
    }
}

/// Inserts one entry, in `spot` where that is vacant, never in place of its own twin, and tells its spot (false where no slot could be
/// had). `spot` tells the entry's hash; `spare` holds an evicted entry while its twin is freed, `twin` spots of twins. Called through [`Tables::insert`].
#[inline(always)]
pub fn insert<F: TableFamily, T: Tables>(
    tables: &T,
    entry: &Entry<F>,
    spare: &mut Entry<F>,
    flow_state: u16,
    spot: &mut Spot,
    twin: &mut Spot,
) -> bool {
    debug_assert_eq!(spot.hash, hash(tables, &entry.key), "a spot of another key");
    twin.found = Found::Nothing;
    for _ in 0..INSERT_TRIES {
        if !spot.vacant && !tables.choose::<F>(twin, spot) {
            return false;
        }
        spot.vacant = false;
        // Only who displaces another may meet its own twin.
        if spot.control.phase() != FREE {
            spare.key = entry.key.twin(entry.rewrite);
            twin.aim(tables, &spare.key);
            twin.found = scan(tables, &spare.key, twin);
            if twin.found == Found::Entry && !tables.choose::<F>(twin, spot) {
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
            state: BUSY | victim.state & SPILLED,
            last_seen: tag(spot.hash),
        };
        let home = spot.home::<F, T>(tables);
        if spot.set != home && !tables.recount::<F>(home, true) {
            return false;
        }
        if !spot.swap::<F, T>(tables, taken) {
            if spot.set != home {
                tables.recount::<F>(home, false);
            }
            continue;
        }
        // The words are the victim's until they are written, and whoever has won the slot sees them whole.
        if victim.phase() == LIVE && slot::decode_into(&set, base, victim.version, spare) {
            let its_home = slots::home(hash(tables, &spare.key), tables.flows::<F>().mask());
            if its_home != spot.set {
                tables.recount::<F>(its_home, false);
            }
            evict_twin(tables, spare, twin);
        }
        slot::write(&set, base, taken.version, entry);
        spot.control = publish(set, base, taken, flow_state, tables.now());
        return true;
    }
    false
}

/// Publishes the entry of a slot that was taken; its control word. The count of spilled entries beside it may change meanwhile.
#[inline(always)]
fn publish<S: SetRef>(set: S, base: usize, taken: Control, flow_state: u16, now: u32) -> Control {
    let mut seen = taken;
    let mut live = taken;
    for _ in 0..TRIES {
        live = Control {
            version: taken.version,
            state: flow_state & !(PHASE | SPILLED) | LIVE | seen.state & SPILLED,
            last_seen: now,
        };
        let found = Control::from_word(set.cas(base, seen.word(), live.word()));
        if found == seen {
            break;
        }
        seen = found;
    }
    live
}

/// Frees the twin of an entry that is being evicted, also if a packet refreshes it meanwhile. Turns `victim`; `twin` is room.
#[inline(always)]
fn evict_twin<F: TableFamily, T: Tables>(tables: &T, victim: &mut Entry<F>, twin: &mut Spot) {
    victim.turn();
    twin.aim(tables, &victim.key);
    for _ in 0..EVICT_TRIES {
        let seen = tables.seek(&victim.key, &victim.rewrite.src, &victim.rewrite.dst, twin);
        if seen != Seen::Same || twin.free::<F, T>(tables) {
            break;
        }
    }
}

/// Frees the entry at `spot` and its twin, unless a packet came meanwhile. `spare` and `twin` are room to work in.
#[inline(always)]
pub fn free_pair<F: TableFamily, T: Tables>(tables: &T, spot: &Spot, spare: &mut Entry<F>, twin: &mut Spot) -> bool {
    let set = tables.flows::<F>().set(spot.set);
    let freed = set.is_some_and(|set| slot::decode_into(&set, spot.base as usize, spot.control.version, spare))
        && spot.free::<F, T>(tables);
    if freed {
        evict_twin(tables, spare, twin);
    }
    freed
}

/// Frees the twin of an entry, if it stands and is its twin. `spare` and `twin` are room to work in.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub fn free_twin<F: TableFamily, T: Tables>(tables: &T, entry: &Entry<F>, spare: &mut Entry<F>, twin: &mut Spot) {
    spare.key = entry.key.twin(entry.rewrite);
    twin.aim(tables, &spare.key);
    if seek_twin(tables, &spare.key, &entry.key, twin) == Seen::Same {
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
    let mut twin = Spot::of_key(tables, &spare.key);
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
