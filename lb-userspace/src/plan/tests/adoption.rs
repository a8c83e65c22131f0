//! Beginning with tables that are not as an agent leaves them: whatever stands there, one cycle makes it right.

use ipnet::IpNet;
use lb_common::layout::{BACKEND_WORDS, BackendControl, Device};
use proptest::prelude::*;

use super::oracle::{self, Moment, Probe};
use super::reader;
use super::world::{CLIENTS, CLUSTER_IPS, SMALL, address, adopt, change, expect_exact, node, services, settle, store};
use crate::maps::{Dump, MapStore as _, MemoryStore, SourceRange, Table};
use crate::model::{DesiredState, Family, SourceRanges};
use crate::plan::NodeTables;

const COUNT: u8 = 4;

fn expect_served(store: &MemoryStore, desired: &DesiredState) {
    let node = node();
    let moment = Moment::of(desired, &node);
    for host in 0..COUNT + 2 {
        for port in [80, 9] {
            let probe = Probe {
                address: address(Family::V4, CLUSTER_IPS, host),
                port,
                protocol: 6,
            };
            assert_eq!(
                reader::answer(store, probe, true),
                oracle::answer(&moment, probe).unwrap(),
                "{probe:?}"
            );
        }
    }
}

fn published() -> (MemoryStore, DesiredState) {
    let (store, desired) = (store(SMALL), services(COUNT, 3));
    adopt(&store).plan(&desired, &node()).apply(&store).unwrap();
    (store, desired)
}

/// A cycle of a new planner, then nothing more to do for another.
fn recover(store: &MemoryStore, desired: &DesiredState) {
    let mut planner = adopt(store);
    let mut plan = planner.plan(desired, &node());
    plan.apply(store).unwrap();
    if plan.starved {
        // Damage at the end of the arena makes all of it look used a moment ago.
        planner.grace_passed(planner.mark());
        plan = planner.plan(desired, &node());
        plan.apply(store).unwrap();
    }
    assert!(plan.rejections.is_empty());
    expect_served(store, desired);
    settle(&mut planner, store, desired, &node());
    expect_served(store, desired);
    expect_exact(&planner, store);
    let mut restarted = adopt(store);
    assert!(restarted.plan(desired, &node()).is_empty());
    settle(&mut restarted, store, desired, &node());
    assert_eq!(restarted.fill(), planner.fill());
}

fn damage() -> impl Strategy<Value = (usize, u32, u64)> {
    let value = prop_oneof![
        Just(0),
        Just(u64::MAX),
        any::<u64>(),
        (0u64..64),
        (0u32..64).prop_map(|bit| 1 << bit)
    ];
    (0..Table::PUBLISHED.len(), 0u32..1024, value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]

    #[test]
    fn damaged_words_are_made_good(damages in prop::collection::vec(damage(), 1..20), flip: bool) {
        let (store, desired) = published();
        for (table, index, value) in damages {
            let table = Table::PUBLISHED[table];
            // Mostly where something stands.
            let used = store.words(table).copy_used().len().max(1) as u32;
            let index = if index % 4 == 0 { index % store.words(table).len() as u32 } else { index % used };
            let old = store.words(table).load(index as usize);
            store.write(table, index, &[if flip { old ^ value } else { value }]).unwrap();
        }
        recover(&store, &desired);
    }
}

#[test]
fn names_decide_who_an_id_is() {
    let (store, desired) = published();
    store
        .put_names(&[
            (1, "default/web1:http/TCP/IPv4".into()),
            (2, "garbage".into()),
            (9, "a/b:c/TCP/IPv4".into()),
        ])
        .unwrap();
    store.remove_names(&[3]).unwrap();
    recover(&store, &desired);
    let names = store.names().unwrap();
    assert_eq!(names.len(), usize::from(COUNT));
    assert!(names.values().all(|name| name.starts_with("default/web")));
}

#[test]
fn foreign_ranges_and_devices_go() {
    let (store, desired) = published();
    let range = |service| SourceRange {
        service,
        range: "10.0.0.0/8".parse().unwrap(),
    };
    store.put_ranges(&[range(1), range(77)]).unwrap();
    store.put_device(5, Device::default()).unwrap();
    recover(&store, &desired);
    assert!(store.ranges().unwrap().is_empty() && store.devices().unwrap().is_empty());
}

#[test]
fn lost_ranges_and_changed_devices_come_back() {
    let store = store(SMALL);
    let mut desired = services(COUNT, 3);
    let first = desired.service_ports.keys().next().unwrap().clone();
    let range = IpNet::from(address(Family::V4, CLIENTS, 1));
    change(&mut desired, &first, |port| {
        port.source_ranges = SourceRanges::Ranges {
            ranges: vec![range],
            allow_node: true,
        };
    });
    let device = Device {
        bridge_mac: 7,
        ..Device::default()
    };
    let node = NodeTables {
        devices: [(3, device)].into(),
        ..node()
    };
    adopt(&store).plan(&desired, &node).apply(&store).unwrap();
    let original = Dump::of(&store).unwrap();
    let standing: Vec<SourceRange> = original.ranges.iter().copied().collect();
    assert!(!standing.is_empty());
    store.remove_ranges(&standing).unwrap();
    store.put_device(3, Device::default()).unwrap();
    adopt(&store).plan(&desired, &node).apply(&store).unwrap();
    assert_eq!(Dump::of(&store).unwrap(), original);
}

#[test]
fn an_endpoint_found_twice_is_kept_once() {
    let (store, desired) = published();
    let mut record = store.words(Table::Backends).copy(BACKEND_WORDS, BACKEND_WORDS);
    record[0] = BackendControl {
        generation: 9,
        ..BackendControl::from_word(record[0])
    }
    .word();
    store
        .write(Table::Backends, 200 * BACKEND_WORDS as u32, &record)
        .unwrap();
    recover(&store, &desired);
    assert_eq!(
        BackendControl::from_word(store.words(Table::Backends).load(800)).service,
        0,
        "free"
    );
}

#[test]
fn another_seed_moves_every_frontend() {
    let (store, desired) = published();
    let seed = lb_common::layout::config::TABLE_SEED as u32;
    for lost in [0, 5] {
        store.write(Table::Config, seed, &[lost]).unwrap();
        recover(&store, &desired);
    }
    assert_eq!(
        store.words(Table::Config).load(seed as usize),
        5,
        "a seed that is there stays"
    );
}
