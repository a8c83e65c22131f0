//! How one stage of the pipeline hands over to the next: the program arrays, and what is left for the next on this CPU.
//!
//! Invariant: between a stage's tail call and the next stage's start nothing else runs on this CPU that uses these values, since
//! both belong to the processing of one packet.
#![expect(
    unsafe_code,
    reason = "map values are reached through the pointers that the kernel hands out"
)]

use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::btf_maps::{PerCpuArray, ProgramArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::access::TableFamily;
use lb_common::family::{V4, V6};
use lb_common::layout;
use lb_common::pipeline::Work;
use lb_common::verdict::Answer;

#[btf_map(name = "work_v4")]
static WORK_V4: PerCpuArray<[u64; WORK_WORDS], 1> = PerCpuArray::new();
#[btf_map(name = "work_v6")]
static WORK_V6: PerCpuArray<[u64; WORK_WORDS], 1> = PerCpuArray::new();
#[btf_map(name = "stages")]
static STAGES: ProgramArray<{ layout::stage::PROGRAMS.len() }> = ProgramArray::new();
#[btf_map(name = "stages_xdp")]
static STAGES_XDP: ProgramArray<{ layout::stage::XDP_PROGRAMS.len() }> = ProgramArray::new();

/// Words of the room of either family: a [`Handover`]'s, then a [`Work`].
const WORK_WORDS: usize = 93;
/// Words of a hand-over.
const HANDOVER_WORDS: usize = 4;
const _: () = assert!(size_of::<Work<V6>>() <= (WORK_WORDS - HANDOVER_WORDS) * 8);
const _: () = assert!(size_of::<Work<V4>>() <= (WORK_WORDS - HANDOVER_WORDS) * 8);

/// This CPU's room to work in, and what the stage before told this one; hook 0 where there was none.
#[inline(always)]
pub(crate) fn work<F: TableFamily>() -> Option<(Handover, &'static mut Work<F>)> {
    let room = room::<F>()?;
    // SAFETY: a per-CPU value of its own family that only the running program touches; the words behind the hand-over's are zeroes, which are a
    // valid `Work`, or what an earlier program of the same family wrote there.
    let (words, work) = unsafe { (*room, &mut *room.add(1).cast::<Work<F>>()) };
    let [hook, l3, kind, mtu] = words;
    let handover = Handover {
        hook: hook as u8,
        l3: l3 as usize & 0x1f,
        answer: Answer::from_number(kind as u8),
        mtu: mtu as u16,
    };
    Some((handover, work))
}

/// The room, which begins with the words of a hand-over.
#[inline(always)]
fn room<F: TableFamily>() -> Option<*mut [u64; HANDOVER_WORDS]> {
    let room = F::pick(|| WORK_V4.get_ptr_mut(0), || WORK_V6.get_ptr_mut(0))?;
    Some(room.cast())
}

/// What one stage tells the next, and all that follow until another is told.
#[derive(Clone, Copy)]
pub(crate) struct Handover {
    /// The hook.
    pub(crate) hook: u8,
    /// Offset of the IP header.
    pub(crate) l3: usize,
    /// The answer that is asked for.
    pub(crate) answer: Answer,
    /// The MTU that the answer names.
    pub(crate) mtu: u16,
}

impl Handover {
    /// Leaves the hand-over for the next stage.
    #[inline(always)]
    pub(crate) fn put<F: TableFamily>(self) {
        if let Some(room) = room::<F>() {
            // SAFETY: a per-CPU value; the next stage runs on this CPU before any other packet does.
            unsafe { *room = [self.hook as u64, self.l3 as u64, self.answer as u64, self.mtu as u64] };
        }
    }
}

/// Jumps to another stage at XDP; returns only if it is not in place.
#[inline(always)]
pub(crate) fn jump_xdp<const INDEX: u32>(ctx: &XdpContext) {
    tail_call::<INDEX>(ctx.as_ptr(), (&raw const STAGES_XDP).cast());
}

/// Jumps to another stage at tc; returns only if it is not in place.
#[inline(always)]
pub(crate) fn jump<const INDEX: u32>(ctx: &TcContext) {
    tail_call::<INDEX>(ctx.as_ptr(), (&raw const STAGES).cast());
}

/// `bpf_tail_call` of the program at `INDEX` of a program array.
///
/// The kernel makes a plain jump of a tail call whose index is one number at that place, and else one through a pointer, which costs what
/// keeps a processor from guessing where that leads. A compiler makes one call of several that differ in the index alone; of this one it cannot.
#[inline(always)]
fn tail_call<const INDEX: u32>(ctx: *mut c_void, programs: *const c_void) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the context is the program's own and the array a map of programs of its kind, which the verifier checks; a helper's call leaves
    // nothing in these registers.
    unsafe {
        core::arch::asm!(
            "r3 = {index}",
            "call 12",
            index = const INDEX,
            out("r0") _,
            inlateout("r1") ctx => _,
            inlateout("r2") programs => _,
            out("r3") _,
            out("r4") _,
            out("r5") _,
        );
    }
    #[cfg(not(target_arch = "bpf"))]
    let _ = (ctx, programs);
}
