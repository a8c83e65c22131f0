//! Programs of the bench: they put the next flow's packet in place of the last one and jump to the program that is measured.
//!
//! The kernel runs a program many times on one packet and does not restore it in between (BPF_PROG_TEST_RUN with `repeat`), so that
//! a repeated run of a translating program alone would measure a packet that is nobody's. Here each run first looks what became
//! of the last packet and counts it as good where it was translated as told, then writes the next of the frames that user space
//! laid out, and tail-calls [`TARGET`]. What the same run costs with a target that does nothing is the price of the loop.
//!
//! An answer may be longer than what it answers: [`answered_packet`] and [`answered_frame`] take that back first.
//!
//! Beside them stand the [`yardsticks`], and the two ends of the way through a node: [`generate`] sends the frames out of a device, [`sink`] counts and drops what comes back as told.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "the only way to a compare-and-swap on this target")
)]
#![expect(unsafe_code, reason = "program sections, packet pointers and map values")]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the macros hand a program's context over by value"
)]

mod yardsticks;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::btf_maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
};
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

/// `BPF_F_MMAPABLE`.
const MMAPABLE: usize = 0x400;
/// Most frames, and as many keys; a power of two.
const FRAMES: usize = 1 << 20;
/// Words of a frame.
const FRAME_WORDS: usize = 12;
/// Return value of every program here: go on (`TC_ACT_UNSPEC`).
const NEXT: i32 = -1;

/// What is asked for; words of [`SETTINGS`].
mod setting {
    /// Number of frames, or of the yardstick's keys.
    pub(super) const COUNT: usize = 0;
    /// Index of the device that frames are sent out of.
    pub(super) const DEVICE: usize = 1;
    /// Length of a frame that is answered.
    pub(super) const LENGTH: usize = 2;
    /// Bytes that its answer has in front of it.
    pub(super) const GROWN: usize = 3;
    /// Three words of the packet that tell whether it was translated: offset, the bits that matter, and what they are then.
    pub(super) const SHOWN: [usize; 3] = [4, 7, 10];
    /// How often the program runs.
    pub(super) const RUNS: usize = 13;
    /// Number of words.
    pub(super) const WORDS: usize = 14;
}

/// What the runs so far came to; words of [`PROGRESS`], all of them nought before the first.
mod progress {
    /// The next frame's number.
    pub(super) const NEXT: usize = 0;
    /// How many packets were translated as told.
    pub(super) const GOOD: usize = 1;
    /// Runs so far.
    pub(super) const RUNS: usize = 2;
    /// The run at whose beginning the clock is looked at next.
    pub(super) const MARK: usize = 3;
    /// When the first run began, by the kernel's clock in nanoseconds; from the last run's beginning on, how long that is ago.
    pub(super) const TIME: usize = 4;
    /// Number of words.
    pub(super) const WORDS: usize = 5;
}

type Settings = [u64; setting::WORDS];
type Progress = [u64; progress::WORDS];

#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1, MMAPABLE> = Array::new();
#[btf_map(name = "frames")]
static FRAMES_BY_FLOW: Array<[u64; FRAME_WORDS], FRAMES, MMAPABLE> = Array::new();
/// This CPU's [`progress`].
#[btf_map(name = "progress")]
static PROGRESS: PerCpuArray<Progress, 1> = PerCpuArray::new();
#[btf_map(name = "target")]
static TARGET: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "target_xdp")]
static TARGET_XDP: ProgramArray<1> = ProgramArray::new();

/// Settings and this CPU's progress.
#[inline(always)]
fn state() -> Option<(&'static Settings, &'static mut Progress)> {
    let (settings, progress) = (SETTINGS.get_ptr(0)?, PROGRESS.get_ptr_mut(0)?);
    // SAFETY: map values; the second is this CPU's own.
    Some(unsafe { (&*settings, &mut *progress) })
}

/// This run's number, from 0 to one less than the number of frames, in turn. Every program that is measured begins so: between the
/// first run's beginning and the last one's there is nothing but runs and the kernel's loop.
#[inline(always)]
fn turn(settings: &Settings, progress: &mut Progress) -> u64 {
    let run = progress[progress::RUNS];
    progress[progress::RUNS] = run + 1;
    if run == progress[progress::MARK] {
        // SAFETY: the helper takes no arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        progress[progress::TIME] = now - progress[progress::TIME];
        progress[progress::MARK] = settings[setting::RUNS].wrapping_sub(1);
    }
    let number = progress[progress::NEXT];
    progress[progress::NEXT] = if number + 1 < settings[setting::COUNT] {
        number + 1
    } else {
        0
    };
    number
}

/// Counts the last packet where it is good.
#[inline(always)]
fn judge(settings: &Settings, progress: &mut Progress, data: usize, end: usize) {
    progress[progress::GOOD] += is_good(settings, data, end) as u64;
}

/// Writes the next flow's packet.
#[inline(always)]
fn next(settings: &Settings, progress: &mut Progress, data: usize, end: usize) {
    let number = turn(settings, progress);
    if let Some(frame) = FRAMES_BY_FLOW.get(number as u32) {
        write(data, end, frame);
    }
    // A frame that a device brings is in memory, this one on its way there: reading what was written just now in pieces of another size
    // would wait for it, each time. A swap does so once, here, in the loop that is taken off.
    wait_for_stores(&mut progress[progress::RUNS]);
}

/// Waits until everything that was written is in memory; leaves the word as it is.
#[inline(always)]
fn wait_for_stores(word: &mut u64) {
    #[cfg(target_arch = "bpf")]
    {
        use core::intrinsics::{AtomicOrdering, atomic_cxchg};
        // SAFETY: an aligned word of a map value.
        unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, 0, 0) };
    }
    #[cfg(not(target_arch = "bpf"))]
    core::hint::black_box(word);
}

/// The next flow's packet for the program that is measured.
#[classifier]
fn packet(ctx: TcContext) -> i32 {
    let Some((settings, progress)) = state() else {
        return NEXT;
    };
    let (data, end) = (ctx.data(), ctx.data_end());
    judge(settings, progress, data, end);
    next(settings, progress, data, end);
    // SAFETY: the context is the program's own.
    unsafe { TARGET.tail_call(&ctx, 0) };
    NEXT
}

/// As [`packet`], at XDP.
#[xdp(frags)]
fn frame(ctx: XdpContext) -> u32 {
    let Some((settings, progress)) = state() else {
        return XDP_PASS;
    };
    let (data, end) = (ctx.data(), ctx.data_end());
    judge(settings, progress, data, end);
    next(settings, progress, data, end);
    // SAFETY: the context is the program's own.
    unsafe { TARGET_XDP.tail_call(&ctx, 0) };
    XDP_PASS
}

/// As [`packet`], where the last one may have become a longer answer.
#[classifier]
fn answered_packet(ctx: TcContext) -> i32 {
    /// `BPF_ADJ_ROOM_MAC`.
    const ROOM_AT_MAC: u32 = 1;
    let Some((settings, progress)) = state() else {
        return NEXT;
    };
    judge(settings, progress, ctx.data(), ctx.data_end());
    let (length, grown) = (settings[setting::LENGTH] as u32, settings[setting::GROWN] as i32);
    if ctx.len() != length {
        // SAFETY: scalars and the program's own context. What is refused shows by the next packet, which is not good then.
        unsafe {
            bpf_skb_adjust_room(ctx.skb.skb, -grown, ROOM_AT_MAC, 0);
            bpf_skb_change_tail(ctx.skb.skb, length, 0);
        }
    }
    next(settings, progress, ctx.data(), ctx.data_end());
    // SAFETY: the context is the program's own.
    unsafe { TARGET.tail_call(&ctx, 0) };
    NEXT
}

/// As [`answered_packet`], at XDP.
#[xdp(frags)]
fn answered_frame(ctx: XdpContext) -> u32 {
    let Some((settings, progress)) = state() else {
        return XDP_PASS;
    };
    let (data, end) = (ctx.data(), ctx.data_end());
    judge(settings, progress, data, end);
    let (length, grown) = (settings[setting::LENGTH] as i32, settings[setting::GROWN] as i32);
    let now = ((end - data) as u32).cast_signed();
    if now != length {
        // SAFETY: as in `answered_packet`.
        unsafe {
            bpf_xdp_adjust_head(ctx.ctx, grown);
            bpf_xdp_adjust_tail(ctx.ctx, length + grown - now);
        }
    }
    next(settings, progress, ctx.data(), ctx.data_end());
    // SAFETY: the context is the program's own.
    unsafe { TARGET_XDP.tail_call(&ctx, 0) };
    XDP_PASS
}

/// Whether the packet shows that it was translated as told.
#[inline(always)]
fn is_good(settings: &Settings, data: usize, end: usize) -> bool {
    let [first, second, third] = setting::SHOWN;
    shows(settings, first, data, end) && shows(settings, second, data, end) && shows(settings, third, data, end)
}

/// Whether one word of the packet is as told from this setting on.
#[inline(always)]
fn shows(settings: &Settings, told: usize, data: usize, end: usize) -> bool {
    let offset = settings[told] as usize & 63;
    if data + offset + 8 > end {
        return false;
    }
    // SAFETY: the bounds were checked just now.
    let found = unsafe { ((data + offset) as *const u64).read_volatile() };
    found & settings[told + 1] == settings[told + 2]
}

/// Sends the next flow's packet out of a device: run with live frames, whose bytes are as the last receiver left them.
#[xdp]
fn generate(ctx: XdpContext) -> u32 {
    let Some((settings, progress)) = state() else {
        return XDP_DROP;
    };
    let number = turn(settings, progress);
    let Some(frame) = FRAMES_BY_FLOW.get(number as u32) else {
        return XDP_DROP;
    };
    write(ctx.data(), ctx.data_end(), frame);
    // SAFETY: the helper takes plain integers.
    unsafe { (bpf_redirect(settings[setting::DEVICE] as u32, 0) as i32).cast_unsigned() }
}

/// Counts and drops what was translated as told; all else goes on.
#[xdp]
fn sink(ctx: XdpContext) -> u32 {
    let Some((settings, progress)) = state() else {
        return XDP_PASS;
    };
    if !is_good(settings, ctx.data(), ctx.data_end()) {
        return XDP_PASS;
    }
    progress[progress::GOOD] += 1;
    XDP_DROP
}

/// Writes a frame over a packet of at least 54 bytes (Ethernet, IPv4, TCP), as far as the packet goes: to 74 (IPv6) or 96.
#[inline(always)]
fn write(data: usize, end: usize, frame: &[u64; FRAME_WORDS]) {
    let at = |offset: usize| (data + offset) as *mut u64;
    if data + 54 > end {
        return;
    }
    for (i, word) in frame[..6].iter().enumerate() {
        // SAFETY: within the bytes checked above.
        unsafe { at(i * 8).write_volatile(*word) };
    }
    // SAFETY: as above.
    unsafe {
        at(48).cast::<u32>().write_volatile(frame[6] as u32);
        at(52).cast::<u16>().write_volatile((frame[6] >> 32) as u16);
    }
    if data + 74 > end {
        return;
    }
    // SAFETY: within the bytes checked just now.
    unsafe {
        at(54).cast::<u16>().write_volatile((frame[6] >> 48) as u16);
        at(56).write_volatile(frame[7]);
        at(64).write_volatile(frame[8]);
        at(72).cast::<u16>().write_volatile(frame[9] as u16);
    }
    if data + 96 > end {
        return;
    }
    for (i, word) in frame.iter().enumerate().skip(9) {
        // SAFETY: within the bytes checked just now.
        unsafe { at(i * 8).write_volatile(*word) };
    }
}

/// A target that does nothing.
#[classifier]
fn nothing(_ctx: TcContext) -> i32 {
    NEXT
}

/// The same at XDP.
#[xdp(frags)]
fn nothing_xdp(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence that the kernel asks for.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
