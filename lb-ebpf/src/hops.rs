//! Next hops that this CPU sent to within the last second, so that most packets cost no route look-up.
//!
//! In: a question as [`kernel::route`] takes it. Out: its answer, perhaps a second old. An answer is kept
//! only where it is a way out with an MTU; it is dropped after a second, when another question takes its place, and at once
//! when user space has seen a change of routes, rules, neighbours, addresses or links (the word of the map `epoch` rises). A packet
//! that is larger than the MTU that was found asks anew. Of one question there is one answer. Answers are per CPU: nothing here contends.
//! For XDP, what frames a device receives is kept as well, and as long.
//! Where a question names no source, it is asked again with the one that the kernel prefers, and the answer tells whether that is the same way.
//! For XDP (`early`), a fresh answer is given without MAC addresses where the neighbour wants a packet of tc's.
#![expect(
    unsafe_code,
    reason = "a per-CPU map value is reached through the pointer that the kernel hands out"
)]

use core::ffi::c_void;

use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::btf_map;
use lb_common::access::{Macs, Route, RouteKind, TableFamily, is_received};
use lb_common::hash;
use lb_common::layout::Device;

use crate::kernel;
use crate::maps::MMAPABLE;

/// Raised by user space with every change that may concern a way out.
#[btf_map(name = "epoch")]
static EPOCH: Array<u64, 1, MMAPABLE> = Array::new();

/// Sets of [`HOPS`], a power of two, and the answers of one: of a thousand ways one in fifty meets more than fit beside it.
const SETS: u32 = 1 << 10;
/// The bits of a hash that are left of it for a set's index.
const SETS_SHIFT: u32 = u64::BITS - SETS.ilog2();
const WAYS: usize = 4;

/// The answers.
#[btf_map(name = "hops")]
static HOPS: PerCpuArray<[Hop; WAYS], { SETS as usize }> = PerCpuArray::new();

/// The last devices that received a frame.
#[btf_map(name = "receivers")]
static RECEIVERS: PerCpuArray<Receiver, { RECEIVERS_KEPT as usize }> = PerCpuArray::new();
/// How many, a power of two.
const RECEIVERS_KEPT: u32 = 4;

/// A device that received a frame for a MAC address; all zero where none did yet (no device has index 0).
#[derive(Clone, Copy)]
#[repr(C)]
struct Receiver {
    ifindex: u32,
    /// When that was looked up, in jiffies.
    asked: u32,
    mac: u64,
}

/// A question and its answer; all zero where nothing was asked yet (no way leads out of device 0).
#[derive(Clone, Copy)]
#[repr(C)]
struct Hop {
    src: [u64; 2],
    dst: [u64; 2],
    /// epoch 32 | when it was asked, in jiffies 32.
    stamp: u64,
    /// Asked for IPv6 1 | device that the packet came in by 31 | settled 1 | device that it goes out by 31.
    devices: u64,
    /// MTU 16 | the receiver's MAC address 48.
    to: u64,
    /// The sender's MAC address.
    from: u64,
    next: [u64; 2],
    source: [u64; 2],
}

/// As [`kernel::route`], perhaps as it was up to a second (`hz` jiffies) ago. Where a source is asked for, it is settled.
#[inline(always)]
pub(crate) fn route<F: TableFamily>(
    ctx: *mut c_void,
    ifindex: u32,
    saddr: F::Addr,
    daddr: F::Addr,
    length: u16,
    hz: u64,
    early: bool,
) -> Route<F::Addr> {
    let mixed = hash::way::<F>(saddr, daddr);
    let (Some(set), Some(epoch)) = (HOPS.get_ptr_mut((mixed >> SETS_SHIFT) as u32), EPOCH.get(0)) else {
        return kernel::route::<F>(ctx, ifindex, saddr, daddr, length);
    };
    let now = kernel::jiffies();
    let stamp = *epoch << 32 | now as u64;
    // SAFETY: a per-CPU value; programs on one CPU do not interrupt each other within a hook, and a value torn by a program at
    // another hook fails the comparison with the question that is written last.
    let set = unsafe { &mut *set };
    let question = Question::of::<F>(ifindex, saddr, daddr);
    let mut place = WAYS;
    for (i, hop) in set.iter().enumerate() {
        if hop.is_about::<F>(&question) {
            if hop.holds(stamp, hz) && hop.fits(length) {
                return hop.answer::<F>();
            }
            place = i;
        }
    }
    // An older answer to the same question makes room, else the first place where nothing was asked, which is read first, else any: what stays is not
    // displaced, so that ways that fit beside each other come to do so.
    if place == WAYS {
        place = (mixed as u32 ^ now) as usize % WAYS;
        for (i, hop) in set.iter().enumerate().rev() {
            if hop.devices == 0 {
                place = i;
            }
        }
    }
    let mut route = kernel::route::<F>(ctx, ifindex, saddr, daddr, length);
    if route.kind == RouteKind::Via && route.mtu != 0 {
        let hop = &mut set[place % WAYS];
        hop.devices = 0;
        hop.stamp = stamp;
        hop.to = (route.mtu as u64) << 48 | route.macs.to;
        hop.from = route.macs.from;
        hop.next = F::to_words(route.next_hop);
        hop.source = F::to_words(route.source);
        hop.src = question.src;
        hop.dst = question.dst;
        route.settled = saddr != F::Addr::default();
        hop.devices = (question.asker as u64) << 32 | (route.settled as u64 * SETTLED) | route.ifindex as u64;
    }
    if early && route.macs.to != 0 && kernel::wants_confirmation(route.macs.to, hz) {
        route.macs = Macs::default();
    }
    route
}

/// Looks whether a fresh answer about the way to `daddr`, the source being open, is the same for the source that it prefers, and keeps that.
#[inline(always)]
pub(crate) fn settle<F: TableFamily>(
    ctx: *mut c_void,
    ifindex: u32,
    length: u16,
    daddr: F::Addr,
    answer: &mut Route<F::Addr>,
) {
    let again = kernel::route::<F>(ctx, ifindex, answer.source, daddr, length);
    answer.settled = again.kind == RouteKind::Via
        && again.ifindex == answer.ifindex
        && again.next_hop == answer.next_hop
        && again.mtu == answer.mtu;
    if !answer.settled {
        return;
    }
    let open = F::Addr::default();
    let Some(set) = HOPS.get_ptr_mut((hash::way::<F>(open, daddr) >> SETS_SHIFT) as u32) else {
        return;
    };
    let question = Question::of::<F>(ifindex, open, daddr);
    // SAFETY: as in `route`.
    for hop in unsafe { &mut *set } {
        if hop.is_about::<F>(&question) {
            hop.devices |= SETTLED;
        }
    }
}

/// In [`Hop::devices`]: [`Route::settled`].
const SETTLED: u64 = 1 << 31;

/// Whether a device receives frames for this MAC address, perhaps as it was up to a second (`hz` jiffies) ago; `device` tells what it is now.
#[inline(always)]
pub(crate) fn receives(ifindex: u32, mac: u64, hz: u64, device: impl Fn() -> Option<Device>) -> bool {
    let now = kernel::jiffies();
    let Some(last) = RECEIVERS.get_ptr_mut(ifindex % RECEIVERS_KEPT) else {
        return false;
    };
    // SAFETY: a per-CPU value.
    let last = unsafe { &mut *last };
    if last.mac == mac && last.ifindex == ifindex && (now.wrapping_sub(last.asked) as u64) < hz {
        return true;
    }
    let receives = is_received(device(), mac);
    if receives {
        *last = Receiver {
            ifindex,
            asked: now,
            mac,
        };
    }
    receives
}

/// What is asked.
struct Question {
    src: [u64; 2],
    dst: [u64; 2],
    /// The device that the packet came in by, and its family; never 0.
    asker: u32,
}

impl Question {
    /// The way of a packet that came in by a device, from one address to another.
    #[inline(always)]
    fn of<F: TableFamily>(ifindex: u32, saddr: F::Addr, daddr: F::Addr) -> Self {
        Self {
            src: F::to_words(saddr),
            dst: F::to_words(daddr),
            asker: ifindex | (F::V6 as u32) << 31,
        }
    }
}

impl Hop {
    /// Whether it holds an answer that may still be given.
    #[inline(always)]
    fn holds(&self, stamp: u64, hz: u64) -> bool {
        let age = (stamp as u32).wrapping_sub(self.stamp as u32) as u64;
        self.stamp >> 32 == stamp >> 32 && age < hz
    }

    /// Whether this question was asked. An IPv4 address is one word.
    #[inline(always)]
    fn is_about<F: TableFamily>(&self, asked: &Question) -> bool {
        self.dst[0] == asked.dst[0]
            && self.src[0] == asked.src[0]
            && self.devices >> 32 == asked.asker as u64
            && (!F::V6 || self.dst[1] == asked.dst[1] && self.src[1] == asked.src[1])
    }

    /// Whether a packet of this length fits through.
    #[inline(always)]
    fn fits(&self, length: u16) -> bool {
        length != 0 && length <= (self.to >> 48) as u16
    }

    #[inline(always)]
    fn answer<F: TableFamily>(&self) -> Route<F::Addr> {
        Route {
            kind: RouteKind::Via,
            ifindex: (self.devices & (SETTLED - 1)) as u32,
            next_hop: F::from_words(self.next),
            source: F::from_words(self.source),
            // Which tells it from a fresh one.
            mtu: 0,
            macs: Macs {
                to: self.to << 16 >> 16,
                from: self.from,
            },
            settled: self.devices & SETTLED != 0,
        }
    }
}
