//! The tables in memory, and what the kernel adds to them: a clock, routes, an allowance of answers.
//!
//! Words behave as the kernel's shared maps do: a read out of bounds is zero, a write out of bounds is lost. Every kind of
//! look-up is counted ([`Lookups`]), so that a test can tell what a packet cost. All of it may be used from several threads.

use std::collections::BTreeMap;
use std::ops::Sub;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::sets::HostSlots;
use crate::access::{Macs, Route, RouteKind, TableFamily, Tables};
use crate::family::{Family as _, V4, V6};
use crate::layout::{AffinityKey, AffinityValue, BACKEND_WORDS, BITS_WORDS, Device, FragmentKey, SET_SLOTS, config};
use crate::verdict::{REASONS, Reason};

/// Kinds of look-ups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Lookup {
    /// A search of the flow table.
    Flows,
    /// A set of the flow table.
    FlowSets,
    /// The roll of a set.
    Rolls,
    /// A search of the frontend table.
    Frontends,
    /// A set of the frontend table.
    FrontendSets,
    /// A configuration word.
    Config,
    /// A service word.
    Service,
    /// An arena word, or the header of a block there.
    Arena,
    /// A backend.
    Backend,
    /// A word of a bit-set.
    Bits,
    /// A device.
    Device,
    /// Source ranges.
    Ranges,
    /// Session affinity, read or written.
    Affinity,
    /// A datagram in fragments, read or written.
    Fragment,
    /// A route.
    Route,
    /// The clock.
    Clock,
}

/// Number of kinds.
const KINDS: usize = Lookup::Clock as usize + 1;

/// Look-ups by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups([u64; KINDS]);

impl Lookups {
    /// The number of look-ups of a kind.
    pub fn of(&self, kind: Lookup) -> u64 {
        self.0.get(kind as usize).copied().unwrap_or_default()
    }
}

impl Sub for Lookups {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        let mut difference = self;
        for (now, before) in difference.0.iter_mut().zip(earlier.0) {
            *now -= before;
        }
        difference
    }
}

/// Sizes of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Sets of each flow table; a power of two.
    pub flow_sets: usize,
    /// Sets of each frontend table; a power of two.
    pub frontend_sets: usize,
    /// Service words.
    pub services: usize,
    /// Arena words.
    pub arena: usize,
    /// Backends.
    pub backends: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            flow_sets: 64,
            frontend_sets: 64,
            services: 16,
            arena: 512,
            backends: 64,
        }
    }
}

/// A route as the kernel would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// What is found.
    pub kind: RouteKind,
    /// Interface index of the way out.
    pub ifindex: u32,
    /// Next hop, in map words.
    pub next_hop: [u64; 2],
    /// Preferred source, in map words; zero = none.
    pub source: [u64; 2],
    /// MTU of the way out; a longer packet is too big.
    pub mtu: u16,
    /// MAC addresses of a frame to the next hop.
    pub macs: Macs,
}

impl HostRoute {
    /// Nothing usable.
    pub const NONE: Self = Self {
        kind: RouteKind::None,
        ifindex: 0,
        next_hop: [0; 2],
        source: [0; 2],
        mtu: 0,
        macs: Macs { to: 0, from: 0 },
    };
}

type Words = Box<[AtomicU64]>;
type AffinityMap = BTreeMap<([u64; 2], u64), AffinityValue>;
type FragmentMap = BTreeMap<([u64; 2], [u64; 2], u64), u64>;

/// The tables of a test.
#[derive(Debug)]
pub struct HostTables {
    pub(super) flows: [Words; 2],
    pub(super) frontends: [Words; 2],
    sizes: Sizes,
    pub(super) services: Words,
    pub(super) arena: Words,
    pub(super) backends: Words,
    pub(super) config: Words,
    pub(super) forward_bits: Words,
    pub(super) reply_bits: Words,
    devices: Mutex<BTreeMap<u32, Device>>,
    ranges: Mutex<Vec<(u32, [u64; 2], u32)>>,
    affinity: [Mutex<AffinityMap>; 2],
    fragments: [Mutex<FragmentMap>; 2],
    routes: Mutex<BTreeMap<(bool, [u64; 2]), HostRoute>>,
    clock: AtomicU32,
    answers: AtomicU32,
    firsts: AtomicU64,
    reasons: [AtomicU64; REASONS],
    lookups: [AtomicU64; KINDS],
}

fn zeroed(words: usize) -> Words {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

/// A test that panicked while it held the lock has failed already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn load(words: &[AtomicU64], index: usize) -> u64 {
    words.get(index).map_or(0, |word| word.load(Ordering::Relaxed))
}

pub(super) fn store(words: &[AtomicU64], index: usize, value: u64) {
    if let Some(word) = words.get(index) {
        word.store(value, Ordering::Relaxed);
    }
}

impl HostTables {
    /// Empty tables.
    pub fn new(sizes: Sizes) -> Self {
        let flows = |slot_words| zeroed((SET_SLOTS * slot_words + 1) * sizes.flow_sets);
        let frontends = |slot_words| zeroed(sizes.frontend_sets * SET_SLOTS * slot_words);
        Self {
            flows: [V4::SLOT_WORDS, V6::SLOT_WORDS].map(flows),
            frontends: [V4::FRONTEND_WORDS, V6::FRONTEND_WORDS].map(frontends),
            sizes,
            services: zeroed(sizes.services),
            arena: zeroed(sizes.arena),
            backends: zeroed(sizes.backends * BACKEND_WORDS),
            config: zeroed(config::WORDS),
            forward_bits: zeroed(BITS_WORDS as usize),
            reply_bits: zeroed(BITS_WORDS as usize),
            devices: Mutex::default(),
            ranges: Mutex::default(),
            affinity: Default::default(),
            fragments: Default::default(),
            routes: Mutex::default(),
            clock: AtomicU32::new(0),
            answers: AtomicU32::new(u32::MAX),
            firsts: AtomicU64::new(0),
            reasons: [const { AtomicU64::new(0) }; REASONS],
            lookups: [const { AtomicU64::new(0) }; KINDS],
        }
    }

    /// Sizes of the tables.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Sets a configuration word.
    pub fn set_config(&self, word: usize, value: u64) {
        store(&self.config, word, value);
    }

    /// Sets the clock, in jiffies.
    pub fn set_clock(&self, jiffies: u32) {
        self.clock.store(jiffies, Ordering::Relaxed);
    }

    /// Lets time pass, in jiffies; wraps as the kernel's low 32 bits do.
    pub fn advance(&self, jiffies: u32) {
        self.clock.fetch_add(jiffies, Ordering::Relaxed);
    }

    /// Sets how many more answers may be given; `u32::MAX` = any number.
    pub fn set_answers(&self, count: u32) {
        self.answers.store(count, Ordering::Relaxed);
    }

    /// Adds a device.
    pub fn set_device(&self, ifindex: u32, device: Device) {
        lock(&self.devices).insert(ifindex, device);
    }

    /// Adds a source range: the first `bits` of `prefix`, in map words.
    pub fn add_range(&self, service: u32, prefix: [u64; 2], bits: u32) {
        lock(&self.ranges).push((service, prefix, bits));
    }

    /// Sets the route to an address; `None` = to all that have none of their own.
    pub fn set_route(&self, v6: bool, destination: Option<[u64; 2]>, route: HostRoute) {
        lock(&self.routes).insert((v6, destination.unwrap_or_default()), route);
    }

    /// How often a reason was counted.
    pub fn counted(&self, reason: Reason) -> u64 {
        load(&self.reasons, reason as usize)
    }

    /// All look-ups so far.
    pub fn lookups(&self) -> Lookups {
        Lookups(std::array::from_fn(|kind| load(&self.lookups, kind)))
    }

    /// The words of a flow table as they are.
    pub fn flow_words(&self, v6: bool) -> Vec<u64> {
        let words = self.flows[usize::from(v6)].iter();
        words.map(|word| word.load(Ordering::Relaxed)).collect()
    }

    /// Forgets all affinities and fragments, as full tables do.
    pub fn forget(&self) {
        for family in 0..2 {
            lock(&self.affinity[family]).clear();
            lock(&self.fragments[family]).clear();
        }
    }

    pub(super) fn look(&self, kind: Lookup) {
        if let Some(counter) = self.lookups.get(kind as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl HostTables {
    /// The flow table; reaching for it is not counted.
    pub fn flow_slots<F: TableFamily>(&self) -> HostSlots<'_> {
        HostSlots {
            words: F::pick(|| &self.flows[0], || &self.flows[1]),
            set_words: F::SLOT_WORDS * SET_SLOTS,
            mask: self.sizes.flow_sets as u32 - 1,
            tables: self,
            kind: Lookup::FlowSets,
        }
    }

    /// The frontend table; reaching for it is not counted.
    pub fn frontend_slots<F: TableFamily>(&self) -> HostSlots<'_> {
        HostSlots {
            words: F::pick(|| &self.frontends[0], || &self.frontends[1]),
            set_words: F::FRONTEND_WORDS * SET_SLOTS,
            mask: self.sizes.frontend_sets as u32 - 1,
            tables: self,
            kind: Lookup::FrontendSets,
        }
    }
}

impl<'a> Tables for &'a HostTables {
    type Flows<F: TableFamily> = HostSlots<'a>;
    type Frontends<F: TableFamily> = HostSlots<'a>;

    fn flows<F: TableFamily>(&self) -> HostSlots<'a> {
        self.look(Lookup::Flows);
        self.flow_slots::<F>()
    }

    fn frontends<F: TableFamily>(&self) -> HostSlots<'a> {
        self.look(Lookup::Frontends);
        self.frontend_slots::<F>()
    }

    fn config(&self, word: usize) -> u64 {
        self.look(Lookup::Config);
        load(&self.config, word)
    }

    fn service(&self, id: u32) -> u64 {
        self.look(Lookup::Service);
        load(&self.services, id as usize)
    }

    fn arena(&self, index: u32) -> u64 {
        self.look(Lookup::Arena);
        load(&self.arena, index as usize)
    }

    fn block(&self, offset: u32) -> Option<impl Fn(u32) -> u64 + Copy> {
        self.look(Lookup::Arena);
        Some(move |word| load(&self.arena, offset.wrapping_add(word) as usize))
    }

    fn backend(&self, id: u32) -> Option<[u64; BACKEND_WORDS]> {
        self.look(Lookup::Backend);
        Some(core::array::from_fn(|word| {
            load(&self.backends, id as usize * BACKEND_WORDS + word)
        }))
    }

    fn forward_bits(&self, word: u32) -> u64 {
        self.look(Lookup::Bits);
        load(&self.forward_bits, word as usize)
    }

    fn reply_bits(&self, word: u32) -> u64 {
        self.look(Lookup::Bits);
        load(&self.reply_bits, word as usize)
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        self.look(Lookup::Device);
        lock(&self.devices).get(&ifindex).copied()
    }

    fn in_ranges<F: TableFamily>(&self, service: u32, addr: F::Addr) -> bool {
        self.look(Lookup::Ranges);
        let width = if F::V6 { 128 } else { 32 };
        let bits = |words: [u64; 2]| -> u128 {
            let bytes: Vec<u8> = words
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .take(width / 8)
                .collect();
            bytes.iter().fold(0, |all, byte| all << 8 | u128::from(*byte))
        };
        let address = bits(F::to_words(addr));
        lock(&self.ranges).iter().any(|(owner, prefix, length)| {
            *owner == service && (*length == 0 || (address ^ bits(*prefix)) >> (width as u32 - length) == 0)
        })
    }

    fn affinity<F: TableFamily>(&self, key: &AffinityKey) -> Option<AffinityValue> {
        self.look(Lookup::Affinity);
        lock(&self.affinity[usize::from(F::V6)])
            .get(&(key.client, key.service))
            .copied()
    }

    fn remember_affinity<F: TableFamily>(&self, key: &AffinityKey, value: &AffinityValue) {
        self.look(Lookup::Affinity);
        lock(&self.affinity[usize::from(F::V6)]).insert((key.client, key.service), *value);
    }

    fn fragment<F: TableFamily>(&self, key: &FragmentKey) -> Option<u64> {
        self.look(Lookup::Fragment);
        lock(&self.fragments[usize::from(F::V6)])
            .get(&(key.src, key.dst, key.id))
            .copied()
    }

    fn remember_fragment<F: TableFamily>(&self, key: &FragmentKey, ports: u64) {
        self.look(Lookup::Fragment);
        lock(&self.fragments[usize::from(F::V6)]).insert((key.src, key.dst, key.id), ports);
    }

    fn route<F: TableFamily>(&self, _ifindex: u32, saddr: F::Addr, daddr: F::Addr, length: u16) -> Route<F::Addr> {
        self.look(Lookup::Route);
        let routes = lock(&self.routes);
        let own = routes.get(&(F::V6, F::to_words(daddr)));
        let Some(route) = own.or_else(|| routes.get(&(F::V6, [0; 2]))) else {
            return Route::without(RouteKind::None);
        };
        if route.kind != RouteKind::Via {
            return Route::without(route.kind);
        }
        if route.mtu != 0 && length > route.mtu {
            return Route {
                mtu: route.mtu,
                ..Route::without(RouteKind::TooBig)
            };
        }
        Route {
            kind: RouteKind::Via,
            ifindex: route.ifindex,
            next_hop: F::from_words(route.next_hop),
            source: F::from_words(route.source),
            mtu: 0,
            macs: route.macs,
            settled: length != 0 && (saddr != F::Addr::default() || route.source != [0; 2]),
        }
    }

    fn now(&self) -> u32 {
        self.look(Lookup::Clock);
        self.clock.load(Ordering::Relaxed)
    }

    fn answer_token(&self) -> bool {
        self.answers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
                0 => None,
                u32::MAX => Some(u32::MAX),
                left => Some(left - 1),
            })
            .is_ok()
    }

    fn firsts(&self) -> u64 {
        self.firsts.load(Ordering::Relaxed)
    }

    fn set_firsts(&self, count: u64) {
        self.firsts.store(count, Ordering::Relaxed);
    }

    fn count(&self, reason: Reason) {
        if let Some(counter) = self.reasons.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}
