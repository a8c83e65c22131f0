//! A CPU that reads while another writes: it sees an entry whole or not at all.

use lb_common::access::Tables as _;
use lb_common::family::V4;
use lb_common::flow::search::{self, Found};
use lb_common::flow::state::LIVE;
use lb_common::flow::table::Claimed;
use lb_common::flow::{Entry, Key};
use lb_common::layout::config;
use lb_common::testing::enter_half;
use loom::thread;

use crate::model::{LONG_AGO, Model, NOW, Prepared, explore, flow};

fn find(model: &Model, key: &Key<V4>) -> (Found, Option<Entry<V4>>) {
    let hash = key.hash(model.config(config::TABLE_SEED));
    let (found, _, read) = search::find::<V4, _>(&model, key, hash);
    let entry = read.map(|(rewrite, place)| Entry {
        key: *key,
        rewrite,
        place,
    });
    (found, entry)
}

fn insert(model: &Model, entry: &Entry<V4>) {
    let claimed = enter_half(&model, entry, LIVE);
    assert_eq!(claimed, Claimed::Slot);
}

#[test]
fn an_entry_that_is_being_entered_is_seen_whole_or_not_at_all() {
    explore(3, || {
        let model = Prepared::new().full_but(&[(1, 2)]).model();
        let other = model.clone();
        let thread = thread::spawn(move || insert(&other, &flow(1, 20_000)));
        let (found, entry) = find(&model, &flow(1, 20_000).key);
        assert_eq!(found == Found::Entry, entry.is_some());
        assert!(entry.is_none_or(|entry| entry == flow(1, 20_000)), "{entry:?}");
        thread.join().expect("the other CPU");
        assert_eq!(find(&model, &flow(1, 20_000).key).1, Some(flow(1, 20_000)));
    });
}

#[test]
fn an_entry_that_is_being_displaced_is_seen_whole_or_not_at_all() {
    explore(3, || {
        let model = Prepared::new()
            .place(0, 1, &flow(1, 20_000), 0, NOW)
            .full_but(&[])
            .model();
        let other = model.clone();
        let thread = thread::spawn(move || insert(&other, &flow(2, 20_007)));
        let (_, entry) = find(&model, &flow(1, 20_000).key);
        assert!(entry.is_none_or(|entry| entry == flow(1, 20_000)), "{entry:?}");
        let (_, entry) = find(&model, &flow(2, 20_007).key);
        assert!(entry.is_none_or(|entry| entry == flow(2, 20_007)), "{entry:?}");
        thread.join().expect("the other CPU");
    });
}

#[test]
fn a_flow_that_begins_anew_is_seen_as_it_was_or_as_it_is() {
    explore(3, || {
        let model = Prepared::new()
            .place(0, 1, &flow(1, 20_000), 0, LONG_AGO)
            .full_but(&[])
            .model();
        let other = model.clone();
        // The same key, now with another port: both words of the slot's old and new life carry the same key.
        let thread = thread::spawn(move || {
            let model = &&*other;
            let spot = search::locate(model, &flow(1, 20_000).key);
            assert!(spot.free::<V4, _>(model));
            insert(model, &flow(1, 20_007));
        });
        let (_, entry) = find(&model, &flow(1, 20_000).key);
        let lives = [flow(1, 20_000), flow(1, 20_007)];
        assert!(entry.is_none_or(|entry| lives.contains(&entry)), "{entry:?}");
        thread.join().expect("the other CPU");
        assert_eq!(find(&model, &flow(1, 20_000).key).1, Some(flow(1, 20_007)));
    });
}
