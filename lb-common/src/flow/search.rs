//! Looking for a key in a table of sets: its first set, and its second where the first tells that entries are spilled from it.
//!
//! In: a key, and the table as other CPUs leave it. Out: what stands under the key and where, [`Found::Busy`] where a slot that may be the key's
//! kept changing. Writes nothing. The protocol that makes a reading whole is [`crate::flow::table`]'s.

use crate::access::{SetRef, Slots, TableFamily, Tables};
use crate::family::Side;
use crate::flow::slot::{self, Entry, Key, Place, Rewrite, Seen};
use crate::flow::state::{BUSY, Control, FREE, LIVE, SPILLED};
use crate::flow::table::{self, Spot, TRIES};
use crate::layout::SET_SLOTS;
use crate::slots::{afresh, candidates, probe};

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
        let mut bits = 0;
        for i in 0..SET_SLOTS {
            let base = probe(hash, i) * F::SLOT_WORDS;
            let control = Control::from_word(set.load(base));
            bits |= control.state;
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
        if bits & SPILLED == 0 {
            break;
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
    let mut spot = Spot::of_key(tables, key);
    spot.found = scan(tables, key, &mut spot);
    spot
}

/// [`locate`] of a key whose hash `into` tells: a scalar comes back, the rest by reference; where nothing is found, a free slot of the first set,
/// if it has one.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub fn scan<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>, into: &mut Spot) -> Found {
    let hash = into.hash;
    debug_assert_eq!(hash, table::hash(tables, key), "a spot of another key");
    let sets = candidates(hash, tables.flows::<F>().mask());
    for _ in 0..TRIES {
        into.vacant = false;
        let mut changing = false;
        for index in sets {
            let seen = tables.scan_set(index, hash, key, into);
            if seen & seen_in_set::ENTRY != 0 {
                return Found::Entry;
            }
            changing |= seen & seen_in_set::CHANGING != 0;
            if seen & seen_in_set::SPILLED == 0 {
                break;
            }
        }
        if !changing {
            // Who stands in the second set is counted in the first before.
            into.vacant &= into.set == sets[0];
            return Found::Nothing;
        }
    }
    Found::Busy
}

/// What [`scan_set`] has seen, in bits.
pub mod seen_in_set {
    /// The entry.
    pub const ENTRY: u32 = 1;
    /// A slot that is changing and may be the key's.
    pub const CHANGING: u32 = 2;
    /// This set's entries may stand in their other sets.
    pub const SPILLED: u32 = 4;
}

/// Looks for `key`, whose hash is `hash`, in one set; tells what it has seen ([`seen_in_set`]), and an entry's spot, or
/// its first free slot, unless there is one already. Called through [`Tables::scan_set`].
#[inline(always)]
pub fn scan_set<F: TableFamily, T: Tables>(tables: &T, index: u32, hash: u64, key: &Key<F>, into: &mut Spot) -> u32 {
    let Some(set) = tables.flows::<F>().set(index) else {
        return 0;
    };
    let (mut bits, mut seen) = (0, 0);
    for i in 0..SET_SLOTS {
        let base = probe(hash, i) * F::SLOT_WORDS;
        let control = Control::from_word(set.load(base));
        bits |= control.state;
        if control.phase() == LIVE {
            if slot::holds(set, base, control.version, afresh(key)) {
                *into = Spot::new(index, hash, base, control);
                return seen_in_set::ENTRY;
            }
        } else if control.phase() == FREE {
            if !into.vacant {
                *into = Spot {
                    found: Found::Nothing,
                    vacant: true,
                    ..Spot::new(index, hash, base, control)
                };
            }
        } else if control.last_seen == tag(hash) {
            seen = seen_in_set::CHANGING;
        }
    }
    if bits & SPILLED == 0 {
        seen
    } else {
        seen | seen_in_set::SPILLED
    }
}

/// What a slot being written shows instead of a time: enough of the hash to know one's own.
#[inline(always)]
pub(super) const fn tag(hash: u64) -> u32 {
    (hash >> 28) as u32
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
        Found::Entry => match tables.flows::<F>().set(into.set) {
            Some(set) => slot::translates(set, into.base as usize, into.control.version, src, dst),
            None => Seen::Changing,
        },
    }
}

/// Finds where the twin of an entry stands whose key is `key`; `twin` is its twin's, whose hash `into` tells.
#[inline(always)]
pub fn seek_twin<F: TableFamily, T: Tables>(tables: &T, twin: &Key<F>, key: &Key<F>, into: &mut Spot) -> Seen {
    tables.seek(twin, &key.dst, &key.src, into)
}
