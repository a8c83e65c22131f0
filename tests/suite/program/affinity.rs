//! Session affinity by client address: one backend by every frontend of a service port, for as long as it is in the set.

use std::net::IpAddr;

use lb_common::layout::config;
use lb_tests::packet::Decoded;
use steerway::datapath::load::ProgramName::{PodIn, UplinkIn};

use super::World;
use super::flow::Transport;
use super::node::{Addresses, NODE};
use super::objects::{NODE_PORT, Objects, PORT, slice_of_web, web};
use super::xdp::Place;

/// Enough SNAT ports for every flow to the same backend.
const PORTS: [(usize, u64); 1] = [(config::PORT_COUNT, 1000)];

fn backend(family: Addresses, number: usize) -> IpAddr {
    let v4 = format!("10.2.1.{number}");
    let v6 = format!("fd00:2:1::{number}");
    family.pick(&v4, &v6).parse().expect("an address")
}

fn objects(family: Addresses, backends: impl Iterator<Item = usize>, affinity: bool) -> Objects {
    let service = web(family);
    Objects {
        services: vec![if affinity { service.affinity(10_800) } else { service }],
        slices: vec![backends.fold(slice_of_web(family), |slice, number| {
            slice.endpoint(backend(family, number)).node(NODE).ready(true)
        })],
    }
}

/// The backend that a new flow gets, on both sides.
#[track_caller]
fn chosen(world: &World, place: Place, from: (IpAddr, u16), to: (IpAddr, u16)) -> IpAddr {
    let packet = Transport::Tcp.packet(from, to, "S");
    let outcome = place
        .both(world, &packet)
        .unwrap_or_else(|wrong| panic!("{place:?}, {from:?}: {wrong}"));
    Decoded::frame(&outcome.frame).expect("a packet").ip.destination
}

/// Other clients of a place than the one whose backend is looked at.
fn other_client(family: Addresses, place: Place, number: usize) -> IpAddr {
    let outside = [
        format!("192.0.2.{}", 100 + number),
        format!("2001:db8:1::{}", 100 + number),
    ];
    match place {
        Place::Tc(PodIn) => backend(family, 100 + number),
        Place::Tc(_) | Place::Xdp => family.pick(&outside[0], &outside[1]).parse().expect("an address"),
    }
}

#[test]
fn a_client_keeps_its_backend_by_every_frontend_until_that_leaves() {
    let mut world = World::shared();
    for family in Addresses::BOTH {
        for place in [Place::Tc(PodIn), Place::Tc(UplinkIn), Place::Xdp] {
            keeps_its_backend(&mut world, family, place);
        }
    }
}

#[track_caller]
fn keeps_its_backend(world: &mut World, family: Addresses, place: Place) {
    world.clear();
    let client = match place {
        Place::Tc(PodIn) => family.pod(),
        Place::Tc(_) | Place::Xdp => family.client(),
    };
    let frontends = [
        (family.vip(), PORT),
        (family.load_balancer(), PORT),
        (family.node(), NODE_PORT),
    ];
    let spread = |world: &World, port: u16| -> Vec<IpAddr> {
        (0..12)
            .map(|number| {
                let frontend = frontends[usize::from(number) % 3];
                chosen(world, place, (client, port + number), frontend)
            })
            .collect()
    };
    world.publish(&objects(family, 1..9, false), &PORTS);
    let free = spread(world, 30_000);
    assert!(free.iter().any(|address| *address != free[0]), "{place:?}: {free:?}");

    world.publish(&objects(family, 1..9, true), &PORTS);
    let kept = spread(world, 31_000);
    assert!(kept.iter().all(|address| *address == kept[0]), "{place:?}: {kept:?}");
    // Other clients are free to get others.
    let others: Vec<_> = (0..12)
        .map(|number| {
            chosen(
                world,
                place,
                (other_client(family, place, number), 30_000),
                frontends[0],
            )
        })
        .collect();
    assert!(
        others.iter().any(|address| *address != kept[0]),
        "{place:?}: {others:?}"
    );

    let left = (1..9).filter(|number| backend(family, *number) != kept[0]);
    world.publish(&objects(family, left, true), &PORTS);
    let next = spread(world, 32_000);
    assert_ne!(next[0], kept[0], "{place:?}");
    assert!(next.iter().all(|address| *address == next[0]), "{place:?}: {next:?}");
}
