//! What this kernel can do, found by trying, never by its version.
//!
//! Each probe loads a few instructions, asks a question and leaves nothing behind. A probe that cannot be answered counts as
//! "no". Needs the right to load programs; helper numbers and flags: include/uapi/linux/bpf.h.

mod program;

use aya::maps::{Array, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use serde::Serialize;

pub use program::TinyError;
pub(super) use program::{Insn, TinyProgram};

/// Kernel features that decide how we work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent fact about the kernel"
)]
pub struct Features {
    /// Programs attach by links to the tcx hooks; else as clsact filters.
    pub tcx: bool,
    /// `bpf_l4_csum_replace` knows `BPF_F_IPV6`.
    pub csum_ipv6: bool,
    /// Arrays can be mapped into memory. Required.
    pub mappable_arrays: bool,
    /// `bpf_redirect_neigh` is there. Required.
    pub redirect_neigh: bool,
    /// `bpf_fib_lookup` reports the preferred source.
    pub fib_source: bool,
}

impl Features {
    /// Asks the kernel. Blocks for about a millisecond.
    pub fn probe() -> Self {
        Self {
            tcx: SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok(),
            csum_ipv6: csum_ipv6(),
            mappable_arrays: Array::<MapData, u64>::create(1, F_MMAPABLE).is_ok(),
            redirect_neigh: redirect_neigh(),
            fib_source: fib_source(),
        }
    }
}

/// Helper numbers.
const L4_CSUM_REPLACE: i32 = 11;
const FIB_LOOKUP: i32 = 69;
const REDIRECT_NEIGH: i32 = 152;

/// Bytes of `struct bpf_fib_lookup`.
const FIB_PARAMS_BYTES: i16 = 64;
const FIB_LOOKUP_SRC: i32 = 16;
const AF_INET_WORD: i32 = libc::AF_INET;

/// Flag of maps: can be mapped into memory.
const F_MMAPABLE: u32 = 1 << 10;

const F_PSEUDO_HDR: i32 = 1 << 4;
const F_IPV6: i32 = 1 << 7;

/// An Ethernet frame of zeros, long enough for an IPv6 and a TCP header.
const FRAME: [u8; 74] = [0; 74];

/// Unknown flags are an error.
fn csum_ipv6() -> bool {
    let insns = [
        Insn::set(2, 70),
        Insn::set(3, 0),
        Insn::set(4, 1),
        Insn::set(5, F_PSEUDO_HDR | F_IPV6 | 4),
        Insn::call(L4_CSUM_REPLACE),
        Insn::exit(),
    ];
    run("l4_csum_replace with BPF_F_IPV6", &insns) == Some(0)
}

/// An unknown helper does not load.
fn redirect_neigh() -> bool {
    let insns = [
        Insn::set(1, 1),
        Insn::set(2, 0),
        Insn::set(3, 0),
        Insn::set(4, 0),
        Insn::call(REDIRECT_NEIGH),
        Insn::exit(),
    ];
    TinyProgram::load("redirect_neigh", &insns).is_ok()
}

/// Unknown flags give EINVAL; any answer about the route, even "no", is not negative.
fn fib_source() -> bool {
    let start = -FIB_PARAMS_BYTES;
    let mut insns: Vec<Insn> = (start..0).step_by(8).map(|offset| Insn::stack64(offset, 0)).collect();
    insns.extend([
        // family, and ifindex at byte 8: the loopback device's.
        Insn::stack64(start, AF_INET_WORD),
        Insn::stack64(start + 8, 1),
        Insn::copy(2, 10),
        Insn::add(2, start.into()),
        Insn::set(3, FIB_PARAMS_BYTES.into()),
        Insn::set(4, FIB_LOOKUP_SRC),
        Insn::call(FIB_LOOKUP),
        Insn::exit(),
    ]);
    run("fib_lookup with BPF_FIB_LOOKUP_SRC", &insns).is_some_and(|answer| answer >= 0)
}

fn run(name: &'static str, insns: &[Insn]) -> Option<i32> {
    let answer = TinyProgram::load(name, insns).and_then(|program| program.run(&FRAME));
    answer
        .inspect_err(|error| tracing::debug!(%error, "probe without an answer"))
        .ok()
        .map(u32::cast_signed)
}
