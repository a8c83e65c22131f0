//! Safe faces of BPF helpers and instructions. No decisions here.
#![expect(
    unsafe_code,
    reason = "helpers are foreign functions; each block says what makes the call right"
)]
#![expect(clippy::cast_possible_wrap, reason = "sizes of small structures")]

use core::ffi::c_void;
use core::mem::size_of;

use aya_ebpf::Global;
use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup as FibLookup, bpf_redir_neigh};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup, bpf_jiffies64, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_head,
};
use aya_ebpf::macros::btf_map;
use lb_common::access::{Macs, Route, RouteKind, TableFamily};

/// 1 where `bpf_fib_lookup` knows `BPF_FIB_LOOKUP_SRC` (Linux 6.7).
#[unsafe(no_mangle)]
static FIB_SOURCE: Global<u32> = Global::new(0);

/// Room for one route query: the kernel's struct would take an eighth of a program's stack.
#[btf_map(name = "fib")]
static SCRATCH: PerCpuArray<FibLookup, 1> = PerCpuArray::new();

/// When XDP last left a packet to tc for its neighbour's sake, in jiffies with [`SET`], by the last byte of the MAC address.
#[btf_map(name = "confirmed")]
static CONFIRMED: PerCpuArray<u64, 256> = PerCpuArray::new();

/// A time in [`CONFIRMED`] is set.
const SET: u64 = 1 << 32;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const FIB_LOOKUP_SRC: u32 = 1 << 4;
const FIB_SUCCESS: i64 = 0;
const FIB_NOT_FORWARDED: i64 = 4;
const FIB_NO_NEIGHBOUR: i64 = 7;
const FIB_TOO_BIG: i64 = 8;
/// `BPF_F_INGRESS` of `bpf_redirect`.
const INGRESS: u64 = 1;

/// Low 32 bits of the kernel's jiffies.
#[inline(always)]
pub(crate) fn jiffies() -> u32 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_jiffies64() as u32 }
}

/// Sequentially consistent compare-and-swap; returns the previous value.
#[inline(always)]
pub(crate) fn compare_and_swap(word: *mut u64, old: u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        use core::intrinsics::{AtomicOrdering, atomic_cxchg};
        // SAFETY: callers pass an aligned word inside a map value.
        unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new).0 }
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: as above.
        let word = unsafe { AtomicU64::from_ptr(word) };
        word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .unwrap_or_else(|found| found)
    }
}

/// Looks up a route as the kernel's forwarding would.
#[inline(always)]
pub(crate) fn route<F: TableFamily>(
    ctx: *mut c_void,
    ifindex: u32,
    saddr: F::Addr,
    daddr: F::Addr,
    length: u16,
) -> Route<F::Addr> {
    let Some(fib) = SCRATCH.get_ptr_mut(0) else {
        return Route::without(RouteKind::None);
    };
    // SAFETY: a per-CPU value that nothing else uses while this program runs; zero is valid for the plain struct.
    let fib = unsafe {
        fib.write(core::mem::zeroed());
        &mut *fib
    };
    fib.family = if F::V6 { AF_INET6 } else { AF_INET };
    fib.ifindex = ifindex;
    fib.__bindgen_anon_1.tot_len = length;
    let (s, d) = (F::to_words(saddr), F::to_words(daddr));
    if F::V6 {
        fib.__bindgen_anon_3.ipv6_src = [s[0] as u32, (s[0] >> 32) as u32, s[1] as u32, (s[1] >> 32) as u32];
        fib.__bindgen_anon_4.ipv6_dst = [d[0] as u32, (d[0] >> 32) as u32, d[1] as u32, (d[1] >> 32) as u32];
    } else {
        fib.__bindgen_anon_3.ipv4_src = s[0] as u32;
        fib.__bindgen_anon_4.ipv4_dst = d[0] as u32;
    }
    let flags = if FIB_SOURCE.load() != 0 { FIB_LOOKUP_SRC } else { 0 };
    // SAFETY: `ctx` is the program's context and `fib` lives through the call.
    let code = unsafe { bpf_fib_lookup(ctx, fib, size_of::<FibLookup>() as i32, flags) } as i64;
    // Without a length to judge by, the kernel has found the way and compares the packet's own with the device's MTU.
    let is_way = code == FIB_SUCCESS || code == FIB_NO_NEIGHBOUR || code == FIB_TOO_BIG && length == 0;
    match code {
        _ if is_way => {
            if fib.family != if F::V6 { AF_INET6 } else { AF_INET } {
                return Route::without(RouteKind::None);
            }
            // SAFETY: the family says which member of each union the kernel filled.
            let (source, next_hop) = unsafe {
                if F::V6 {
                    (
                        addr6::<F>(fib.__bindgen_anon_3.ipv6_src),
                        addr6::<F>(fib.__bindgen_anon_4.ipv6_dst),
                    )
                } else {
                    (
                        F::from_words([fib.__bindgen_anon_3.ipv4_src as u64, 0]),
                        F::from_words([fib.__bindgen_anon_4.ipv4_dst as u64, 0]),
                    )
                }
            };
            let source = if flags != 0 { source } else { F::Addr::default() };
            Route {
                kind: RouteKind::Via,
                ifindex: fib.ifindex,
                // See `neighbour`.
                next_hop: if code == FIB_NO_NEIGHBOUR {
                    F::Addr::default()
                } else {
                    next_hop
                },
                source,
                // The kernel has put the way's MTU in the length's place.
                mtu: if length == 0 {
                    0
                } else {
                    // SAFETY: as above.
                    unsafe { fib.__bindgen_anon_1.mtu_result }
                },
                macs: if code == FIB_NO_NEIGHBOUR {
                    Macs::default()
                } else {
                    Macs {
                        to: mac(fib.dmac),
                        from: mac(fib.smac),
                    }
                },
                settled: false,
            }
        }
        FIB_TOO_BIG => {
            // SAFETY: on this code the kernel filled the MTU.
            let mtu = unsafe { fib.__bindgen_anon_1.mtu_result };
            Route {
                mtu,
                ..Route::without(RouteKind::TooBig)
            }
        }
        FIB_NOT_FORWARDED => Route::without(RouteKind::Local),
        _ => Route::without(RouteKind::None),
    }
}

/// A MAC address, bytes in order in the low 48 bits.
#[inline(always)]
fn mac(bytes: [u8; 6]) -> u64 {
    let [low, high] = [[bytes[0], bytes[1], bytes[2], bytes[3]], [bytes[4], bytes[5], 0, 0]];
    u32::from_le_bytes(low) as u64 | (u32::from_le_bytes(high) as u64) << 32
}

/// True about once in `second` jiffies for each neighbour that this CPU's XDP sends to: then tc has to send, which makes the
/// kernel confirm the neighbour where it is stale. A frame that XDP sends does not count as a use of it.
#[inline(always)]
pub(crate) fn wants_confirmation(neighbour: u64, second: u64) -> bool {
    let Some(last) = CONFIRMED.get_ptr_mut((neighbour >> 40) as u32 & 0xff) else {
        return false;
    };
    let now = jiffies();
    // SAFETY: a per-CPU value.
    let before = unsafe { *last };
    let due = before != 0 && now.wrapping_sub(before as u32) as u64 >= second;
    if before == 0 || due {
        // SAFETY: as above.
        unsafe { *last = now as u64 | SET };
    }
    due
}

#[inline(always)]
fn addr6<F: TableFamily>(w: [u32; 4]) -> F::Addr {
    F::from_words([w[0] as u64 | (w[1] as u64) << 32, w[2] as u64 | (w[3] as u64) << 32])
}

/// Sends the packet out of a device; the return value is the program's.
#[inline(always)]
pub(crate) fn transmit(ifindex: u32) -> i32 {
    // SAFETY: scalars only.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Hands the packet to a device's receive path; the return value is the program's.
#[inline(always)]
pub(crate) fn receive(ifindex: u32) -> i32 {
    // SAFETY: scalars only.
    unsafe { bpf_redirect(ifindex, INGRESS) as i32 }
}

/// Hands the packet to the pod at the other end of a device's link, past the stack; the return value is the program's. At ingress
/// alone.
#[inline(always)]
pub(crate) fn deliver(ifindex: u32) -> i32 {
    // SAFETY: scalars only.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}

/// Puts `length` zeros before a packet without a link header: [`neighbour`] drops a packet that carries none, and takes off
/// what it carries (`__bpf_redirect_neigh` in net/core/filter.c).
#[inline(always)]
pub(crate) fn prepend_link(ctx: *mut c_void, length: usize) -> bool {
    // SAFETY: the program's context; pointers into the packet are made anew for every access.
    unsafe { bpf_skb_change_head(ctx.cast::<__sk_buff>(), length as u32, 0) == 0 }
}

/// Sends the packet out of a device by way of a neighbour; the return value is the program's.
///
/// Zero stands for a neighbour that is not known yet: then the kernel looks up the route itself. A packet that waits for its
/// neighbour is sent, in the end, by the route that it carries (`neigh_update`, net/core/neighbour.c), and that of a packet
/// of this host still leads to steer0 or lo unless the kernel puts another in its place.
#[inline(always)]
pub(crate) fn neighbour<F: TableFamily>(ifindex: u32, next_hop: F::Addr) -> i32 {
    if next_hop == F::Addr::default() {
        // SAFETY: the helper takes no parameters then.
        return unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 };
    }
    // SAFETY: plain data for which zero is valid.
    let mut hop: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    let w = F::to_words(next_hop);
    if F::V6 {
        hop.nh_family = AF_INET6 as u32;
        hop.__bindgen_anon_1.ipv6_nh = [w[0] as u32, (w[0] >> 32) as u32, w[1] as u32, (w[1] >> 32) as u32];
    } else {
        hop.nh_family = AF_INET as u32;
        hop.__bindgen_anon_1.ipv4_nh = w[0] as u32;
    }
    // SAFETY: `hop` lives through the call and its size is given.
    unsafe { bpf_redirect_neigh(ifindex, &raw mut hop, size_of::<bpf_redir_neigh>() as i32, 0) as i32 }
}
