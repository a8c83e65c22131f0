//! A packet in memory that behaves as a socket buffer does under the helpers that tc programs have.
//!
//! Sources: `bpf_l4_csum_replace`, `bpf_skb_adjust_room` and `bpf_skb_change_tail` in net/core/filter.c,
//! `inet_proto_csum_replace_by_diff` in net/core/utils.c, `skb_checksum_help` in net/core/dev.c (Linux 6.18). Sums are
//! native-endian, as the kernel's are (RFC 1071 section 2 (B)); of this crate's own checksum code only the form of a change is used.

use crate::access::{Packet, SUM_BYTES};
use crate::checksum::{UNCHANGED, fold32};

/// Bytes from the packet's start that a program can read and write directly, as in the kernel programs.
const REACH: usize = 512;

/// What the socket buffer says of the transport checksum (`skb->ip_summed`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Summed {
    /// `CHECKSUM_NONE`: the field is whole.
    Whole,
    /// `CHECKSUM_PARTIAL`: the field at `field` holds the pseudo header's sum; the device sums from `start` on.
    Partial {
        /// `csum_start`, as an offset from the packet's first byte.
        start: usize,
        /// Offset of the field.
        field: usize,
    },
    /// `CHECKSUM_COMPLETE`: the field is whole, and `skb->csum` is the sum of all bytes from `from` on.
    Complete {
        /// Offset of the network header.
        from: usize,
        /// The sum.
        sum: u32,
    },
}

/// A packet with what the kernel knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    bytes: Vec<u8>,
    summed: Summed,
    /// Index of the interface that the hook sits on.
    pub ifindex: u32,
    /// A process of this host sent the packet.
    pub sent_by_host: bool,
    /// The kernel has found that the frame was sent to this host (`PACKET_HOST`).
    pub for_host: bool,
    /// `gso_size`.
    pub segment_payload: usize,
    /// Bytes that are reached directly; the others stand in pages apart.
    pub linear: usize,
    /// Further calls of what can fail in the kernel (rewriting a sum, trimming, making room) until one fails.
    pub failing_call: Option<u32>,
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            summed: Summed::Whole,
            ifindex: 1,
            sent_by_host: false,
            for_host: true,
            segment_payload: 0,
            linear: usize::MAX,
            failing_call: None,
        }
    }
}

impl Buffer {
    /// The sender left the transport checksum to the device; the field holds the pseudo header's sum already.
    #[must_use]
    pub fn partial(mut self, start: usize, field_in_header: usize) -> Self {
        self.summed = Summed::Partial {
            start,
            field: start + field_in_header,
        };
        self
    }

    /// A device summed all bytes from `from` (the network header) on.
    #[must_use]
    pub fn complete(mut self, from: usize) -> Self {
        self.summed = Summed::Complete {
            from,
            sum: sum(self.bytes.get(from..).unwrap_or_default()),
        };
        self
    }

    /// The bytes as a program sees them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What is known of the checksum.
    pub fn summed(&self) -> Summed {
        self.summed
    }

    /// The bytes as they go out on a wire: the device has computed what was left to it.
    pub fn wire(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Summed::Partial { start, field } = self.summed {
            let field_value = !fold(sum(bytes.get(start..).unwrap_or_default()));
            let field_value = if field_value == 0 { 0xffff } else { field_value };
            if let Some(place) = bytes.get_mut(field..field + 2) {
                place.copy_from_slice(&field_value.to_ne_bytes());
            }
        }
        bytes
    }

    /// Whether the running sum is that of the bytes; true where there is none.
    pub fn sum_is_right(&self) -> bool {
        match self.summed {
            Summed::Complete { from, sum: running } => {
                let of_bytes = fold(sum(self.bytes.get(from..).unwrap_or_default()));
                // Zero has two forms.
                fold(running) % 0xffff == of_bytes % 0xffff
            }
            Summed::Whole | Summed::Partial { .. } => true,
        }
    }

    fn may_fail(&mut self) -> Option<()> {
        match &mut self.failing_call {
            Some(0) => None,
            Some(left) => {
                *left -= 1;
                Some(())
            }
            None => Some(()),
        }
    }

    /// Whether a program reaches so many bytes at an offset.
    fn reaches(&self, offset: usize, length: usize) -> bool {
        offset < REACH && offset + length <= self.linear.min(self.bytes.len())
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if !self.reaches(offset, N) {
            return None;
        }
        self.bytes.get(offset..offset + N)?.try_into().ok()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Option<()> {
        if !self.reaches(offset, bytes.len()) {
            return None;
        }
        self.bytes.get_mut(offset..offset + bytes.len())?.copy_from_slice(bytes);
        Some(())
    }

    /// `bpf_l4_csum_replace` with a difference.
    fn replace(&mut self, offset: usize, difference: u32, pseudo: bool, udp: bool, v6: bool) -> Option<()> {
        self.may_fail()?;
        let place = self.bytes.get(offset..offset + 2)?;
        let field = u16::from_ne_bytes(place.try_into().ok()?);
        if udp && field == 0 {
            return Some(());
        }
        let new = match &mut self.summed {
            Summed::Partial { .. } => pseudo.then(|| fold(add(difference, u32::from(field)))),
            Summed::Whole => Some(!fold(add(difference, u32::from(!field)))),
            Summed::Complete { sum, .. } => {
                if pseudo && !v6 {
                    *sum = !add(difference, !*sum);
                }
                Some(!fold(add(difference, u32::from(!field))))
            }
        };
        let new = new.unwrap_or(field);
        let new = if udp && new == 0 { 0xffff } else { new };
        self.bytes
            .get_mut(offset..offset + 2)?
            .copy_from_slice(&new.to_ne_bytes());
        Some(())
    }
}

impl Packet for Buffer {
    fn reach(&mut self, length: usize) {
        self.linear = self.linear.max(length);
    }

    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let mut words = [0; N];
        if !self.reaches(offset, 4 * N) {
            return None;
        }
        for (index, word) in words.iter_mut().enumerate() {
            let four: [u8; 4] = self
                .bytes
                .get(offset + 4 * index..offset + 4 * index + 4)?
                .try_into()
                .ok()?;
            *word = u32::from_ne_bytes(four);
        }
        Some(words)
    }

    fn half(&self, offset: usize) -> Option<u16> {
        self.read(offset).map(u16::from_ne_bytes)
    }

    fn set_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> Option<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.write(offset, &bytes)
    }

    fn set_half(&mut self, offset: usize, half: u16) -> Option<()> {
        self.write(offset, &half.to_ne_bytes())
    }

    fn l4_change(&mut self, offset: usize, address: u64, ports: u64, udp: bool, v6: bool) -> Option<()> {
        for (change, pseudo) in [(address, true), (ports, false)] {
            if change != UNCHANGED {
                self.replace(offset, fold32(change), pseudo, udp, v6)?;
            }
        }
        Some(())
    }

    fn sum(&self, offset: usize, length: usize) -> Option<u64> {
        if length == 0 || length > SUM_BYTES || !length.is_multiple_of(4) {
            return None;
        }
        self.bytes
            .get(offset..offset + length)
            .map(|bytes| u64::from(sum(bytes)))
    }

    fn whole_delta(&mut self, delta: u32) {
        if let Summed::Complete { sum, .. } = &mut self.summed {
            *sum = add(*sum, delta);
        }
    }

    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn segment_payload(&self) -> usize {
        self.segment_payload
    }

    fn trim(&mut self, length: usize) -> Option<()> {
        if length >= self.bytes.len() {
            return Some(());
        }
        self.may_fail()?;
        if matches!(self.summed, Summed::Complete { .. }) {
            // `__skb_trim_rcsum` gives the sum up.
            self.summed = Summed::Whole;
        }
        self.bytes.truncate(length);
        Some(())
    }

    fn insert(&mut self, l3: usize, count: usize) -> Option<()> {
        self.may_fail()?;
        if l3 > self.bytes.len() {
            return None;
        }
        // Not zeros, although the kernel's are: nobody may rely on them.
        let room: Vec<u8> = std::iter::repeat_n(0xa5, count).collect();
        match &mut self.summed {
            Summed::Whole => {}
            Summed::Partial { start, field } => {
                *start += count;
                *field += count;
            }
            Summed::Complete { sum: running, .. } => *running = add(*running, sum(&room)),
        }
        self.bytes.splice(l3..l3, room);
        self.linear = self.linear.saturating_add(count);
        Some(())
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn sent_by_host(&self) -> bool {
        self.sent_by_host
    }

    fn is_for_host(&self) -> bool {
        self.for_host
    }
}

/// Ones' complement sum of two sums.
fn add(one: u32, other: u32) -> u32 {
    let (sum, carry) = one.overflowing_add(other);
    sum.wrapping_add(u32::from(carry))
}

/// The sum of bytes, the last one padded with a zero where their number is odd.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(0, |sum, pair| {
        let pair = [pair.first().copied(), pair.get(1).copied()].map(Option::unwrap_or_default);
        add(sum, u32::from(u16::from_ne_bytes(pair)))
    })
}

/// A sum in 16 bits.
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
