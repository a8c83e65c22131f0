//! Session affinity by client address: one backend by every frontend of a service port, for as long as it is in the set.

use std::net::IpAddr;

use lb_tests::packet::Decoded;
use steerway::datapath::load::ProgramName::PodIn;

use super::World;
use super::case::at;
use super::compare::both;
use super::flow::Transport;
use super::node::{Addresses, NODE};
use super::objects::{NODE_PORT, Objects, PORT, slice_of_web, web};

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
fn chosen(world: &World, from: (IpAddr, u16), to: (IpAddr, u16)) -> IpAddr {
    let packet = Transport::Tcp.packet(from, to, "S");
    let outcome = both(world, PodIn, &at(PodIn, &packet).given).unwrap_or_else(|wrong| panic!("{from:?}: {wrong}"));
    Decoded::frame(&outcome.frame).expect("a packet").ip.destination
}

#[test]
fn a_client_keeps_its_backend_by_every_frontend_until_that_leaves() {
    let mut world = World::shared();
    for family in Addresses::BOTH {
        world.clear();
        let frontends = [
            (family.vip(), PORT),
            (family.load_balancer(), PORT),
            (family.node(), NODE_PORT),
        ];
        let spread = |world: &World, port: u16| -> Vec<IpAddr> {
            (0..12)
                .map(|number| {
                    let frontend = frontends[usize::from(number) % 3];
                    chosen(world, (family.pod(), port + number), frontend)
                })
                .collect()
        };
        world.publish(&objects(family, 1..9, false), &[]);
        let free = spread(&world, 30_000);
        assert!(free.iter().any(|address| *address != free[0]), "{free:?}");

        world.publish(&objects(family, 1..9, true), &[]);
        let kept = spread(&world, 31_000);
        assert!(kept.iter().all(|address| *address == kept[0]), "{kept:?}");
        // Other clients are free to get others.
        let others: Vec<_> = (0..12)
            .map(|number| {
                let client = backend(family, 100 + number);
                chosen(&world, (client, 30_000), frontends[0])
            })
            .collect();
        assert!(others.iter().any(|address| *address != kept[0]), "{others:?}");

        let left = (1..9).filter(|number| backend(family, *number) != kept[0]);
        world.publish(&objects(family, left, true), &[]);
        let next = spread(&world, 32_000);
        assert_ne!(next[0], kept[0]);
        assert!(next.iter().all(|address| *address == next[0]), "{next:?}");
    }
}
