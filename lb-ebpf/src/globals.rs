//! What the pipeline does with the flow table as global functions of the object: the verifier walks each once, instead of at each call and in
//! each pass of a loop. No decisions here: each calls its namesake in `lb_common`.
//!
//! They take pointers, which the verifier knows to be null or to the types' sizes, and give numbers. Their stack adds up along a chain of
//! calls.
#![expect(unsafe_code, reason = "exported names, and pointers that the verifier checks")]

use lb_common::family::{Side, V4, V6};
use lb_common::flow::contend::{self, Half};
use lb_common::flow::search;
use lb_common::flow::slot::Seen;
use lb_common::flow::state::Control;
use lb_common::flow::table::{self, Spot};
use lb_common::flow::{Entry, Key};

use crate::maps::KernelTables;

/// For looking for a key in one set.
macro_rules! scan_set {
    ($name:ident, $family:ty) => {
        #[doc = "`search::scan_set` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(index: u32, hash: u64, key: *const Key<$family>, into: *mut Spot) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the types' sizes, or null.
            let (Some(key), Some(into)) = (unsafe { key.as_ref() }, unsafe { into.as_mut() }) else {
                return 0;
            };
            search::scan_set(&KernelTables::ANYWHERE, index, hash, key, into)
        }
    };
}

scan_set!(scan_set_v4, V4);
scan_set!(scan_set_v6, V6);

/// For counting spilled entries.
macro_rules! recount {
    ($name:ident, $family:ty) => {
        #[doc = "`table::recount` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(home: u32, more: u32) -> u32 {
            table::recount::<$family, _>(&KernelTables::ANYWHERE, home, more != 0) as u32
        }
    };
}

recount!(recount_v4, V4);
recount!(recount_v6, V6);

/// For looking for a key with its rewrite.
macro_rules! seek {
    ($name:ident, $family:ty) => {
        #[doc = "`search::seek` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(
            key: *const Key<$family>,
            src: *const Side<$family>,
            dst: *const Side<$family>,
            into: *mut Spot,
        ) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the types' sizes, or null.
            let (key, src, dst, into) = unsafe { (key.as_ref(), src.as_ref(), dst.as_ref(), into.as_mut()) };
            let (Some(key), Some(src), Some(dst), Some(into)) = (key, src, dst, into) else {
                return Seen::Changing as u32;
            };
            search::seek(&KernelTables::ANYWHERE, key, src, dst, into) as u32
        }
    };
}

seek!(seek_v4, V4);
seek!(seek_v6, V6);

/// For inserting an entry.
macro_rules! insert {
    ($name:ident, $family:ty) => {
        #[doc = "`table::insert` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(
            entry: *const Entry<$family>,
            spare: *mut Entry<$family>,
            state: u32,
            into: *mut Spot,
            twin: *mut Spot,
        ) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the types' sizes, or null.
            let (entry, spare) = unsafe { (entry.as_ref(), spare.as_mut()) };
            // SAFETY: as above.
            let (into, twin) = unsafe { (into.as_mut(), twin.as_mut()) };
            let (Some(entry), Some(spare), Some(into), Some(twin)) = (entry, spare, into, twin) else {
                return 0;
            };
            table::insert(&KernelTables::ANYWHERE, entry, spare, state as u16, into, twin) as u32
        }
    };
}

/// For choosing a slot.
macro_rules! choose {
    ($name:ident, $family:ty) => {
        #[doc = "`contend::choose` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(twin: *const Spot, into: *mut Spot) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the type's size, or null.
            let (Some(twin), Some(into)) = (unsafe { twin.as_ref() }, unsafe { into.as_mut() }) else {
                return 0;
            };
            contend::choose::<$family, _>(&KernelTables::ANYWHERE, twin, into) as u32
        }
    };
}

/// `contend::rank` as a global function of the object: as part of choosing, its branches multiply with the slots.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn rank(control: u64, now: u32) -> u64 {
    contend::rank(&KernelTables::ANYWHERE, Control::from_word(control), now)
}

choose!(choose_v4, V4);
choose!(choose_v6, V6);

/// For settling two equal entries.
macro_rules! settle {
    ($name:ident, $family:ty) => {
        #[doc = "`contend::settle` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(entry: *const Entry<$family>, own: *const Spot) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the types' sizes, or null.
            let (Some(entry), Some(own)) = (unsafe { entry.as_ref() }, unsafe { own.as_ref() }) else {
                return Half::Stands as u32;
            };
            contend::settle(&KernelTables::ANYWHERE, entry, own) as u32
        }
    };
}

settle!(settle_v4, V4);
settle!(settle_v6, V6);

insert!(insert_v4, V4);
insert!(insert_v6, V6);
