//! A frame in memory as an XDP program has it: whole sums, no segments, nobody of this host sent it, and room for a mark.
//!
//! Sources: net/core/filter.c (`bpf_xdp_adjust_head`, `bpf_xdp_adjust_tail`, `bpf_xdp_adjust_meta`), Linux 6.18.

use super::Buffer;
use crate::access::Packet;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    buffer: Buffer,
    /// What the later hook is told.
    pub mark: Option<u32>,
    /// The driver carries marks.
    pub takes_mark: bool,
}

impl Frame {
    /// A frame that came in by a device.
    pub fn new(bytes: Vec<u8>, ifindex: u32) -> Self {
        let mut buffer = Buffer::from(bytes);
        buffer.ifindex = ifindex;
        Self {
            buffer,
            mark: None,
            takes_mark: true,
        }
    }

    /// The bytes as a program sees them.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// The socket buffer that the later hook gets.
    pub fn into_buffer(self) -> Buffer {
        self.buffer
    }
}

impl Packet for Frame {
    const EARLY: bool = true;

    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.buffer.words(offset)
    }

    fn half(&self, offset: usize) -> Option<u16> {
        self.buffer.half(offset)
    }

    fn set_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> Option<()> {
        self.buffer.set_words(offset, words)
    }

    fn set_half(&mut self, offset: usize, half: u16) -> Option<()> {
        self.buffer.set_half(offset, half)
    }

    fn l4_change(&mut self, offset: usize, address: u64, ports: u64, udp: bool, v6: bool) -> Option<()> {
        self.buffer.l4_change(offset, address, ports, udp, v6)
    }

    fn sum(&self, offset: usize, length: usize) -> Option<u64> {
        self.buffer.sum(offset, length)
    }

    fn whole_delta(&mut self, _delta: u32) {}

    fn length(&self) -> usize {
        self.buffer.length()
    }

    fn segment_payload(&self) -> usize {
        0
    }

    fn trim(&mut self, length: usize) -> Option<()> {
        self.buffer.trim(length)
    }

    fn insert(&mut self, l3: usize, count: usize) -> Option<()> {
        self.buffer.insert(l3, count)
    }

    fn ifindex(&self) -> u32 {
        self.buffer.ifindex
    }

    fn sent_by_host(&self) -> bool {
        false
    }

    fn is_for_host(&self) -> bool {
        false
    }

    fn mark(&mut self, mark: u32) -> Option<()> {
        self.takes_mark.then(|| self.mark = Some(mark))
    }
}
