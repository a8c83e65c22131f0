//! What the pipeline does with tables as global functions of the object: the verifier walks each once, instead of at each call, in
//! each pass of a loop and for all that was known before. No decisions here: each calls its namesake in `lb_common`.
//!
//! They take pointers, which the verifier knows to be null or to the types' sizes, and give numbers. Their stack adds up along a chain of
//! calls.
#![expect(unsafe_code, reason = "exported names, and pointers that the verifier checks")]

use lb_common::access::Tables as _;
use lb_common::family::{Family, Side, V4, V6};
use lb_common::flow::contend;
use lb_common::flow::search::{self, Found};
use lb_common::flow::slot::Seen;
use lb_common::flow::state::Control;
use lb_common::flow::table::{self, Claimed, Spot};
use lb_common::flow::{Entry, Key};
use lb_common::frontend;
use lb_common::layout::FrontendValue;
use lb_common::pipeline::{self, Work};
use lb_common::steps::select::{self, Backend, Source, Wanted};
use lb_common::verdict::Reason;

use crate::tables::KernelTables;

/// For looking for a frontend.
macro_rules! frontend {
    ($name:ident, $family:ty) => {
        #[doc = "`frontend::find` as a global function of the object; the frontend's word."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(
            seed: u64,
            addr: *const <$family as Family>::Addr,
            port: u32,
            protocol: u32,
        ) -> u64 {
            // SAFETY: the verifier checks that callers pass memory of the type's size, or null.
            let Some(addr) = (unsafe { addr.as_ref() }) else {
                return FrontendValue::NONE.word();
            };
            let side = Side::<$family> {
                addr: *addr,
                port: port as u16,
            };
            let table = KernelTables::ANYWHERE.frontends::<$family>();
            frontend::find(table, seed, &side, protocol as u8).word()
        }
    };
}

frontend!(frontend_v4, V4);
frontend!(frontend_v6, V6);

/// For choosing a backend.
macro_rules! backend {
    ($name:ident, $family:ty) => {
        #[doc = "`select::attempt` as a global function of the object; the reason's number."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(
            frontend: u64,
            key: *const Key<$family>,
            source: u32,
            into: *mut Backend<$family>,
        ) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the types' sizes, or null.
            let (Some(key), Some(into)) = (unsafe { key.as_ref() }, unsafe { into.as_mut() }) else {
                return Reason::TablesChanged as u32;
            };
            let wanted = Wanted {
                frontend: FrontendValue::from_word(frontend),
                key,
                source: Source::from_number(source),
            };
            select::attempt(&KernelTables::ANYWHERE, &wanted, into) as u32
        }
    };
}

backend!(backend_v4, V4);
backend!(backend_v6, V6);

/// For looking for a key in one set.
macro_rules! scan_set {
    ($name:ident, $family:ty) => {
        #[doc = "`search::scan_set` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(index: u32, key: *const Key<$family>, into: *mut Spot) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the types' sizes, or null.
            let (Some(key), Some(into)) = (unsafe { key.as_ref() }, unsafe { into.as_mut() }) else {
                return Found::Busy as u32;
            };
            search::scan_set(&KernelTables::ANYWHERE, index, key, into) as u32
        }
    };
}

scan_set!(scan_set_v4, V4);
scan_set!(scan_set_v6, V6);

/// For looking at the slots of a set whose tags are a key's.
macro_rules! look_at {
    ($name:ident, $family:ty) => {
        #[doc = "`search::look_at` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(index: u32, matches: u32, key: *const Key<$family>, into: *mut Spot) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the types' sizes, or null.
            let (Some(key), Some(into)) = (unsafe { key.as_ref() }, unsafe { into.as_mut() }) else {
                return Found::Busy as u32;
            };
            search::look_at(&KernelTables::ANYWHERE, index, matches, key, into) as u32
        }
    };
}

look_at!(look_at_v4, V4);
look_at!(look_at_v6, V6);

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

/// For taking a slot.
macro_rules! claim {
    ($name:ident, $family:ty) => {
        #[doc = "`table::claim` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(
            key: *const Key<$family>,
            spare: *mut Entry<$family>,
            spot: *mut Spot,
            stays: *const Spot,
            room: *mut Spot,
        ) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the types' sizes, or null.
            let (key, spare, spot) = unsafe { (key.as_ref(), spare.as_mut(), spot.as_mut()) };
            // SAFETY: as above.
            let (stays, room) = unsafe { (stays.as_ref(), room.as_mut()) };
            let (Some(key), Some(spare), Some(spot), Some(stays), Some(room)) = (key, spare, spot, stays, room) else {
                return Claimed::Full as u32;
            };
            table::claim(&KernelTables::ANYWHERE, key, spare, spot, stays, room) as u32
        }
    };
}

claim!(claim_v4, V4);
claim!(claim_v6, V6);

/// For taking a slot in one of a key's sets.
macro_rules! claim_in {
    ($name:ident, $family:ty, $claim:path) => {
        #[doc = concat!("`", stringify!($claim), "` as a global function of the object.")]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(key: *const Key<$family>, spot: *mut Spot, stays: *const Spot) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the types' sizes, or null.
            let (key, spot, stays) = unsafe { (key.as_ref(), spot.as_mut(), stays.as_ref()) };
            let (Some(key), Some(spot), Some(stays)) = (key, spot, stays) else {
                return Claimed::Full as u32;
            };
            $claim(&KernelTables::ANYWHERE, key, spot, stays) as u32
        }
    };
}

claim_in!(claim_at_home_v4, V4, table::claim_at_home);
claim_in!(claim_at_home_v6, V6, table::claim_at_home);
claim_in!(spill_v4, V4, contend::spill);
claim_in!(spill_v6, V6, contend::spill);

/// For making room.
macro_rules! make_room {
    ($name:ident, $family:ty) => {
        #[doc = "`contend::make_room` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(
            spare: *mut Entry<$family>,
            spot: *mut Spot,
            stays: *const Spot,
            room: *mut Spot,
        ) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the types' sizes, or null.
            let (spare, spot) = unsafe { (spare.as_mut(), spot.as_mut()) };
            // SAFETY: as above.
            let (stays, room) = unsafe { (stays.as_ref(), room.as_mut()) };
            let (Some(spare), Some(spot), Some(stays), Some(room)) = (spare, spot, stays, room) else {
                return Claimed::Full as u32;
            };
            contend::make_room(&KernelTables::ANYWHERE, spare, spot, stays, room) as u32
        }
    };
}

make_room!(make_room_v4, V4);
make_room!(make_room_v6, V6);

/// For freeing the twin of an entry that goes.
macro_rules! evict_twin {
    ($name:ident, $family:ty) => {
        #[doc = "`contend::evict_twin` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(victim: *mut Entry<$family>, twin: *mut Spot, but: *const Spot) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the types' sizes, or null.
            let (victim, twin, but) = unsafe { (victim.as_mut(), twin.as_mut(), but.as_ref()) };
            let (Some(victim), Some(twin), Some(but)) = (victim, twin, but) else {
                return 0;
            };
            contend::evict_twin(&KernelTables::ANYWHERE, victim, twin, but) as u32
        }
    };
}

evict_twin!(evict_twin_v4, V4);
evict_twin!(evict_twin_v6, V6);

/// For freeing a flow.
macro_rules! free_pair {
    ($name:ident, $family:ty) => {
        #[doc = "`table::free_pair` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(
            spot: *const Spot,
            spare: *mut Entry<$family>,
            twin: *mut Spot,
            but: *const Spot,
        ) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the types' sizes, or null.
            let (spot, spare) = unsafe { (spot.as_ref(), spare.as_mut()) };
            // SAFETY: as above.
            let (twin, but) = unsafe { (twin.as_mut(), but.as_ref()) };
            let (Some(spot), Some(spare), Some(twin), Some(but)) = (spot, spare, twin, but) else {
                return 0;
            };
            table::free_pair(&KernelTables::ANYWHERE, spot, spare, twin, but) as u32
        }
    };
}

free_pair!(free_pair_v4, V4);
free_pair!(free_pair_v6, V6);

/// For finding, trying and taking over a port.
macro_rules! with_work {
    ($name:ident, $family:ty, $call:path, $otherwise:expr $(, $step:ident)?) => {
        #[doc = concat!("`", stringify!($call), "` as a global function of the object.")]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(work: *mut Work<$family> $(, $step: u32)?) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the type's size, or null.
            let Some(work) = (unsafe { work.as_mut() }) else {
                return $otherwise as u32;
            };
            $call(&KernelTables::ANYWHERE, work $(, $step)?) as u32
        }
    };
}

with_work!(free_port_v4, V4, pipeline::free_port, Claimed::Full);
with_work!(free_port_v6, V6, pipeline::free_port, Claimed::Full);
with_work!(try_port_v4, V4, pipeline::try_port, false, step);
with_work!(try_port_v6, V6, pipeline::try_port, false, step);
with_work!(take_over_v4, V4, pipeline::take_over, false);
with_work!(take_over_v6, V6, pipeline::take_over, false);

/// For leaving a slot.
macro_rules! leave {
    ($name:ident, $family:ty) => {
        #[doc = "`table::leave` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(index: u32, base: u32, home: u32) -> u32 {
            table::leave::<$family, _>(&KernelTables::ANYWHERE, index, base as usize, home);
            0
        }
    };
}

leave!(leave_v4, V4);
leave!(leave_v6, V6);

/// For choosing a slot.
macro_rules! choose {
    ($name:ident, $family:ty) => {
        #[doc = "`contend::choose` as a global function of the object."]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(stays: *const Spot, into: *mut Spot) -> u32 {
            // SAFETY: the verifier checks that callers pass memory of the type's size, or null.
            let (Some(stays), Some(into)) = (unsafe { stays.as_ref() }, unsafe { into.as_mut() }) else {
                return 0;
            };
            contend::choose::<$family, _>(&KernelTables::ANYWHERE, stays, into) as u32
        }
    };
}

choose!(choose_v4, V4);
choose!(choose_v6, V6);

/// `contend::rank` as a global function of the object: as part of choosing, its branches multiply with the slots.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn rank(control: u64, now: u32) -> u64 {
    contend::rank(&KernelTables::ANYWHERE, Control::from_word(control), now)
}
