//! The maps that user space shares or that several files read, named and sized as `lb_common::layout` says. `hops.rs` (ways out), `kernel.rs`, `packet.rs` and `stages.rs` have room of
//! their own.

use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use lb_common::flow::roll;
use lb_common::layout::{
    AFFINITY_ENTRIES, ARENA_WORDS, BACKEND_WORDS, BACKENDS, BITS_WORDS, BLOCK_HEADER_WORDS, DEVICE_WORDS, DEVICES,
    FLOW_SETS, FRAGMENT_ENTRIES, FRONTEND_SETS, RANGE_ENTRIES, SERVICES, config,
};
use lb_common::verdict::REASONS;

/// Words of a header, and of the units that the arena is given out in.
pub(crate) const BLOCK_WORDS: usize = BLOCK_HEADER_WORDS as usize;

/// `BPF_F_MMAPABLE`.
pub(crate) const MMAPABLE: usize = 0x400;

#[btf_map(name = "frontends_v4")]
pub(crate) static FRONTENDS_V4: Array<[u64; 8], { FRONTEND_SETS as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "frontends_v6")]
pub(crate) static FRONTENDS_V6: Array<[u64; 16], { FRONTEND_SETS as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "services")]
pub(crate) static SERVICE_WORDS: Array<u64, { SERVICES as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "arena")]
pub(crate) static ARENA: Array<[u64; BLOCK_WORDS], { ARENA_WORDS as usize / BLOCK_WORDS }, MMAPABLE> = Array::new();
#[btf_map(name = "backends")]
pub(crate) static BACKEND_RECORDS: Array<[u64; BACKEND_WORDS], { BACKENDS as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "config")]
pub(crate) static CONFIG: Array<[u64; config::WORDS], 1, MMAPABLE> = Array::new();
#[btf_map(name = "forward_bits")]
pub(crate) static FORWARD_BITS: Array<u64, { BITS_WORDS as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "reply_bits")]
pub(crate) static REPLY_BITS: Array<u64, { BITS_WORDS as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "devices")]
pub(crate) static DEVICE_WORDS_BY_INDEX: HashMap<u32, [u64; DEVICE_WORDS], { DEVICES as usize }> = HashMap::new();
#[btf_map(name = "ranges_v4")]
pub(crate) static RANGES_V4: LpmTrie<[u8; 8], u32, { RANGE_ENTRIES as usize }> = LpmTrie::new();
#[btf_map(name = "ranges_v6")]
pub(crate) static RANGES_V6: LpmTrie<[u8; 20], u32, { RANGE_ENTRIES as usize }> = LpmTrie::new();
#[btf_map(name = "flows_v4")]
pub(crate) static FLOWS_V4: Array<[u64; 32], { roll::values(FLOW_SETS, 32) as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "flows_v6")]
pub(crate) static FLOWS_V6: Array<[u64; 64], { roll::values(FLOW_SETS, 64) as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "affinity_v4")]
pub(crate) static AFFINITY_V4: LruHashMap<[u64; 3], [u64; 2], { AFFINITY_ENTRIES as usize }> = LruHashMap::new();
#[btf_map(name = "affinity_v6")]
pub(crate) static AFFINITY_V6: LruHashMap<[u64; 3], [u64; 2], { AFFINITY_ENTRIES as usize }> = LruHashMap::new();
#[btf_map(name = "fragments_v4")]
pub(crate) static FRAGMENTS_V4: LruHashMap<[u64; 5], u64, { FRAGMENT_ENTRIES as usize }> = LruHashMap::new();
#[btf_map(name = "fragments_v6")]
pub(crate) static FRAGMENTS_V6: LruHashMap<[u64; 5], u64, { FRAGMENT_ENTRIES as usize }> = LruHashMap::new();
#[btf_map(name = "reasons")]
pub(crate) static REASON_COUNTERS: PerCpuArray<u64, REASONS> = PerCpuArray::new();
#[btf_map(name = "answers")]
pub(crate) static ANSWERS: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();
#[btf_map(name = "firsts")]
pub(crate) static FIRSTS: PerCpuArray<u64, 1> = PerCpuArray::new();
