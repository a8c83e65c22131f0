//! A walk over a table, by one thread or by several.
//!
//! In: sets of a table. Out: what stands in their slots, to whoever asked for it. Nearly all of the time is waiting for memory: a table has
//! a line of it, or two, for each slot, in use or not. So what is read goes before what is thought about it.

use std::hint::black_box;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;

use lb_common::access::{SetRef as _, Slots as _, TableFamily};
use lb_common::flow::slot;
use lb_common::flow::state::{Control, FREE, LIVE, PHASE, REPLY_HALF};
use lb_common::layout::SET_SLOTS;

use super::Slot;
use crate::maps::{WordSlots, Words};

/// Regions of some sets that are read side by side, a slot of each in turn: a processor reads ahead in each, but in none beyond the end of a
/// page of memory.
pub(super) const LANES: usize = 8;
/// Sets that are read of each region before any is looked at.
const TOGETHER: u32 = 2;
/// Sets that are read before any is looked at.
pub(super) const STEP: usize = LANES * TOGETHER as usize;
/// Slots that are read before any is looked at: a bit each in a word.
const SLOTS: usize = STEP * SET_SLOTS;

/// Most threads that walk over one table.
pub(super) const MOST_THREADS: usize = 4;
/// Sets that are worth a thread: they take some ten times as long as to start one.
const WORTH_A_THREAD: usize = 1 << 13;

/// A walk over some sets of a table.
struct Walk<'a, F> {
    table: WordSlots<'a>,
    words: &'a Words,
    start: u32,
    /// Sets of each region.
    lane: u32,
    family: PhantomData<F>,
}

/// What stands in slots that are looked at together.
pub(super) struct Batch<'a, F> {
    walk: Walk<'a, F>,
    /// Sets of each region before these.
    at: u32,
    /// Control words of those in use.
    words: [u64; SLOTS],
    /// Forward halves, a bit each.
    forward: u64,
    /// Reply halves.
    reply: u64,
    /// Slots in no settled phase.
    unsettled: u64,
}

impl<'a, F: TableFamily> Walk<'a, F> {
    /// Where the slot of a number is: slots of the regions take turns.
    #[inline]
    fn slot(&self, at: u32, number: usize) -> Option<Slot<'a>> {
        let (lane, slot) = (number % LANES, number / LANES);
        let index = self.start + lane as u32 * self.lane + at + (slot / SET_SLOTS) as u32;
        let set = self.table.set(index)?;
        Some((index, set, slot % SET_SLOTS * F::SLOT_WORDS))
    }

    /// Slots in use, a bit each.
    #[inline]
    fn used(&self, at: u32) -> u64 {
        let mut firsts = [0; LANES];
        for (lane, first) in (0..).zip(&mut firsts) {
            *first = self.table.word_of(self.start + lane * self.lane + at);
        }
        let mut used = 0;
        for slot in 0..SLOTS / LANES {
            for (lane, first) in firsts.iter().enumerate() {
                let word = self.words.load(first + slot * F::SLOT_WORDS);
                used |= u64::from(word >> 32 & u64::from(PHASE) != 0) << (slot * LANES + lane);
            }
        }
        used
    }
}

impl<'a, F: TableFamily> Batch<'a, F> {
    /// Looks at slots that were in use, and asks for all of the memory that their entries have.
    #[inline]
    fn look(&mut self, at: u32, used: u64) {
        let (mut live, mut reply, mut free, mut seconds) = (0, 0, 0, 0);
        for number in numbers(used) {
            let Some((_, set, base)) = self.walk.slot(at, number) else {
                continue;
            };
            let word = set.load(base);
            // An entry's second line.
            if F::V6 {
                seconds |= set.load(base + slot::Words::backend::<F>());
            }
            self.words[number % SLOTS] = word;
            let state = Control::from_word(word).state;
            live |= u64::from(state & PHASE == LIVE) << number;
            free |= u64::from(state & PHASE == FREE) << number;
            reply |= u64::from(state & REPLY_HALF != 0) << number;
        }
        black_box(seconds);
        self.at = at;
        self.forward = live & !reply;
        self.reply = live & reply;
        self.unsettled = used & !live & !free;
    }

    /// Each of some slots: its region, where it is, and its control word.
    #[inline]
    fn each(&self, bits: u64) -> impl Iterator<Item = (usize, Slot<'a>, Control)> {
        numbers(bits).filter_map(move |number| {
            let control = Control::from_word(self.words[number % SLOTS]);
            Some((number % LANES, self.walk.slot(self.at, number)?, control))
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

    /// Slots in no settled phase.
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

/// Visits what is in use in some sets of a table: in a number of them that can be divided by [`STEP`], or up to the table's end.
///
/// The next slots are read before these are looked at: a processor that guesses wrong what stands in a slot would wait for its memory
/// before it asks for the next.
pub(super) fn walk<'a, F: TableFamily>(table: WordSlots<'a>, sets: Range<u32>, mut visit: impl FnMut(&Batch<'a, F>)) {
    let lane = sets.len().div_ceil(LANES).next_multiple_of(TOGETHER as usize) as u32;
    let walk = Walk {
        table,
        words: table.words(),
        start: sets.start,
        lane,
        family: PhantomData,
    };
    let mut batch = Batch {
        walk,
        at: 0,
        words: [0; SLOTS],
        forward: 0,
        reply: 0,
        unsettled: 0,
    };
    let mut used = batch.walk.used(0);
    for at in (0..lane).step_by(TOGETHER as usize) {
        let ahead = batch.walk.used(at + TOGETHER);
        if used != 0 {
            batch.look(at, used);
            visit(&batch);
        }
        used = ahead;
    }
}

/// Splits sets of a table, as [`walk`] takes them, in as many parts as there are states, or fewer, and works on each with a state of its own,
/// the first part with the first. Each of the threads, of which the caller's is one, takes the next part until none is left.
pub(super) fn in_parts<S: Send>(
    sets: Range<u32>,
    threads: usize,
    states: &mut [S],
    work: impl Fn(&mut S, Range<u32>) + Sync,
) {
    let length = sets.len().div_ceil(states.len().max(1)).next_multiple_of(STEP);
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
