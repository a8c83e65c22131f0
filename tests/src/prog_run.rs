//! BPF_PROG_TEST_RUN for tc programs: one packet in; return value, packet and `__sk_buff` out. For XDP programs: see [`xdp`].
//!
//! What the kernel makes of the input (net/bpf/test_run.c; each line tried on Linux 6.18):
//! - The bytes begin with an Ethernet header; `skb->protocol` comes from it. They are one linear buffer of at most
//!   3712 bytes (a page of 4096 less room for headers); more is EINVAL.
//! - The device is the one that `ifindex` names in the caller's namespace, else that namespace's `lo`; so run in the
//!   namespace of the devices ([`Input::run_in`]). It need not be up. An index without a device is ENODEV.
//! - The context may give mark, priority, ifindex, ingress_ifindex, cb, tstamp, wire_len (not below the length),
//!   gso_segs, gso_size and hwtstamp; any other field but zero is EINVAL, `data_end` (later kernels: a non-linear skb)
//!   too.
//! - A redirect returns `TC_ACT_REDIRECT` (7) and sends nothing. FIB and neighbour lookups see the namespace's own.
//! - The skb's checksum state is CHECKSUM_NONE, or CHECKSUM_COMPLETE with [`InputSum::Complete`]
//!   (`BPF_F_TEST_SKB_CHECKSUM_COMPLETE`, the one flag that tc programs have here; aya cannot set it, hence the system
//!   call below): then the kernel compares `skb->csum` with the bytes after the run and fails with EBADMSG if the program
//!   broke it.
//! - CHECKSUM_PARTIAL and true GSO packets (`gso_type`) cannot be made by it. Send such packets through a veth with
//!   [`FrameSocket::send_with`](crate::traffic::FrameSocket::send_with) instead, which asks the kernel for just these
//!   states, and look at what leaves with a second socket.

pub mod xdp;

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use aya::programs::SchedClassifier;

use crate::netns::Netns;
use crate::syscall::Run;

/// Return value of a tc program that goes on to the next program.
pub const TC_ACT_UNSPEC: i32 = -1;
/// Return value of a tc program that drops.
pub const TC_ACT_SHOT: i32 = 2;
/// Return value of a tc program that redirects.
pub const TC_ACT_REDIRECT: i32 = 7;

/// The fields of `struct __sk_buff` that go in, and come out as the program left them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkbFields {
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->priority`.
    pub priority: u32,
    /// Index of the device that the packet is on; 0: `lo`.
    pub ifindex: u32,
    /// Index of the device that the packet came in by.
    pub ingress_ifindex: u32,
    /// Control buffer.
    pub cb: [u32; 5],
    /// Time stamp, ns.
    pub tstamp: u64,
    /// Length on the wire; 0: that of the packet.
    pub wire_len: u32,
    /// Segments of a GSO packet.
    pub gso_segs: u32,
    /// Payload bytes of each segment of a GSO packet.
    pub gso_size: u32,
    /// Hardware time stamp, ns.
    pub hwtstamp: u64,
}

/// Checksum state of the skb.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InputSum {
    /// CHECKSUM_NONE.
    #[default]
    None,
    /// CHECKSUM_COMPLETE; the kernel checks `skb->csum` afterwards.
    Complete,
}

/// What a run starts from.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// The packet, from the Ethernet header on.
    pub frame: Vec<u8>,
    /// The fields of the context.
    pub fields: SkbFields,
    /// The skb's checksum state.
    pub sum: InputSum,
}

/// What a run ended in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The program's return value.
    pub verdict: i32,
    /// The packet as the program left it.
    pub frame: Vec<u8>,
    /// The fields of the context as the program left them.
    pub fields: SkbFields,
}

impl Input {
    /// A packet in state CHECKSUM_NONE, on `lo`.
    pub fn new(frame: impl Into<Vec<u8>>) -> Self {
        Self {
            frame: frame.into(),
            ..Self::default()
        }
    }

    /// The same packet on a device.
    #[must_use]
    pub fn on(mut self, ifindex: u32) -> Self {
        self.fields.ifindex = ifindex;
        self
    }

    /// Runs the program once, in the calling thread's namespace.
    pub fn run(&self, program: &SchedClassifier) -> io::Result<Output> {
        self.run_descriptor(program.fd().map_err(io::Error::other)?.as_fd())
    }

    /// As [`Self::run`], for a program that is known by its descriptor alone.
    pub fn run_descriptor(&self, program: BorrowedFd<'_>) -> io::Result<Output> {
        let flags = match self.sum {
            InputSum::None => 0,
            InputSum::Complete => CHECKSUM_COMPLETE,
        };
        let context = self.fields.to_bytes();
        // Room for what a program may put in front.
        let mut frame = vec![0; self.frame.len() + 512];
        let mut context_out = [0; CONTEXT_BYTES];
        let run = Run {
            program: program.as_raw_fd(),
            flags,
            repeat: 1,
            batch: 0,
        };
        let (verdict, length) = run.on(&self.frame, &context, &mut frame, &mut context_out)?;
        frame.truncate(length);
        Ok(Output {
            verdict,
            frame,
            fields: SkbFields::from_bytes(&context_out),
        })
    }

    /// Runs the program `repeat` times on one packet, which the kernel does not restore in between, on one processor.
    pub fn run_often(&self, program: BorrowedFd<'_>, repeat: u32) -> io::Result<()> {
        let context = self.fields.to_bytes();
        let mut frame = vec![0; self.frame.len() + 512];
        let run = Run {
            program: program.as_raw_fd(),
            flags: 0,
            repeat,
            batch: 0,
        };
        run.on(&self.frame, &context, &mut frame, &mut [0; CONTEXT_BYTES])
            .map(drop)
    }

    /// Runs the program once inside a namespace.
    pub fn run_in(&self, place: &impl AsRef<Netns>, program: &SchedClassifier) -> io::Result<Output> {
        place.as_ref().run(|| self.run(program))
    }
}

/// Size of `struct __sk_buff`.
const CONTEXT_BYTES: usize = 192;
/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE`.
const CHECKSUM_COMPLETE: u32 = 1 << 2;

impl SkbFields {
    /// Lays the fields out as `struct __sk_buff` (include/uapi/linux/bpf.h).
    fn to_bytes(self) -> [u8; CONTEXT_BYTES] {
        let mut bytes = [0; CONTEXT_BYTES];
        let mut word = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        word(8, self.mark);
        word(32, self.priority);
        word(36, self.ingress_ifindex);
        word(40, self.ifindex);
        self.cb
            .iter()
            .enumerate()
            .for_each(|(index, value)| word(48 + index * 4, *value));
        word(160, self.wire_len);
        word(164, self.gso_segs);
        word(176, self.gso_size);
        bytes[152..160].copy_from_slice(&self.tstamp.to_ne_bytes());
        bytes[184..192].copy_from_slice(&self.hwtstamp.to_ne_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; CONTEXT_BYTES]) -> Self {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let double = |at: usize| bytes[at..].first_chunk().map_or(0, |chunk| u64::from_ne_bytes(*chunk));
        Self {
            mark: word(8),
            priority: word(32),
            ingress_ifindex: word(36),
            ifindex: word(40),
            cb: [word(48), word(52), word(56), word(60), word(64)],
            tstamp: double(152),
            wire_len: word(160),
            gso_segs: word(164),
            gso_size: word(176),
            hwtstamp: double(184),
        }
    }
}
