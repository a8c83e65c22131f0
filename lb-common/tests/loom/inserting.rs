//! Two CPUs that enter flows at the same time.

use lb_common::flow::state::LIVE;
use lb_common::flow::table::Claimed;
use lb_common::testing::{Entered, enter_half};
use loom::thread;

use crate::model::{Model, Prepared, assert_whole_pairs, enter, explore, flow, known, reply_of, standing};

#[test]
fn one_entry_entered_by_two_cpus_stands_once() {
    explore(3, || {
        let model = Prepared::new().full_but(&[(0, 1), (1, 2)]).model();
        let other = model.clone();
        let insert = |model: &Model| enter_half(&model, &flow(1, 20_000), LIVE);
        let thread = thread::spawn(move || insert(&other));
        let claimed = [insert(&model), thread.join().expect("the other CPU")];
        let slots = claimed.iter().filter(|claimed| **claimed == Claimed::Slot).count();
        assert_eq!(slots, 1, "{claimed:?}");
        assert!(!claimed.contains(&Claimed::Full), "{claimed:?}");
        let known = known(standing(&model));
        assert_eq!(known.len(), 1, "{claimed:?} {known:?}");
        assert_eq!(known[0].entry, flow(1, 20_000));
    });
}

#[test]
fn one_flow_entered_by_two_cpus_is_one_pair() {
    explore(2, || {
        let model = Prepared::new().full_but(&[(0, 1), (0, 2), (1, 0), (1, 3)]).model();
        let other = model.clone();
        let thread = thread::spawn(move || enter(&other, flow(1, 20_000), 0));
        let entered = [enter(&model, flow(1, 20_000), 0), thread.join().expect("the other CPU")];
        let pairs = entered.iter().filter(|entered| **entered == Entered::Pair).count();
        assert_eq!(pairs, 1, "{entered:?}");
        let known = known(standing(&model));
        assert_whole_pairs(&known);
        assert_eq!(known.len(), 2, "{entered:?}");
    });
}

#[test]
fn two_flows_that_want_the_same_slots_are_both_entered() {
    explore(2, || {
        let model = Prepared::new().full_but(&[(0, 1), (0, 2), (1, 0), (1, 3)]).model();
        let other = model.clone();
        let thread = thread::spawn(move || enter(&other, flow(2, 20_007), 0));
        let entered = [enter(&model, flow(1, 20_000), 0), thread.join().expect("the other CPU")];
        assert_eq!(entered, [Entered::Pair; 2]);
        let known = known(standing(&model));
        assert_whole_pairs(&known);
        assert_eq!(known.len(), 4);
    });
}

#[test]
fn two_flows_that_would_look_the_same_to_the_backend_are_never_both_entered() {
    explore(2, || {
        let model = Prepared::new().full_but(&[(0, 1), (0, 2), (1, 0), (1, 3)]).model();
        let other = model.clone();
        let thread = thread::spawn(move || enter(&other, flow(2, 20_000), 0));
        let entered = [enter(&model, flow(1, 20_000), 0), thread.join().expect("the other CPU")];
        let pairs = entered.iter().filter(|entered| **entered == Entered::Pair).count();
        assert_eq!(pairs, 1, "{entered:?}");
        let known = known(standing(&model));
        for (n, entered) in [1, 2].into_iter().zip(entered) {
            let (forward, reply) = (flow(n, 20_000), reply_of(&flow(n, 20_000)));
            for half in [forward, reply] {
                let stands = known.iter().any(|one| one.entry == half);
                assert_eq!(stands, entered == Entered::Pair, "{entered:?} {known:?}");
            }
        }
        assert_eq!(known.len(), 2, "{known:?}");
    });
}

#[test]
fn one_flow_that_two_cpus_send_to_two_backends_goes_to_one() {
    explore(2, || {
        let model = Prepared::new().full_but(&[(0, 1), (0, 2), (1, 0), (1, 3)]).model();
        let other = model.clone();
        // The tables changed between the two choices.
        let thread = thread::spawn(move || enter(&other, flow(1, 20_001), 0));
        let entered = [enter(&model, flow(1, 20_000), 0), thread.join().expect("the other CPU")];
        let known = known(standing(&model));
        assert_whole_pairs(&known);
        assert_eq!(known.len(), 2, "{entered:?} {known:?}");
        for (entered, seen) in entered.into_iter().zip([20_000, 20_001]) {
            let forward = flow(1, seen);
            let stands = known.iter().any(|one| one.entry == forward);
            assert_eq!(stands, entered == Entered::Pair, "{entered:?} {seen} {known:?}");
            assert_eq!(known.iter().any(|one| one.entry == reply_of(&forward)), stands);
        }
    });
}

#[test]
fn a_flow_whose_first_sets_are_full_is_one_pair_whoever_enters_it_and_whatever_room_comes() {
    // What frees a slot of a first set while a CPU spills into the second.
    for (slot, other_slot) in [((0, 1), (1, 2)), ((1, 2), (0, 1))] {
        explore(2, move || {
            let leaving = flow(5, 20_005);
            let model = Prepared::new()
                .place(slot.0, slot.1, &leaving, 0, crate::model::NOW)
                .full_but(&[other_slot])
                .model();
            let other = model.clone();
            let insert = |model: &Model| enter_half(&model, &flow(1, 20_000), LIVE);
            let thread = thread::spawn(move || {
                let leaving = lb_common::flow::search::locate(&&*other, &leaving.key);
                leaving.free::<lb_common::family::V4, _>(&&*other);
                insert(&other)
            });
            let claimed = [insert(&model), thread.join().expect("the other CPU")];
            let known: Vec<_> = known(standing(&model))
                .into_iter()
                .filter(|one| one.entry == flow(1, 20_000))
                .collect();
            assert_eq!(known.len(), 1, "{claimed:?} {known:?}");
            assert_eq!(
                claimed.iter().filter(|claimed| **claimed == Claimed::Slot).count(),
                1,
                "{claimed:?}"
            );
        });
    }
}
