//! Memory that user space shares with packets: a row of 64-bit words, each read and written whole.
//!
//! Holds [`Words`], over a `BPF_F_MMAPABLE` array map or over plain zeroed memory (host tables). Invariants: the length never
//! changes; every access is one atomic operation on one aligned word, so that nobody sees half of one; an index out of
//! range reads zero and writes nothing. What the words mean is [`lb_common::layout`]'s business.
//!
//! Source: `array_map_mmap` in the kernel's `kernel/bpf/arraymap.c`: the memory starts at the map's first value, values lie
//! 8-byte aligned, and the mapping keeps the map alive.
#![expect(unsafe_code, reason = "the kernel shares the memory of its maps as plain pages")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapMut, MmapOptions, MmapRaw};

/// A fixed row of shared words.
#[derive(Debug)]
pub struct Words {
    memory: MmapRaw,
    length: usize,
}

impl Words {
    /// Zeroed memory of this process alone.
    pub fn zeroed(length: usize) -> io::Result<Self> {
        let memory = MmapMut::map_anon(bytes(length)?)?.into();
        Ok(Self { memory, length })
    }

    /// The values of an mmapable array map, `length` words in all; the caller has checked that the map holds as many.
    pub fn of_map(map: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let memory = MmapOptions::new().len(bytes(length)?).map_raw(map.as_raw_fd())?;
        Ok(Self { memory, length })
    }

    /// Number of words.
    #[inline]
    pub fn len(&self) -> usize {
        self.length
    }

    /// True when there is no word.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// All of the words.
    #[inline]
    pub fn row(&self) -> Row<'_> {
        #[expect(clippy::cast_ptr_alignment, reason = "a mapping starts at a page")]
        let start = self.memory.as_ptr().cast::<AtomicU64>();
        // SAFETY: `bytes` made the mapping at least `length` words long; it starts at a page, lives as long as `self`, and
        // everybody else reaches it by whole words only (packets) or through this function.
        Row(unsafe { std::slice::from_raw_parts(start, self.length) })
    }

    /// Reads a word; zero out of range.
    #[inline]
    pub fn load(&self, index: usize) -> u64 {
        self.row().load(index)
    }

    /// Writes a word after everything that was written before it.
    #[inline]
    pub fn store(&self, index: usize, value: u64) {
        self.row().store(index, value);
    }

    /// Compare and swap, sequentially consistent; returns the previous value.
    #[inline]
    pub fn cas(&self, index: usize, old: u64, new: u64) -> u64 {
        self.row().cas(index, old, new)
    }

    /// Copies out the words from `start`, as many as there are up to `count`.
    pub fn copy(&self, start: usize, count: usize) -> Vec<u64> {
        let end = start.saturating_add(count).min(self.length);
        self.row()
            .0
            .get(start..end)
            .unwrap_or_default()
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect()
    }

    /// Copies out all words up to the last that is not zero.
    pub fn copy_used(&self) -> Vec<u64> {
        let used = self
            .row()
            .0
            .iter()
            .rposition(|word| word.load(Ordering::Relaxed) != 0)
            .map_or(0, |last| last + 1);
        self.copy(0, used)
    }
}

/// Some of the words, one after the other. Whoever takes as many as the compiler knows of has them checked once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Row<'a>(&'a [AtomicU64]);

impl<'a> Row<'a> {
    /// `count` words from `start` on; `None` where there are not as many.
    #[inline]
    pub fn part(self, start: usize, count: usize) -> Option<Self> {
        self.0.get(start..)?.get(..count).map(Self)
    }

    /// Number of words.
    #[inline]
    pub fn len(self) -> usize {
        self.0.len()
    }

    /// True when there is no word.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Reads a word; zero out of range.
    #[inline]
    pub fn load(self, index: usize) -> u64 {
        self.0.get(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Reads each word.
    #[inline]
    pub fn loads(self) -> impl Iterator<Item = u64> + use<'a> {
        self.0.iter().map(|word| word.load(Ordering::Relaxed))
    }

    /// Asks for the memory of a word that is read soon, and waits for nothing: the line is brought into the processor's second cache, for which more lines
    /// can be under way than for the first. A hint: out of range, or on a processor of which it is not known how, it does nothing.
    #[inline]
    pub fn expect(self, index: usize) {
        if let Some(word) = self.0.get(index) {
            expect(word);
        }
    }

    /// Writes a word after everything that was written before it.
    #[inline]
    pub fn store(self, index: usize, value: u64) {
        if let Some(word) = self.0.get(index) {
            word.store(value, Ordering::Release);
        }
    }

    /// Compare and swap, sequentially consistent; returns the previous value.
    #[inline]
    pub fn cas(self, index: usize, old: u64, new: u64) -> u64 {
        self.0.get(index).map_or(0, |word| {
            match word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(previous) | Err(previous) => previous,
            }
        })
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn expect(word: &AtomicU64) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: reads nothing that a program could see, and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(word).cast()) };
}

#[cfg(target_arch = "aarch64")]
#[inline]
fn expect(word: &AtomicU64) {
    let word = std::ptr::from_ref(word);
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{word}]", word = in(reg) word, options(nostack, readonly, preserves_flags))
    };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline]
fn expect(_: &AtomicU64) {}

/// Bytes of a mapping of `length` words.
fn bytes(length: usize) -> io::Result<usize> {
    length
        .checked_mul(size_of::<u64>())
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_out_of_range_read_zero_and_take_nothing() {
        let words = Words::zeroed(3).unwrap();
        words.store(2, 7);
        words.store(3, 9);
        assert_eq!((words.load(2), words.load(3), words.load(usize::MAX)), (7, 0, 0));
        assert_eq!(words.cas(3, 0, 1), 0);
        assert_eq!(words.copy(1, 10), [0, 7]);
        assert_eq!(words.copy(4, 1), [0; 0]);
        assert!(Words::zeroed(0).is_err());
        let part = words.row().part(1, 2).unwrap();
        assert_eq!((part.load(1), part.load(2), part.cas(2, 0, 1)), (7, 0, 0));
        assert!(words.row().part(2, 2).is_none() && words.row().part(4, 0).is_none());
        part.expect(1);
        part.expect(2);
    }

    #[test]
    fn a_lost_race_returns_what_stands_there() {
        let words = Words::zeroed(1).unwrap();
        assert_eq!(words.cas(0, 0, 5), 0);
        assert_eq!(words.cas(0, 0, 6), 5);
        assert_eq!(words.copy_used(), [5]);
    }
}
