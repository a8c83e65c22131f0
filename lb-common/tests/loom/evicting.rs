//! A newcomer that displaces a flow while packets of that flow pass.

use lb_common::access::Tables as _;
use lb_common::family::V4;
use lb_common::flow::Entry;
use lb_common::flow::search::{self, Found};
use lb_common::flow::state::{ESTABLISHED, REPLIED, REPLY_HALF, SETTLED};
use lb_common::flow::table::{self, Claimed, Spot};
use lb_common::testing::Entered;
use loom::sync::Arc;
use loom::thread;

use crate::model::{
    Model, NOW, Prepared, Standing, assert_whole_pairs, enter, explore, flow, known, reply_of, standing,
};

/// Notes a packet on both halves, as the pipeline does; whether the flow was there.
fn note(model: &Model, entry: &Entry<V4>, add: u16) -> bool {
    let mut spare = Entry::empty();
    let spot = search::locate(&model, &entry.key);
    if spot.found != Found::Entry {
        return false;
    }
    let noted = table::touch::<V4, _>(&model, &spot, add, NOW);
    table::touch_twin(&model, entry, &mut spare, noted, NOW);
    true
}

fn has(known: &[Standing], entry: &Entry<V4>) -> bool {
    known.iter().any(|one| one.entry == *entry)
}

/// A table in whose only places `old` stands.
fn filled_by(old: &Entry<V4>) -> Arc<Model> {
    Prepared::new()
        .place(0, 1, old, 0, NOW - 5)
        .place(1, 2, &reply_of(old), REPLY_HALF, NOW - 5)
        .full_but(&[])
        .model()
}

/// The old flow fills the only places there are; a newcomer comes while a packet of the old one adds state `add`.
fn displaced_while_noted(add: u16) {
    explore(2, move || {
        let old = flow(1, 20_000);
        let model = filled_by(&old);
        let other = model.clone();
        let thread = thread::spawn(move || enter(&other, flow(2, 20_001), 0));
        note(&model, &old, add);
        let entered = thread.join().expect("the other CPU");
        let known = known(standing(&model));
        let new = flow(2, 20_001);
        let new_stands = entered == Entered::Pair;
        assert_eq!(has(&known, &new), new_stands, "{entered:?} {known:?}");
        assert_eq!(has(&known, &reply_of(&new)), new_stands, "{entered:?} {known:?}");
        if new_stands {
            assert_eq!(known.len(), 2, "the displaced flow left something behind: {known:?}");
        }
    });
}

#[test]
fn a_flow_is_displaced_whole_or_not_at_all_while_a_packet_refreshes_it() {
    displaced_while_noted(0);
}

#[test]
fn a_flow_that_settles_meanwhile_may_stay_and_the_newcomer_is_whole_or_not_there() {
    displaced_while_noted(REPLIED | ESTABLISHED | SETTLED);
}

/// Displaces a flow once, for a newcomer that wants its place.
fn displace(model: &Model) -> Claimed {
    let mut spot = Spot::of_key(&model, &flow(3, 20_002).key);
    let [nowhere, mut room] = [Spot::none(Found::Nothing); 2];
    (&model).make_room::<V4>(&mut Entry::empty(), &mut spot, &nowhere, &mut room)
}

#[test]
fn a_flow_that_is_being_entered_is_displaced_whole_or_not_at_all() {
    explore(3, || {
        let model = Prepared::new().full_but(&[(0, 1), (1, 2)]).model();
        let other = model.clone();
        let thread = thread::spawn(move || enter(&other, flow(1, 20_000), 0));
        let displaced = displace(&model);
        let entered = thread.join().expect("the other CPU");
        assert_eq!(entered, Entered::Pair, "two slots were free");
        let known = known(standing(&model));
        assert_whole_pairs(&known);
        assert!(
            known.len() == 2 || displaced == Claimed::Again,
            "{displaced:?} {known:?}"
        );
    });
}

#[test]
fn a_flow_that_two_cpus_displace_goes_whole_or_stays_whole() {
    explore(3, || {
        let model = filled_by(&flow(1, 20_000));
        let other = model.clone();
        let thread = thread::spawn(move || displace(&other));
        let displaced = [displace(&model), thread.join().expect("the other CPU")];
        let known = known(standing(&model));
        assert_whole_pairs(&known);
        assert!(
            known.is_empty() || !displaced.contains(&Claimed::Full),
            "{displaced:?} {known:?}"
        );
    });
}

#[test]
fn a_newcomer_is_whole_or_not_there_while_another_cpu_displaces_the_same_flow() {
    explore(1, || {
        let model = filled_by(&flow(1, 20_000));
        let other = model.clone();
        let thread = thread::spawn(move || displace(&other));
        let entered = enter(&model, flow(2, 20_001), 0);
        thread.join().expect("the other CPU");
        let known = known(standing(&model));
        assert_whole_pairs(&known);
        let new = has(&known, &flow(2, 20_001));
        assert!(!new || entered == Entered::Pair, "{entered:?} {known:?}");
    });
}
