//! BPF_PROG_TEST_RUN for XDP programs: one frame in; return value, frame and what stands beside it out.
//!
//! What the kernel makes of the input (net/bpf/test_run.c, Linux 6.18): the frame is one linear buffer with 256 bytes of
//! headroom; the device is the one that the context names in the caller's namespace, and a veth counts as one only while a program
//! runs at its XDP (else EINVAL); `XDP_TX` and `XDP_REDIRECT` are returned, nothing is sent. Bytes beside the frame (metadata)
//! come out before it. Live frames ([`send`]) are sent, in batches, from one processor, and
//! asking for what became of them is EINVAL.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::syscall::Run;

/// Return value of a program that drops.
pub const XDP_DROP: u32 = 1;
/// Return value of a program that passes.
pub const XDP_PASS: u32 = 2;
/// Return value of a program that sends the frame back out of its device.
pub const XDP_TX: u32 = 3;

/// `BPF_F_TEST_XDP_LIVE_FRAMES`.
const LIVE_FRAMES: u32 = 1 << 1;
/// Frames of a batch: as many as a receiver takes in one poll.
const BATCH: u32 = 64;

/// Size of `struct xdp_md`.
const CONTEXT_BYTES: usize = 24;
/// Room for what a program may put in front.
const ROOM: usize = 512;

/// What a run ended in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The program's return value.
    pub verdict: u32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// What stands beside it.
    pub beside: Vec<u8>,
}

/// Runs a program once, in the calling thread's namespace, on a frame that came in by a device.
pub fn run(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32) -> io::Result<Output> {
    let mut context = [0; CONTEXT_BYTES];
    context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    let mut bytes = vec![0; frame.len() + ROOM];
    let mut context_out = [0; CONTEXT_BYTES];
    let run = Run {
        program: program.as_raw_fd(),
        flags: 0,
        repeat: 1,
        batch: 0,
    };
    let (verdict, length) = run.on(frame, &context, &mut bytes, &mut context_out)?;
    bytes.truncate(length);
    let word = |at: usize| {
        context_out[at..]
            .first_chunk()
            .map_or(0, |word| u32::from_ne_bytes(*word))
    };
    let frame = bytes.split_off(word(0) as usize);
    Ok(Output {
        verdict: verdict.cast_unsigned(),
        frame,
        beside: bytes,
    })
}

/// Runs a program `repeat` times on one frame, which the kernel does not restore in between, on one processor, in the calling
/// thread's namespace.
pub fn run_often(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32, repeat: u32) -> io::Result<()> {
    let mut context = [0; CONTEXT_BYTES];
    context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    let run = Run {
        program: program.as_raw_fd(),
        flags: 0,
        repeat,
        batch: 0,
    };
    let mut bytes = vec![0; frame.len() + ROOM];
    run.on(frame, &context, &mut bytes, &mut [0; CONTEXT_BYTES]).map(drop)
}

/// Runs a program on `count` live frames as long as `frame`: what it redirects is sent. A frame's bytes are at first those of
/// `frame`, later what the last receiver left of them. The devices are those of the calling thread's namespace.
pub fn send(program: BorrowedFd<'_>, frame: &[u8], count: u32) -> io::Result<()> {
    let mut context = [0; CONTEXT_BYTES];
    context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    let run = Run {
        program: program.as_raw_fd(),
        flags: LIVE_FRAMES,
        repeat: count,
        batch: BATCH,
    };
    run.on(frame, &context, &mut [], &mut []).map(drop)
}
