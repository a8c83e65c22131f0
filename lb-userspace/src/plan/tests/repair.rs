//! Changes that somebody else made are found and undone, to the word.

use std::net::IpAddr;

use lb_common::layout::Device;
use proptest::prelude::*;

use super::world::{SEED, SMALL, adopt, node, services, store};
use crate::maps::{Dump, MapStore as _, MemoryStore, SourceRange, Table};
use crate::model::SourceRanges;
use crate::plan::{NodeTables, Planner};

fn published() -> (MemoryStore, Planner) {
    let store = store(SMALL);
    let mut planner = Planner::adopt(Dump::of(&store).unwrap(), SEED);
    let mut desired = services(4, 3);
    for (i, port) in (1..).zip(desired.service_ports.values_mut()) {
        let ranges = vec![IpAddr::from([10, 9, 0, i]).into()];
        port.source_ranges = SourceRanges::Ranges {
            ranges,
            allow_node: true,
        };
    }
    let devices = [(
        3,
        Device {
            bridge_mac: 7,
            ..Device::default()
        },
    )]
    .into();
    planner
        .plan(&desired, &NodeTables { devices, ..node() })
        .apply(&store)
        .unwrap();
    (store, planner)
}

fn expect_repaired(store: &MemoryStore, planner: &mut Planner, original: &Dump) {
    let plan = planner.repair(&Dump::of(store).unwrap());
    assert!(!plan.is_empty());
    plan.apply(store).unwrap();
    assert_eq!(&Dump::of(store).unwrap(), original);
    assert!(planner.repair(original).is_empty());
}

proptest! {
    #[test]
    fn any_word_is_set_right(table in 0..Table::PUBLISHED.len(), index: u32, change in 1u64..) {
        let (store, mut planner) = published();
        let original = Dump::of(&store).unwrap();
        let table = Table::PUBLISHED[table];
        let index = index % store.words(table).len() as u32;
        store.write(table, index, &[store.words(table).load(index as usize) ^ change]).unwrap();
        expect_repaired(&store, &mut planner, &original);
    }
}

#[test]
fn entries_of_hash_maps_are_set_right() {
    let (store, mut planner) = published();
    let original = Dump::of(&store).unwrap();
    let range = |text: &str| SourceRange {
        service: 1,
        range: text.parse().unwrap(),
    };
    store.remove_names(&[2]).unwrap();
    store
        .put_names(&[(3, "default/other:http/TCP/IPv4".into()), (30, "x".into())])
        .unwrap();
    store.remove_ranges(&[range("10.9.0.1/32")]).unwrap();
    store.put_ranges(&[range("0.0.0.0/0")]).unwrap();
    store.put_device(3, Device::default()).unwrap();
    store.put_device(4, Device::default()).unwrap();
    expect_repaired(&store, &mut planner, &original);
}

#[test]
fn nothing_is_repaired_where_nothing_is_broken() {
    let (store, mut planner) = published();
    assert!(planner.repair(&Dump::of(&store).unwrap()).is_empty());
    assert!(adopt(&store).repair(&Dump::of(&store).unwrap()).is_empty());
}
