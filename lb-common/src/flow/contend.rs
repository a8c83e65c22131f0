//! Making room: what a newcomer does whose first set is full.
//!
//! In: a key's hash and its candidate slots as other CPUs leave them. Out: a slot that is taken for the key, or one that was left by the least
//! valuable flow, both of whose halves are gone. Waits for nobody.

use crate::access::{Rolls as _, SetRef, Slots, TableFamily, Tables};
use crate::flow::roll::Roll;
use crate::flow::search::{self, Found};
use crate::flow::slot::{self, Entry, Key, Seen};
use crate::flow::state::{self, Control, HELD, LIVE};
use crate::flow::table::{self, Claimed, Spot, TRIES};
use crate::layout::SET_SLOTS;
use crate::slots::{candidates, probe};

/// How often the twin of an evicted entry is freed, should packets refresh it just then.
const EVICT_TRIES: usize = 2;

/// [`table::claim`] in a key's second set, once, the first being full: [`Claimed::Crowded`] where both are. Called through [`Tables::spill`].
///
/// The first set counts the entry before it stands in the second. Whoever takes a slot of the first by then either has seen it in the second
/// or reads the roll of the first again, which rises once more at the end.
#[inline(always)]
pub fn spill<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>, spot: &mut Spot, stays: &Spot) -> Claimed {
    let table = tables.flows::<F>();
    let hash = spot.hash;
    let [first, second] = candidates(hash, table.mask());
    if Roll::from_word(table.roll(second)).vacant(hash) == SET_SLOTS {
        return Claimed::Crowded;
    }
    if !tables.recount::<F>(first, true) {
        return Claimed::Full;
    }
    let roll = table::latest_roll(table, second);
    let mut claimed = Claimed::of(search::look::<F, T>(tables, second, roll, key, spot, stays));
    let slot = roll.vacant(hash);
    if claimed == Claimed::Again && slot != SET_SLOTS {
        let taken = roll.take(slot, hash);
        if table.cas_roll(second, roll.word(), taken.word()) == roll.word() {
            for _ in 0..TRIES {
                let roll = table::latest_roll(table, first);
                if search::look::<F, T>(tables, first, roll, key, spot, stays) != Found::Nothing {
                    break;
                }
                if table.cas_roll(first, roll.word(), roll.risen().word()) == roll.word() {
                    *spot = Spot::taken(second, hash, slot * F::SLOT_WORDS, taken.version());
                    return Claimed::Slot;
                }
            }
            table::leave_in::<F, _>(table, second, slot * F::SLOT_WORDS);
            claimed = Claimed::Busy;
        }
    }
    tables.recount::<F>(first, false);
    claimed
}

/// Frees the least valuable flow of those that stand where the key of `spot` might, both its halves ([`Claimed::Again`]); [`Claimed::Full`] where none
/// may be displaced, [`Claimed::Busy`] where the other half is still to come or changes. `spare` and `room` are room to work in. Called through
/// [`Tables::make_room`].
#[inline(always)]
pub fn make_room<F: TableFamily, T: Tables>(
    tables: &T,
    spare: &mut Entry<F>,
    spot: &mut Spot,
    stays: &Spot,
    room: &mut Spot,
) -> Claimed {
    let chosen = tables.choose::<F>(stays, spot);
    let table = tables.flows::<F>();
    let (Some(set), true) = (table.set(spot.set), chosen) else {
        return Claimed::Full;
    };
    let (base, victim) = (spot.base as usize, spot.control);
    let held = victim.in_phase(HELD);
    if !slot::decode_into(&set, base, victim.version, spare)
        || set.cas(base, victim.word(), held.word()) != victim.word()
    {
        return Claimed::Again;
    }
    // Nobody else touches the slot until it is left.
    room.aim(tables, &spare.key);
    let home = room.home::<F, T>(tables);
    if !tables.evict_twin(spare, room, stays) {
        set.cas(base, held.word(), victim.word());
        return Claimed::Busy;
    }
    tables.leave::<F>(spot.set, base, home);
    Claimed::Again
}

/// Frees the twin of an entry that is being evicted, also if a packet refreshes it meanwhile; false where packets keep doing so, or where it is
/// being entered at this moment. Turns `victim`; `twin` is room, and `but` a slot that this CPU has taken for another key. Called through [`Tables::evict_twin`].
#[inline(always)]
pub fn evict_twin<F: TableFamily, T: Tables>(tables: &T, victim: &mut Entry<F>, twin: &mut Spot, but: &Spot) -> bool {
    victim.turn();
    twin.aim(tables, &victim.key);
    for _ in 0..EVICT_TRIES {
        match latest(tables, &victim.key, twin, but) {
            Found::Nothing => return true,
            Found::Busy => continue,
            Found::Entry => {}
        }
        let (src, dst) = (&victim.rewrite.src, &victim.rewrite.dst);
        let seen = search::translates(tables, twin, src, dst);
        if seen == Seen::Other || seen == Seen::Same && twin.free::<F, T>(tables) {
            return true;
        }
    }
    false
}

/// Looks for a key whose slot may have been taken just now: whoever took it before the entry stood that the caller has read is seen.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn latest<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>, into: &mut Spot, but: &Spot) -> Found {
    let table = tables.flows::<F>();
    for index in candidates(into.hash, table.mask()) {
        let roll = table::latest_roll(table, index);
        let found = search::look::<F, T>(tables, index, roll, key, into, but);
        if found != Found::Nothing || roll.spilled() == 0 {
            return found;
        }
    }
    Found::Nothing
}

/// The slot whose entry a newcomer may displace whose hash `into` tells (false where there is none): one that has expired, else the least
/// valuable.
///
/// A settled flow is never displaced. Among established but unsettled flows the newest goes first (a flood of whole handshakes
/// is its own victim), in every other class the oldest. `stays` stays, where it is a place: a pair does not displace its own
/// half. Called through [`Tables::choose`].
#[inline(always)]
pub fn choose<F: TableFamily, T: Tables>(tables: &T, stays: &Spot, into: &mut Spot) -> bool {
    let hash = into.hash;
    let table = tables.flows::<F>();
    let now = tables.now();
    let mut best_rank = u64::MAX;
    for index in candidates(hash, table.mask()) {
        let Some(set) = table.set(index) else { break };
        for i in 0..SET_SLOTS {
            let base = probe(hash, i) * F::SLOT_WORDS;
            let control = Control::from_word(set.load(base));
            let rank = tables.rank(control.word(), now) | never_if(stays.is_at(index, base));
            if rank < best_rank {
                best_rank = rank;
                *into = Spot::new(index, hash, base, control);
            }
        }
    }
    best_rank != u64::MAX
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
