//! The flow and frontend tables as the pipeline sees them: sets of slots in kernel maps, and the rolls behind those of the flow tables.
//!
//! No policy here: each method is one access. Indices are bounded by the map, word offsets by a mask that equals the set's size, so that the
//! verifier can follow.
#![expect(
    unsafe_code,
    reason = "map values are reached through the pointers that the kernel hands out, and names that user space knows"
)]

use aya_ebpf::Global;
use lb_common::access::{Rolls, SetRef, Slots, TableFamily, WordRef};
use lb_common::layout::{self, FLOW_SETS, FRONTEND_SETS};

use crate::kernel;
use crate::maps::{FLOWS_V4, FLOWS_V6, FRONTENDS_V4, FRONTENDS_V6};

/// Number of flow sets minus one, IPv4; set when the programs are loaded.
#[unsafe(no_mangle)]
static FLOW_MASK_V4: Global<u32> = Global::new(FLOW_SETS - 1);
/// As [`FLOW_MASK_V4`], IPv6.
#[unsafe(no_mangle)]
static FLOW_MASK_V6: Global<u32> = Global::new(FLOW_SETS - 1);

/// A table of sets in a kernel map.
#[derive(Clone, Copy)]
pub(crate) struct KernelSlots<F> {
    kind: Kind,
    family: core::marker::PhantomData<F>,
}

impl<F> KernelSlots<F> {
    /// The flow table.
    pub(crate) const FLOWS: Self = Self::of(Kind::Flows);
    /// The frontend table.
    pub(crate) const FRONTENDS: Self = Self::of(Kind::Frontends);

    const fn of(kind: Kind) -> Self {
        Self {
            kind,
            family: core::marker::PhantomData,
        }
    }
}

/// Which table.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Flows,
    Frontends,
}

impl<F: TableFamily> Slots for KernelSlots<F> {
    type Set = KernelSet<F>;

    #[inline(always)]
    fn mask(self) -> u32 {
        match self.kind {
            Kind::Frontends => FRONTEND_SETS - 1,
            Kind::Flows => F::pick(|| FLOW_MASK_V4.load(), || FLOW_MASK_V6.load()),
        }
    }

    #[inline(always)]
    fn set(self, index: u32) -> Option<KernelSet<F>> {
        let words = match self.kind {
            Kind::Flows => F::pick(
                || FLOWS_V4.get_ptr_mut(index).map(<*mut _>::cast),
                || FLOWS_V6.get_ptr_mut(index).map(<*mut _>::cast),
            ),
            Kind::Frontends => F::pick(
                || FRONTENDS_V4.get_ptr_mut(index).map(<*mut _>::cast),
                || FRONTENDS_V6.get_ptr_mut(index).map(<*mut _>::cast),
            ),
        }?;
        Some(KernelSet {
            words,
            kind: self.kind,
            family: core::marker::PhantomData,
        })
    }
}

impl<F: TableFamily> Rolls for KernelSlots<F> {
    type Roll = KernelWord;

    // Behind all sets.
    #[inline(always)]
    fn roll_at(self, index: u32) -> Option<KernelWord> {
        let words = (F::SLOT_WORDS * layout::SET_SLOTS) as u32;
        let set = self.set(self.mask() + 1 + index / words)?;
        Some(KernelWord(set.word((index % words) as usize)))
    }
}

/// A word of a map value.
#[derive(Clone, Copy)]
pub(crate) struct KernelWord(*mut u64);

impl WordRef for KernelWord {
    #[inline(always)]
    fn load(self) -> u64 {
        // SAFETY: it lies in a live map value.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn cas(self, old: u64, new: u64) -> u64 {
        kernel::compare_and_swap(self.0, old, new)
    }
}

/// A set whose width follows from its family and table.
#[derive(Clone, Copy)]
pub(crate) struct KernelSet<F> {
    words: *mut u64,
    kind: Kind,
    family: core::marker::PhantomData<F>,
}

impl<F: TableFamily> KernelSet<F> {
    #[inline(always)]
    fn word(self, word: usize) -> *mut u64 {
        let mask = match self.kind {
            Kind::Flows => F::SLOT_WORDS * layout::SET_SLOTS - 1,
            Kind::Frontends => F::FRONTEND_WORDS * layout::SET_SLOTS - 1,
        };
        self.words.wrapping_add(word & mask)
    }
}

impl<F: TableFamily> SetRef for KernelSet<F> {
    #[inline(always)]
    fn load(self, word: usize) -> u64 {
        // SAFETY: `words` is a live map value and the index is masked to its length.
        unsafe { self.word(word).read_volatile() }
    }

    #[inline(always)]
    fn store(self, word: usize, value: u64) {
        // SAFETY: as in `load`.
        unsafe { self.word(word).write_volatile(value) }
    }

    #[inline(always)]
    fn cas(self, word: usize, old: u64, new: u64) -> u64 {
        kernel::compare_and_swap(self.word(word), old, new)
    }
}
