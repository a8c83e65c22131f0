//! Full tables: what does not fit is left out and told, everything else goes on, and room that comes is used.

use std::sync::Arc;

use lb_common::layout::{DEVICES, Device, RANGE_ENTRIES};

use super::oracle::{self, Answer, Moment, Probe};
use super::reader;
use super::world::{
    CLUSTER_IPS, SMALL, address, adopt, change, desired, key, node, service_port, services, settle, store,
};
use crate::maps::{MapStore as _, MemorySizes, MemoryStore};
use crate::model::{DesiredState, Family, Protocol, SourceRanges};
use crate::plan::{NodeTables, Plan, Planner};

fn cluster_ip(i: u8) -> Probe {
    Probe {
        address: address(Family::V4, CLUSTER_IPS, i),
        port: 80,
        protocol: 6,
    }
}

/// The services that answer as they should.
fn served(store: &MemoryStore, desired: &DesiredState, node: &NodeTables) -> Vec<u8> {
    let moment = Moment::of(desired, node);
    let is_served = |i: &u8| {
        let expected = oracle::answer(&moment, cluster_ip(*i));
        matches!(expected, Some(Answer::Service(_))) && expected == Some(reader::answer(store, cluster_ip(*i), true))
    };
    (0..10).filter(is_served).collect()
}

fn publish(planner: &mut Planner, store: &MemoryStore, desired: &DesiredState) -> Plan {
    let plan = planner.plan(desired, &node());
    plan.apply(store).unwrap();
    plan
}

fn rejected(plan: &Plan) -> Vec<String> {
    plan.rejections
        .iter()
        .map(|rejection| rejection.object.name.clone())
        .collect()
}

#[test]
fn a_service_without_room_for_backends_is_left_out_alone() {
    let store = store(MemorySizes { backends: 8, ..SMALL });
    let mut planner = adopt(&store);
    let all = services(2, 5);
    let plan = publish(&mut planner, &store, &all);
    assert_eq!(rejected(&plan), ["web1"]);
    assert_eq!(plan.rejections[0].field, "spec.ports");
    assert!(
        plan.rejections[0].reason.contains("backends (8 entries)"),
        "{}",
        plan.rejections[0].reason
    );
    assert_eq!(served(&store, &all, &node()), [0]);
    assert_eq!(reader::answer(&store, cluster_ip(1), true), Answer::Refused);
    assert!(publish(&mut planner, &store, &all).is_empty() && !plan.starved);

    let mut later = all.clone();
    later.service_ports.remove(&key("web0", Protocol::Tcp, Family::V4));
    let plan = publish(&mut planner, &store, &later);
    assert!(
        rejected(&plan) == ["web1"] && !plan.starved,
        "ids of web0 were not given up before"
    );
    assert!(
        publish(&mut planner, &store, &later).starved,
        "now they wait for a sweep"
    );
    settle(&mut planner, &store, &later, &node());
    assert_eq!(served(&store, &later, &node()), [1]);
    assert!(publish(&mut planner, &store, &later).rejections.is_empty());
}

#[test]
fn a_published_service_that_grows_too_far_keeps_what_fits() {
    let store = store(MemorySizes { backends: 8, ..SMALL });
    let mut planner = adopt(&store);
    let port = |pods| {
        [(
            key("web0", Protocol::Tcp, Family::V4),
            service_port(Family::V4, 0, pods),
        )]
    };
    publish(&mut planner, &store, &desired(port(0..5)));
    let plan = publish(&mut planner, &store, &desired(port(0..9)));
    assert_eq!(rejected(&plan), ["web0"]);
    assert_eq!(served(&store, &desired(port(0..7)), &node()), [0]);
    // One of those that fitted goes: it is not kept for lack of its successor.
    publish(&mut planner, &store, &desired(port(1..9)));
    assert_eq!(served(&store, &desired(port(1..7)), &node()), [0]);
    settle(&mut planner, &store, &desired(port(1..8)), &node());
    assert_eq!(served(&store, &desired(port(1..8)), &node()), [0]);
}

#[test]
fn without_room_for_blocks_what_is_published_stays() {
    // Room for eight units of 64 bytes; a service with two backends takes two.
    let store = store(MemorySizes {
        arena_words: 64,
        ..SMALL
    });
    let mut planner = adopt(&store);
    let all = services(5, 2);
    assert_eq!(rejected(&publish(&mut planner, &store, &all)), ["web4"]);
    assert_eq!(served(&store, &all, &node()), [0, 1, 2, 3]);

    let mut grown = all.clone();
    let web0 = key("web0", Protocol::Tcp, Family::V4);
    grown
        .service_ports
        .insert(web0.clone(), Arc::new(service_port(Family::V4, 0, 10..13)));
    let plan = publish(&mut planner, &store, &grown);
    assert_eq!(rejected(&plan), ["web0", "web4"]);
    assert!(plan.rejections[0].reason.ends_with("the port stays as it was"));
    assert_eq!(served(&store, &all, &node()), [0, 1, 2, 3], "web0 has its old backends");

    let mut fewer = grown.clone();
    fewer.service_ports.remove(&key("web1", Protocol::Tcp, Family::V4));
    publish(&mut planner, &store, &fewer);
    let plan = publish(&mut planner, &store, &fewer);
    assert!(plan.starved, "the block of web1 waits for a grace period");
    planner.grace_passed(planner.mark());
    publish(&mut planner, &store, &fewer);
    planner.grace_passed(planner.mark());
    assert!(publish(&mut planner, &store, &fewer).rejections.is_empty());
    assert_eq!(served(&store, &fewer, &node()), [0, 2, 3, 4]);
}

#[test]
fn without_room_for_frontends_the_service_is_left_out_whole() {
    // Eight slots. Ports go before the entries of addresses, so some ClusterIPs only lack their entry.
    let store = store(MemorySizes {
        frontend_sets: 2,
        ..SMALL
    });
    let mut planner = adopt(&store);
    let all = services(10, 1);
    let plan = publish(&mut planner, &store, &all);
    assert_eq!(served(&store, &all, &node()), [0, 1, 2, 3, 4, 5, 6, 7]);
    let lost: Vec<_> = plan
        .rejections
        .iter()
        .filter(|rejection| rejection.reason.contains("port 80"))
        .collect();
    assert_eq!(
        lost.iter().map(|rejection| &*rejection.object.name).collect::<Vec<_>>(),
        ["web8", "web9"]
    );
    let itself = plan
        .rejections
        .iter()
        .filter(|rejection| rejection.reason.contains("itself"));
    assert_eq!(itself.count(), 11, "ten ClusterIPs and the node");

    let one = services(1, 1);
    publish(&mut planner, &store, &one);
    assert!(
        publish(&mut planner, &store, &one).rejections.is_empty(),
        "the freed slots are used in the next cycle"
    );
    let other = desired([(key("web5", Protocol::Tcp, Family::V4), service_port(Family::V4, 5, [9]))]);
    assert!(publish(&mut planner, &store, &other).rejections.is_empty());
    assert_eq!(served(&store, &other, &node()), [5]);
}

#[test]
fn without_a_free_id_the_service_is_left_out() {
    let store = store(MemorySizes { services: 4, ..SMALL });
    let mut planner = adopt(&store);
    let all = services(4, 1);
    assert_eq!(rejected(&publish(&mut planner, &store, &all)), ["web3"]);
    assert_eq!(served(&store, &all, &node()), [0, 1, 2]);
    let fill = planner.fill();
    let services = fill.iter().find(|fill| fill.map == "services").unwrap();
    assert_eq!((services.used, services.capacity), (3, 3));
}

#[test]
fn more_source_ranges_than_fit_leave_their_service_out() {
    let store = store(SMALL);
    let mut planner = adopt(&store);
    let mut all = services(2, 1);
    let ranges = (0..=RANGE_ENTRIES)
        .map(|i| std::net::IpAddr::from((0x0b00_0000 + i * 2).to_be_bytes()).into())
        .collect();
    change(&mut all, &key("web0", Protocol::Tcp, Family::V4), |web0| {
        web0.source_ranges = SourceRanges::Ranges {
            ranges,
            allow_node: false,
        };
    });
    assert_eq!(rejected(&publish(&mut planner, &store, &all)), ["web0"]);
    assert!(store.ranges().unwrap().is_empty());
    assert_eq!(served(&store, &all, &node()), [1]);
}

#[test]
fn what_can_never_be_forwarded_is_told() {
    let store = store(SMALL);
    let mut planner = adopt(&store);
    let long = "a".repeat(250);
    let all = desired([
        (key("web0", Protocol::Tcp, Family::V4), service_port(Family::V4, 0, [1])),
        (
            key("web1", Protocol::Sctp, Family::V4),
            service_port(Family::V4, 1, [1]),
        ),
        (key(&long, Protocol::Tcp, Family::V4), service_port(Family::V4, 2, [1])),
    ]);
    for _ in 0..2 {
        let plan = publish(&mut planner, &store, &all);
        assert_eq!(rejected(&plan), [long.as_str(), "web1"]);
        assert!(plan.rejections[1].reason.contains("SCTP"));
    }
    assert_eq!(served(&store, &all, &node()), [0]);
    assert_eq!(store.names().unwrap().len(), 1);
}

#[test]
fn more_devices_than_fit_are_counted() {
    let store = store(SMALL);
    let mut planner = adopt(&store);
    let devices = (1..=DEVICES + 3)
        .map(|ifindex| {
            (
                ifindex,
                Device {
                    bridge_mac: 1,
                    ..Device::default()
                },
            )
        })
        .collect();
    let node = NodeTables { devices, ..node() };
    let plan = planner.plan(&services(0, 0), &node);
    plan.apply(&store).unwrap();
    assert_eq!(
        (plan.devices_left_out, store.devices().unwrap().len()),
        (3, DEVICES as usize)
    );
    let plan = planner.plan(&services(0, 0), &super::world::node());
    plan.apply(&store).unwrap();
    assert!(store.devices().unwrap().is_empty());
}
