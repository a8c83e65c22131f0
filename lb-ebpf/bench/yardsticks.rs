//! The yardsticks: one bare look-up in, and one bare insertion into, the kernel's own LRU hash; one line of memory read; and what a new flow costs
//! at the least that enters two entries of its own. Each runs in the loop of [`crate::turn`], and does nothing else.

use aya_ebpf::btf_maps::{Array, LruHashMap};
use aya_ebpf::helpers::generated::bpf_l4_csum_replace;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use lb_common::layout::SET_SLOTS;
use lb_common::slots::LINE_WORDS;

use crate::{FRAMES, MMAPABLE, NEXT, Progress, progress, state, turn, wait_for_stores};

/// Entries of the yardsticks' table.
const YARDSTICK_ENTRIES: usize = 1 << 21;
/// Sets of the table of lines, as many as a table for two million flows has.
const LINE_SETS: usize = 1 << 21;
/// Words of such a set, for IPv4.
const SET_WORDS: usize = 32;

#[btf_map(name = "yardstick")]
static YARDSTICK: LruHashMap<[u64; 2], u64, YARDSTICK_ENTRIES> = LruHashMap::new();
/// Memory like that of the flow table of IPv4.
#[btf_map(name = "lines")]
static LINES: Array<[u64; SET_WORDS], LINE_SETS, MMAPABLE> = Array::new();
/// Memory like that of IPv6, whose sets have twice the words.
#[btf_map(name = "lines_v6")]
static LINES_V6: Array<[u64; 2 * SET_WORDS], LINE_SETS, MMAPABLE> = Array::new();

/// The yardsticks' loop without the table.
#[classifier]
fn bare_loop(_ctx: TcContext) -> i32 {
    if let Some((settings, progress)) = state() {
        let key = key(scattered(turn(settings, progress)));
        progress[progress::GOOD] += core::hint::black_box(key)[1] & 1;
    }
    NEXT
}

/// What a packet's change costs at tc beyond the change: the two helpers that mend its sum, for addresses and for ports.
#[classifier]
fn checksums(ctx: TcContext) -> i32 {
    /// Offset of a TCP checksum.
    const OFFSET: u32 = 50;
    const PSEUDO_HEADER: u64 = 0x10;
    if let Some((settings, progress)) = state() {
        let key = key(turn(settings, progress));
        for flags in [PSEUDO_HEADER, 0] {
            // SAFETY: the context is the program's own. Size 0 in the flags means that the last number is a difference.
            let failed = unsafe { bpf_l4_csum_replace(ctx.skb.skb, OFFSET, 0, key[0] & 0xffff, flags) };
            progress[progress::GOOD] += (failed == 0) as u64;
        }
    }
    NEXT
}

/// One look-up among as many keys as are asked for, spread over all that were inserted: whose packet comes next does not depend on whose
/// flow began first.
#[classifier]
fn lru_lookup(_ctx: TcContext) -> i32 {
    if let Some((settings, progress)) = state() {
        let number = scattered(turn(settings, progress));
        look_up(progress, number);
    }
    NEXT
}

/// As [`lru_lookup`], where the next key is known only once this one's value is: a packet is more than a processor looks ahead, a look-up
/// alone is less.
#[classifier]
fn lru_lookup_in_turn(_ctx: TcContext) -> i32 {
    if let Some((settings, progress)) = state() {
        let number = scattered(turn(settings, progress));
        // SAFETY: a value that is read once; user space does not write there.
        if let Some(one) = unsafe { YARDSTICK.get(key(number)) } {
            progress[progress::NEXT] += one - 1;
            progress[progress::GOOD] += one;
        }
    }
    NEXT
}

/// As [`lru_lookup`], of the first keys in the order in which they were inserted, in which their entries lie in memory.
#[classifier]
fn lru_lookup_in_order(_ctx: TcContext) -> i32 {
    if let Some((settings, progress)) = state() {
        let number = turn(settings, progress);
        look_up(progress, number);
    }
    NEXT
}

#[inline(always)]
fn look_up(progress: &mut Progress, number: u64) {
    // SAFETY: the value is only compared with nothing.
    progress[progress::GOOD] += unsafe { YARDSTICK.get(key(number)) }.is_some() as u64;
}

/// A word of one line of memory, of as many lines as are asked for, all over a table as large as the flow table: what a look-up of any
/// design costs at the least that finds a flow by its hash. Which line is next follows from the one before: a packet is more than a processor
/// looks ahead.
#[classifier]
fn line(_ctx: TcContext) -> i32 {
    if let Some((settings, progress)) = state() {
        let [hash, _] = key(turn(settings, progress));
        let line = (hash >> 16) as usize % (SET_WORDS / LINE_WORDS);
        if let Some(set) = LINES.get((hash >> 32) as u32 % LINE_SETS as u32) {
            // SAFETY: a word of a map value; nothing is ever written there.
            let zero = unsafe { (&raw const set[line * LINE_WORDS]).read_volatile() };
            progress[progress::NEXT] += zero;
            progress[progress::GOOD] += zero;
        }
    }
    NEXT
}

/// What a new flow of IPv4 costs at the least that takes a slot of a set for each half and enters both.
#[classifier]
fn two_entries_v4(_ctx: TcContext) -> i32 {
    enter_two(&LINES)
}

/// As [`two_entries_v4`], of IPv6, whose entries have two lines.
#[classifier]
fn two_entries_v6(_ctx: TcContext) -> i32 {
    enter_two(&LINES_V6)
}

/// Of two sets of a table roll and lines of a slot are read at once, the rolls swapped, and the lines written, all with zeroes, as [`fn@line`] reads them.
/// Which sets are next follows from these.
#[inline(always)]
fn enter_two<const WORDS: usize>(table: &Array<[u64; WORDS], LINE_SETS, MMAPABLE>) -> i32 {
    let slot_words = WORDS / SET_SLOTS;
    let Some((settings, progress)) = state() else {
        return NEXT;
    };
    let number = turn(settings, progress);
    let places = [number, number + FRAMES as u64].map(|number| roll_and_slot(table, key(number)[0]));
    if let [Some([roll, slot]), Some([other_roll, other_slot])] = places {
        // SAFETY: words of map values, in which nothing but zeroes is ever written; here and below.
        let mut zero = unsafe { roll.read_volatile() | other_roll.read_volatile() };
        for at in (0..slot_words).step_by(LINE_WORDS) {
            // SAFETY: as above, and the line lies in its set.
            zero |= unsafe { slot.wrapping_add(at).read_volatile() | other_slot.wrapping_add(at).read_volatile() };
        }
        // SAFETY: as above.
        wait_for_stores(unsafe { &mut *roll });
        // SAFETY: as above.
        wait_for_stores(unsafe { &mut *other_roll });
        for at in 0..slot_words {
            // SAFETY: as above.
            unsafe {
                slot.wrapping_add(at).write_volatile(zero);
                other_slot.wrapping_add(at).write_volatile(zero);
            }
        }
        progress[progress::NEXT] += zero;
        progress[progress::GOOD] += zero;
    }
    NEXT
}

/// Where the roll of the set of a hash would stand, a word a set, close together; and a slot of the set.
#[inline(always)]
fn roll_and_slot<const WORDS: usize>(
    table: &Array<[u64; WORDS], LINE_SETS, MMAPABLE>,
    hash: u64,
) -> Option<[*mut u64; 2]> {
    let set = (hash >> 32) as u32 % LINE_SETS as u32;
    let rolls = table.get_ptr_mut(set / WORDS as u32)?.cast::<u64>();
    let words = table.get_ptr_mut(set)?.cast::<u64>();
    let slot = (hash >> 16) as usize % SET_SLOTS * (WORDS / SET_SLOTS);
    Some([rolls.wrapping_add(set as usize % WORDS), words.wrapping_add(slot)])
}

/// One insertion of the next key.
#[classifier]
fn lru_insert(_ctx: TcContext) -> i32 {
    if let Some((settings, progress)) = state() {
        let key = key(turn(settings, progress));
        progress[progress::GOOD] += YARDSTICK.insert(key, 1, 0).is_ok() as u64;
    }
    NEXT
}

/// Takes the next key out again.
#[classifier]
fn lru_delete(_ctx: TcContext) -> i32 {
    if let Some((settings, progress)) = state() {
        let key = key(turn(settings, progress));
        progress[progress::GOOD] += YARDSTICK.remove(key).is_ok() as u64;
    }
    NEXT
}

/// Another number below [`FRAMES`] for each; neighbours are far apart.
#[inline(always)]
fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b1) % FRAMES as u64
}

/// The key of a number; neighbours are far apart.
#[inline(always)]
fn key(number: u64) -> [u64; 2] {
    [number.wrapping_mul(0x9e37_79b9_7f4a_7c15), number]
}
