//! What packets do find: the pipeline's own look-up on the tables, and every promise of the layout checked on the way.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::access::{Route, RouteKind, TableFamily, Tables as _};
use lb_common::family::{Side, V4, V6};
use lb_common::flow::Key;
use lb_common::hash;
use lb_common::layout::{
    BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BACKEND_SERVING, BLOCK_EXTERNAL_DROP, BLOCK_EXTERNAL_LOCAL,
    BLOCK_HEADER_WORDS, BLOCK_INSIDE_DROP, BLOCK_INSIDE_LOCAL, BLOCK_INTERNAL_DROP, BLOCK_INTERNAL_LOCAL, BLOCK_RANGES,
    BackendControl, FRONTEND_CLUSTER, FRONTEND_RANGES, FrontendValue, Run, ServiceWord, block,
};
use lb_common::steps::select::{self, Backend, Source, Wanted};
use lb_common::verdict::Reason;

use super::oracle::{Answer, Probe, Service, Set};
use super::world::{CLIENTS, address};
use crate::maps::{HostTables, MapStore as _, MemoryStore, Surroundings, address_of_words, v4_word, v6_words};
use crate::model::{EndpointAddress, Family, WhenEmpty};
use crate::plan::parse_service_port_name;

/// Nothing but the tables.
pub(super) struct Nowhere;

impl Surroundings for Nowhere {
    fn now(&self) -> u32 {
        0
    }

    fn route<F: TableFamily>(&self, _: u32, _: F::Addr, _: F::Addr, _: u16) -> Route<F::Addr> {
        Route::without(RouteKind::None)
    }

    fn answer_token(&self) -> bool {
        false
    }
}

type Tables<'a> = HostTables<'a, Nowhere>;

/// What becomes of packets to a destination. `at_rest`: between cycles, when the pipeline's choice must agree in full.
pub(super) fn answer(store: &MemoryStore, probe: Probe, at_rest: bool) -> Answer {
    let tables = HostTables {
        store,
        surroundings: &Nowhere,
    };
    let Probe { address, port, .. } = probe;
    match address {
        IpAddr::V4(address) => of_family::<V4>(
            &tables,
            Side {
                addr: v4_word(address),
                port,
            },
            probe,
            at_rest,
        ),
        IpAddr::V6(address) => of_family::<V6>(
            &tables,
            Side {
                addr: v6_words(address),
                port,
            },
            probe,
            at_rest,
        ),
    }
}

fn of_family<F: TableFamily>(tables: &Tables<'_>, dst: Side<F>, probe: Probe, at_rest: bool) -> Answer {
    let (value, found) = select::frontend::<F, _>(tables, &dst, probe.protocol);
    let is_ours = found != Reason::NotOurs;
    let bit = hash::bit::<F>(dst.addr);
    let is_looked_up = tables.forward_bits(bit / 64) >> (bit % 64) & 1 != 0;
    assert!(
        is_looked_up || !is_ours,
        "packets to {} are not looked up",
        probe.address
    );
    if found == Reason::NewFlow {
        return Answer::Service(service::<F>(tables, value, dst, probe, at_rest));
    }
    let answers = [
        (Reason::UnknownPort, Answer::Refused),
        (Reason::UnknownPortPassed, Answer::Passed),
        (Reason::NotOurs, Answer::NotOurs),
    ];
    let answer = answers.into_iter().find(|(reason, _)| *reason == found);
    answer.unwrap_or_else(|| panic!("{found:?} for {probe:?}")).1
}

fn service<F: TableFamily>(
    tables: &Tables<'_>,
    value: FrontendValue,
    dst: Side<F>,
    probe: Probe,
    at_rest: bool,
) -> Service {
    let id = value.service;
    let word = ServiceWord::from_word(tables.service(id)).expect("a frontend's service port is published");
    let header = tables.block(word.offset).expect("the block is in the arena");
    let at = |index: u32| tables.arena(word.offset + index);
    let owner = header(block::OWNER);
    assert_eq!(
        (owner as u32, (owner >> 32) as u16),
        (id, word.generation),
        "the block echoes its owner"
    );
    let flags = (owner >> 48) as u16;
    let names = tables.store.names().unwrap();
    let key = names
        .get(&id)
        .and_then(|name| parse_service_port_name(name))
        .expect("a published id has a name");
    assert_eq!(key.family == Family::V6, F::V6);
    let of_run = |run: u32, local: u16, drop: u16| {
        let (run, local) = (Run::from_word(header(run)), flags & local != 0);
        let ids = (run.offset..run.offset + run.length)
            .map(|index| (at(BLOCK_HEADER_WORDS + index / 2) >> (index % 2 * 32)) as u32);
        let members: BTreeSet<_> = ids.map(|backend| member::<F>(tables, id, backend, local)).collect();
        assert_eq!(members.len(), run.length as usize, "no backend twice in a run");
        let when_empty = if flags & drop != 0 {
            WhenEmpty::Drop
        } else {
            WhenEmpty::Reject
        };
        Set {
            local,
            members: if members.is_empty() {
                Err(when_empty)
            } else {
                Ok(members)
            },
        }
    };
    let (outside, inside) = if value.flags & FRONTEND_CLUSTER != 0 {
        let internal = of_run(block::INTERNAL, BLOCK_INTERNAL_LOCAL, BLOCK_INTERNAL_DROP);
        (internal.clone(), internal)
    } else {
        (
            of_run(block::EXTERNAL, BLOCK_EXTERNAL_LOCAL, BLOCK_EXTERNAL_DROP),
            of_run(block::INSIDE, BLOCK_INSIDE_LOCAL, BLOCK_INSIDE_DROP),
        )
    };
    let restricted = flags & BLOCK_RANGES != 0 && value.flags & FRONTEND_RANGES != 0;
    let ranges = tables
        .store
        .ranges()
        .unwrap()
        .into_iter()
        .filter(|range| range.service == id);
    let found = Service {
        key,
        affinity_seconds: header(block::AFFINITY) as u32,
        ranges: restricted.then(|| ranges.map(|range| range.range).collect()),
        outside,
        inside,
    };
    if at_rest {
        choose::<F>(tables, value, dst, probe, &found);
    }
    found
}

fn member<F: TableFamily>(tables: &Tables<'_>, service: u32, id: u32, local: bool) -> (EndpointAddress, u16) {
    let record = tables.backend(id).expect("a backend's record");
    let control = BackendControl::from_word(record[0]);
    let bits = BACKEND_SERVING | if local { BACKEND_IN_LOCAL } else { BACKEND_IN_CLUSTER };
    assert_eq!(
        control.service, service,
        "backend {id} belongs to the service port that names it"
    );
    assert!(
        control.generation > 0 && control.state & bits == bits,
        "backend {id} is in the set that names it"
    );
    let [_, words @ .., last] = record;
    let bit = hash::bit::<F>(F::from_words(words));
    assert!(
        tables.reply_bits(bit / 64) >> (bit % 64) & 1 != 0,
        "replies of backend {id} are looked up"
    );
    let at = EndpointAddress {
        address: address_of_words(F::V6, words),
        port: last as u16,
    };
    (at, (last >> 16) as u16)
}

/// The kernel's choice agrees with what was read.
fn choose<F: TableFamily>(tables: &Tables<'_>, frontend: FrontendValue, dst: Side<F>, probe: Probe, service: &Service) {
    for (source, set) in [(Source::Outside, &service.outside), (Source::Inside, &service.inside)] {
        for port in [1000, 1001, 65000] {
            let client = F::from_words(crate::maps::address_words(address(service.key.family, CLIENTS, 1)));
            let key = Key {
                src: Side { addr: client, port },
                dst,
                protocol: probe.protocol,
            };
            let mut backend = Backend::<F>::empty();
            let chosen = select::backend::<F, _>(
                tables,
                &Wanted {
                    frontend,
                    key: &key,
                    source,
                },
                &mut backend,
            );
            let allowed = service.ranges.as_ref().is_none_or(|ranges| {
                ranges
                    .iter()
                    .any(|range| range.contains(&address(service.key.family, CLIENTS, 1)))
            });
            match (chosen, &set.members) {
                (Reason::SourceRange, _) => assert!(!allowed),
                (Reason::NewFlow, Ok(members)) => {
                    let words = F::to_words(backend.side.addr);
                    let at = EndpointAddress {
                        address: address_of_words(F::V6, words),
                        port: backend.side.port,
                    };
                    assert!(allowed && members.contains(&(at, backend.flags & !select::KEEPS_PORT)));
                }
                (Reason::NoEndpoints, Err(WhenEmpty::Reject)) | (Reason::NoLocalEndpoints, Err(WhenEmpty::Drop)) => {}
                (other, expected) => panic!("{other:?} instead of one of {expected:?}"),
            }
        }
    }
}
