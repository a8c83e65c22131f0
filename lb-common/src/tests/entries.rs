//! The flow table by itself: entering, finding, displacing by value, freeing and refreshing entries, one CPU at a time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::node::{HZ, Node, TCP, each_family};
use crate::access::{SetRef as _, Slots as _, TableFamily, Tables as _};
use crate::family::{V4, V6};
use crate::flow::contend::Half;
use crate::flow::search::{self, Found};
use crate::flow::slot::{Entry, Key, Place, Rewrite};
use crate::flow::state::{
    BUSY, Control, DATAGRAM, ESTABLISHED, FIN_FORWARD, FIN_REPLY, FREE, LIVE, REPLIED, RESET, SETTLED,
};
use crate::flow::table::{self, Inserted, Spot};
use crate::layout::{SET_SLOTS, VERSION_MASK, config};
use crate::slots::home;
use crate::testing::{Sizes, side};

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

/// Spots of both halves of a flow that nobody has looked for, and room for one more.
fn spots<F: TableFamily>(node: &Node, forward: &Entry<F>) -> [Spot; 3] {
    let of = |half: &Entry<F>| Spot::of_key(&&node.tables, &half.key);
    [of(&reply_of(forward)), of(forward), nowhere()]
}

const REPLY_PLACE: Place = Place {
    hooks: 2,
    way: 0,
    service: 7,
    backend: 1 << 32,
};

fn enter<F: TableFamily>(node: &Node, n: u16, state: u16) -> Inserted {
    let entry = entry::<F>(n);
    table::insert_pair(
        &&node.tables,
        &entry,
        &reply_of(&entry),
        &mut Entry::empty(),
        &mut spots(node, &entry),
        state,
        false,
    )
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

type Enter = fn(&Node, u16, u16) -> Inserted;
type IsWhole = fn(&Node, u16) -> bool;

#[test]
fn a_pair_that_was_entered_is_found_from_both_sides() {
    eight_slots(|node, enter, is_whole| {
        for n in 0..4 {
            assert_eq!(enter(node, n, OPEN), Inserted::Pair);
        }
        assert!((0..4).all(|n| is_whole(node, n)));
        assert!(!is_whole(node, 4));
        assert!(node.widows().is_empty());
        node.check_table();
    });
}

#[test]
fn an_entry_that_was_not_found_stands_in_the_free_slot_that_the_look_up_told_or_elsewhere_if_that_was_taken() {
    fn check<F: TableFamily>(node: &Node) {
        let tables = &&node.tables;
        let look_up = |key: Key<F>| {
            let mut spot = Spot::of_key(tables, &key);
            assert_eq!(search::scan(tables, &key, &mut spot), Found::Nothing);
            spot
        };
        let is_free = |set: u32, base: usize| {
            let set = tables.flows::<F>().set(set).expect("a set");
            Control::from_word(set.load(base)).phase() == FREE
        };
        let mut told = [0, 0];
        let mut look_up_strangers = || {
            for stranger in 10..40 {
                let key = entry::<F>(stranger).key;
                let spot = look_up(key);
                let home = home(key.hash(tables.config(config::TABLE_SEED)), tables.flows::<F>().mask());
                let has_room = (0..SET_SLOTS).any(|slot| is_free(home, slot * F::SLOT_WORDS));
                assert_eq!(spot.vacant, has_room);
                assert!(!has_room || spot.set == home && is_free(home, spot.base as usize));
                told[usize::from(has_room)] += 1;
            }
        };
        for n in 0..4 {
            look_up_strangers();
            let forward = entry::<F>(n);
            let halves = [reply_of(&forward), forward];
            let found = halves.map(|half| look_up(half.key));
            let mut spots = [found[0], found[1], nowhere()];
            let inserted = table::insert_pair(
                tables,
                &halves[1],
                &halves[0],
                &mut Entry::empty(),
                &mut spots,
                OPEN,
                false,
            );
            assert_eq!(inserted, Inserted::Pair, "flow {n}");
            assert!(is_whole::<F>(node, n));
            let stand = halves.map(|half| search::locate(tables, &half.key));
            let place = |spot: Spot| (spot.set, spot.base);
            // The reply half is entered first.
            let taken = [false, place(found[0]) == place(found[1])];
            for half in 0..2 {
                let as_told = found[half].vacant && place(stand[half]) == place(found[half]);
                assert_eq!(
                    as_told,
                    found[half].vacant && !taken[half],
                    "flow {n}: {found:?} {stand:?}"
                );
            }
            node.check_table();
        }
        // The one free slot is no first set's for half of them.
        node.lose(&node.halves()[0]);
        look_up_strangers();
        assert!(told.iter().all(|times| *times > 0), "{told:?}");
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
            assert_eq!(enter(node, n, OPEN), Inserted::Pair);
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
            assert_eq!(enter(node, n, SETTLED_FLOW), Inserted::Pair);
        }
        for state in [OPEN, ANSWERED, ESTABLISHED_NOW, SETTLED_FLOW] {
            assert_eq!(enter(node, 9, state), Inserted::Full);
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
                assert_eq!(enter(node, n, SETTLED_FLOW), Inserted::Pair);
            }
            assert_eq!(enter(node, 2, cheap), Inserted::Pair, "{index}");
            node.tables.advance(1);
            // A newcomer takes two slots: both are the cheap flow's.
            assert_eq!(enter(node, 9, OPEN), Inserted::Pair, "{index}");
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
            assert_eq!(enter(node, n, SETTLED_FLOW), Inserted::Pair);
        }
        // One slot alone is free: the newcomer's reply half fits, its forward half does not.
        node.lose(&node.halves()[0]);
        assert_eq!(enter(node, 9, OPEN), Inserted::Full);
        assert_eq!(node.halves().len(), 7, "half a flow was left behind");
    });
}

#[test]
fn of_equal_worth_the_oldest_goes_but_the_newest_of_those_that_have_not_settled() {
    for (state, goes) in [(OPEN, 0), (ANSWERED, 0), (CLOSING, 0), (ESTABLISHED_NOW, 3)] {
        eight_slots(|node, enter, is_whole| {
            for n in 0..4 {
                assert_eq!(enter(node, n, state), Inserted::Pair);
                node.tables.advance(HZ);
            }
            assert_eq!(enter(node, 9, OPEN), Inserted::Pair);
            let gone: Vec<u16> = (0..4).filter(|n| !is_whole(node, *n)).collect();
            assert_eq!(gone, [goes], "state {state:#x}");
        });
    }
}

#[test]
fn what_has_timed_out_goes_first_whatever_it_is_worth() {
    eight_slots(|node, enter, is_whole| {
        assert_eq!(enter(node, 0, SETTLED_FLOW), Inserted::Pair);
        node.tables.advance(86_400 * HZ + 1);
        for n in 1..4 {
            assert_eq!(enter(node, n, OPEN), Inserted::Pair);
        }
        assert_eq!(enter(node, 9, OPEN), Inserted::Pair);
        assert!(!is_whole(node, 0) && (1..4).all(|n| is_whole(node, n)));
    });
}

#[test]
fn the_same_flow_again_is_one_pair_and_another_of_the_same_reply_is_refused() {
    each_family(|node| {
        fn check<F: TableFamily>(node: &Node) {
            let tables = &&node.tables;
            let mut spare = Entry::empty();
            let enter = |spare: &mut Entry<F>, entry: Entry<F>| {
                table::insert_pair(
                    tables,
                    &entry,
                    &reply_of(&entry),
                    spare,
                    &mut spots(node, &entry),
                    OPEN,
                    false,
                )
            };
            assert_eq!(enter(&mut spare, entry::<F>(1)), Inserted::Pair);
            assert_eq!(enter(&mut spare, entry::<F>(1)), Inserted::Pair);
            assert_eq!(node.halves().len(), 2);
            // Another client whose packets would look the same to the backend.
            let mut other = entry::<F>(1);
            other.key.src = side(address(F::V6, 77), 5);
            assert_eq!(enter(&mut spare, other), Inserted::Conflict);
            // The same client, sent to another backend meanwhile.
            let mut moved = entry::<F>(1);
            moved.rewrite.dst = side(address(F::V6, 99), 1);
            assert_eq!(enter(&mut spare, moved), Inserted::Conflict);
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
    assert_eq!(enter::<V4>(&node, 1, OPEN), Inserted::Pair);
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
    assert_eq!(enter::<V4>(&node, 1, OPEN), Inserted::Pair);
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
fn versions_rise_with_each_use_of_a_slot_and_wrap() {
    let node = Node::new(
        false,
        Sizes {
            flow_sets: 2,
            ..Sizes::default()
        },
    );
    let tables = &&node.tables;
    let version = |key| search::locate(tables, &key).control.version;
    let key = entry::<V4>(1).key;
    let set = |n| node.tables.flow_slots::<V4>().set(n).expect("a set");
    for n in 0..2 {
        for slot in 0..4 {
            set(n).store(slot * 8, VERSION_MASK);
        }
    }
    assert_eq!(enter::<V4>(&node, 1, OPEN), Inserted::Pair);
    assert_eq!(version(key), 0, "after the last version comes the first");
    assert!(is_whole::<V4>(&node, 1));
    let freed = search::locate(tables, &key);
    assert!(freed.free::<V4, _>(tables));
    assert_eq!(enter::<V4>(&node, 1, OPEN), Inserted::Pair);
    assert!(is_whole::<V4>(&node, 1));
}

#[test]
fn a_slot_being_written_makes_its_own_key_busy_and_no_other() {
    let node = Node::new(
        false,
        Sizes {
            flow_sets: 2,
            ..Sizes::default()
        },
    );
    let tables = &&node.tables;
    let entry = entry::<V4>(1);
    let hash = entry.key.hash(node.config(config::TABLE_SEED));
    assert_eq!(enter::<V4>(&node, 1, OPEN), Inserted::Pair);
    let spot = search::locate(tables, &entry.key);
    let set = node.tables.flow_slots::<V4>().set(spot.set).expect("a set");
    let writing = Control {
        version: spot.control.next_version(),
        state: BUSY,
        last_seen: (hash >> 28) as u32,
    };
    set.store(spot.base as usize, writing.word());
    assert_eq!(search::locate(tables, &entry.key).found, Found::Busy);
    assert_eq!(search::locate(tables, &self::entry::<V4>(2).key).found, Found::Nothing);
    // Nobody takes it, and nobody waits for it.
    for n in 2..40 {
        enter::<V4>(&node, n, OPEN);
    }
    assert_eq!(set.load(spot.base as usize), writing.word());
}

#[test]
fn a_half_that_stands_already_is_kept_and_the_other_one_joins_it() {
    let node = Node::standard(false);
    let tables = &&node.tables;
    let (forward, mut spare) = (entry::<V4>(1), Entry::empty());
    let reply = reply_of(&forward);
    assert!(table::insert_reply(
        tables,
        &reply,
        &mut spare,
        &mut spots(&node, &forward),
        OPEN
    ));
    assert_eq!(node.widows().len(), 1);
    let inserted = table::insert_pair(
        tables,
        &forward,
        &reply,
        &mut spare,
        &mut spots(&node, &forward),
        OPEN,
        true,
    );
    assert_eq!(inserted, Inserted::Pair);
    assert!(is_whole::<V4>(&node, 1) && node.halves().len() == 2);
    table::free_twin(tables, &forward, &mut spare, &mut nowhere());
    assert_eq!(node.widows().len(), 1, "the twin alone is freed");
    let [_, mut own, mut room] = spots(&node, &forward);
    assert!(matches!(
        table::insert_half(tables, &forward, &mut spare, OPEN, &mut own, &mut room),
        Half::Same | Half::Stands
    ));
    assert_eq!(node.halves().len(), 1);
}
