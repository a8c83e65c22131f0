//! Many flows over many backends and ports: the hashes that choose backend, SNAT port and slot are the same in the kernel as on
//! the host, bit for bit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::layout::config;
use lb_tests::packet::Decoded;
use steerway::datapath::load::ProgramName::{PodIn, SteerOut, UplinkIn};

use super::World;
use super::case::Case;
use super::flow::Transport;
use super::node::{Addresses, NODE, SNAT_PORT};
use super::objects::{Objects, PORT, slice_of_web, web};
use super::xdp::Place;

/// Flows a round; few enough for the flow tables that none is evicted, which depends on the two sides' clocks.
const FLOWS: u16 = 60;
/// SNAT ports.
const PORTS: u16 = 2000;
const BACKENDS: u8 = 10;

/// An address of a family.
type Address = fn(Addresses) -> IpAddr;

fn objects(family: Addresses) -> Objects {
    let slice = (1..=BACKENDS).fold(slice_of_web(family), |slice, number| {
        let address: IpAddr = family
            .pick("10.2.1.0", "fd00:2:1::")
            .parse()
            .map(|base: IpAddr| with_host(base, number))
            .expect("an address");
        let node = if number % 2 == 0 { NODE } else { "node-b" };
        slice.endpoint(address).node(node).ready(true)
    });
    Objects {
        services: vec![web(family)],
        slices: vec![slice],
    }
}

fn with_host(base: IpAddr, host: u8) -> IpAddr {
    match base {
        IpAddr::V4(base) => (u32::from(base) | u32::from(host)).to_be_bytes().into(),
        IpAddr::V6(base) => (u128::from(base) | u128::from(host)).to_be_bytes().into(),
    }
}

#[test]
fn kernel_and_host_choose_the_same_backend_port_and_slot_for_every_flow() {
    let mut world = World::shared();
    let rows: [(Place, Address, Address); 4] = [
        (Place::Tc(PodIn), Addresses::pod, Addresses::vip),
        (Place::Tc(UplinkIn), Addresses::client, Addresses::load_balancer),
        (Place::Xdp, Addresses::client, Addresses::load_balancer),
        (Place::Tc(SteerOut), Addresses::node, Addresses::vip),
    ];
    for family in Addresses::BOTH {
        for (place, client, frontend) in rows {
            for transport in Transport::BOTH {
                world.clear();
                let case = Case::new("", objects(family), Vec::new()).word(config::PORT_COUNT, PORTS.into());
                world.publish(&case.objects, &case.words);
                let mut chosen: BTreeMap<IpAddr, usize> = BTreeMap::new();
                let mut sources = BTreeSet::new();
                for number in 0..FLOWS {
                    let from = (client(family), 30_000 + number * 7);
                    let packet = transport.packet(from, (frontend(family), PORT), "S");
                    let outcome = place
                        .both(&world, &packet)
                        .unwrap_or_else(|wrong| panic!("{place:?} flow {number}: {wrong}"));
                    let decoded = Decoded::frame(&outcome.frame).expect("a packet");
                    assert!(decoded.sums_are_good(), "{decoded:?}");
                    let source = decoded.source_port().expect("a port");
                    let ours = SNAT_PORT..SNAT_PORT + PORTS;
                    assert!(source == from.1 || ours.contains(&source), "{decoded:?}");
                    *chosen.entry(decoded.ip.destination).or_default() += 1;
                    assert!(
                        sources.insert((decoded.ip.source, source, decoded.ip.destination)),
                        "two flows look alike to a backend: {decoded:?}"
                    );
                }
                // Six a backend on average.
                assert_eq!(chosen.len(), usize::from(BACKENDS), "{chosen:?}");
                assert!(chosen.values().all(|count| (1..20).contains(count)), "{chosen:?}");
            }
        }
    }
}
