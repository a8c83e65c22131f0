//! The packets of tc and XDP hooks: all packet pointers of the programs are in this file. No protocol knowledge here.
//!
//! Loads and stores go straight to the packet after one bounds check; they are single instructions, because a load that Rust
//! may not assume aligned would become four. At tc a transport checksum is changed by `bpf_l4_csum_replace` alone: it knows
//! whether the field holds a whole sum or only the pseudo header's (`CHECKSUM_PARTIAL`). A frame at XDP comes from a wire, so
//! that its sums are whole, and is changed in place (RFC 1624). Of a frame in several buffers the first alone is reached.
#![expect(
    unsafe_code,
    reason = "packet memory is reached through pointers that the verifier checks"
)]
#![expect(clippy::cast_possible_wrap, reason = "lengths are far below 2^31")]

use aya_ebpf::Global;
use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_csum_update, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
    bpf_skb_pull_data, bpf_xdp_adjust_head, bpf_xdp_adjust_meta, bpf_xdp_adjust_tail, bpf_xdp_load_bytes,
};
use aya_ebpf::macros::btf_map;
use lb_common::access::{Packet, SUM_BYTES};
use lb_common::checksum;

/// 1 where `bpf_l4_csum_replace` knows `BPF_F_IPV6` (an IPv6 address change leaves a whole-packet sum as it is).
#[unsafe(no_mangle)]
static CSUM_IPV6: Global<u32> = Global::new(0);

/// Room for the bytes that are summed: as much as [`bounded`] lets a length be.
#[btf_map(name = "sum")]
static SUM_ROOM: PerCpuArray<[u64; REACH / 8], 1> = PerCpuArray::new();

const PSEUDO_HEADER: u64 = 0x10;
const MARK_MANGLED_ZERO: u64 = 0x20;
const IPV6: u64 = 0x80;
/// `skb->pkt_type` of a frame to another host's MAC address (linux/if_packet.h).
const PACKET_OTHERHOST: u32 = 3;
/// `BPF_ADJ_ROOM_MAC`.
const ROOM_AT_MAC: u32 = 1;
/// Bytes that the pipeline may read; a power of two, so that a mask bounds an offset.
const REACH: usize = 512;

/// A socket buffer.
#[derive(Clone, Copy)]
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

/// A frame as the driver has it.
#[derive(Clone, Copy)]
pub(crate) struct Frame(pub(crate) *mut xdp_md);

macro_rules! field {
    ($packet:expr, $name:ident) => {{
        // SAFETY: the context is valid for the program's run; the verifier checks the offset.
        unsafe { (&raw const (*$packet.0).$name).read_volatile() }
    }};
}

impl Skb {
    /// Whether the packet belongs to a VLAN of this device. A tag of VLAN 0 is a priority alone (IEEE 802.1Q, 6.9.1).
    #[inline(always)]
    pub(crate) fn is_of_vlan(self) -> bool {
        field!(self, vlan_present) != 0 && field!(self, vlan_tci) & 0xfff != 0
    }

    /// Ethernet type as the skb knows it, network order in memory.
    #[inline(always)]
    pub(crate) fn protocol(self) -> u16 {
        field!(self, protocol) as u16
    }

    /// True where XDP left a mark beside the packet, and it is the wanted one.
    #[inline(always)]
    pub(crate) fn is_marked(self, wanted: impl Fn() -> u32) -> bool {
        let beside = field!(self, data_meta) as usize;
        beside + MARK_BYTES <= field!(self, data) as usize && load32(beside) == wanted()
    }
}

/// Bytes of the mark beside a packet.
const MARK_BYTES: usize = 4;

/// A packet's bytes that are reached directly.
trait Linear: Copy {
    /// Addresses of its first byte and of the one behind the last.
    fn bounds(self) -> (usize, usize);

    /// Address of `length` readable bytes at `offset`.
    #[inline(always)]
    fn at(self, offset: usize, length: usize) -> Option<usize> {
        if offset >= REACH {
            return None;
        }
        let (start, end) = self.bounds();
        let start = start + bounded(offset);
        if start + length > end { None } else { Some(start) }
    }

    #[inline(always)]
    fn load_words<const N: usize>(self, offset: usize) -> Option<[u32; N]> {
        let at = self.at(offset, N * 4)?;
        let mut words = [0u32; N];
        for (i, word) in words.iter_mut().enumerate() {
            *word = load32(at + i * 4);
        }
        Some(words)
    }

    #[inline(always)]
    fn store_words<const N: usize>(self, offset: usize, words: [u32; N]) -> Option<()> {
        let at = self.at(offset, N * 4)?;
        for (i, word) in words.iter().enumerate() {
            store32(at + i * 4, *word);
        }
        Some(())
    }

    #[inline(always)]
    fn load_half(self, offset: usize) -> Option<u16> {
        self.at(offset, 2).map(load16)
    }

    #[inline(always)]
    fn store_half(self, offset: usize, half: u16) -> Option<()> {
        let at = self.at(offset, 2)?;
        store16(at, half);
        Some(())
    }
}

impl Linear for Skb {
    #[inline(always)]
    fn bounds(self) -> (usize, usize) {
        (field!(self, data) as usize, field!(self, data_end) as usize)
    }
}

impl Linear for Frame {
    #[inline(always)]
    fn bounds(self) -> (usize, usize) {
        (field!(self, data) as usize, field!(self, data_end) as usize)
    }
}

/// Sum of `length` bytes that `load` brings into the room for them.
#[inline(always)]
fn sum_of(length: usize, load: impl Fn(*mut core::ffi::c_void, u32) -> i64) -> Option<u64> {
    let room = SUM_ROOM.get_ptr_mut(0)?;
    if length == 0 || length > SUM_BYTES {
        return None;
    }
    // Linux 6.1 does not learn from a comparison with zero that a length is above it.
    let length = bounded(length - 1) + 1;
    let room = room.cast::<[u64; SUM_BYTES / 8]>();
    // SAFETY: a per-CPU value that nothing else uses while this program runs.
    unsafe { room.write([0; SUM_BYTES / 8]) };
    // The value behind `room` is REACH long, and the length is no longer than that.
    if load(room.cast(), length as u32) != 0 {
        return None;
    }
    // SAFETY: the sum is taken over the whole room; what was not loaded is zero.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, room.cast(), SUM_BYTES as u32, 0) };
    u64::try_from(sum).ok()
}

/// An offset below [`REACH`] in a form that the verifier sees bounded: a compiler would fold a field's distance into the bound
/// and leave a pointer that may be negative. A constant needs no mask.
#[inline(always)]
fn bounded(offset: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        if core::intrinsics::is_val_statically_known(offset) {
            return offset;
        }
        let mut offset = offset;
        // SAFETY: arithmetic on a scalar. 511 is REACH - 1.
        unsafe {
            core::arch::asm!("{o} &= 511", o = inout(reg) offset, options(pure, nomem, nostack));
        }
        offset
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        offset & (REACH - 1)
    }
}

#[inline(always)]
fn load32(at: usize) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let value: u64;
        // SAFETY: the caller checked four bytes at `at` against the packet's end.
        unsafe {
            core::arch::asm!("{v} = *(u32 *)({p} + 0)", v = out(reg) value, p = in(reg) at, options(readonly, nostack));
        }
        value as u32
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        // SAFETY: as above.
        unsafe { (at as *const u32).read_unaligned() }
    }
}

#[inline(always)]
fn load16(at: usize) -> u16 {
    #[cfg(target_arch = "bpf")]
    {
        let value: u64;
        // SAFETY: the caller checked two bytes at `at` against the packet's end.
        unsafe {
            core::arch::asm!("{v} = *(u16 *)({p} + 0)", v = out(reg) value, p = in(reg) at, options(readonly, nostack));
        }
        value as u16
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        // SAFETY: as above.
        unsafe { (at as *const u16).read_unaligned() }
    }
}

#[inline(always)]
fn store32(at: usize, value: u32) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller checked four bytes at `at` against the packet's end.
    unsafe {
        core::arch::asm!("*(u32 *)({p} + 0) = {v}", v = in(reg) value as u64, p = in(reg) at, options(nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above.
    unsafe {
        (at as *mut u32).write_unaligned(value);
    }
}

#[inline(always)]
fn store16(at: usize, value: u16) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller checked two bytes at `at` against the packet's end.
    unsafe {
        core::arch::asm!("*(u16 *)({p} + 0) = {v}", v = in(reg) value as u64, p = in(reg) at, options(nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above.
    unsafe {
        (at as *mut u16).write_unaligned(value);
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn reach(&mut self, length: usize) {
        let linear = field!(self, data_end) as usize - field!(self, data) as usize;
        let all = field!(self, len) as usize;
        if linear < length && all > linear {
            let wanted = if all < length { all } else { length };
            // SAFETY: the context is valid. A refusal leaves the packet as it was; short reads then fail their bounds check.
            unsafe { bpf_skb_pull_data(self.0, wanted as u32) };
        }
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.load_words(offset)
    }

    #[inline(always)]
    fn half(&self, offset: usize) -> Option<u16> {
        self.load_half(offset)
    }

    #[inline(always)]
    fn set_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> Option<()> {
        self.store_words(offset, words)
    }

    #[inline(always)]
    fn set_half(&mut self, offset: usize, half: u16) -> Option<()> {
        self.store_half(offset, half)
    }

    #[inline(always)]
    fn l4_change(&mut self, offset: usize, address: u64, ports: u64, udp: bool, v6: bool) -> Option<()> {
        let udp_flag = if udp { MARK_MANGLED_ZERO } else { 0 };
        let knows_v6 = CSUM_IPV6.load() != 0;
        let v6_flag = if v6 && knows_v6 { IPV6 } else { 0 };
        let offset = offset as u32;
        if address != checksum::UNCHANGED {
            let address = checksum::fold32(address);
            // SAFETY: scalars and the context. Size 0 in the flags means that `to` is a difference.
            let failed =
                unsafe { bpf_l4_csum_replace(self.0, offset, 0, address as u64, PSEUDO_HEADER | udp_flag | v6_flag) };
            if failed != 0 {
                return None;
            }
            if v6 && !knows_v6 {
                // SAFETY: scalars and the context. Takes back what the helper took from a whole-packet sum.
                unsafe { bpf_csum_update(self.0, address) };
            }
        }
        if ports != checksum::UNCHANGED {
            let ports = checksum::fold32(ports);
            // SAFETY: as above.
            let failed = unsafe { bpf_l4_csum_replace(self.0, offset, 0, ports as u64, udp_flag) };
            if failed != 0 {
                return None;
            }
        }
        Some(())
    }

    #[inline(always)]
    fn sum(&self, offset: usize, length: usize) -> Option<u64> {
        sum_of(length, |room, length| {
            // SAFETY: `room` holds `length` bytes.
            unsafe { bpf_skb_load_bytes(self.0.cast(), offset as u32, room, length) }
        })
    }

    #[inline(always)]
    fn whole_delta(&mut self, delta: u32) {
        // SAFETY: scalars and the context. A refusal means that there is no such sum.
        unsafe { bpf_csum_update(self.0, delta) };
    }

    #[inline(always)]
    fn length(&self) -> usize {
        field!(self, len) as usize
    }

    #[inline(always)]
    fn segment_payload(&self) -> usize {
        field!(self, gso_size) as usize
    }

    #[inline(always)]
    fn trim(&mut self, length: usize) -> Option<()> {
        if length >= self.length() {
            return Some(());
        }
        // SAFETY: scalars and the context.
        let failed = unsafe { bpf_skb_change_tail(self.0, length as u32, 0) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn insert(&mut self, _l3: usize, count: usize) -> Option<()> {
        // SAFETY: scalars and the context.
        let failed = unsafe { bpf_skb_adjust_room(self.0, count as i32, ROOM_AT_MAC, 0) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        field!(self, ifindex)
    }

    #[inline(always)]
    fn sent_by_host(&self) -> bool {
        field!(self, ingress_ifindex) == 0
    }

    #[inline(always)]
    fn is_for_host(&self) -> bool {
        field!(self, pkt_type) != PACKET_OTHERHOST
    }
}

impl Packet for Frame {
    const EARLY: bool = true;

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.load_words(offset)
    }

    #[inline(always)]
    fn half(&self, offset: usize) -> Option<u16> {
        self.load_half(offset)
    }

    #[inline(always)]
    fn set_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> Option<()> {
        self.store_words(offset, words)
    }

    #[inline(always)]
    fn set_half(&mut self, offset: usize, half: u16) -> Option<()> {
        self.store_half(offset, half)
    }

    #[inline(always)]
    fn l4_change(&mut self, offset: usize, address: u64, ports: u64, udp: bool, _v6: bool) -> Option<()> {
        let field = self.load_half(offset)?;
        if udp && field == 0 {
            return Some(());
        }
        let new = checksum::apply_change(field, address + ports);
        self.store_half(offset, if udp && new == 0 { u16::MAX } else { new })
    }

    #[inline(always)]
    fn sum(&self, offset: usize, length: usize) -> Option<u64> {
        sum_of(length, |room, length| {
            // SAFETY: `room` holds `length` bytes.
            unsafe { bpf_xdp_load_bytes(self.0, offset as u32, room, length) }
        })
    }

    #[inline(always)]
    fn whole_delta(&mut self, _delta: u32) {}

    #[inline(always)]
    fn length(&self) -> usize {
        let (start, end) = self.bounds();
        end - start
    }

    #[inline(always)]
    fn segment_payload(&self) -> usize {
        0
    }

    #[inline(always)]
    fn trim(&mut self, length: usize) -> Option<()> {
        let now = self.length();
        if length >= now {
            return Some(());
        }
        // SAFETY: scalars and the context.
        let failed = unsafe { bpf_xdp_adjust_tail(self.0, length as i32 - now as i32) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn insert(&mut self, _l3: usize, count: usize) -> Option<()> {
        let (addresses, protocol) = (self.load_words::<3>(0)?, self.load_half(12)?);
        // SAFETY: scalars and the context.
        let failed = unsafe { bpf_xdp_adjust_head(self.0, -(count as i32)) };
        if failed != 0 {
            return None;
        }
        self.store_words(0, addresses)?;
        self.store_half(12, protocol)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        field!(self, ingress_ifindex)
    }

    #[inline(always)]
    fn sent_by_host(&self) -> bool {
        false
    }

    #[inline(always)]
    fn is_for_host(&self) -> bool {
        false
    }

    #[inline(always)]
    fn mark(&mut self, mark: u32) -> Option<()> {
        // SAFETY: scalars and the context. A driver that cannot carry what stands beside a packet refuses.
        let failed = unsafe { bpf_xdp_adjust_meta(self.0, -(MARK_BYTES as i32)) };
        let beside = field!(self, data_meta) as usize;
        if failed != 0 || beside + MARK_BYTES > field!(self, data) as usize {
            return None;
        }
        store32(beside, mark);
        Some(())
    }
}
