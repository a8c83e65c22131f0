//! Sweep and dump of flows that the packet path's own functions have inserted.

use std::net::SocketAddr;

use lb_common::access::{Rolls as _, Route, RouteKind, SetRef as _, Slots as _, TableFamily};
use lb_common::family::{Family as _, Side, V4, V6};
use lb_common::flow::roll::Roll;
use lb_common::flow::search::{self, Found};
use lb_common::flow::slot::{self, Entry, Key, Place, Rewrite};
use lb_common::flow::state::{Control, DATAGRAM, ESTABLISHED, GONE, HELD, LIVE, REPLIED, REPLY_HALF, RESET};
use lb_common::flow::table;
use lb_common::hash;
use lb_common::layout::{SET_SLOTS, backend_ref, config};
use lb_common::pipeline::Hook;
use lb_common::testing::{Entered, enter_pair};

use super::dump::dump_by;
use super::{FlowCounts, FlowState, Sweeper, all_sets, dump, slots};
use crate::maps::{
    HostTables, MapStore as _, MemorySizes, MemoryStore, Surroundings, Table, address_of_words, v4_word,
};

/// A clock.
struct At(u32);

impl Surroundings for At {
    fn now(&self) -> u32 {
        self.0
    }

    fn route<F: TableFamily>(&self, _: u32, _: F::Addr, _: F::Addr, _: u16) -> Route<F::Addr> {
        Route::without(RouteKind::None)
    }

    fn answer_token(&self) -> bool {
        false
    }
}

const TIMEOUTS: [(usize, u64); 6] = [
    (config::TCP_HALF_OPEN, 60),
    (config::TCP_ESTABLISHED, 86_400),
    (config::TCP_HALF_CLOSED, 3600),
    (config::TCP_CLOSED, 120),
    (config::UDP_UNREPLIED, 30),
    (config::UDP_REPLIED, 120),
];

fn store() -> MemoryStore {
    store_of(64)
}

/// A store with so many sets of flows.
fn store_of(flow_sets: u32) -> MemoryStore {
    let store = MemoryStore::new(MemorySizes {
        flow_sets,
        ..MemorySizes::default()
    })
    .unwrap();
    store.write(Table::Config, config::TABLE_SEED as u32, &[99]).unwrap();
    for (word, jiffies) in TIMEOUTS {
        store.write(Table::Config, word as u32, &[jiffies]).unwrap();
    }
    store
}

fn entry(client: u16, backend: u32) -> Entry<V4> {
    let side = |address: [u8; 4], port| Side {
        addr: v4_word(address.into()),
        port,
    };
    Entry {
        key: Key {
            src: side([10, 9, 0, 1], client),
            dst: side([10, 96, 0, 1], 80),
            protocol: 6,
        },
        rewrite: Rewrite {
            src: side([10, 9, 0, 1], client),
            dst: side([10, 1, 0, 7], 8080),
        },
        place: Place {
            hooks: 1,
            way: 0,
            service: 3,
            backend: backend_ref(backend, 5),
        },
    }
}

/// Enters both halves, if there is room.
fn enter<F: TableFamily>(tables: &HostTables<'_, At>, forward: &Entry<F>, reply: Place, state: u16) -> Entered {
    let mut answers = Entry::empty();
    forward.twin_into(reply, &mut answers);
    enter_pair(tables, forward, &answers, state)
}

/// Inserts both halves, for which there is room.
fn insert_pair<F: TableFamily>(tables: &HostTables<'_, At>, forward: &Entry<F>, reply: Place, state: u16) {
    assert_eq!(enter(tables, forward, reply, state), Entered::Pair);
}

/// Inserts a flow whose packets were last seen at `now`.
fn insert(store: &MemoryStore, now: u32, client: u16, backend: u32, state: u16) -> Entry<V4> {
    let tables = HostTables {
        store,
        surroundings: &At(now),
    };
    let forward = entry(client, backend);
    insert_pair(&tables, &forward, forward.place, LIVE | state);
    forward
}

/// Notes a packet on the half with this key.
fn touch(store: &MemoryStore, now: u32, key: &Key<V4>, add: u16) {
    let tables = HostTables {
        store,
        surroundings: &At(now),
    };
    let spot = search::locate(&tables, key);
    table::touch::<V4, _>(&tables, &spot, add, now);
}

/// The rolls of a family's table.
fn rolls<F: TableFamily>(store: &MemoryStore) -> Vec<Roll> {
    let table = slots::<F>(store);
    all_sets(table)
        .map(|index| Roll::from_word(table.roll(index)))
        .collect()
}

/// Slots that are taken; all in which something stands are.
fn used(store: &MemoryStore) -> usize {
    let table = slots::<V4>(store);
    let rolls = rolls::<V4>(store);
    for (index, roll) in (0..).zip(&rolls) {
        for number in 0..SET_SLOTS {
            let control = Control::from_word(table.set(index).unwrap().load(number * V4::SLOT_WORDS));
            assert!(control.word() == 0 || roll.taken() >> number & 1 != 0);
        }
    }
    rolls.iter().map(|roll| roll.taken().count_ones() as usize).sum()
}

/// Takes a slot of a set for a key.
fn take<F: TableFamily>(store: &MemoryStore, index: u32, slot: usize) {
    let table = slots::<F>(store);
    let roll = Roll::from_word(table.roll(index));
    assert_eq!(
        table.cas_roll(index, roll.word(), roll.take(slot, 99).word()),
        roll.word()
    );
}

#[test]
fn a_spilled_entry_that_is_swept_is_counted_off_its_first_set() {
    let store = store_of(2);
    for client in 1001..1005 {
        insert(&store, 0, client, 1, 0);
    }
    let spilled = || rolls::<V4>(&store).into_iter().map(Roll::spilled).collect::<Vec<_>>();
    assert!(spilled().iter().any(|count| *count > 0), "no set was full");
    assert_eq!(Sweeper::default().sweep(&store, 61).v4.expired, 4);
    assert_eq!((used(&store), spilled()), (0, vec![0; 2]));
}

#[test]
fn each_state_lives_as_long_as_its_time_out() {
    for (state, timeout) in [
        (0, 60),
        (REPLIED | ESTABLISHED, 86_400),
        (RESET | REPLIED, 120),
        (DATAGRAM, 30),
        (DATAGRAM | REPLIED, 120),
    ] {
        let store = store();
        // The clock wraps between.
        let began = u32::MAX - 10;
        insert(&store, began, 1000, 1, state);
        let swept = Sweeper::default().sweep(&store, began.wrapping_add(timeout));
        assert_eq!(
            (swept.v4.used, swept.v4.expired, swept.v4.flows.iter().sum::<u64>()),
            (2, 0, 1),
            "{state}"
        );
        let swept = Sweeper::default().sweep(&store, began.wrapping_add(timeout + 1));
        assert_eq!((swept.v4.expired, used(&store)), (1, 0), "{state}");
    }
}

#[test]
fn a_flow_lives_while_one_half_is_used() {
    for half in [false, true] {
        let store = store();
        let flow = insert(&store, 0, 1000, 1, DATAGRAM | REPLIED);
        let key = if half { flow.key.twin(flow.rewrite) } else { flow.key };
        touch(&store, 100, &key, 0);
        let swept = Sweeper::default().sweep(&store, 200);
        assert_eq!((swept.v4.expired, used(&store)), (0, 2));
        Sweeper::default().sweep(&store, 221);
        assert_eq!(used(&store), 0);
    }
}

#[test]
fn what_one_half_saw_ends_both() {
    let store = store();
    let flow = insert(&store, 0, 1000, 1, REPLIED | ESTABLISHED);
    touch(&store, 10, &flow.key.twin(flow.rewrite), RESET);
    Sweeper::default().sweep(&store, 130);
    assert_eq!(used(&store), 2);
    Sweeper::default().sweep(&store, 131);
    assert_eq!(used(&store), 0);
}

#[test]
fn a_lost_half_does_not_keep_the_other() {
    let store = store();
    let flow = insert(&store, 0, 1000, 1, 0);
    let tables = HostTables {
        store: &store,
        surroundings: &At(0),
    };
    let spot = search::locate(&tables, &flow.key);
    assert!(spot.free::<V4, _>(&tables));
    Sweeper::default().sweep(&store, 60);
    assert_eq!(used(&store), 1);
    Sweeper::default().sweep(&store, 61);
    assert_eq!(used(&store), 0);
}

#[test]
fn a_slot_in_which_nothing_stands_for_a_minute_is_left() {
    let store = store();
    let table = slots::<V4>(&store);
    let mut sweeper = Sweeper::default();
    let mut now = 0;
    let mut counts_after = |seconds| {
        now += seconds;
        let swept = sweeper.sweep(&store, now).v4;
        (swept.used, swept.abandoned)
    };
    let roll = || Roll::from_word(table.roll(7));
    take::<V4>(&store, 7, 1);
    assert_eq!(counts_after(60), (1, 0));
    table::leave_in::<V4, _>(table, 7, 8);
    take::<V4>(&store, 7, 1);
    assert_eq!(counts_after(60), (1, 0), "somebody else has taken it");
    let gone = 3 << 48 | u64::from(GONE) << 32;
    table.set(7).unwrap().store(8, gone);
    assert_eq!(counts_after(60), (1, 0), "something stood there meanwhile");
    // What becomes of its neighbours is nothing to it.
    take::<V4>(&store, 7, 2);
    table::recount_in(table, 7, true);
    assert_eq!(counts_after(60), (1, 1));
    take::<V4>(&store, 7, 3);
    table::leave_in::<V4, _>(table, 7, 24);
    assert_eq!(counts_after(60), (0, 1));
    assert_eq!(
        (table.set(7).unwrap().load(8), roll().taken(), roll().spilled()),
        (0, 0, 1)
    );
    take::<V4>(&store, 7, 1);
    assert_eq!(counts_after(0), (1, 0));
    assert_eq!(counts_after(59), (1, 0), "not for a minute yet");
    assert_eq!(counts_after(1), (0, 1));
}

#[test]
fn a_flow_that_is_being_displaced_is_counted_and_not_freed() {
    let store = store();
    let flow = insert(&store, 0, 1000, 17, REPLIED | ESTABLISHED);
    let tables = HostTables {
        store: &store,
        surroundings: &At(0),
    };
    let mut sweeper = Sweeper::default();
    for key in [flow.key, flow.key.twin(flow.rewrite)] {
        let spot = search::locate(&tables, &key);
        let set = slots::<V4>(&store).set(spot.set).unwrap();
        set.store(spot.base.into(), spot.control.in_phase(HELD).word());
    }
    for now in [0, 90_000, 90_000] {
        let swept = sweeper.sweep(&store, now);
        assert_eq!((swept.v4.used, swept.v4.expired, swept.v4.abandoned), (2, 0, 0));
        assert_eq!(
            (swept.services, swept.referred.backends.contains(17)),
            (vec![(3, 1)], true)
        );
        assert_eq!(
            (swept.referred.forward_bits.count(), swept.referred.reply_bits.count()),
            (1, 1)
        );
    }
}

#[test]
fn the_sweep_tells_what_flows_refer_to() {
    let store = store();
    insert(&store, 0, 1000, 17, REPLIED | ESTABLISHED);
    insert(&store, 0, 1001, 18, 0);
    let swept = Sweeper::default().sweep(&store, 100);
    assert_eq!(swept.services, [(3, 1)], "one flow of service port 3");
    let referred = swept.referred;
    assert_eq!(
        (referred.backends.count(), referred.backends.contains(17)),
        (1, true),
        "18 is over"
    );
    let bit = |address: [u8; 4]| hash::bit::<V4>(v4_word(address.into()));
    assert!(referred.forward_bits.contains(bit([10, 96, 0, 1])) && referred.forward_bits.count() == 1);
    assert!(referred.reply_bits.contains(bit([10, 1, 0, 7])) && referred.reply_bits.count() == 1);
    assert!(referred.host_destinations.is_empty(), "the flow is a pod's");
    let tables = HostTables {
        store: &store,
        surroundings: &At(0),
    };
    let mut of_the_node = entry(1002, 17);
    let reply = of_the_node.place;
    of_the_node.place.hooks = Hook::STEER_OUT;
    insert_pair(&tables, &of_the_node, reply, LIVE | REPLIED | ESTABLISHED);
    let referred = Sweeper::default().sweep(&store, 0).referred;
    assert_eq!(referred.host_destinations, ["10.96.0.1".parse().unwrap()].into());
}

#[test]
fn a_dump_shows_each_flow_once_as_the_client_sees_it() {
    let store = store();
    insert(&store, 50, 1000, 17, REPLIED | ESTABLISHED);
    insert(&store, 60, 1001, 18, 0);
    let mut flows: Vec<_> = dump(&store, 70).collect();
    flows.sort_by_key(|flow| flow.client);
    assert_eq!(flows.len(), 2);
    let flow = flows[0];
    assert_eq!(flow.client, "10.9.0.1:1000".parse().unwrap());
    assert_eq!(flow.frontend, "10.96.0.1:80".parse().unwrap());
    assert_eq!(flow.backend, "10.1.0.7:8080".parse().unwrap());
    assert_eq!(
        (flow.protocol, flow.service, flow.backend_id, flow.generation),
        (6, 3, 17, 5)
    );
    assert_eq!(
        (flow.state, flow.idle, flow.timeout),
        (FlowState::Established, 20, 86_400)
    );
    assert_eq!((flows[1].state, flows[1].idle), (FlowState::Unanswered, 10));
}

#[test]
fn both_families_are_swept_and_shown() {
    let store = store();
    let tables = HostTables {
        store: &store,
        surroundings: &At(0),
    };
    let side = |last: u64, port| Side::<V6> {
        addr: [0xfd, last.to_be()],
        port,
    };
    let place = Place {
        hooks: 1,
        way: 0,
        service: 3,
        backend: backend_ref(9, 1),
    };
    let (client, frontend, backend) = (side(1, 1000), side(2, 80), side(3, 8080));
    let key = Key {
        src: client,
        dst: frontend,
        protocol: 17,
    };
    let flow = Entry {
        key,
        rewrite: Rewrite {
            src: client,
            dst: backend,
        },
        place,
    };
    insert_pair(&tables, &flow, place, LIVE | DATAGRAM);
    let shown: Vec<_> = dump(&store, 1).collect();
    assert_eq!(
        (shown.len(), shown[0].frontend.port(), shown[0].frontend.is_ipv6()),
        (1, 80, true)
    );
    let swept = Sweeper::default().sweep(&store, 31);
    assert_eq!((swept.v6.expired, swept.v6.used, swept.v4.used), (1, 0, 0));
}

/// Numbers as good as random (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ x >> 31) % limit
    }
}

/// Flows of a family in all states and of all ages up to 4,000; of some one half alone, of some one half used later; and slots that are
/// taken and hold nothing.
fn fill<F: TableFamily>(store: &MemoryStore, numbers: &mut Numbers, flows: usize) {
    for _ in 0..flows {
        let mut side = |hosts, port| {
            let host = numbers.below(hosts) << 8 | 0x0a;
            let addr = F::from_words(if F::V6 { [0xfd, host] } else { [host, 0] });
            Side::<F> { addr, port }
        };
        let (client, frontend, backend) = (side(1 << 20, 1000), side(9, 80), side(90, 8080));
        let states = [0, REPLIED | ESTABLISHED, RESET | REPLIED, DATAGRAM, DATAGRAM | REPLIED];
        let state = states[numbers.below(5) as usize];
        let hooks = [1, Hook::STEER_OUT][numbers.below(2) as usize];
        let place = Place {
            hooks,
            way: 0,
            service: numbers.below(7) as u32,
            backend: backend_ref(numbers.below(300) as u32, 1),
        };
        let key = Key {
            src: client,
            dst: frontend,
            protocol: 6,
        };
        let rewrite = Rewrite {
            src: client,
            dst: backend,
        };
        let entry = Entry { key, rewrite, place };
        let at = At(numbers.below(3000) as u32);
        let tables = HostTables {
            store,
            surroundings: &at,
        };
        // One that finds no room is left out.
        enter(&tables, &entry, place, LIVE | state);
        let half = search::locate(&tables, &[key, key.twin(rewrite)][numbers.below(2) as usize]);
        match numbers.below(4) {
            _ if half.found != Found::Entry => {}
            0 => drop(half.free::<F, _>(&tables)),
            1 => drop(table::touch::<F, _>(&tables, &half, 0, 3500)),
            _ => {}
        }
    }
    let table = slots::<F>(store);
    for _ in 0..20 {
        let index = numbers.below(all_sets(table).len() as u64) as u32;
        if Roll::from_word(table.roll(index)).taken() & 2 == 0 {
            take::<F>(store, index, 1);
        }
    }
}

/// A store of both families' flows that follow from a seed.
fn filled(seed: u64, flow_sets: u32, flows: usize) -> MemoryStore {
    let store = store_of(flow_sets);
    let mut numbers = Numbers(seed);
    fill::<V4>(&store, &mut numbers, flows);
    fill::<V6>(&store, &mut numbers, flows);
    store
}

#[test]
fn several_threads_sweep_as_one_does() {
    let mut met = [0; 3];
    for seed in 0..6 {
        // From tables that are nearly empty to such as have no room, and of sets that cannot be divided evenly.
        for (flow_sets, flows) in [(8, 10), (128, 40), (256, 300), (256, 900)] {
            let stores = [1, 3, 4].map(|threads| {
                let store = filled(seed, flow_sets, flows);
                let mut sweeper = Sweeper::default();
                let swept = [3600, 3600, 4000].map(|now| sweeper.sweep_by(threads, &store, now));
                (store, swept)
            });
            let [(one, swept), others @ ..] = stores;
            assert_eq!(swept[0].v4.slots, u64::from(flow_sets) * 4);
            for FlowCounts {
                used,
                expired,
                abandoned,
                ..
            } in swept.iter().flat_map(|swept| [&swept.v4, &swept.v6])
            {
                met = [met[0] + used, met[1] + expired, met[2] + abandoned];
            }
            assert_eq!(swept[2].v4.used, used(&one) as u64);
            for (other, also) in others {
                assert!(swept == also, "{seed}: {flow_sets} sets, {flows} flows");
                for table in [Table::FlowsV4, Table::FlowsV6] {
                    assert!(one.words(table).copy_used() == other.words(table).copy_used());
                }
            }
        }
    }
    assert!(met.iter().all(|count| *count > 100), "{met:?}");
}

/// Clients of a family's flows, slot by slot.
fn clients<F: TableFamily>(store: &MemoryStore) -> Vec<SocketAddr> {
    let table = slots::<F>(store);
    let slots = all_sets(table).flat_map(|index| (0..SET_SLOTS).map(move |slot| (index, slot * F::SLOT_WORDS)));
    let entries = slots.filter_map(|(index, base)| slot::decode::<F, _>(table.set(index)?, base));
    let forward = entries.filter(|(control, _)| control.state & REPLY_HALF == 0);
    forward
        .map(|(_, entry)| {
            let client = entry.key.src;
            SocketAddr::new(address_of_words(F::V6, F::to_words(client.addr)), client.port)
        })
        .collect()
}

#[test]
fn a_dump_is_in_the_order_of_the_slots_however_many_threads_there_are() {
    // Small ones; and one of several windows, in which threads are worth it.
    for (flow_sets, flows) in [(2, 4), (64, 100), (1 << 16, 1000)] {
        let store = filled(1, flow_sets, flows);
        let expected = [clients::<V4>(&store), clients::<V6>(&store)].concat();
        let shown: Vec<_> = dump(&store, 4000).collect();
        let by_one: Vec<_> = dump_by(1, &store, 4000).collect();
        assert!(shown == by_one);
        assert_eq!(shown.iter().map(|flow| flow.client).collect::<Vec<_>>(), expected);
    }
}
