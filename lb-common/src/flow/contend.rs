//! Contention for slots: which one a newcomer gets, and which of two equal entries stays.
//!
//! In: a key's hash or an entry that has just been published, and its candidate slots as other CPUs leave them. Out: a spot to
//! take by compare-and-swap, or what came of the entry. Neither waits for anybody.

use crate::access::{SetRef, Slots, TableFamily, Tables};
use crate::flow::search::Found;
use crate::flow::slot::{self, Entry, Seen};
use crate::flow::state::{self, Control, FREE, LIVE, SPILLED};
use crate::flow::table::{Spot, TRIES};
use crate::layout::SET_SLOTS;
use crate::slots::{afresh, candidates, probe};

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

/// The slot for a newcomer whose hash `into` tells (false where there is none): free, else expired, else the least valuable that a newcomer may displace.
///
/// A settled flow is never displaced. Among established but unsettled flows the newest goes first (a flood of whole handshakes
/// is its own victim), in every other class the oldest. `twin` stays, if it is an entry: a pair does not displace its own
/// half. Called through [`Tables::choose`].
#[inline(always)]
pub fn choose<F: TableFamily, T: Tables>(tables: &T, twin: &Spot, into: &mut Spot) -> bool {
    let hash = into.hash;
    let table = tables.flows::<F>();
    let now = tables.now();
    let mut best_rank = u64::MAX;
    let stays = if twin.found == Found::Entry {
        place_word(twin.set, twin.base as usize)
    } else {
        u64::MAX
    };
    let sets = candidates(hash, table.mask());
    for index in sets {
        let Some(set) = table.set(index) else { break };
        for i in 0..SET_SLOTS {
            let base = probe(hash, i) * F::SLOT_WORDS;
            let control = Control::from_word(set.load(base));
            if control.phase() == FREE {
                *into = Spot::new(index, hash, base, control);
                return true;
            }
            let rank = tables.rank(control.word(), now) | never_if(stays == place_word(index, base));
            if rank < best_rank {
                best_rank = rank;
                *into = Spot::new(index, hash, base, control);
            }
        }
    }
    best_rank != u64::MAX
}

/// Set and slot in one word.
#[inline(always)]
const fn place_word(set: u32, base: usize) -> u64 {
    (set as u64) << 32 | base as u64
}

/// The rank of what is never displaced where `condition` holds, else nothing; hidden from the compiler, which would branch:
/// each branch per slot doubles what the verifier walks.
#[inline(always)]
fn never_if(condition: bool) -> u64 {
    core::hint::black_box((condition as u64).wrapping_neg())
}

/// Order of displacement, lowest first; `u64::MAX` = never. Called through [`Tables::rank`].
#[inline(always)]
pub fn rank<T: Tables>(tables: &T, control: Control, now: u32) -> u64 {
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

/// After publishing: of two equal entries the one that stands later is freed. Where the other one translates differently, its
/// CPU may have sent a packet that way already, so ours is taken back wherever it stands. Called through [`Tables::settle`].
#[inline(always)]
pub fn settle<F: TableFamily, T: Tables>(tables: &T, entry: &Entry<F>, own: &Spot) -> Half {
    let table = tables.flows::<F>();
    let own_home = own.home::<F, T>(tables);
    let Some(home) = table.set(own_home) else {
        return Half::Stands;
    };
    // Whoever enters an equal one in the second set has counted it before, or sees ours in the first.
    let alone = own.set == own_home && Control::from_word(home.load(0)).state & SPILLED == 0;
    let sets = if alone {
        [own.set; 2]
    } else {
        let [first, second] = candidates(own.hash, table.mask());
        [first.min(second), first.max(second)]
    };
    let mut own_seen = false;
    for (i, index) in sets.into_iter().enumerate() {
        if alone && i != 0 {
            break;
        }
        let Some(set) = table.set(index) else { break };
        for slot in 0..SET_SLOTS {
            let base = slot * F::SLOT_WORDS;
            let control = Control::from_word(set.load(base));
            if control.phase() != LIVE || !slot::holds(set, base, control.version, afresh(&entry.key)) {
                continue;
            }
            if base == own.base as usize && index == own.set {
                own_seen = true;
                continue;
            }
            let control = confirmed(set, base, control);
            if control.phase() != LIVE {
                continue;
            }
            let rewrite = afresh(&entry.rewrite);
            let same = slot::translates(set, base, control.version, &rewrite.src, &rewrite.dst) == Seen::Same;
            if same && own_seen {
                Spot::new(index, own.hash, base, control).free::<F, T>(tables);
            } else {
                own.free::<F, T>(tables);
                return if same { Half::Same } else { Half::Other };
            }
        }
    }
    Half::Stands
}

/// Orders what is read afterwards behind what other CPUs have done: swapping a word for itself does, reading does not.
#[inline(always)]
pub(super) fn order<S: SetRef>(set: S, word: usize) {
    for _ in 0..TRIES {
        let seen = set.load(word);
        if set.cas(word, seen, seen) == seen {
            break;
        }
    }
}

/// The control word of an entry that was seen live, as it is now; with phase FREE where another entry stands there.
///
/// Reading a control word orders nothing. Swapping it for itself does: the words behind it are this entry's afterwards.
#[inline(always)]
pub(super) fn confirmed<S: SetRef>(set: S, base: usize, seen: Control) -> Control {
    let mut control = seen;
    for _ in 0..TRIES {
        let found = Control::from_word(set.cas(base, control.word(), control.word()));
        if found == control {
            break;
        }
        if found.version != seen.version || found.phase() != LIVE {
            return Control { state: FREE, ..seen };
        }
        control = found;
    }
    control
}
