//! Looking for a key in a table of sets: its first set, and its second where the first's roll tells that entries are spilled from it.
//!
//! In: a key, and the table as other CPUs leave it. Out: what stands under the key and where, [`Found::Busy`] where a slot that is the key's is
//! changing. Writes nothing, but for [`look`], which orders what it reads. The protocol that makes a reading whole is
//! [`crate::flow::table`]'s.

use crate::access::{Rolls, SetRef, Slots, TableFamily, Tables};
use crate::family::Side;
use crate::flow::roll::Roll;
use crate::flow::slot::{self, Entry, Key, Place, Rewrite, Seen};
use crate::flow::state::{Control, GONE, LIVE};
use crate::flow::table::{self, Spot, TRIES};
use crate::layout::SET_SLOTS;
use crate::slots::{afresh, candidates, home, probe};

/// Kind of a look-up's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Found {
    /// No entry.
    Nothing,
    /// A slot that is the key's, or may be, is changing.
    Busy,
    /// The entry.
    Entry,
}

impl Found {
    /// Reads the number; unknown numbers mean that a slot is changing.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Nothing,
            2 => Self::Entry,
            _ => Self::Busy,
        }
    }
}

/// Finds `key` and reads its entry's rewrite and place, in one pass; `hash` is the key's hash under the table's seed.
/// [`Found::Busy`]: a slot was changing.
#[inline(always)]
pub fn find<F: TableFamily, T: Tables>(
    tables: &T,
    key: &Key<F>,
    hash: u64,
) -> (Found, Control, Option<(Rewrite<F>, Place)>) {
    let table = tables.flows::<F>();
    let sets = candidates(hash, table.mask());
    for (i, index) in sets.into_iter().enumerate() {
        if i != 0 && Roll::from_word(table.roll(sets[0])).spilled() == 0 {
            break;
        }
        let Some(set) = table.set(index) else { break };
        for i in 0..SET_SLOTS {
            let base = probe(hash, i) * F::SLOT_WORDS;
            let control = Control::from_word(set.load(base));
            if control.stands() && slot::holds(set, base, control.version, key) {
                return match slot::read(set, base, control.version) {
                    Some(read) => (Found::Entry, control, Some(read)),
                    None => (Found::Busy, Control::nothing(0), None),
                };
            }
        }
    }
    (Found::Nothing, Control::nothing(0), None)
}

/// False where no entry stands under a key of this hash: its roll tells, which is more often at hand than a set.
#[inline(always)]
pub fn may_stand<F: TableFamily, T: Tables>(tables: &T, hash: u64) -> bool {
    let table = tables.flows::<F>();
    Roll::from_word(table.roll(home(hash, table.mask()))).may_tell_of(hash)
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
    let mut spot = Spot::of_key(tables, key);
    spot.found = scan(tables, key, &mut spot);
    spot
}

/// [`locate`] of a key whose hash `into` tells: a scalar comes back, the rest by reference.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub fn scan<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>, into: &mut Spot) -> Found {
    debug_assert_eq!(into.hash, table::hash(tables, key), "a spot of another key");
    let table = tables.flows::<F>();
    let [first, second] = candidates(into.hash, table.mask());
    let found = tables.scan_set(first, key, into);
    if found != Found::Nothing || Roll::from_word(table.roll(first)).spilled() == 0 {
        return found;
    }
    tables.scan_set(second, key, into)
}

/// Looks for `key`, whose hash `into` tells, in one set, and tells an entry's spot. Called through [`Tables::scan_set`].
#[inline(always)]
pub fn scan_set<F: TableFamily, T: Tables>(tables: &T, index: u32, key: &Key<F>, into: &mut Spot) -> Found {
    let Some(set) = tables.flows::<F>().set(index) else {
        return Found::Nothing;
    };
    for i in 0..SET_SLOTS {
        let base = probe(into.hash, i) * F::SLOT_WORDS;
        let control = Control::from_word(set.load(base));
        if control.stands() && slot::holds(set, base, control.version, afresh(key)) {
            *into = Spot::new(index, into.hash, base, control);
            return Found::Entry;
        }
    }
    Found::Nothing
}

/// Looks for `key`, whose hash `into` tells, where the roll of a set shows its tag, and tells an entry's spot. Sees what [`scan_set`] does
/// not: [`Found::Busy`] where the key may have taken a slot and does not stand there yet, or is being displaced. The slot of another key that
/// this CPU has taken is `but`.
#[inline(always)]
pub fn look<F: TableFamily, T: Tables>(
    tables: &T,
    index: u32,
    roll: Roll,
    key: &Key<F>,
    into: &mut Spot,
    but: &Spot,
) -> Found {
    let matches = roll.matches(into.hash) & !but.bit_in::<F>(index);
    if matches == 0 {
        return Found::Nothing;
    }
    tables.look_at(index, matches, key, into)
}

/// [`look`] at some slots of a set. Called through [`Tables::look_at`].
#[inline(always)]
pub fn look_at<F: TableFamily, T: Tables>(
    tables: &T,
    index: u32,
    matches: u32,
    key: &Key<F>,
    into: &mut Spot,
) -> Found {
    let Some(set) = tables.flows::<F>().set(index) else {
        return Found::Busy;
    };
    for slot in 0..SET_SLOTS {
        if matches >> slot & 1 == 0 {
            continue;
        }
        let base = slot * F::SLOT_WORDS;
        let control = latest(set, base);
        if control.phase() == GONE {
            continue;
        }
        if control.phase() != LIVE {
            return Found::Busy;
        }
        match slot::compare(set, base, control.version, afresh(key)) {
            Seen::Same => {
                *into = Spot::new(index, into.hash, base, control);
                return Found::Entry;
            }
            Seen::Changing | Seen::Nothing => return Found::Busy,
            Seen::Other => {}
        }
    }
    Found::Nothing
}

/// The control word of a slot that is taken, as it is now: what stood there before the slot was taken is not seen, because the word is swapped for itself.
/// A free slot is about to be written, by a plain store, and is left alone.
#[inline(always)]
fn latest<S: SetRef>(set: S, base: usize) -> Control {
    let mut seen = set.load(base);
    for _ in 0..TRIES {
        if !matches!(Control::from_word(seen).phase(), LIVE | GONE) {
            break;
        }
        let found = set.cas(base, seen, seen);
        if found == seen {
            return Control::from_word(seen);
        }
        // A packet has been noted, perhaps.
        seen = found;
    }
    Control::nothing(0)
}

/// Finds where `key`, whose hash `into` tells, stands and whether it is rewritten to `src` and `dst` there. Called through [`Tables::seek`].
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
        Found::Entry => translates::<F, T>(tables, into, src, dst),
    }
}

/// Whether the entry at `spot` is rewritten to `src` and `dst`.
#[inline(always)]
pub fn translates<F: TableFamily, T: Tables>(tables: &T, spot: &Spot, src: &Side<F>, dst: &Side<F>) -> Seen {
    match tables.flows::<F>().set(spot.set) {
        Some(set) => slot::translates(set, spot.base as usize, spot.control.version, src, dst),
        None => Seen::Changing,
    }
}

/// Finds where the twin of an entry stands whose key is `key`; `twin` is its twin's, whose hash `into` tells.
#[inline(always)]
pub fn seek_twin<F: TableFamily, T: Tables>(tables: &T, twin: &Key<F>, key: &Key<F>, into: &mut Spot) -> Seen {
    tables.seek(twin, &key.dst, &key.src, into)
}
