//! Entering, refreshing and freeing flow entries in a table of sets that all CPUs and user space share.
//!
//! Protocol. *Readers* take no lock: a slot is consistent when all its words carry the control word's version, else it holds nothing
//! for them, or is [`Found::Busy`] where it was theirs a moment ago. *Writers* first take a slot on its set's roll ([`Roll`]) by a compare-and-swap,
//! which fails if anybody has taken or left one there meanwhile: so whoever takes a slot for a key has seen whoever took one for the same key before,
//! and a key stands once. Then the slot is theirs alone; they write its words under the roll's version and the control word last, by
//! plain stores, for which nobody waits: what stands there reaches memory while the CPU goes on. *Freeing* is one compare-and-swap of the control
//! word to [`GONE`], which fails if a packet refreshed the entry meanwhile; who has freed an entry leaves its slot: marks it free, then takes it
//! off the roll. Nothing spins. Plain stores may arrive late and in any order: so an entry is freed by none but who has read each of its words, and
//! what is written there afterwards comes afterwards for all.
//!
//! A slot that is taken and free belongs to a key that is about to stand there, or has gone and is off the roll with the next instruction: another CPU that
//! finds its tag on the roll takes the flow for busy and drops the packet.
//!
//! A key stands in its first set, or *spilled* in its second where the first was full ([`crate::flow::contend::spill`]). The first set's roll counts what is
//! spilled from it: the count rises before the entry stands and falls after it is freed, so that whoever finds it zero need not
//! look into the second set. A count that could not fall ([`TRIES`] races lost) only costs look-ups; one that cannot rise refuses the newcomer.
//!
//! A pair takes the slots of both halves before it writes either, and writes the reply half first ([`publish_pair`]). Whoever evicts an entry frees its twin,
//! and gives up where a slot is taken for that: so no half of a pair goes before the other stands. Where the twin was freed by somebody else at that
//! very moment, giving up may leave half a flow, which times out.
//!
//! What only the slow stage calls is not inlined for the kernel: its stack frame comes and goes with the call.

use crate::access::{Rolls, SetRef, Slots, TableFamily, Tables, WordRef};
use crate::family::Family;
use crate::flow::roll::Roll;
use crate::flow::search::{self, Found, seek_twin};
use crate::flow::slot::{self, Entry, Key, Seen};
use crate::flow::state::{Control, GONE, LIVE, REPLY_HALF, SHARED};
use crate::layout::{SET_SLOTS, config};
use crate::slots::{self, candidates};

/// How often a lost race for a control word or a roll is run again.
pub const TRIES: usize = 4;

/// What a look-up found, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// What was found; the rest means something for [`Found::Entry`], or where a slot is taken.
    pub found: Found,
    /// The slot is taken for the key, by this CPU, and its entry is still to be published.
    pub taken: bool,
    /// Index of the slot's control word in the set.
    pub base: u16,
    /// Index of the set.
    pub set: u32,
    /// Hash of the key under the table's seed; what is looked for or entered begins with it.
    pub hash: u64,
    /// The control word that was read; of a slot that was taken, its version.
    pub control: Control,
}

impl Spot {
    /// A result without an entry.
    #[inline(always)]
    pub const fn none(found: Found) -> Self {
        Self {
            found,
            taken: false,
            base: 0,
            set: 0,
            hash: 0,
            control: Control::nothing(0),
        }
    }

    /// An entry's spot.
    #[inline(always)]
    pub(super) const fn new(set: u32, hash: u64, base: usize, control: Control) -> Self {
        Self {
            found: Found::Entry,
            taken: false,
            base: base as u16,
            set,
            hash,
            control,
        }
    }

    /// A slot that is taken.
    #[inline(always)]
    pub(super) const fn taken(set: u32, hash: u64, base: usize, version: u64) -> Self {
        Self {
            found: Found::Nothing,
            taken: true,
            ..Self::new(set, hash, base, Control::nothing(version))
        }
    }

    /// Nothing yet of a key.
    #[inline(always)]
    pub fn of_key<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>) -> Self {
        let mut spot = Self::none(Found::Nothing);
        spot.aim(tables, key);
        spot
    }

    /// Aims at a key: it is looked for or entered next.
    #[inline(always)]
    pub fn aim<F: TableFamily, T: Tables>(&mut self, tables: &T, key: &Key<F>) {
        self.aim_by(hash(tables, key));
    }

    /// [`Spot::aim`] at the key of a hash.
    #[inline(always)]
    pub const fn aim_by(&mut self, hash: u64) {
        self.found = Found::Nothing;
        self.taken = false;
        self.hash = hash;
    }

    /// Index of the key's first set.
    #[inline(always)]
    pub fn home<F: TableFamily, T: Tables>(&self, tables: &T) -> u32 {
        slots::home(self.hash, tables.flows::<F>().mask())
    }

    /// Whether this is a place in a set: of an entry, or of a slot that is taken.
    #[inline(always)]
    const fn is_in(&self, set: u32) -> bool {
        (self.taken || self.found as u8 == Found::Entry as u8) && self.set == set
    }

    /// Whether it is this place.
    #[inline(always)]
    pub const fn is_at(&self, set: u32, base: usize) -> bool {
        self.is_in(set) && self.base as usize == base
    }

    /// The bit of its slot among those of a set.
    #[inline(always)]
    pub const fn bit_in<F: TableFamily>(&self, set: u32) -> u32 {
        if self.is_in(set) {
            1 << slot_of::<F>(self.base as usize)
        } else {
            0
        }
    }

    /// Frees the entry if nobody changed it since it was read.
    #[inline(always)]
    pub fn free<F: TableFamily, T: Tables>(&self, tables: &T) -> bool {
        tables.flows::<F>().set(self.set).is_some_and(|set| {
            let freed = free::<F, _>(set, self.base as usize, self.control);
            if freed {
                tables.leave::<F>(self.set, self.base as usize, self.home::<F, T>(tables));
            }
            freed
        })
    }
}

/// The slot whose control word is at `base`.
#[inline(always)]
pub const fn slot_of<F: Family>(base: usize) -> usize {
    (base / F::SLOT_WORDS) & (SET_SLOTS - 1)
}

/// The hash of a key in the table.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub(super) fn hash<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>) -> u64 {
    key.hash(tables.config(config::TABLE_SEED))
}

/// What came of asking for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Claimed {
    /// A slot is taken for the key.
    Slot,
    /// The key stands already.
    Entry,
    /// Another CPU is entering or freeing the key at this moment, or may be.
    Busy,
    /// No slot could be had.
    Full,
    /// Nothing yet: it may be asked again.
    Again,
    /// Nothing yet: all slots that were asked for are taken.
    Crowded,
}

impl Claimed {
    /// Reads the number; unknown numbers mean that no slot could be had.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Slot,
            1 => Self::Entry,
            2 => Self::Busy,
            4 => Self::Again,
            5 => Self::Crowded,
            _ => Self::Full,
        }
    }

    /// What a look-up before that means.
    #[inline(always)]
    pub const fn of(found: Found) -> Self {
        match found {
            Found::Entry => Self::Entry,
            Found::Busy => Self::Busy,
            Found::Nothing => Self::Again,
        }
    }
}

/// Takes a slot for `key`, whose hash `spot` tells, and tells it, or the entry that stands under the key already. `stays` is the other half's spot: its slot
/// is never displaced. `spare` and `room` are room to work in. Never [`Claimed::Again`] nor [`Claimed::Crowded`]. Called through [`Tables::claim`].
#[inline(always)]
pub fn claim<F: TableFamily, T: Tables>(
    tables: &T,
    key: &Key<F>,
    spare: &mut Entry<F>,
    spot: &mut Spot,
    stays: &Spot,
    room: &mut Spot,
) -> Claimed {
    for _ in 0..TRIES {
        let mut claimed = tables.claim_at_home(key, spot, stays);
        if claimed == Claimed::Crowded {
            claimed = tables.spill(key, spot, stays);
        }
        if claimed == Claimed::Crowded {
            claimed = tables.make_room(spare, spot, stays, room);
        }
        if claimed != Claimed::Again {
            return claimed;
        }
    }
    Claimed::Busy
}

/// [`claim`] in the key's first set, once: [`Claimed::Crowded`] where it is full. Called through [`Tables::claim_at_home`].
#[inline(always)]
pub fn claim_at_home<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>, spot: &mut Spot, stays: &Spot) -> Claimed {
    let hash = spot.hash;
    debug_assert_eq!(hash, self::hash(tables, key), "a spot of another key");
    let table = tables.flows::<F>();
    let [first, second] = candidates(hash, table.mask());
    let Some(word) = table.roll_at(first) else {
        return Claimed::Full;
    };
    let roll = Roll::from_word(word.load());
    let mut found = search::look::<F, T>(tables, first, roll, key, spot, stays);
    if found == Found::Nothing && roll.spilled() != 0 {
        let roll = latest_roll(table, second);
        found = search::look::<F, T>(tables, second, roll, key, spot, stays);
    }
    if found != Found::Nothing {
        return Claimed::of(found);
    }
    let slot = roll.vacant(hash);
    if slot == SET_SLOTS {
        return Claimed::Crowded;
    }
    if take::<F, _>(word, roll, first, slot, spot) {
        Claimed::Slot
    } else {
        Claimed::Again
    }
}

/// [`claim_at_home`] where it is plain that the key stands nowhere and that its first set has room, without a function call; false where it is not, and
/// nothing is taken.
#[inline(always)]
pub fn take_at_home<F: TableFamily, T: Tables>(tables: &T, spot: &mut Spot) -> bool {
    let (table, hash) = (tables.flows::<F>(), spot.hash);
    let home = spot.home::<F, T>(tables);
    let Some(word) = table.roll_at(home) else {
        return false;
    };
    let roll = Roll::from_word(word.load());
    let slot = roll.vacant(hash);
    slot != SET_SLOTS && !roll.may_tell_of(hash) && take::<F, _>(word, roll, home, slot, spot)
}

/// Takes a slot of set `index` for the key of `spot`, and tells it, if the set's roll, at `word`, is still as it was read.
#[inline(always)]
fn take<F: Family, W: WordRef>(word: W, roll: Roll, index: u32, slot: usize, spot: &mut Spot) -> bool {
    let taken = roll.take(slot, spot.hash);
    let is_taken = word.cas(roll.word(), taken.word()) == roll.word();
    if is_taken {
        *spot = Spot::taken(index, spot.hash, slot * F::SLOT_WORDS, taken.version());
    }
    is_taken
}

/// Leaves a slot that was taken and in which nothing was published.
#[inline(always)]
pub fn unclaim<F: TableFamily, T: Tables>(tables: &T, spot: &mut Spot) {
    spot.taken = false;
    tables.leave::<F>(spot.set, spot.base as usize, spot.home::<F, T>(tables));
}

/// Publishes an entry in the slot that was taken for it, with `flow_state`.
#[inline(always)]
pub fn publish<F: TableFamily, T: Tables>(tables: &T, entry: &Entry<F>, flow_state: u16, spot: &mut Spot) {
    let Some(set) = tables.flows::<F>().set(spot.set) else {
        return;
    };
    let (base, version) = (spot.base as usize, spot.control.version);
    slot::write(set, base, version, entry);
    spot.control = Control {
        version,
        state: flow_state,
        last_seen: tables.now(),
    }
    .in_phase(LIVE);
    set.store(base, spot.control.word());
    spot.found = Found::Entry;
    spot.taken = false;
}

/// Publishes both halves of a flow in the slots that were taken for them, the reply half first: a packet that finds the forward half may be answered.
#[inline(always)]
pub fn publish_pair<F: TableFamily, T: Tables>(
    tables: &T,
    reply: &Entry<F>,
    entry: &Entry<F>,
    flow_state: u16,
    spots: &mut [Spot; 3],
) {
    let [reply_spot, own, _] = spots;
    publish(tables, reply, flow_state | REPLY_HALF, reply_spot);
    publish(tables, entry, flow_state, own);
}

/// Frees the entry at `base` if it is as it was seen to be; the slot is still taken, and the caller's to leave.
#[inline(always)]
pub fn free<F: TableFamily, S: SetRef>(set: S, base: usize, seen: Control) -> bool {
    seen.phase() == LIVE
        && slot::is_whole::<F, S>(set, base, seen.version)
        && set.cas(base, seen.word(), seen.in_phase(GONE).word()) == seen.word()
}

/// Leaves the slot at `base` of a set, whose key's first set is `home`: an entry that was spilled is counted off. Called through [`Tables::leave`].
#[inline(always)]
pub fn leave<F: TableFamily, T: Tables>(tables: &T, index: u32, base: usize, home: u32) {
    leave_in::<F, _>(tables.flows::<F>(), index, base);
    if index != home {
        tables.recount::<F>(home, false);
    }
}

/// Leaves the slot at `base` of a set, which is the caller's. Where that fails ([`TRIES`] races lost), the sweep finds it.
#[inline(always)]
pub fn leave_in<F: Family, S: Rolls>(table: S, index: u32, base: usize) {
    if let Some(set) = table.set(index) {
        let seen = set.load(base);
        set.cas(base, seen, Control::nothing(0).word());
    }
    let mut seen = table.roll(index);
    for _ in 0..TRIES {
        let left = Roll::from_word(seen).leave(slot_of::<F>(base));
        let found = table.cas_roll(index, seen, left.word());
        if found == seen {
            break;
        }
        seen = found;
    }
}

/// The roll of a set as it is now, whatever was read before: reading alone orders nothing, swapping a word for itself does, where it succeeds.
#[inline(always)]
pub(super) fn latest_roll<S: Rolls>(table: S, index: u32) -> Roll {
    let mut seen = table.roll(index);
    for _ in 0..TRIES {
        let found = table.cas_roll(index, seen, seen);
        if found == seen {
            break;
        }
        seen = found;
    }
    Roll::from_word(seen)
}

/// Counts one spilled entry more, or one less, of a first set; false where it cannot be counted. Called through
/// [`Tables::recount`].
#[inline(always)]
pub fn recount<F: TableFamily, T: Tables>(tables: &T, home: u32, more: bool) -> bool {
    recount_in(tables.flows::<F>(), home, more)
}

/// [`recount`] in a table.
#[inline(always)]
pub fn recount_in<S: Rolls>(table: S, home: u32, more: bool) -> bool {
    let mut seen = table.roll(home);
    for _ in 0..TRIES {
        let counted = Roll::from_word(seen).recounted(more).word();
        if counted == seen {
            return false;
        }
        let found = table.cas_roll(home, seen, counted);
        if found == seen {
            return true;
        }
        seen = found;
    }
    false
}

/// Frees the entry at `spot` and its twin, unless a packet came meanwhile. `spare` and `twin` are room to work in, and `but` is a slot that this CPU has
/// taken for another key. Called through [`Tables::free_pair`].
#[inline(always)]
pub fn free_pair<F: TableFamily, T: Tables>(
    tables: &T,
    spot: &Spot,
    spare: &mut Entry<F>,
    twin: &mut Spot,
    but: &Spot,
) -> bool {
    let set = tables.flows::<F>().set(spot.set);
    let freed = set.is_some_and(|set| slot::decode_into(&set, spot.base as usize, spot.control.version, spare))
        && spot.free::<F, T>(tables);
    if freed {
        tables.evict_twin(spare, twin, but);
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
        if seen.phase() != LIVE {
            break;
        }
        let new = Control {
            state: seen.state | add,
            last_seen: now,
            ..seen
        };
        let found = Control::from_word(set.cas(spot.base as usize, seen.word(), new.word()));
        if found == seen {
            return new.state;
        }
        if found.version != seen.version {
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
