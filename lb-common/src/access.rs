//! What the pipeline asks of its surroundings. Implemented over kernel maps and packets in lb-ebpf, over plain memory in tests.
//!
//! Contract: nothing here blocks or panics; a read out of bounds is `None` or zero; every word is read and written whole
//! (no tearing); only compare-and-swaps order memory.

use crate::family::{Family, Side, V4, V6};
use crate::flow::contend;
use crate::flow::search::{self, Found};
use crate::flow::slot::{Rewrite, Seen};
use crate::flow::state::Control;
use crate::flow::table::{self, Claimed, Spot};
use crate::flow::{Entry, Key};
use crate::frontend;
use crate::layout::{AffinityKey, AffinityValue, BACKEND_WORDS, Device, FragmentKey, FrontendValue, config};
use crate::pipeline::{self, Work};
use crate::steps::select::{self, Backend, Wanted};
use crate::verdict::Reason;

/// One set of a versioned-slot table.
pub trait SetRef: Copy {
    /// Reads word `word` of the set; relaxed.
    fn load(self, word: usize) -> u64;
    /// Writes word `word` of the set; relaxed.
    fn store(self, word: usize, value: u64);
    /// Compare and swap, sequentially consistent; returns the previous value.
    fn cas(self, word: usize, old: u64, new: u64) -> u64;
}

/// A table of sets.
pub trait Slots: Copy {
    /// A set.
    type Set: SetRef;
    /// Number of sets minus one; the number of sets is a power of two.
    fn mask(self) -> u32;
    /// The set at `index` (≤ mask).
    fn set(self, index: u32) -> Option<Self::Set>;
}

/// One word of a table.
pub trait WordRef: Copy {
    /// Reads it; relaxed.
    fn load(self) -> u64;
    /// Compare and swap, sequentially consistent; returns the previous value.
    fn cas(self, old: u64, new: u64) -> u64;
}

/// A table of sets with a roll each ([`crate::flow::roll`]).
pub trait Rolls: Slots {
    /// A roll.
    type Roll: WordRef;
    /// The roll of the set at `index` (≤ mask).
    fn roll_at(self, index: u32) -> Option<Self::Roll>;
    /// Reads it.
    #[inline(always)]
    fn roll(self, index: u32) -> u64 {
        self.roll_at(index).map_or(0, WordRef::load)
    }
    /// [`WordRef::cas`] of it.
    #[inline(always)]
    fn cas_roll(self, index: u32, old: u64, new: u64) -> u64 {
        self.roll_at(index).map_or(0, |roll| roll.cas(old, new))
    }
}

/// The most bytes that [`Packet::sum`] sums.
pub const SUM_BYTES: usize = 160;

/// The packet under the hook. Offsets are from its first byte (the link header, where there is one).
///
/// Words and halves are native-endian loads of wire bytes; the machine is little-endian, so a word's low byte comes first.
pub trait Packet {
    /// The hook comes before the kernel's own processing, and a later hook of the same device sees whatever passes: what is
    /// not plain, or not sure, is left to that one, untouched.
    const EARLY: bool = false;
    /// Makes the first `length` bytes reachable, as far as the packet has them: at tc those behind the headers stand in pages apart.
    /// All that is read and written below is reachable or `None`. Dear where bytes have to be moved.
    fn reach(&mut self, _length: usize) {}
    /// `N` words of four bytes from `offset`.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;
    /// Two bytes at `offset`.
    fn half(&self, offset: usize) -> Option<u16>;
    /// Overwrites `N` words; sums that a hook keeps outside the packet are untouched (right for changes whose sum is zero
    /// because a checksum in the packet changes with them).
    fn set_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> Option<()>;
    /// Overwrites two bytes, as [`Packet::set_words`].
    fn set_half(&mut self, offset: usize, half: u16) -> Option<()>;
    /// Applies changes ([`crate::checksum::change`]) to the TCP or UDP checksum at `offset`: `address` is that of the pseudo header,
    /// `ports` that of the segment. A checksum that is still to be computed by the device holds the pseudo header alone.
    fn l4_change(&mut self, offset: usize, address: u64, ports: u64, udp: bool, v6: bool) -> Option<()>;
    /// Ones' complement sum (RFC 1071) of `length` bytes at `offset`, not folded; `length` is a multiple of four up to
    /// [`SUM_BYTES`].
    fn sum(&self, offset: usize, length: usize) -> Option<u64>;
    /// Tells a sum that a hook keeps over the whole packet of a change which no checksum in the packet absorbs.
    fn whole_delta(&mut self, delta: u32);
    /// Length of the packet in bytes.
    fn length(&self) -> usize;
    /// Payload bytes of each segment that the packet becomes on the wire; 0 where it stays whole.
    fn segment_payload(&self) -> usize;
    /// Cuts the packet to `length` bytes.
    fn trim(&mut self, length: usize) -> Option<()>;
    /// Makes room for `count` bytes at the layer-3 header, which starts at `l3`; the new bytes' content is undefined.
    fn insert(&mut self, l3: usize, count: usize) -> Option<()>;
    /// Index of the interface the hook sits on.
    fn ifindex(&self) -> u32;
    /// True when a process of this host sent the packet (meaningful at egress).
    fn sent_by_host(&self) -> bool;
    /// True where the kernel has found that the frame was sent to this host. False where it was not, or where nobody has looked
    /// yet. Meaningful at ingress.
    fn is_for_host(&self) -> bool;
    /// Tells the later hook of this device by a mark beside the packet that the packet is translated; None where that is not
    /// possible. Only asked at hooks that are [`Packet::EARLY`].
    fn mark(&mut self, _mark: u32) -> Option<()> {
        None
    }
}

/// A way out; all of it always set (see [`crate::verdict::Verdict`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<A> {
    /// What was found.
    pub kind: RouteKind,
    /// Interface index, for [`RouteKind::Via`].
    pub ifindex: u32,
    /// Next hop's address, for [`RouteKind::Via`]; zero where the kernel is to find it once more, when the packet leaves.
    pub next_hop: A,
    /// The kernel's preferred source for this route; zero where it has none.
    pub source: A,
    /// The MTU, for [`RouteKind::TooBig`]; for [`RouteKind::Via`] where the kernel tells it.
    pub mtu: u16,
    /// MAC addresses that a frame to the next hop carries, for [`RouteKind::Via`] where the kernel knows them.
    pub macs: Macs,
    /// A packet of that length goes the same way from the source that was asked for, or, where that was open (zero), from the preferred one. False where that was not
    /// looked at.
    pub settled: bool,
}

/// MAC addresses of a frame, bytes in order in the low 48 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Macs {
    /// The receiver's; 0 = not known.
    pub to: u64,
    /// The sender's.
    pub from: u64,
}

/// Kind of a route look-up's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RouteKind {
    /// Out of a device by way of a next hop.
    Via,
    /// The packet is larger than the way's MTU.
    TooBig,
    /// The destination is an address of this node.
    Local,
    /// Nothing usable.
    None,
}

impl<A: Default> Route<A> {
    /// A result without a way.
    #[inline(always)]
    pub fn without(kind: RouteKind) -> Self {
        Self {
            kind,
            ifindex: 0,
            next_hop: A::default(),
            source: A::default(),
            mtu: 0,
            macs: Macs::default(),
            settled: false,
        }
    }
}

/// What [`Tables::receives`] tells of a device.
#[inline(always)]
pub fn is_received(device: Option<Device>, mac: u64) -> bool {
    device.is_some_and(|device| mac == device.mac || mac == device.bridge_mac)
}

/// The tables and the kernel, behind one shared reference.
pub trait Tables: Sized {
    /// Flow table of family `F`.
    type Flows<F: TableFamily>: Rolls;
    /// Frontend table of family `F`.
    type Frontends<F: TableFamily>: Slots;
    /// The flow table.
    fn flows<F: TableFamily>(&self) -> Self::Flows<F>;
    /// The frontend table.
    fn frontends<F: TableFamily>(&self) -> Self::Frontends<F>;
    /// Asks for the roll of the first set of a hash and for the slot that is most likely taken there, without waiting for them; nothing depends on that.
    #[inline(always)]
    fn fetch<F: TableFamily>(&self, _hash: u64) {}
    /// [`frontend::find`] of an address and port; an implementation may put a function call round it.
    #[inline(always)]
    fn find_frontend<F: TableFamily>(&self, side: &Side<F>, protocol: u8) -> FrontendValue {
        let seed = self.config(config::TABLE_SEED);
        frontend::find(self.frontends::<F>(), seed, side, protocol)
    }
    /// [`select::attempt`]; an implementation may put a function call round it.
    #[inline(always)]
    fn try_backend<F: TableFamily>(&self, wanted: &Wanted<'_, F>, into: &mut Backend<F>) -> Reason {
        select::attempt(self, wanted, into)
    }
    /// [`search::scan_set`]; an implementation may put a function call round it.
    #[inline(always)]
    fn scan_set<F: TableFamily>(&self, index: u32, key: &Key<F>, into: &mut Spot) -> Found {
        search::scan_set(self, index, key, into)
    }
    /// [`search::look_at`]; an implementation may put a function call round it.
    #[inline(always)]
    fn look_at<F: TableFamily>(&self, index: u32, matches: u32, key: &Key<F>, into: &mut Spot) -> Found {
        search::look_at(self, index, matches, key, into)
    }
    /// [`table::recount`]; an implementation may put a function call round it.
    #[inline(always)]
    fn recount<F: TableFamily>(&self, home: u32, more: bool) -> bool {
        table::recount::<F, Self>(self, home, more)
    }
    /// [`search::seek`]; an implementation may put a function call round it.
    #[inline(always)]
    fn seek<F: TableFamily>(&self, key: &Key<F>, src: &Side<F>, dst: &Side<F>, into: &mut Spot) -> Seen {
        search::seek(self, key, src, dst, into)
    }
    /// [`table::claim`]; an implementation may put a function call round it.
    #[inline(always)]
    fn claim<F: TableFamily>(
        &self,
        key: &Key<F>,
        spare: &mut Entry<F>,
        spot: &mut Spot,
        stays: &Spot,
        room: &mut Spot,
    ) -> Claimed {
        table::claim(self, key, spare, spot, stays, room)
    }
    /// [`table::claim_at_home`]; an implementation may put a function call round it.
    #[inline(always)]
    fn claim_at_home<F: TableFamily>(&self, key: &Key<F>, spot: &mut Spot, stays: &Spot) -> Claimed {
        table::claim_at_home(self, key, spot, stays)
    }
    /// [`contend::spill`]; an implementation may put a function call round it.
    #[inline(always)]
    fn spill<F: TableFamily>(&self, key: &Key<F>, spot: &mut Spot, stays: &Spot) -> Claimed {
        contend::spill(self, key, spot, stays)
    }
    /// [`contend::make_room`]; an implementation may put a function call round it.
    #[inline(always)]
    fn make_room<F: TableFamily>(
        &self,
        spare: &mut Entry<F>,
        spot: &mut Spot,
        stays: &Spot,
        room: &mut Spot,
    ) -> Claimed {
        contend::make_room(self, spare, spot, stays, room)
    }
    /// [`contend::evict_twin`]; an implementation may put a function call round it.
    #[inline(always)]
    fn evict_twin<F: TableFamily>(&self, victim: &mut Entry<F>, twin: &mut Spot, but: &Spot) -> bool {
        contend::evict_twin(self, victim, twin, but)
    }
    /// [`table::free_pair`]; an implementation may put a function call round it.
    #[inline(always)]
    fn free_pair<F: TableFamily>(&self, spot: &Spot, spare: &mut Entry<F>, twin: &mut Spot, but: &Spot) -> bool {
        table::free_pair(self, spot, spare, twin, but)
    }
    /// [`table::leave`]; an implementation may put a function call round it.
    #[inline(always)]
    fn leave<F: TableFamily>(&self, index: u32, base: usize, home: u32) {
        table::leave::<F, Self>(self, index, base, home);
    }
    /// [`pipeline::try_port`]; an implementation may put a function call round it.
    #[inline(always)]
    fn try_port<F: TableFamily>(&self, work: &mut Work<F>, i: u32) -> bool {
        pipeline::try_port(self, work, i)
    }
    /// [`pipeline::take_over`]; an implementation may put a function call round it.
    #[inline(always)]
    fn take_over<F: TableFamily>(&self, work: &mut Work<F>) -> bool {
        pipeline::take_over(self, work)
    }
    /// [`pipeline::free_port`]; an implementation may put a function call round it.
    #[inline(always)]
    fn free_port<F: TableFamily>(&self, work: &mut Work<F>) -> Claimed {
        pipeline::free_port(self, work)
    }
    /// [`contend::choose`]; an implementation may put a function call round it.
    #[inline(always)]
    fn choose<F: TableFamily>(&self, stays: &Spot, into: &mut Spot) -> bool {
        contend::choose::<F, Self>(self, stays, into)
    }
    /// [`contend::rank`] of a control word; an implementation may put a function call round it.
    #[inline(always)]
    fn rank(&self, control: u64, now: u32) -> u64 {
        contend::rank(self, Control::from_word(control), now)
    }
    /// Configuration word.
    fn config(&self, word: usize) -> u64;
    /// Service word.
    fn service(&self, id: u32) -> u64;
    /// Arena word.
    fn arena(&self, index: u32) -> u64;
    /// The words of the header of the block at `offset` in the arena, each read when it is asked for.
    fn block(&self, offset: u32) -> Option<impl Fn(u32) -> u64 + Copy>;
    /// The words of a backend, the first read first.
    fn backend(&self, id: u32) -> Option<[u64; BACKEND_WORDS]>;
    /// Word of the forward bit-set.
    fn forward_bits(&self, word: u32) -> u64;
    /// Word of the reply bit-set.
    fn reply_bits(&self, word: u32) -> u64;
    /// What is known of a device.
    fn device(&self, ifindex: u32) -> Option<Device>;
    /// Whether a frame to this MAC address is for this host at a device, being its own or that of its bridge; perhaps as it was up to a second ago.
    #[inline(always)]
    fn receives(&self, ifindex: u32, mac: u64) -> bool {
        is_received(self.device(ifindex), mac)
    }
    /// True when a source range of the service port contains the address.
    fn in_ranges<F: TableFamily>(&self, service: u32, addr: F::Addr) -> bool;
    /// Affinity entry.
    fn affinity<F: TableFamily>(&self, key: &AffinityKey) -> Option<AffinityValue>;
    /// Remembers an affinity.
    fn remember_affinity<F: TableFamily>(&self, key: &AffinityKey, value: &AffinityValue);
    /// Ports of a datagram in fragments: source << 16 | destination.
    fn fragment<F: TableFamily>(&self, key: &FragmentKey) -> Option<u64>;
    /// Remembers the ports of a datagram.
    fn remember_fragment<F: TableFamily>(&self, key: &FragmentKey, ports: u64);
    /// Route to `daddr` for a packet that came in by `ifindex`, of `length` bytes at layer 3.
    fn route<F: TableFamily>(&self, ifindex: u32, saddr: F::Addr, daddr: F::Addr, length: u16) -> Route<F::Addr>;
    /// As [`Tables::route`], perhaps as it was up to a second ago.
    #[inline(always)]
    fn recent_route<F: TableFamily>(
        &self,
        ifindex: u32,
        saddr: F::Addr,
        daddr: F::Addr,
        length: u16,
    ) -> Route<F::Addr> {
        self.route::<F>(ifindex, saddr, daddr, length)
    }
    /// [`Tables::recent_route`] of a packet that will have these sides, which also looks whether the way is settled where the source is open.
    #[inline(always)]
    fn first_route<F: TableFamily>(&self, ifindex: u32, length: u16, sides: &Rewrite<F>, into: &mut Route<F::Addr>) {
        *into = self.recent_route::<F>(ifindex, sides.src.addr, sides.dst.addr, length);
    }
    /// Now, in jiffies, the low 32 bits.
    fn now(&self) -> u32;
    /// Takes one token of the answer rate limit.
    fn answer_token(&self) -> bool;
    /// How many datagrams in a row were the first of their flows on this processor, as it was last told; 0 where that is not kept.
    #[inline(always)]
    fn firsts(&self) -> u64 {
        0
    }
    /// Keeps that.
    #[inline(always)]
    fn set_firsts(&self, _count: u64) {}
    /// Counts a reason.
    fn count(&self, reason: Reason);
}

/// A family that has tables; lets an implementation pick the map.
pub trait TableFamily: Family {
    /// Calls the member that fits the family.
    fn pick<T>(v4: impl FnOnce() -> T, v6: impl FnOnce() -> T) -> T;
}

impl TableFamily for V4 {
    #[inline(always)]
    fn pick<T>(v4: impl FnOnce() -> T, _v6: impl FnOnce() -> T) -> T {
        v4()
    }
}

impl TableFamily for V6 {
    #[inline(always)]
    fn pick<T>(_v4: impl FnOnce() -> T, v6: impl FnOnce() -> T) -> T {
        v6()
    }
}
