//! A newcomer that displaces a flow while packets of that flow pass.

use lb_common::family::V4;
use lb_common::flow::Entry;
use lb_common::flow::search::{self, Found};
use lb_common::flow::state::{ESTABLISHED, REPLIED, REPLY_HALF, SETTLED};
use lb_common::flow::table::{self, Inserted};
use loom::sync::Arc;
use loom::thread;

use crate::model::{Model, NOW, Prepared, Standing, enter, explore, flow, known, reply_of, standing};

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
        let inserted = thread.join().expect("the other CPU");
        let known = known(standing(&model));
        let new = flow(2, 20_001);
        let new_stands = inserted == Inserted::Pair;
        assert_eq!(has(&known, &new), new_stands, "{inserted:?} {known:?}");
        assert_eq!(has(&known, &reply_of(&new)), new_stands, "{inserted:?} {known:?}");
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

#[test]
fn two_newcomers_for_one_place_leave_one_whole_flow() {
    explore(1, || {
        let model = filled_by(&flow(1, 20_000));
        let other = model.clone();
        let thread = thread::spawn(move || enter(&other, flow(2, 20_001), 0));
        enter(&model, flow(3, 20_002), 0);
        thread.join().expect("the other CPU");
        let known = known(standing(&model));
        // A newcomer is worth no more than the other: either may lose, but never half.
        crate::model::assert_whole_pairs(&known);
    });
}
