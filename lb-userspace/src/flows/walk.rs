//! A walk over a table, by one thread or by several.
//!
//! In: sets of a table. Out: each slot of them that is taken, with its control word, to whoever asked for it, in their order. The rolls tell which
//! slots are taken, a word a set.
//!
//! Nearly all of the time is waiting for memory: a line of it a slot, two for IPv6, of which a table for a million flows has hundreds of megabytes, in
//! pages of four kilobytes, beyond whose ends no processor reads ahead by itself; nor does it guess which slots are taken. So a walk says what it
//! will read, [`AHEAD`] slots before it does. Whoever is told of a slot should need few instructions, and few guesses of branches: what the processor
//! does while it waits costs nothing, what it has to undo does.
//!
//! Threads take pieces of a walk one after the other, many more than there are threads: one that is interrupted leaves its pieces to the others.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use lb_common::access::{SetRef as _, TableFamily};
use lb_common::flow::roll::Roll;
use lb_common::flow::slot;
use lb_common::flow::state::Control;
use lb_common::layout::SET_SLOTS;

use super::Slot;
use crate::maps::{Row, WordSlots};

/// Slots that are asked for before the first of them is looked at: a processor can wait for ten to some dozens of lines at once, and its second
/// cache holds many times as many.
const AHEAD: usize = 64;
/// Sets whose rolls are looked at together: a bit for each slot in a word, and two lines of memory.
const GROUP: u32 = u64::BITS / SET_SLOTS as u32;
/// Sets between a roll that is looked at and one that is asked for.
const ROLLS_AHEAD: u32 = 512;
/// Places of slots that are noted before they are looked at.
const PLACES: usize = 512;

/// Most threads that walk over one table.
pub(super) const MOST_THREADS: usize = 4;
/// Sets that are worth a thread: full ones take some ten times as long as to start it.
const WORTH_A_THREAD: usize = 1 << 13;

/// Slots that are taken, in their order, as far as they are noted.
struct Places<'a> {
    /// The index of the set times [`SET_SLOTS`], and the slot's number.
    noted: [u32; PLACES],
    count: usize,
    /// Sets whose rolls have not been looked at.
    sets: Range<u32>,
    rolls: Row<'a>,
}

impl Places<'_> {
    /// Notes as many as there is room for.
    #[inline]
    fn note(&mut self) {
        while self.count <= PLACES - u64::BITS as usize && !self.sets.is_empty() {
            let first = self.sets.start;
            self.sets.start = self.sets.end.min(first.saturating_add(GROUP));
            let rolls = self.rolls.part(first as usize, (self.sets.start - first) as usize);
            let rolls = rolls.unwrap_or_default().loads().zip(0..);
            let mut taken = rolls.fold(0, |taken, (roll, number)| {
                taken | u64::from(Roll::from_word(roll).taken()) << (number * SET_SLOTS as u32)
            });
            self.rolls.expect(first.saturating_add(ROLLS_AHEAD) as usize);
            self.rolls
                .expect(first.saturating_add(ROLLS_AHEAD + GROUP / 2) as usize);
            while taken != 0 {
                self.noted[self.count % PLACES] = first * SET_SLOTS as u32 + taken.trailing_zeros();
                self.count += 1;
                taken &= taken - 1;
            }
        }
    }

    /// Forgets the first ones.
    fn forget(&mut self, first: usize) {
        self.noted.copy_within(first.min(self.count)..self.count, 0);
        self.count = self.count.saturating_sub(first);
    }
}

/// Visits what is taken in some sets of a table.
#[inline]
pub(super) fn walk<'a, F: TableFamily>(
    table: WordSlots<'a>,
    sets: Range<u32>,
    mut visit: impl FnMut(Slot<'a>, Control),
) {
    let expect = |place| {
        if let Some(words) = table.slot::<F>(place) {
            words.expect(0);
            if F::V6 {
                // An entry's second line.
                words.expect(slot::Words::backend::<F>());
            }
        }
    };
    let mut places = Places {
        noted: [0; PLACES],
        count: 0,
        sets,
        rolls: table.rolls(),
    };
    let mut expected = 0;
    loop {
        places.note();
        let noted = &places.noted[..places.count.min(PLACES)];
        while expected < noted.len().min(AHEAD) {
            expect(noted[expected]);
            expected += 1;
        }
        // Those that come after the last one that is expected are looked at in the next turn, unless there are no more.
        let now = if places.sets.is_empty() {
            noted.len()
        } else {
            noted.len().saturating_sub(AHEAD)
        };
        for (number, place) in noted.iter().take(now).enumerate() {
            if let Some(place) = noted.get(number + AHEAD) {
                expect(*place);
            }
            if let Some(slot) = Slot::at::<F>(table, *place) {
                visit(slot, Control::from_word(slot.words.load(0)));
            }
        }
        places.forget(now);
        expected = places.count;
        if now == 0 && places.sets.is_empty() {
            break;
        }
    }
}

/// Pieces of work, each done by one of some threads with a state of that thread's own, of which the caller's has the first; the states are as many as the
/// threads. A thread takes the next piece until none is left. What no thread can be had for is left to the others.
pub(super) fn share<S: Send>(pieces: usize, states: &mut [S], work: impl Fn(&mut S, usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work_on = |state: &mut S| {
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                break;
            }
            work(state, piece);
        }
    };
    let Some((own, others)) = states.split_first_mut() else {
        return;
    };
    thread::scope(|scope| {
        for state in others {
            let _spawned = thread::Builder::new().spawn_scoped(scope, || work_on(state));
        }
        work_on(own);
    });
}

/// Splits sets of a table in so many pieces, or fewer; the last ones may be empty.
pub(super) fn piece(sets: &Range<u32>, pieces: usize, number: usize) -> Range<u32> {
    // Whole lines of rolls.
    let length = sets.len().div_ceil(pieces.max(1)).next_multiple_of(GROUP as usize / 2) as u32;
    let at = |number: usize| {
        sets.end
            .min(sets.start.saturating_add((number as u32).saturating_mul(length)))
    };
    at(number)..at(number + 1)
}

/// Threads that so many sets are worth.
pub(super) fn threads(sets: usize) -> usize {
    let worth = (sets / WORTH_A_THREAD).min(MOST_THREADS);
    if worth < 2 {
        return 1;
    }
    worth.min(thread::available_parallelism().map_or(1, usize::from))
}

#[cfg(test)]
mod tests {
    use lb_common::access::{Rolls as _, Slots as _};
    use lb_common::family::{V4, V6};

    use super::*;
    use crate::maps::{Table, Words};

    /// Walks over sets of a table of 1,024, of which those that `taken` says are taken, a bit each, and compares what is met.
    fn meets<F: TableFamily>(sets: Range<u32>, taken: impl Fn(u32) -> u32) {
        let words = Words::zeroed(Table::flows(F::V6).values_of(1 << 10) as usize * F::SLOT_WORDS * SET_SLOTS).unwrap();
        let table = WordSlots::with_rolls(&words, F::SLOT_WORDS);
        let mut expected = Vec::new();
        for index in 0..=table.mask() {
            let slots = (0..SET_SLOTS).filter(|number| taken(index) >> number & 1 != 0);
            for number in slots {
                let roll = table.roll(index);
                table.cas_roll(index, roll, Roll::from_word(roll).take(number, 1).word());
                let place = index * SET_SLOTS as u32 + number as u32;
                table.slot::<F>(place).unwrap().store(0, place.into());
                if sets.contains(&index) {
                    expected.push((place, place));
                }
            }
        }
        let mut met = Vec::new();
        walk::<F>(table, sets, |slot, control| met.push((slot.place, control.last_seen)));
        assert!(met == expected);
    }

    #[test]
    fn a_walk_meets_each_slot_that_is_taken_once_and_in_its_place() {
        // Full sets, such as are like random, one in a hundred, and none.
        let random = |index: u32| index.wrapping_mul(0x9e37_79b9) >> 28;
        for sets in [0..1 << 10, 3..1001, 17..18, 5..5] {
            meets::<V4>(sets.clone(), |_| 0xf);
            meets::<V6>(sets.clone(), |_| 0xf);
            meets::<V4>(sets.clone(), random);
            meets::<V6>(sets.clone(), |index| if index % 100 == 17 { 4 } else { 0 });
            meets::<V4>(sets, |_| 0);
        }
    }

    #[test]
    fn pieces_are_all_of_the_sets() {
        for (sets, pieces) in [(2, 1), (8, 4), (64, 256), (1 << 20, 128), (1000, 7)] {
            let all = (0..pieces).flat_map(|number| piece(&(3..3 + sets), pieces, number));
            assert!(all.eq(3..3 + sets), "{sets} {pieces}");
        }
    }
}
