//! The flow table of a test's node, entry by entry: what stands there, whether pairs are whole, and losses on purpose.

use std::net::{IpAddr, SocketAddr};

use super::node::Node;
use crate::access::{Rolls as _, SetRef as _, Slots as _, TableFamily};
use crate::family::{Side, V4, V6};
use crate::flow::Key;
use crate::flow::roll::Roll;
use crate::flow::slot::{self, Words};
use crate::flow::state::{Control, LIVE, REPLY_HALF, SHARED, timeout_word};
use crate::flow::table::{self, leave_in, recount_in, slot_of};
use crate::layout::{SET_SLOTS, VERSION_SHIFT, config};
use crate::slots::home;
use crate::testing::{address, side};

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Half {
    set: u32,
    base: usize,
    pub(super) control: Control,
    pub(super) protocol: u8,
    /// The packet's ends as it comes.
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    /// What they become.
    pub(super) new_from: SocketAddr,
    pub(super) new_to: SocketAddr,
    /// Id and generation of the backend.
    pub(super) backend: (u32, u16),
    pub(super) hooks: u8,
}

impl Half {
    pub(super) fn is_reply(&self) -> bool {
        self.control.state & REPLY_HALF != 0
    }

    /// Whether the other is this one's twin.
    pub(super) fn is_twin_of(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && (self.from, self.to) == (other.new_to, other.new_from)
            && (self.new_from, self.new_to) == (other.to, other.from)
            && self.is_reply() != other.is_reply()
    }
}

/// Runs one of two functions by family.
macro_rules! by_family {
    ($node:expr, $function:ident ( $($argument:expr),* )) => {
        if $node.v6 { $function::<V6>($node, $($argument),*) } else { $function::<V4>($node, $($argument),*) }
    };
}

impl Node {
    /// All entries.
    pub(super) fn halves(&self) -> Vec<Half> {
        by_family!(self, halves())
    }

    /// The entry for packets between these ends.
    pub(super) fn half(&self, protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Option<Half> {
        self.halves().into_iter().find(|half| {
            half.protocol == protocol && half.from == SocketAddr::from(from) && half.to == SocketAddr::from(to)
        })
    }

    /// Frees an entry alone.
    pub(super) fn lose(&self, half: &Half) {
        by_family!(self, lose(half));
    }

    /// Frees an entry alone unless a packet has changed it since it was read.
    pub(super) fn free_if_unchanged(&self, half: &Half) {
        by_family!(self, free(half));
    }

    /// Leaves an entry half written for good: its backend word carries another version.
    pub(super) fn tear(&self, half: &Half) {
        let other = half.control.version.wrapping_add(1 << VERSION_SHIFT);
        by_family!(self, tear(half, other));
    }

    pub(super) fn config(&self, word: usize) -> u64 {
        use crate::access::Tables as _;
        (&self.tables).config(word)
    }

    pub(super) fn now(&self) -> u32 {
        use crate::access::Tables as _;
        (&self.tables).now()
    }

    /// Whether the time of an entry is over by itself.
    pub(super) fn is_expired(&self, half: &Half) -> bool {
        u64::from(half.control.age(self.now())) > self.config(timeout_word(half.control.state))
    }

    /// Entries whose twin is missing.
    pub(super) fn widows(&self) -> Vec<Half> {
        let all = self.halves();
        let has_twin = |half: &Half| all.iter().any(|other| half.is_twin_of(other));
        all.iter().filter(|half| !has_twin(half)).copied().collect()
    }

    /// Frees what has timed out, both halves together: what user space's sweep does.
    pub(super) fn sweep(&self) {
        for half in self.halves() {
            if !self.is_expired(&half) {
                continue;
            }
            let twin = self.halves().into_iter().find(|other| half.is_twin_of(other));
            match twin {
                None => self.lose(&half),
                Some(twin) => {
                    let state = half.control.state | twin.control.state & SHARED;
                    let age = half.control.age(self.now()).min(twin.control.age(self.now()));
                    if u64::from(age) > self.config(timeout_word(state)) {
                        self.lose(&half);
                        self.lose(&twin);
                    }
                }
            }
        }
    }

    /// Of each set, how many entries it tells to be spilled from it, and how many are.
    pub(super) fn spilled(&self) -> Vec<(u64, u64)> {
        by_family!(self, spilled())
    }

    /// Fails where two entries have one key, or where a slot is taken in which no whole entry stands, or the other way round.
    #[track_caller]
    pub(super) fn check_table(&self) {
        let all = self.halves();
        for (index, half) in all.iter().enumerate() {
            let doubled = all[index + 1..]
                .iter()
                .find(|other| (other.protocol, other.from, other.to) == (half.protocol, half.from, half.to));
            assert_eq!(doubled, None, "a key stands twice");
        }
        assert_eq!(by_family!(self, unsettled()), 0, "slots are not what their rolls tell");
        let spilled = self.spilled();
        assert!(
            spilled.iter().all(|(told, are)| told >= are),
            "spilled entries would not be found: {spilled:?}"
        );
    }
}

fn socket<F: TableFamily>(side: Side<F>) -> SocketAddr {
    (address(F::V6, F::to_words(side.addr)), side.port).into()
}

fn halves<F: TableFamily>(node: &Node) -> Vec<Half> {
    let table = node.tables.flow_slots::<F>();
    let mut halves = Vec::new();
    for set in 0..=table.mask() {
        for base in (0..SET_SLOTS).map(|slot| slot * F::SLOT_WORDS) {
            let words = table.set(set).expect("a set up to the mask");
            let Some((control, entry)) = slot::decode::<F, _>(words, base) else {
                continue;
            };
            let backend = entry.place.backend;
            halves.push(Half {
                set,
                base,
                control,
                protocol: entry.key.protocol,
                from: socket(entry.key.src),
                to: socket(entry.key.dst),
                new_from: socket(entry.rewrite.src),
                new_to: socket(entry.rewrite.dst),
                backend: (backend as u32, (backend >> 32) as u16),
                hooks: entry.place.hooks,
            });
        }
    }
    halves
}

fn tear<F: TableFamily>(node: &Node, half: &Half, version: u64) {
    let set = node
        .tables
        .flow_slots::<F>()
        .set(half.set)
        .expect("a set that was read");
    let at = half.base + Words::backend::<F>();
    set.store(at, set.load(at) & !(0xffff << VERSION_SHIFT) | version);
}

fn home_of<F: TableFamily>(node: &Node, half: &Half) -> u32 {
    let key = Key::<F> {
        src: side(half.from.ip(), half.from.port()),
        dst: side(half.to.ip(), half.to.port()),
        protocol: half.protocol,
    };
    home(
        key.hash(node.config(config::TABLE_SEED)),
        node.tables.flow_slots::<F>().mask(),
    )
}

fn lose<F: TableFamily>(node: &Node, half: &Half) {
    let table = node.tables.flow_slots::<F>();
    let set = table.set(half.set).expect("a set that was read");
    let control = Control::from_word(set.load(half.base));
    if control.phase() == LIVE && control.version == half.control.version {
        leave::<F>(node, half);
    }
}

/// Leaves the slot of an entry that was freed.
fn leave<F: TableFamily>(node: &Node, half: &Half) {
    leave_in::<F, _>(node.tables.flow_slots::<F>(), half.set, half.base);
    let home = home_of::<F>(node, half);
    if home != half.set {
        recount_in(node.tables.flow_slots::<F>(), home, false);
    }
}

/// Counts of spilled entries by set: as they stand there, and as they are.
fn spilled<F: TableFamily>(node: &Node) -> Vec<(u64, u64)> {
    let table = node.tables.flow_slots::<F>();
    let told = |index| Roll::from_word(table.roll(index)).spilled();
    let mut counts: Vec<(u64, u64)> = (0..=table.mask()).map(|index| (told(index), 0)).collect();
    for half in halves::<F>(node) {
        let home = home_of::<F>(node, &half);
        if home != half.set {
            counts[home as usize].1 += 1;
        }
    }
    counts
}

/// Slots that are taken without a whole entry, or hold one without being taken.
fn unsettled<F: TableFamily>(node: &Node) -> usize {
    let table = node.tables.flow_slots::<F>();
    let all = (0..=table.mask()).flat_map(|set| (0..SET_SLOTS).map(move |slot| (set, slot * F::SLOT_WORDS)));
    all.filter(|(set, base)| {
        let words = table.set(*set).expect("a set up to the mask");
        let is_taken = Roll::from_word(table.roll(*set)).taken() >> slot_of::<F>(*base) & 1 == 1;
        let stands = Control::from_word(words.load(*base)).phase() == LIVE;
        stands != is_taken
            || !is_taken && words.load(*base) != 0
            || stands && slot::decode::<F, _>(words, *base).is_none()
    })
    .count()
}

/// Frees an entry unless it has changed since it was read.
fn free<F: TableFamily>(node: &Node, half: &Half) {
    let set = node
        .tables
        .flow_slots::<F>()
        .set(half.set)
        .expect("a set that was read");
    if table::free::<F, _>(set, half.base, half.control) {
        leave::<F>(node, half);
    }
}
