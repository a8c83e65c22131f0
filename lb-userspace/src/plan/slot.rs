//! Where frontends stand in the table, and how a slot is written.
//!
//! A slot counts by one word, its value: while that is not valid, packets skip the slot, so the key's words are written first
//! (under the next version) and the value last. Another service port or other flags for the same key are one store; removal
//! is one store too and keeps the version, so that a reader between two words of different owners never matches.
//! The place is fixed by [`lb_common::slots`]: the emptier of two candidate sets, there the first free slot of the probe order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::family::{Family as _, PAYLOAD_MASK, Side, V4, V6};
use lb_common::hash;
use lb_common::layout::{FRONTEND_VALID, FrontendValue, SET_SLOTS, VERSION_MASK, VERSION_SHIFT};
use lb_common::slots::{candidates, probe};

use super::image::{Draft, Phase};
use crate::maps::{Table, v4_address, v4_word, v6_address, v6_words};
use crate::model::Family;

/// What packets look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrontendKey {
    /// The address; unspecified for NodePorts.
    pub(super) address: IpAddr,
    /// The port; 0 for the address itself.
    pub(super) port: u16,
    /// The IP protocol; 0 for the address itself.
    pub(super) protocol: u8,
}

/// A slot of the frontend table of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    pub(super) v6: bool,
    pub(super) index: u32,
}

/// The address under which NodePorts of a family stand.
pub(super) fn node_port_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

impl FrontendKey {
    /// The key that stands for an address itself.
    pub(super) fn of_address(address: IpAddr) -> Self {
        Self {
            address,
            port: 0,
            protocol: 0,
        }
    }

    fn hash(&self, seed: u64) -> u64 {
        let Self {
            address,
            port,
            protocol,
        } = *self;
        match address {
            IpAddr::V4(address) => hash::side(
                seed,
                Side::<V4> {
                    addr: v4_word(address),
                    port,
                },
                protocol,
            ),
            IpAddr::V6(address) => hash::side(
                seed,
                Side::<V6> {
                    addr: v6_words(address),
                    port,
                },
                protocol,
            ),
        }
    }

    /// The key's words without version; for IPv4 the first alone.
    fn words(&self) -> [u64; 3] {
        let port = self.port;
        match self.address {
            IpAddr::V4(address) => [
                V4::side_word(
                    Side {
                        addr: v4_word(address),
                        port,
                    },
                    0,
                ),
                0,
                0,
            ],
            IpAddr::V6(address) => [0, 1, 2].map(|i| {
                V6::side_word(
                    Side {
                        addr: v6_words(address),
                        port,
                    },
                    i,
                )
            }),
        }
    }

    /// The slots where the key may stand, in the order in which packets look; then the two candidate sets.
    fn places(&self, draft: &Draft) -> ([Slot; 2 * SET_SLOTS], [u32; 2]) {
        let v6 = self.address.is_ipv6();
        let sets = draft.length(Table::frontends(v6)) as usize / (Slot::words(v6) * SET_SLOTS);
        let hash = self.hash(draft.seed());
        let [a, b] = candidates(hash, (sets as u32).saturating_sub(1));
        let slot = |i: usize| {
            let set = if i < SET_SLOTS { a } else { b };
            Slot {
                v6,
                index: set * SET_SLOTS as u32 + probe(hash, i % SET_SLOTS) as u32,
            }
        };
        (std::array::from_fn(slot), [a, b])
    }

    /// The slot where the key stands.
    pub(super) fn find(&self, draft: &Draft) -> Option<Slot> {
        self.places(draft).0.into_iter().find(|slot| slot.holds(draft, self))
    }

    /// The slot for a key that does not stand anywhere yet; `taken` are not free any more.
    pub(super) fn free(&self, draft: &Draft, taken: &[Slot]) -> Option<Slot> {
        let (places, [a, b]) = self.places(draft);
        let is_free = |slot: &Slot| !slot.is_valid(draft) && !taken.contains(slot);
        let (first, second) = places.split_at(SET_SLOTS);
        let free = |half: &[Slot]| half.iter().filter(|slot| is_free(slot)).count();
        let half = if a != b && free(second) > free(first) {
            second
        } else {
            first
        };
        half.iter().copied().find(is_free)
    }
}

impl Slot {
    /// Words of a slot.
    pub(super) fn words(v6: bool) -> usize {
        if v6 { V6::FRONTEND_WORDS } else { V4::FRONTEND_WORDS }
    }

    fn table(self) -> Table {
        Table::frontends(self.v6)
    }

    /// Index of the first word of the slot.
    fn base(self) -> u32 {
        self.index * Self::words(self.v6) as u32
    }

    fn value_index(self) -> u32 {
        self.base() + Self::words(self.v6) as u32 - 1
    }

    /// The value word, version included.
    pub(super) fn word(self, draft: &Draft) -> u64 {
        draft.word(self.table(), self.value_index())
    }

    /// The value.
    pub(super) fn value(self, draft: &Draft) -> FrontendValue {
        FrontendValue::from_word(self.word(draft))
    }

    /// Whether packets heed the slot.
    pub(super) fn is_valid(self, draft: &Draft) -> bool {
        self.value(draft).flags & FRONTEND_VALID != 0
    }

    /// Number of slots of a family that may be valid.
    pub(super) fn count(draft: &Draft, v6: bool) -> u32 {
        (draft.used(Table::frontends(v6)).len() / Self::words(v6)) as u32
    }

    fn holds(self, draft: &Draft, key: &FrontendKey) -> bool {
        let word = self.word(draft);
        let value = FrontendValue::from_word(word);
        value.flags & FRONTEND_VALID != 0 && value.protocol == key.protocol && {
            let words = key.words();
            let version = word & VERSION_MASK;
            let sides = Self::words(self.v6) - 1;
            (0..sides).all(|i| draft.word(self.table(), self.base() + i as u32) == version | words[i])
        }
    }

    /// The key of a valid slot; `None` when packets could not find it there.
    pub(super) fn key(self, draft: &Draft) -> Option<FrontendKey> {
        let word = |i: usize| draft.word(self.table(), self.base() + i as u32) & PAYLOAD_MASK;
        let protocol = self.value(draft).protocol;
        let key = if self.v6 {
            let side = V6::side_from(word);
            FrontendKey {
                address: v6_address(side.addr).into(),
                port: side.port,
                protocol,
            }
        } else {
            let side = V4::side_from(word);
            FrontendKey {
                address: v4_address(side.addr).into(),
                port: side.port,
                protocol,
            }
        };
        (key.find(draft) == Some(self)).then_some(key)
    }

    /// Writes key and value into a slot that is not valid.
    pub(super) fn fill(self, draft: &mut Draft, phase: Phase, key: &FrontendKey, value: FrontendValue) {
        let (table, base, sides) = (self.table(), self.base(), Self::words(self.v6) - 1);
        // A publish that was cut off may have left its version in the first words only.
        let newest = (0..=sides)
            .map(|i| draft.word(table, base + i as u32) >> VERSION_SHIFT)
            .max()
            .unwrap_or(0) as u16;
        let version = u64::from(newest.wrapping_add(1)) << VERSION_SHIFT;
        let words = key.words().map(|word| version | word);
        draft.valid_slots[usize::from(self.v6)] += 1;
        draft.write(phase, table, base, &words[..sides]);
        draft.write(phase, table, self.value_index(), &[version | value.word()]);
    }

    /// Changes the value of a valid slot.
    pub(super) fn revalue(self, draft: &mut Draft, phase: Phase, value: FrontendValue) {
        let version = self.word(draft) & VERSION_MASK;
        draft.write(phase, self.table(), self.value_index(), &[version | value.word()]);
    }

    /// Makes packets skip the slot.
    pub(super) fn clear(self, draft: &mut Draft, phase: Phase) {
        if self.is_valid(draft) {
            let version = self.word(draft) & VERSION_MASK;
            draft.write(phase, self.table(), self.value_index(), &[version]);
            draft.valid_slots[usize::from(self.v6)] -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::layout::config;

    const VALUE: FrontendValue = FrontendValue {
        protocol: 6,
        flags: FRONTEND_VALID,
        service: 7,
    };

    fn draft(sets: u32) -> Draft {
        let lengths = Table::PUBLISHED.map(|table| sets * table.value_words() as u32);
        let mut draft = Draft::new(Default::default(), lengths);
        draft.write(Phase::Config, Table::Config, config::TABLE_SEED as u32, &[11]);
        draft
    }

    fn key(address: &str, port: u16) -> FrontendKey {
        FrontendKey {
            address: address.parse().unwrap(),
            port,
            protocol: 6,
        }
    }

    #[test]
    fn what_is_filled_is_found_until_it_is_cleared() {
        let mut draft = draft(8);
        for key in [key("10.0.0.1", 80), key("2001:db8::1", 80)] {
            let slot = key.free(&draft, &[]).unwrap();
            slot.fill(&mut draft, Phase::Frontends, &key, VALUE);
            assert_eq!((key.find(&draft), slot.key(&draft)), (Some(slot), Some(key)));
            let first = slot.word(&draft) >> VERSION_SHIFT;
            slot.revalue(&mut draft, Phase::Frontends, FrontendValue { service: 8, ..VALUE });
            assert_eq!(
                (slot.value(&draft).service, slot.word(&draft) >> VERSION_SHIFT),
                (8, first)
            );
            slot.clear(&mut draft, Phase::FrontendsGone);
            assert_eq!(key.find(&draft), None);
            slot.fill(&mut draft, Phase::Frontends, &key, VALUE);
            assert_eq!(slot.word(&draft) >> VERSION_SHIFT, first + 1);
        }
    }

    #[test]
    fn a_cut_off_publish_does_not_lend_its_version() {
        let mut draft = draft(2);
        let key = key("10.0.0.1", 80);
        let slot = key.free(&draft, &[]).unwrap();
        draft.write(
            Phase::Frontends,
            Table::FrontendsV4,
            slot.base(),
            &[5 << VERSION_SHIFT | 0x77],
        );
        slot.fill(&mut draft, Phase::Frontends, &key, VALUE);
        assert_eq!(slot.word(&draft) >> VERSION_SHIFT, 6);
        assert_eq!(key.find(&draft), Some(slot));
    }

    #[test]
    fn two_sets_fill_to_the_last_slot() {
        let mut draft = draft(2);
        for port in 1..=8 {
            let key = key("10.0.0.1", port);
            let slot = key.free(&draft, &[]).unwrap();
            slot.fill(&mut draft, Phase::Frontends, &key, VALUE);
        }
        assert_eq!(key("10.0.0.1", 9).free(&draft, &[]), None);
        assert!((1..=8).all(|port| key("10.0.0.1", port).find(&draft).is_some()));
    }
}
