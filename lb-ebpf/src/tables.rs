//! The pipeline's view of the maps.
//!
//! No policy here: each method is one map access, or the call of a function that is verified once. Indices are bounded by the map, word offsets by a mask that equals the
//! value's size, so that the verifier can follow.
#![expect(
    unsafe_code,
    reason = "map values are reached through the pointers that the kernel hands out"
)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key by value would be copied onto a stack of 512 bytes once more"
)]

use aya_ebpf::btf_maps::lpm_trie::Key as LpmKey;
use lb_common::access::{Rolls, Route, RouteKind, SetRef, Slots, TableFamily, Tables};
use lb_common::family::Side;
use lb_common::flow::search::Found;
use lb_common::flow::slot::{Rewrite, Seen};
use lb_common::flow::table::{Claimed, Spot};
use lb_common::flow::{Entry, Key};
use lb_common::layout::{
    AffinityKey, AffinityValue, BACKEND_WORDS, Device, FragmentKey, FrontendValue, RANGE_ID_BITS, config,
};
use lb_common::pipeline::Work;
use lb_common::slots::{LINE_WORDS, home, probe};
use lb_common::steps::select::{Backend, Wanted};
use lb_common::verdict::Reason;

use crate::globals::{
    backend_v4, backend_v6, choose_v4, choose_v6, claim_at_home_v4, claim_at_home_v6, claim_v4, claim_v6,
    evict_twin_v4, evict_twin_v6, free_pair_v4, free_pair_v6, free_port_v4, free_port_v6, frontend_v4, frontend_v6,
    leave_v4, leave_v6, look_at_v4, look_at_v6, make_room_v4, make_room_v6, rank, recount_v4, recount_v6, scan_set_v4,
    scan_set_v6, seek_v4, seek_v6, spill_v4, spill_v6, take_over_v4, take_over_v6, try_port_v4, try_port_v6,
};
use crate::maps::{
    AFFINITY_V4, AFFINITY_V6, ANSWERS, ARENA, BACKEND_RECORDS, BLOCK_WORDS, CONFIG, DEVICE_WORDS_BY_INDEX, FIRSTS,
    FORWARD_BITS, FRAGMENTS_V4, FRAGMENTS_V6, RANGES_V4, RANGES_V6, REASON_COUNTERS, REPLY_BITS, SERVICE_WORDS,
};
use crate::sets::KernelSlots;
use crate::{hops, kernel};

/// The kernel's tables. `KNOWN`: where the configuration is was looked up beforehand; else it is each time.
#[derive(Clone, Copy)]
pub(crate) struct KernelTables<const KNOWN: bool = true> {
    /// The context, for helpers that need one.
    pub(crate) ctx: *mut core::ffi::c_void,
    /// The hook is XDP.
    early: bool,
    /// The configuration's words, where they are known.
    config: *const u64,
}

impl KernelTables<false> {
    /// For functions that need no context.
    pub(crate) const ANYWHERE: Self = Self {
        ctx: core::ptr::null_mut(),
        early: false,
        config: core::ptr::null(),
    };
}

impl KernelTables {
    /// For a program of this context.
    #[inline(always)]
    pub(crate) fn of(ctx: *mut core::ffi::c_void, early: bool) -> Option<Self> {
        let config = CONFIG.get_ptr(0)?.cast();
        Some(Self { ctx, early, config })
    }
}

// Functions of their own: their room on the stack is not their caller's, nor each other's.
impl<const KNOWN: bool> KernelTables<KNOWN> {
    /// [`Tables::recent_route`] for these sides.
    #[inline(never)]
    fn ask<F: TableFamily>(&self, ifindex: u32, length: u16, sides: &Rewrite<F>, into: &mut Route<F::Addr>) {
        *into = self.recent_route::<F>(ifindex, sides.src.addr, sides.dst.addr, length);
    }

    /// [`hops::settle`] for these sides.
    #[inline(never)]
    fn settle<F: TableFamily>(&self, ifindex: u32, length: u16, sides: &Rewrite<F>, answer: &mut Route<F::Addr>) {
        hops::settle::<F>(self.ctx, ifindex, length, sides.dst.addr, answer);
    }
}

impl<const KNOWN: bool> Tables for KernelTables<KNOWN> {
    type Flows<F: TableFamily> = KernelSlots<F>;
    type Frontends<F: TableFamily> = KernelSlots<F>;

    #[inline(always)]
    fn flows<F: TableFamily>(&self) -> KernelSlots<F> {
        KernelSlots::FLOWS
    }

    #[inline(always)]
    fn frontends<F: TableFamily>(&self) -> KernelSlots<F> {
        KernelSlots::FRONTENDS
    }

    #[inline(always)]
    fn fetch<F: TableFamily>(&self, hash: u64) {
        let table = self.flows::<F>();
        let home = home(hash, table.mask());
        // What is read is not used: a processor goes on until it is.
        table.roll(home);
        if let Some(set) = table.set(home) {
            let base = probe(hash, 0) * F::SLOT_WORDS;
            for line in (0..F::SLOT_WORDS).step_by(LINE_WORDS) {
                set.load(base + line);
            }
        }
    }

    #[inline(always)]
    fn find_frontend<F: TableFamily>(&self, side: &Side<F>, protocol: u8) -> FrontendValue {
        let (seed, addr) = (self.config(config::TABLE_SEED), &raw const side.addr);
        let (port, protocol) = (side.port as u32, protocol as u32);
        // The cast is to the very type: `F` picks the function.
        FrontendValue::from_word(F::pick(
            || frontend_v4(seed, addr.cast(), port, protocol),
            || frontend_v6(seed, addr.cast(), port, protocol),
        ))
    }

    #[inline(always)]
    fn try_backend<F: TableFamily>(&self, wanted: &Wanted<'_, F>, into: &mut Backend<F>) -> Reason {
        let (frontend, source) = (wanted.frontend.word(), wanted.source as u32);
        let (key, into) = (&raw const *wanted.key, &raw mut *into);
        // As in `find_frontend`.
        Reason::from_number(F::pick(
            || backend_v4(frontend, key.cast(), source, into.cast()),
            || backend_v6(frontend, key.cast(), source, into.cast()),
        ))
    }

    #[inline(always)]
    fn scan_set<F: TableFamily>(&self, index: u32, key: &Key<F>, into: &mut Spot) -> Found {
        let (key, into) = (&raw const *key, &raw mut *into);
        // As in `find_frontend`.
        Found::from_number(F::pick(
            || scan_set_v4(index, key.cast(), into),
            || scan_set_v6(index, key.cast(), into),
        ))
    }

    #[inline(always)]
    fn look_at<F: TableFamily>(&self, index: u32, matches: u32, key: &Key<F>, into: &mut Spot) -> Found {
        let (key, into) = (&raw const *key, &raw mut *into);
        // As in `find_frontend`.
        Found::from_number(F::pick(
            || look_at_v4(index, matches, key.cast(), into),
            || look_at_v6(index, matches, key.cast(), into),
        ))
    }

    #[inline(always)]
    fn recount<F: TableFamily>(&self, home: u32, more: bool) -> bool {
        let more = more as u32;
        F::pick(|| recount_v4(home, more), || recount_v6(home, more)) != 0
    }

    #[inline(always)]
    fn seek<F: TableFamily>(&self, key: &Key<F>, src: &Side<F>, dst: &Side<F>, into: &mut Spot) -> Seen {
        let (key, src, dst, into) = (&raw const *key, &raw const *src, &raw const *dst, &raw mut *into);
        // As in `find_frontend`.
        Seen::from_number(F::pick(
            || seek_v4(key.cast(), src.cast(), dst.cast(), into),
            || seek_v6(key.cast(), src.cast(), dst.cast(), into),
        ))
    }

    #[inline(always)]
    fn claim<F: TableFamily>(
        &self,
        key: &Key<F>,
        spare: &mut Entry<F>,
        spot: &mut Spot,
        stays: &Spot,
        room: &mut Spot,
    ) -> Claimed {
        let (key, spare) = (&raw const *key, &raw mut *spare);
        let (spot, stays, room) = (&raw mut *spot, &raw const *stays, &raw mut *room);
        // As in `find_frontend`.
        Claimed::from_number(F::pick(
            || claim_v4(key.cast(), spare.cast(), spot, stays, room),
            || claim_v6(key.cast(), spare.cast(), spot, stays, room),
        ))
    }

    #[inline(always)]
    fn claim_at_home<F: TableFamily>(&self, key: &Key<F>, spot: &mut Spot, stays: &Spot) -> Claimed {
        let (key, spot, stays) = (&raw const *key, &raw mut *spot, &raw const *stays);
        // As in `find_frontend`.
        Claimed::from_number(F::pick(
            || claim_at_home_v4(key.cast(), spot, stays),
            || claim_at_home_v6(key.cast(), spot, stays),
        ))
    }

    #[inline(always)]
    fn spill<F: TableFamily>(&self, key: &Key<F>, spot: &mut Spot, stays: &Spot) -> Claimed {
        let (key, spot, stays) = (&raw const *key, &raw mut *spot, &raw const *stays);
        // As in `find_frontend`.
        Claimed::from_number(F::pick(
            || spill_v4(key.cast(), spot, stays),
            || spill_v6(key.cast(), spot, stays),
        ))
    }

    #[inline(always)]
    fn make_room<F: TableFamily>(
        &self,
        spare: &mut Entry<F>,
        spot: &mut Spot,
        stays: &Spot,
        room: &mut Spot,
    ) -> Claimed {
        let spare = &raw mut *spare;
        let (spot, stays, room) = (&raw mut *spot, &raw const *stays, &raw mut *room);
        // As in `find_frontend`.
        Claimed::from_number(F::pick(
            || make_room_v4(spare.cast(), spot, stays, room),
            || make_room_v6(spare.cast(), spot, stays, room),
        ))
    }

    #[inline(always)]
    fn evict_twin<F: TableFamily>(&self, victim: &mut Entry<F>, twin: &mut Spot, but: &Spot) -> bool {
        let (victim, twin, but) = (&raw mut *victim, &raw mut *twin, &raw const *but);
        // As in `find_frontend`.
        F::pick(
            || evict_twin_v4(victim.cast(), twin, but),
            || evict_twin_v6(victim.cast(), twin, but),
        ) != 0
    }

    #[inline(always)]
    fn free_pair<F: TableFamily>(&self, spot: &Spot, spare: &mut Entry<F>, twin: &mut Spot, but: &Spot) -> bool {
        let (spot, spare) = (&raw const *spot, &raw mut *spare);
        let (twin, but) = (&raw mut *twin, &raw const *but);
        // As in `find_frontend`.
        F::pick(
            || free_pair_v4(spot, spare.cast(), twin, but),
            || free_pair_v6(spot, spare.cast(), twin, but),
        ) != 0
    }

    #[inline(always)]
    fn try_port<F: TableFamily>(&self, work: &mut Work<F>, i: u32) -> bool {
        let work = &raw mut *work;
        // As in `find_frontend`.
        F::pick(|| try_port_v4(work.cast(), i), || try_port_v6(work.cast(), i)) != 0
    }

    #[inline(always)]
    fn take_over<F: TableFamily>(&self, work: &mut Work<F>) -> bool {
        let work = &raw mut *work;
        // As in `find_frontend`.
        F::pick(|| take_over_v4(work.cast()), || take_over_v6(work.cast())) != 0
    }

    #[inline(always)]
    fn free_port<F: TableFamily>(&self, work: &mut Work<F>) -> Claimed {
        let work = &raw mut *work;
        // As in `find_frontend`.
        Claimed::from_number(F::pick(|| free_port_v4(work.cast()), || free_port_v6(work.cast())))
    }

    #[inline(always)]
    fn leave<F: TableFamily>(&self, index: u32, base: usize, home: u32) {
        let base = base as u32;
        F::pick(|| leave_v4(index, base, home), || leave_v6(index, base, home));
    }

    #[inline(always)]
    fn choose<F: TableFamily>(&self, stays: &Spot, into: &mut Spot) -> bool {
        let (stays, into) = (&raw const *stays, &raw mut *into);
        F::pick(|| choose_v4(stays, into), || choose_v6(stays, into)) != 0
    }

    #[inline(always)]
    fn rank(&self, control: u64, now: u32) -> u64 {
        rank(control, now)
    }

    #[inline(always)]
    fn config(&self, word: usize) -> u64 {
        let words = if KNOWN {
            Some(self.config)
        } else {
            CONFIG.get_ptr(0).map(<*const _>::cast)
        };
        read(words.map(|words| words.wrapping_add(word & (config::WORDS - 1))))
    }

    #[inline(always)]
    fn service(&self, id: u32) -> u64 {
        read(SERVICE_WORDS.get_ptr(id))
    }

    #[inline(always)]
    fn arena(&self, index: u32) -> u64 {
        self.block(index).map_or(0, |block| block(index % BLOCK_WORDS as u32))
    }

    #[inline(always)]
    fn block(&self, offset: u32) -> Option<impl Fn(u32) -> u64 + Copy> {
        let words = ARENA.get_ptr(offset / BLOCK_WORDS as u32)?.cast::<u64>();
        Some(move |word| read(Some(words.wrapping_add(word as usize % BLOCK_WORDS))))
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<[u64; BACKEND_WORDS]> {
        let words = BACKEND_RECORDS.get_ptr(id)?.cast::<u64>();
        let word = |word| read(Some(words.wrapping_add(word)));
        Some([word(0), word(1), word(2), word(3)])
    }

    #[inline(always)]
    fn forward_bits(&self, word: u32) -> u64 {
        read(FORWARD_BITS.get_ptr(word))
    }

    #[inline(always)]
    fn reply_bits(&self, word: u32) -> u64 {
        read(REPLY_BITS.get_ptr(word))
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<Device> {
        // SAFETY: the value is read whole at once; user space replaces it rarely and readers tolerate either.
        unsafe { DEVICE_WORDS_BY_INDEX.get(&ifindex) }.map(|words| Device::from_words(*words))
    }

    #[inline(always)]
    fn receives(&self, ifindex: u32, mac: u64) -> bool {
        hops::receives(ifindex, mac, self.config(config::HZ), || self.device(ifindex))
    }

    #[inline(always)]
    fn in_ranges<F: TableFamily>(&self, service: u32, addr: F::Addr) -> bool {
        let [a, b] = F::to_words(addr);
        F::pick(
            || {
                let data = service.swap_bytes() as u64 | a << 32;
                RANGES_V4
                    .get(&LpmKey::new(RANGE_ID_BITS + 32, data.to_ne_bytes()))
                    .is_some()
            },
            || {
                let mut data = [0u8; 20];
                data[..4].copy_from_slice(&service.swap_bytes().to_ne_bytes());
                data[4..12].copy_from_slice(&a.to_ne_bytes());
                data[12..].copy_from_slice(&b.to_ne_bytes());
                RANGES_V6.get(&LpmKey::new(RANGE_ID_BITS + 128, data)).is_some()
            },
        )
    }

    #[inline(always)]
    fn affinity<F: TableFamily>(&self, key: &AffinityKey) -> Option<AffinityValue> {
        let key = [key.client[0], key.client[1], key.service];
        // SAFETY: a value torn by a concurrent update fails the generation check of its backend.
        let value = unsafe { F::pick(|| AFFINITY_V4.get(&key), || AFFINITY_V6.get(&key)) }?;
        Some(AffinityValue {
            backend: value[0],
            last_new: value[1],
        })
    }

    #[inline(always)]
    fn remember_affinity<F: TableFamily>(&self, key: &AffinityKey, value: &AffinityValue) {
        let (key, value) = (
            [key.client[0], key.client[1], key.service],
            [value.backend, value.last_new],
        );
        // Where the map refuses, the client has no affinity until its next connection: nothing to report to.
        let _ = F::pick(
            || AFFINITY_V4.insert(&key, &value, 0),
            || AFFINITY_V6.insert(&key, &value, 0),
        );
    }

    #[inline(always)]
    fn fragment<F: TableFamily>(&self, key: &FragmentKey) -> Option<u64> {
        let key = [key.src[0], key.src[1], key.dst[0], key.dst[1], key.id];
        // SAFETY: one aligned word.
        unsafe { F::pick(|| FRAGMENTS_V4.get(&key), || FRAGMENTS_V6.get(&key)) }.copied()
    }

    #[inline(always)]
    fn remember_fragment<F: TableFamily>(&self, key: &FragmentKey, ports: u64) {
        let key = [key.src[0], key.src[1], key.dst[0], key.dst[1], key.id];
        let _ = F::pick(
            || FRAGMENTS_V4.insert(&key, &ports, 0),
            || FRAGMENTS_V6.insert(&key, &ports, 0),
        );
    }

    #[inline(always)]
    fn route<F: TableFamily>(&self, ifindex: u32, saddr: F::Addr, daddr: F::Addr, length: u16) -> Route<F::Addr> {
        kernel::route::<F>(self.ctx, ifindex, saddr, daddr, length)
    }

    #[inline(always)]
    fn recent_route<F: TableFamily>(
        &self,
        ifindex: u32,
        saddr: F::Addr,
        daddr: F::Addr,
        length: u16,
    ) -> Route<F::Addr> {
        let second = self.config(config::HZ);
        hops::route::<F>(self.ctx, ifindex, saddr, daddr, length, second, self.early)
    }

    #[inline(always)]
    fn first_route<F: TableFamily>(&self, ifindex: u32, length: u16, sides: &Rewrite<F>, into: &mut Route<F::Addr>) {
        self.ask::<F>(ifindex, length, sides, into);
        let is_open = sides.src.addr == F::Addr::default() && into.source != F::Addr::default();
        if is_open && into.kind == RouteKind::Via && into.mtu != 0 {
            self.settle::<F>(ifindex, length, sides, into);
        }
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        kernel::jiffies()
    }

    #[inline(always)]
    fn answer_token(&self) -> bool {
        let Some(bucket) = ANSWERS.get_ptr_mut(0) else {
            return false;
        };
        // SAFETY: a per-CPU value; only this program on this CPU writes it.
        let [start, used] = unsafe { *bucket };
        let now = self.now() as u64;
        let fresh = (now as u32).wrapping_sub(start as u32) as u64 >= self.config(config::HZ);
        let (start, used) = if fresh { (now, 0) } else { (start, used) };
        if used >= self.config(config::ANSWER_RATE) {
            return false;
        }
        // SAFETY: as above.
        unsafe { *bucket = [start, used + 1] };
        true
    }

    #[inline(always)]
    fn firsts(&self) -> u64 {
        read(FIRSTS.get_ptr(0))
    }

    #[inline(always)]
    fn set_firsts(&self, count: u64) {
        if let Some(firsts) = FIRSTS.get_ptr_mut(0) {
            // SAFETY: a per-CPU value.
            unsafe { *firsts = count }
        }
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        if let Some(counter) = REASON_COUNTERS.get_ptr_mut(reason as u32) {
            // SAFETY: a per-CPU value.
            unsafe { *counter += 1 };
        }
    }
}

/// Reads one word of a map value.
#[inline(always)]
fn read(word: Option<*const u64>) -> u64 {
    // SAFETY: the pointer comes from a map look-up and lies inside the value.
    word.map_or(0, |word| unsafe { word.read_volatile() })
}
