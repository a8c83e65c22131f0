//! 10,000 Services with 10 endpoints each: operations in proportion to what changes, memory within its bound.

use std::net::{IpAddr, Ipv4Addr};

use super::world::{adopt, backend, change, desired, expect_exact, key, node, service_port};
use crate::maps::{MapStore as _, MemoryStore, Table};
use crate::model::{DesiredState, EndpointAddress, Family, Protocol, ServicePort};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;
/// Heap that the planner may take, in bytes.
const HEAP: usize = 25 << 20;

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(number).into()
}

fn port(i: u32) -> ServicePort {
    let mut port = service_port(Family::V4, 0, []);
    port.frontends[0].address = Some(address(0x0a60_0000 + i));
    let endpoint = |j| EndpointAddress {
        address: address(0x0b00_0000 + i * ENDPOINTS + j),
        port: 8080,
    };
    port.backends = (0..ENDPOINTS)
        .map(|j| (endpoint(j), backend(true, false, true)))
        .collect();
    port
}

fn name(i: u32) -> String {
    format!("service-{i:05}")
}

fn all() -> DesiredState {
    desired((0..SERVICES).map(|i| (key(&name(i), Protocol::Tcp, Family::V4), port(i))))
}

#[test]
fn ten_thousand_services_publish_in_few_operations_and_little_memory() {
    let store = MemoryStore::default();
    let mut planner = adopt(&store);
    let mut desired = all();
    let plan = planner.plan(&desired, &node());
    assert!(plan.rejections.is_empty());
    // A service costs its two slots of the frontend table; blocks, words and records lie side by side.
    let bound = 2 * SERVICES as usize + 1000;
    assert!(plan.len() <= bound, "{} operations", plan.len());
    plan.apply(&store).unwrap();
    assert_eq!(store.operations(), plan.len() as u64);
    assert!(planner.heap_bytes() <= HEAP, "{} bytes", planner.heap_bytes());
    assert!(planner.plan(&desired, &node()).is_empty());
    expect_exact(&planner, &store);
    assert!(
        adopt(&store).plan(&desired, &node()).is_empty(),
        "a restart writes nothing"
    );

    // One endpoint moves: its record, its bit, a block, a service word, and the old record's state.
    change(&mut desired, &key(&name(5000), Protocol::Tcp, Family::V4), |port| {
        let (first, backend) = port.backends.pop_first().unwrap();
        port.backends.insert(EndpointAddress { port: 9090, ..first }, backend);
    });
    let plan = planner.plan(&desired, &node());
    assert!(plan.len() <= 5, "{plan:?}");
    plan.apply(&store).unwrap();

    // A service goes and another comes.
    desired.service_ports.remove(&key(&name(7), Protocol::Tcp, Family::V4));
    desired.cluster_ips.remove(&address(0x0a60_0007));
    let plan = planner.plan(&desired, &node());
    // Two slots, the service word, the state of each backend.
    assert!(plan.len() <= 3 + ENDPOINTS as usize, "{plan:?}");
    plan.apply(&store).unwrap();
    let fill = planner.fill();
    let used = |table: Table| fill.iter().find(|fill| fill.map == table.name()).unwrap().used;
    assert_eq!(used(Table::FrontendsV4), 2 * u64::from(SERVICES) - 2 + 1);
    assert_eq!(
        used(Table::Backends),
        u64::from(SERVICES * ENDPOINTS) + 1,
        "what is gone waits for a sweep"
    );
    assert_eq!(used(Table::Services), u64::from(SERVICES));
}
