//! The flow table by itself: entering, finding, displacing by value, freeing and refreshing entries, one CPU at a time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::node::{HZ, Node, TCP, each_family};
use crate::access::{Rolls as _, Slots as _, TableFamily, Tables as _};
use crate::family::{V4, V6};
use crate::flow::roll::Roll;
use crate::flow::search::{self, Found};
use crate::flow::slot::{Entry, Key, Place, Rewrite};
use crate::flow::state::{DATAGRAM, ESTABLISHED, FIN_FORWARD, FIN_REPLY, LIVE, REPLIED, REPLY_HALF, RESET, SETTLED};
use crate::flow::table::{self, Claimed, Spot, slot_of};
use crate::layout::{SET_SLOTS, VERSION_MASK, config};
use crate::slots::{candidates, probe};
use crate::testing::{Entered, Sizes, enter_half, enter_pair, side};

const OPEN: u16 = LIVE;
const ANSWERED: u16 = LIVE | DATAGRAM | REPLIED;
const CLOSING: u16 = LIVE | REPLIED | ESTABLISHED | FIN_FORWARD | FIN_REPLY;
const ESTABLISHED_NOW: u16 = LIVE | REPLIED | ESTABLISHED;
const SETTLED_FLOW: u16 = ESTABLISHED_NOW | SETTLED;

fn address(v6: bool, host: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(host)).into()
    } else {
        Ipv4Addr::new(192, 0, 2, host).into()
    }
}

/// The forward half of flow number `n`, to one of two backends.
fn entry<F: TableFamily>(n: u16) -> Entry<F> {
    let client = side(address(F::V6, 1), n);
    Entry {
        key: Key {
            src: client,
            dst: side(address(F::V6, 2), 80),
            protocol: TCP,
        },
        rewrite: Rewrite {
            src: client,
            dst: side(address(F::V6, 10 + (n % 2) as u8), 8080),
        },
        place: Place {
            hooks: 1,
            way: 0,
            service: 7,
            backend: 1 << 32 | u64::from(n % 2),
        },
    }
}

/// Room for a spot.
fn nowhere() -> Spot {
    Spot::none(Found::Nothing)
}

const REPLY_PLACE: Place = Place {
    hooks: 2,
    way: 0,
    service: 7,
    backend: 1 << 32,
};

fn enter<F: TableFamily>(node: &Node, n: u16, state: u16) -> Entered {
    let entry = entry::<F>(n);
    enter_pair(&&node.tables, &entry, &reply_of(&entry), state)
}

fn is_whole<F: TableFamily>(node: &Node, n: u16) -> bool {
    let tables = &&node.tables;
    let forward = entry::<F>(n);
    let mut found = Entry::empty();
    found.key = forward.key;
    let spot = search::complete(tables, &mut found);
    let mut reply = Entry::empty();
    reply.key = forward.key.twin(forward.rewrite);
    let twin = search::complete(tables, &mut reply);
    if (spot.found, twin.found) == (Found::Nothing, Found::Nothing) {
        return false;
    }
    assert_eq!(found, forward, "flow {n}");
    assert_eq!(reply.rewrite, forward.key.twin_rewrite(), "flow {n}");
    assert_eq!(reply.place, REPLY_PLACE);
    true
}

/// The reply half of a forward half.
fn reply_of<F: TableFamily>(forward: &Entry<F>) -> Entry<F> {
    let mut reply = Entry::empty();
    forward.twin_into(REPLY_PLACE, &mut reply);
    reply
}

/// Runs a test on a table of two sets, eight slots, for both families.
fn eight_slots(test: impl Fn(&Node, Enter, IsWhole)) {
    let sizes = Sizes {
        flow_sets: 2,
        ..Sizes::default()
    };
    test(&Node::new(false, sizes), enter::<V4>, is_whole::<V4>);
    test(&Node::new(true, sizes), enter::<V6>, is_whole::<V6>);
}

type Enter = fn(&Node, u16, u16) -> Entered;
type IsWhole = fn(&Node, u16) -> bool;

#[test]
fn a_pair_that_was_entered_is_found_from_both_sides() {
    eight_slots(|node, enter, is_whole| {
        for n in 0..4 {
            assert_eq!(enter(node, n, OPEN), Entered::Pair);
        }
        assert!((0..4).all(|n| is_whole(node, n)));
        assert!(!is_whole(node, 4));
        assert!(node.widows().is_empty());
        node.check_table();
    });
}

#[test]
fn an_entry_takes_the_first_free_slot_of_its_first_set_or_if_that_is_full_of_its_second() {
    fn check<F: TableFamily>(node: &Node) {
        let tables = &&node.tables;
        let table = tables.flows::<F>();
        let taken = || [0, 1].map(|set| Roll::from_word(table.roll(set)).taken());
        let mut spilled = 0;
        for n in 0..8 {
            let entry = entry::<F>(n);
            let hash = entry.key.hash(tables.config(config::TABLE_SEED));
            let before = taken();
            let is_free = |place: &(u32, usize)| before[place.0 as usize] >> place.1 & 1 == 0;
            let places = candidates(hash, table.mask()).into_iter();
            let mut places = places.flat_map(|set| (0..SET_SLOTS).map(move |step| (set, probe(hash, step))));
            let expected = places.find(is_free).expect("a slot is free");
            assert_eq!(enter_half(&&node.tables, &entry, OPEN), Claimed::Slot);
            let spot = search::locate(tables, &entry.key);
            assert_eq!(
                (spot.found, (spot.set, slot_of::<F>(spot.base as usize))),
                (Found::Entry, expected)
            );
            spilled += u32::from(spot.set != spot.home::<F, _>(tables));
            node.check_table();
        }
        assert_eq!(taken(), [0xf; 2]);
        assert!(spilled > 0, "no set was full");
    }
    let sizes = Sizes {
        flow_sets: 2,
        ..Sizes::default()
    };
    check::<V4>(&Node::new(false, sizes));
    check::<V6>(&Node::new(true, sizes));
}

#[test]
fn spilled_entries_are_counted_in_their_first_set_until_they_go() {
    eight_slots(|node, enter, is_whole| {
        for n in 0..4 {
            assert_eq!(enter(node, n, OPEN), Entered::Pair);
        }
        let spilled = node.spilled();
        assert!(spilled.iter().all(|(told, are)| told == are), "{spilled:?}");
        assert!(spilled.iter().any(|(told, _)| *told > 0), "no set was full");
        // Newcomers displace them, in either set.
        for n in 4..24 {
            enter(node, n, OPEN);
            node.check_table();
        }
        assert!((0..24).any(|n| is_whole(node, n)));
        node.pass_seconds(3600);
        node.sweep();
        assert!(node.halves().is_empty());
        let spilled = node.spilled();
        assert!(spilled.iter().all(|counts| *counts == (0, 0)), "{spilled:?}");
    });
}

#[test]
fn settled_flows_are_never_displaced() {
    eight_slots(|node, enter, is_whole| {
        for n in 0..4 {
            assert_eq!(enter(node, n, SETTLED_FLOW), Entered::Pair);
        }
        for state in [OPEN, ANSWERED, ESTABLISHED_NOW, SETTLED_FLOW] {
            assert_eq!(enter(node, 9, state), Entered::Full);
        }
        assert!((0..4).all(|n| is_whole(node, n)));
    });
}

#[test]
fn the_least_valuable_flow_goes_and_it_goes_whole() {
    let worth = [OPEN, LIVE | DATAGRAM, CLOSING, LIVE | RESET, ANSWERED, ESTABLISHED_NOW];
    for (index, cheap) in worth.into_iter().enumerate() {
        eight_slots(|node, enter, is_whole| {
            for n in [0, 1, 3] {
                assert_eq!(enter(node, n, SETTLED_FLOW), Entered::Pair);
            }
            assert_eq!(enter(node, 2, cheap), Entered::Pair, "{index}");
            node.tables.advance(1);
            // A newcomer takes two slots: both are the cheap flow's.
            assert_eq!(enter(node, 9, OPEN), Entered::Pair, "{index}");
            assert!(!is_whole(node, 2) && is_whole(node, 9), "{index}");
            assert!([0, 1, 3].into_iter().all(|n| is_whole(node, n)));
            assert!(node.widows().is_empty());
        });
    }
}

#[test]
fn a_pair_is_not_entered_by_displacing_its_own_half() {
    eight_slots(|node, enter, _| {
        for n in 0..4 {
            assert_eq!(enter(node, n, SETTLED_FLOW), Entered::Pair);
        }
        // One slot alone is free: the newcomer's reply half fits, its forward half does not.
        node.lose(&node.halves()[0]);
        assert_eq!(enter(node, 9, OPEN), Entered::Full);
        assert_eq!(node.halves().len(), 7, "half a flow was left behind");
    });
}

#[test]
fn of_equal_worth_the_oldest_goes_but_the_newest_of_those_that_have_not_settled() {
    for (state, goes) in [(OPEN, 0), (ANSWERED, 0), (CLOSING, 0), (ESTABLISHED_NOW, 3)] {
        eight_slots(|node, enter, is_whole| {
            for n in 0..4 {
                assert_eq!(enter(node, n, state), Entered::Pair);
                node.tables.advance(HZ);
            }
            assert_eq!(enter(node, 9, OPEN), Entered::Pair);
            let gone: Vec<u16> = (0..4).filter(|n| !is_whole(node, *n)).collect();
            assert_eq!(gone, [goes], "state {state:#x}");
        });
    }
}

#[test]
fn what_has_timed_out_goes_first_whatever_it_is_worth() {
    eight_slots(|node, enter, is_whole| {
        assert_eq!(enter(node, 0, SETTLED_FLOW), Entered::Pair);
        node.tables.advance(86_400 * HZ + 1);
        for n in 1..4 {
            assert_eq!(enter(node, n, OPEN), Entered::Pair);
        }
        assert_eq!(enter(node, 9, OPEN), Entered::Pair);
        assert!(!is_whole(node, 0) && (1..4).all(|n| is_whole(node, n)));
    });
}

#[test]
fn the_same_flow_again_is_one_pair_and_another_of_the_same_reply_is_refused() {
    each_family(|node| {
        fn check<F: TableFamily>(node: &Node) {
            let tables = &&node.tables;
            let enter = |entry: Entry<F>| enter_pair(tables, &entry, &reply_of(&entry), OPEN);
            assert_eq!(enter(entry::<F>(1)), Entered::Pair);
            assert_eq!(enter(entry::<F>(1)), Entered::Known);
            assert_eq!(node.halves().len(), 2);
            // Another client whose packets would look the same to the backend.
            let mut other = entry::<F>(1);
            other.key.src = side(address(F::V6, 77), 5);
            assert_eq!(enter(other), Entered::Conflict);
            // The same client, sent to another backend meanwhile.
            let mut moved = entry::<F>(1);
            moved.rewrite.dst = side(address(F::V6, 99), 1);
            assert_eq!(enter(moved), Entered::Conflict);
            node.check_table();
            assert!(is_whole::<F>(node, 1));
            assert_eq!(node.halves().len(), 2, "{:?}", node.halves());
        }
        if node.v6 {
            check::<V6>(&node);
        } else {
            check::<V4>(&node);
        }
    });
}

#[test]
fn freeing_fails_when_a_packet_came_meanwhile_and_refreshing_when_it_was_freed() {
    let node = Node::standard(false);
    let tables = &&node.tables;
    assert_eq!(enter::<V4>(&node, 1, OPEN), Entered::Pair);
    let key = entry::<V4>(1).key;
    let seen = search::locate(tables, &key);
    assert_eq!(seen.found, Found::Entry);
    node.tables.advance(5);
    assert_eq!(
        table::touch::<V4, _>(tables, &seen, ESTABLISHED, node.now()),
        OPEN | ESTABLISHED
    );
    assert!(!seen.free::<V4, _>(tables), "a refreshed entry was freed");
    let seen = search::locate(tables, &key);
    assert_eq!(
        (seen.control.last_seen, seen.control.state),
        (node.now(), OPEN | ESTABLISHED)
    );
    assert!(seen.free::<V4, _>(tables));
    assert!(!seen.free::<V4, _>(tables), "an entry was freed twice");
    table::touch::<V4, _>(tables, &seen, SETTLED, node.now());
    assert_eq!(
        search::locate(tables, &key).found,
        Found::Nothing,
        "a freed entry came back to life"
    );
}

#[test]
fn a_touch_survives_lost_races_and_keeps_all_bits() {
    let node = Node::standard(false);
    let tables = &&node.tables;
    assert_eq!(enter::<V4>(&node, 1, OPEN), Entered::Pair);
    let stale = search::locate(tables, &entry::<V4>(1).key);
    table::touch::<V4, _>(tables, &stale, REPLIED, 1);
    table::touch::<V4, _>(tables, &stale, FIN_FORWARD, 2);
    assert_eq!(
        table::touch::<V4, _>(tables, &stale, ESTABLISHED, 3),
        OPEN | REPLIED | FIN_FORWARD | ESTABLISHED
    );
    assert_eq!(search::locate(tables, &entry::<V4>(1).key).control.last_seen, 3);
}

#[test]
fn versions_rise_with_each_slot_that_is_taken_and_wrap() {
    let node = Node::new(
        false,
        Sizes {
            flow_sets: 2,
            ..Sizes::default()
        },
    );
    let tables = &&node.tables;
    let table = node.tables.flow_slots::<V4>();
    let version = |key| search::locate(tables, &key).control.version;
    let forward = entry::<V4>(1);
    for set in 0..2 {
        table.cas_roll(set, 0, VERSION_MASK);
    }
    assert_eq!(enter::<V4>(&node, 1, OPEN), Entered::Pair);
    let first = version(forward.key);
    assert!(first < 2 << 48, "after the last version comes the first: {first:#x}");
    assert!(is_whole::<V4>(&node, 1));
    let freed = search::locate(tables, &forward.key);
    assert!(freed.free::<V4, _>(tables));
    assert_eq!(enter_half(&&node.tables, &forward, OPEN), Claimed::Slot);
    let entered = search::locate(tables, &forward.key);
    assert_eq!((entered.set, entered.base), (freed.set, freed.base));
    assert!(entered.control.version > first);
    assert!(is_whole::<V4>(&node, 1));
}

#[test]
fn a_slot_that_is_taken_makes_its_own_key_busy_and_no_other() {
    eight_slots(|node, enter, _| {
        fn check<F: TableFamily>(node: &Node, enter: Enter) {
            let tables = &&node.tables;
            let forward = entry::<F>(1);
            let mut spot = Spot::of_key(tables, &forward.key);
            let mut spare = Entry::empty();
            let claimed = tables.claim(&forward.key, &mut spare, &mut spot, &nowhere(), &mut nowhere());
            assert_eq!((claimed, spot.taken), (Claimed::Slot, true));
            assert_eq!(search::locate(tables, &forward.key).found, Found::Nothing);
            assert_eq!(enter(node, 1, OPEN), Entered::Busy);
            // Nobody takes it, and nobody waits for it.
            let others: Vec<Entered> = (2..40).map(|n| enter(node, n, OPEN)).collect();
            assert!(
                others.iter().filter(|other| **other == Entered::Pair).count() > 20,
                "{others:?}"
            );
            assert_eq!(node.halves().len() % 2, 0);
            table::publish(tables, &forward, OPEN, &mut spot);
            let found = search::locate(tables, &forward.key);
            assert_eq!(
                (found.found, found.set, found.base),
                (Found::Entry, spot.set, spot.base)
            );
            assert!(found.free::<F, _>(tables));
            node.check_table();
        }
        if node.v6 {
            check::<V6>(node, enter);
        } else {
            check::<V4>(node, enter);
        }
    });
}

#[test]
fn a_slot_that_is_left_without_an_entry_is_as_if_it_had_not_been_taken() {
    eight_slots(|node, _, _| {
        fn check<F: TableFamily>(node: &Node) {
            let tables = &&node.tables;
            let taken = || [0, 1].map(|set| Roll::from_word(tables.flows::<F>().roll(set)).taken());
            // The last of these are spilled.
            for n in 0..7 {
                assert_eq!(enter_half(&&node.tables, &entry::<F>(n), OPEN), Claimed::Slot);
                for other in 10..20 {
                    let (before, spilled) = (taken(), node.spilled());
                    let key = entry::<F>(other).key;
                    let mut spot = Spot::of_key(tables, &key);
                    let mut spare = Entry::empty();
                    let claimed = tables.claim(&key, &mut spare, &mut spot, &nowhere(), &mut nowhere());
                    assert_eq!(claimed, Claimed::Slot);
                    assert_ne!(taken(), before);
                    table::unclaim::<F, _>(tables, &mut spot);
                    assert_eq!((taken(), node.spilled(), spot.taken), (before, spilled, false));
                }
            }
        }
        if node.v6 {
            check::<V6>(node);
        } else {
            check::<V4>(node);
        }
    });
}

#[test]
fn a_reply_half_that_is_left_alone_makes_way_for_its_flow() {
    let node = Node::standard(false);
    let tables = &&node.tables;
    let (forward, mut spare) = (entry::<V4>(1), Entry::empty());
    assert_eq!(
        enter_half(&&node.tables, &reply_of(&forward), OPEN | REPLY_HALF),
        Claimed::Slot
    );
    assert_eq!(node.widows().len(), 1);
    assert_eq!(enter::<V4>(&node, 1, OPEN), Entered::Pair);
    assert!(is_whole::<V4>(&node, 1) && node.halves().len() == 2);
    node.check_table();
    table::free_twin(tables, &forward, &mut spare, &mut nowhere());
    assert_eq!(node.widows().len(), 1, "the twin alone is freed");
    assert_eq!(enter_half(&&node.tables, &forward, OPEN), Claimed::Entry);
    assert_eq!(node.halves().len(), 1);
    node.check_table();
}
