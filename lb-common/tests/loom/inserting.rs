//! Two CPUs that enter flows at the same time.

use lb_common::flow::contend::Half;
use lb_common::flow::state::LIVE;
use lb_common::flow::table::{self, Inserted, Spot};
use loom::thread;

use crate::model::{Prepared, assert_whole_pairs, enter, enter_at, explore, flow, known, look_up, reply_of, standing};

#[test]
fn one_entry_entered_by_two_cpus_stands_once() {
    explore(3, || {
        let model = Prepared::new().full_but(&[(0, 1), (1, 2)]).model();
        let other = model.clone();
        let insert = |model: &crate::model::Model| {
            let mut spare = lb_common::flow::Entry::empty();
            let [mut spot, mut twin] = [Spot::of_key(&model, &flow(1, 20_000).key); 2];
            table::insert_half(&model, &flow(1, 20_000), &mut spare, LIVE, &mut spot, &mut twin)
        };
        let thread = thread::spawn(move || insert(&other));
        let halves = [insert(&model), thread.join().expect("the other CPU")];
        assert!(
            halves.iter().all(|half| matches!(half, Half::Stands | Half::Same)),
            "{halves:?}"
        );
        let known = known(standing(&model));
        assert_eq!(known.len(), 1, "{halves:?} {known:?}");
        assert_eq!(known[0].entry, flow(1, 20_000));
    });
}

#[test]
fn one_flow_entered_by_two_cpus_is_one_pair() {
    explore(2, || {
        let model = Prepared::new().full_but(&[(0, 1), (0, 2), (1, 0), (1, 3)]).model();
        let other = model.clone();
        let thread = thread::spawn(move || enter(&other, flow(1, 20_000), 0));
        let inserted = [enter(&model, flow(1, 20_000), 0), thread.join().expect("the other CPU")];
        assert!(inserted.contains(&Inserted::Pair), "{inserted:?}");
        let known = known(standing(&model));
        assert_whole_pairs(&known);
        assert_eq!(known.len(), 2, "{inserted:?}");
    });
}

#[test]
fn two_flows_whose_look_ups_told_the_same_free_slots_are_both_entered() {
    explore(2, || {
        let model = Prepared::new().full_but(&[(0, 1), (0, 2), (1, 0), (1, 3)]).model();
        let other = model.clone();
        let [own, others] = [flow(1, 20_000), flow(2, 20_007)].map(|flow| (flow, look_up(&model, &flow)));
        let thread = thread::spawn(move || enter_at(&other, &others.0, others.1, 0));
        let inserted = [
            enter_at(&model, &own.0, own.1, 0),
            thread.join().expect("the other CPU"),
        ];
        assert_eq!(inserted, [Inserted::Pair; 2]);
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
        let inserted = [enter(&model, flow(1, 20_000), 0), thread.join().expect("the other CPU")];
        let pairs = inserted.iter().filter(|inserted| **inserted == Inserted::Pair).count();
        assert!(pairs <= 1, "{inserted:?}");
        let known = known(standing(&model));
        for (n, inserted) in [1, 2].into_iter().zip(inserted) {
            let (forward, reply) = (flow(n, 20_000), reply_of(&flow(n, 20_000)));
            let stands = known.iter().any(|one| one.entry == forward);
            assert_eq!(stands, inserted == Inserted::Pair, "{inserted:?} {known:?}");
            // A reply half that was taken for lost may be left over: its client's next try joins it, or it times out.
            assert!(
                !stands || known.iter().any(|one| one.entry == reply),
                "{inserted:?} {known:?}"
            );
        }
        assert!(known.len() <= 2, "{known:?}");
    });
}

#[test]
fn one_flow_that_two_cpus_send_to_two_backends_goes_to_one() {
    explore(2, || {
        let model = Prepared::new().full_but(&[(0, 1), (0, 2), (1, 0), (1, 3)]).model();
        let other = model.clone();
        // The tables changed between the two choices.
        let thread = thread::spawn(move || enter(&other, flow(1, 20_001), 0));
        let inserted = [enter(&model, flow(1, 20_000), 0), thread.join().expect("the other CPU")];
        let known = known(standing(&model));
        assert_whole_pairs(&known);
        for (inserted, seen) in inserted.into_iter().zip([20_000, 20_001]) {
            let forward = flow(1, seen);
            let stands = known.iter().any(|one| one.entry == forward);
            assert_eq!(stands, inserted == Inserted::Pair, "{inserted:?} {seen} {known:?}");
            assert_eq!(known.iter().any(|one| one.entry == reply_of(&forward)), stands);
        }
    });
}
