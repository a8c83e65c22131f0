//! A walk over a table, by one thread or by several.
//!
//! In: sets of a table. Out: what stands in their slots, to whoever asked for it. The rolls tell which slots are taken, a word a set; nearly all
//! of the time is waiting for the memory of those, a line of it or two a slot. So what is read goes before what is thought about it.

use std::hint::black_box;
use std::marker::PhantomData;
use std::mem::swap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;

use lb_common::access::{Rolls as _, SetRef as _, Slots as _, TableFamily};
use lb_common::flow::roll::Roll;
use lb_common::flow::slot;
use lb_common::flow::state::{Control, HELD, LIVE, REPLY_HALF};
use lb_common::layout::SET_SLOTS;

use super::Slot;
use crate::maps::WordSlots;

/// Regions of some sets that are read side by side, a slot of each in turn: a processor reads ahead in each, but in none beyond the end of a
/// page of memory.
pub(super) const LANES: usize = 8;
/// Slots of a set of each region.
const MOST: usize = LANES * SET_SLOTS;
/// Slots that are looked at together: a bit each in a word.
const SLOTS: usize = u64::BITS as usize;
/// A number of four bits times this has them [`LANES`] apart, at [`APART`], and others elsewhere.
const SPREAD: u64 = 1 | 1 << 7 | 1 << 14 | 1 << 21;
/// A bit for each slot of the first region's set.
const APART: u64 = 1 | 1 << LANES | 1 << (2 * LANES) | 1 << (3 * LANES);

/// Most threads that walk over one table.
pub(super) const MOST_THREADS: usize = 4;
/// Sets that are worth a thread: full ones take some ten times as long as to start it.
const WORTH_A_THREAD: usize = 1 << 13;

/// What stands in slots that are looked at together.
pub(super) struct Batch<'a, F> {
    table: WordSlots<'a>,
    /// Where they are: the index of the set, and the slot's number where those of a set of each region take turns.
    places: [(u32, usize); SLOTS],
    count: usize,
    /// Their control words.
    words: [u64; SLOTS],
    /// Forward halves, also such as are being displaced, a bit each.
    forward: u64,
    /// Reply halves.
    reply: u64,
    /// Slots that hold no entry.
    unsettled: u64,
    family: PhantomData<F>,
}

impl<'a, F: TableFamily> Batch<'a, F> {
    fn empty(table: WordSlots<'a>) -> Self {
        Self {
            table,
            places: [(0, 0); SLOTS],
            count: 0,
            words: [0; SLOTS],
            forward: 0,
            reply: 0,
            unsettled: 0,
            family: PhantomData,
        }
    }

    /// Adds the slots that are taken in a set of each region: the first one's index is `first`, the others are `lane` sets apart.
    #[inline]
    fn gather(&mut self, first: u32, lane: u32) {
        let mut taken = 0;
        for region in 0..LANES as u32 {
            let roll = Roll::from_word(self.table.roll(first + region * lane));
            taken |= ((u64::from(roll.taken()) * SPREAD) & APART) << region;
        }
        for number in numbers(taken) {
            self.places[self.count % SLOTS] = (first + (number % LANES) as u32 * lane, number);
            self.count += 1;
        }
    }

    #[inline]
    fn slot(&self, number: usize) -> Option<Slot<'a>> {
        let (index, place) = self.places[number % SLOTS];
        Some((index, self.table.set(index)?, place / LANES * F::SLOT_WORDS))
    }

    /// Asks for all of the memory that the slots' entries have, and tells what they are.
    #[inline]
    fn look(&mut self) {
        let (mut live, mut reply, mut seconds) = (0, 0, 0);
        for number in 0..self.count {
            let Some((_, set, base)) = self.slot(number) else {
                continue;
            };
            let word = set.load(base);
            // An entry's second line.
            if F::V6 {
                seconds |= set.load(base + slot::Words::backend::<F>());
            }
            self.words[number % SLOTS] = word;
            let control = Control::from_word(word);
            live |= u64::from(matches!(control.phase(), LIVE | HELD)) << number;
            reply |= u64::from(control.state & REPLY_HALF != 0) << number;
        }
        black_box(seconds);
        let all = u64::MAX.checked_shr((SLOTS - self.count) as u32).unwrap_or(0);
        self.forward = live & !reply;
        self.reply = live & reply;
        self.unsettled = all & !live;
    }

    /// Each of some slots: its region, where it is, and its control word.
    #[inline]
    fn each(&self, bits: u64) -> impl Iterator<Item = (usize, Slot<'a>, Control)> {
        numbers(bits).filter_map(move |number| {
            let control = Control::from_word(self.words[number % SLOTS]);
            Some((self.places[number % SLOTS].1 % LANES, self.slot(number)?, control))
        })
    }

    /// The forward halves.
    #[inline]
    pub(super) fn forward(&self) -> impl Iterator<Item = (usize, Slot<'a>, Control)> {
        self.each(self.forward)
    }

    /// The reply halves.
    #[inline]
    pub(super) fn reply(&self) -> impl Iterator<Item = (usize, Slot<'a>, Control)> {
        self.each(self.reply)
    }

    /// Slots that held no entry when they were looked at; they may have been left before.
    #[inline]
    pub(super) fn unsettled(&self) -> impl Iterator<Item = (usize, Slot<'a>, Control)> {
        self.each(self.unsettled)
    }
}

/// The numbers of the bits that are set.
#[inline]
fn numbers(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let number = bits.trailing_zeros() as usize;
        (bits != 0).then(|| {
            bits &= bits - 1;
            number
        })
    })
}

/// Visits what is taken in some sets of a table: in a number of them that can be divided by [`LANES`], or up to the table's end. The slots of each
/// region come in their order.
///
/// The next slots are read before these are looked at: a processor that guesses wrong what stands in a slot would wait for its memory
/// before it asks for the next.
pub(super) fn walk<'a, F: TableFamily>(table: WordSlots<'a>, sets: Range<u32>, mut visit: impl FnMut(&Batch<'a, F>)) {
    let lane = sets.len().div_ceil(LANES) as u32;
    let mut these = Box::new(Batch::empty(table));
    let mut next = Box::new(Batch::empty(table));
    for at in 0..lane {
        next.gather(sets.start + at, lane);
        if next.count > SLOTS - MOST {
            next.look();
            visit(&these);
            swap(&mut these, &mut next);
            next.count = 0;
        }
    }
    next.look();
    visit(&these);
    visit(&next);
}

/// Splits sets of a table, as [`walk`] takes them, in as many parts as there are states, or fewer, and works on each with a state of its own,
/// the first part with the first. Each of the threads, of which the caller's is one, takes the next part until none is left.
pub(super) fn in_parts<S: Send>(
    sets: Range<u32>,
    threads: usize,
    states: &mut [S],
    work: impl Fn(&mut S, Range<u32>) + Sync,
) {
    let length = sets.len().div_ceil(states.len().max(1)).next_multiple_of(LANES);
    let end = sets.end;
    let part = |first: u32| first..end.min(first.saturating_add(length as u32));
    let parts = Mutex::new(sets.step_by(length.max(1)).map(part).zip(states));
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_on = || {
        while let Some((part, state)) = next() {
            work(state, part);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // What no thread can be had for is left to the others.
            let _spawned = thread::Builder::new().spawn_scoped(scope, work_on);
        }
        work_on();
    });
}

/// Threads that so many sets are worth.
pub(super) fn threads(sets: usize) -> usize {
    let worth = (sets / WORTH_A_THREAD).min(MOST_THREADS);
    if worth < 2 {
        return 1;
    }
    worth.min(thread::available_parallelism().map_or(1, usize::from))
}
