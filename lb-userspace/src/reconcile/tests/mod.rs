//! The loop on tables in memory, with a source and a host that the test moves; time is paused.

mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::*;
use crate::datapath::interfaces::Role;
use crate::maps::{Dump, Fault, FaultyStore, MemorySizes, MemoryStore};
use crate::source::SourceState;
use crate::status::report::{Cause, ServiceItem};
use crate::status::{Answers as _, Board, Identity};
use crate::test_objects::{NODE, NODE_ADDRESS, config, node, service, slice, source_state};
use world::{HostMemory, STEER, World, interface, services, usual_interfaces};

fn small() -> MemoryStore {
    MemoryStore::new(MemorySizes {
        frontend_sets: 64,
        services: 64,
        arena_words: 4096,
        backends: 256,
        flow_sets: 64,
    })
    .unwrap()
}

fn memory() -> Arc<dyn MapStore> {
    Arc::new(small())
}

fn web(addresses: &[&str]) -> SourceState {
    source_state(&[node(), service("web", "10.96.0.1"), slice("web", addresses)])
}

fn endpoints(services: &[ServiceItem]) -> Vec<&str> {
    services
        .iter()
        .flat_map(|s| &s.endpoints)
        .map(|e| e.address.as_str())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_before_the_source_was_read_whole() {
    let mut world = World::start(memory(), usual_interfaces());
    world.publish(SourceState {
        synced: false,
        ..web(&["10.0.0.1"])
    });
    world.until("seen", |state| state.seen == 1).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(world.store.operations(), 0);
    assert!(
        world.host.lock().unwrap().order.is_empty(),
        "neither programs nor routes"
    );
    let generation = world.publish(web(&["10.0.0.1"]));
    let state = world.programmed(generation).await;
    assert_eq!(World::causes(&state), []);
    assert_eq!(endpoints(&world.services()), ["10.0.0.1"]);
}

#[tokio::test(start_paused = true)]
async fn whatever_a_node_lacks_is_told_and_its_coming_makes_it_ready() {
    let mut world = World::start(memory(), vec![interface(1, "lo", Role::Lo, &["127.0.0.1"])]);
    let generation = world.publish(source_state(&[
        service("web", "10.96.0.1"),
        slice("web", &["10.0.0.1"]),
    ]));
    let state = world.programmed(generation).await;
    assert_eq!(World::causes(&state), [Cause::NodeMissing, Cause::NoUplink]);
    assert_eq!(endpoints(&world.services()), ["10.0.0.1"], "programmed all the same");

    world.publish(web(&["10.0.0.1"]));
    world
        .until("no address", |state| {
            World::causes(state) == [Cause::NoNodeAddress, Cause::NoUplink]
        })
        .await;
    assert_eq!(
        world.host.lock().unwrap().node_addresses,
        [NODE_ADDRESS.parse().unwrap()].into()
    );
    let changed = now();
    world.set_interfaces(usual_interfaces());
    let state = world.until("ready", |state| state.not_ready.is_empty()).await;
    assert!(now() - changed < Duration::from_secs(1), "{:?}", now() - changed);
    let hooked: Vec<&str> = state.attachments.iter().map(|a| a.interface.as_str()).collect();
    assert_eq!(hooked, ["lo", "eth0", "steer0"]);
}

#[tokio::test(start_paused = true)]
async fn programs_are_attached_before_routes_are_set() {
    let mut world = World::start(memory(), usual_interfaces());
    let generation = world.publish(web(&["10.0.0.1"]));
    world.programmed(generation).await;
    let host = world.host.lock().unwrap();
    assert_eq!(host.order[..2], ["attach", "route"]);
    assert_eq!(host.routes, ["10.96.0.1".parse().unwrap()].into());
    assert_eq!(host.route_source, Some(NODE_ADDRESS.parse().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_fails_is_retried_and_told_while_tables_are_written() {
    let fails = |host: &mut HostMemory| {
        host.failing_attachments = 3;
        host.failing_devices = 2;
    };
    let mut world = World::start_with(memory(), usual_interfaces(), config(&[]), fails);
    let generation = world.publish(web(&["10.0.0.1"]));
    let state = world.until("programmed", |state| state.programmed == generation).await;
    assert_eq!(World::causes(&state), [Cause::AttachFailed, Cause::AttachFailed]);
    assert!(
        world.host.lock().unwrap().routes.is_empty(),
        "no route leads to a device without a program"
    );
    let state = world.programmed(generation).await;
    assert_eq!((World::causes(&state), state.failures), (vec![], 3));
    assert_eq!(world.host.lock().unwrap().routes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_loop_publishes_at_once_and_a_burst_makes_few_cycles() {
    let mut world = World::start(memory(), usual_interfaces());
    let generation = world.publish(web(&["10.0.0.1"]));
    world.programmed(generation).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (began, before) = (now(), world.state.borrow().cycles);
    let generation = world.publish(web(&["10.0.0.2"]));
    world.programmed(generation).await;
    assert_eq!(now(), began, "no wait while idle");
    let mut last = 0;
    for i in 0..100 {
        last = world.publish(web(&[&format!("10.0.1.{i}")]));
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    let state = world.programmed(last).await;
    assert_eq!(endpoints(&world.services()), ["10.0.1.99"]);
    assert!(state.cycles - before < 15, "{} cycles", state.cycles - before);
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_at_any_step_is_told_and_retried_until_nothing_is_lost() {
    let objects = || {
        let mut objects = vec![node()];
        for i in 1..4 {
            objects.push(service(&format!("s{i}"), &format!("10.96.0.{i}")));
            objects.push(slice(
                &format!("s{i}"),
                &[&format!("10.0.0.{i}"), &format!("10.0.1.{i}")],
            ));
        }
        source_state(&objects)
    };
    let run = async |at: u64| {
        let faulty = Arc::new(FaultyStore::new(small(), Fault::Once, at));
        let mut world = World::start(
            Arc::<FaultyStore<MemoryStore>>::clone(&faulty) as Arc<dyn MapStore>,
            usual_interfaces(),
        );
        let generation = world.publish(objects());
        let state = world.programmed(generation).await;
        assert_eq!(World::causes(&state), []);
        assert_eq!(state.failures, u64::from(at != 0), "at step {at}");
        (faulty.steps(), world.services())
    };
    let (steps, expected) = run(0).await;
    assert_eq!(expected.len(), 3);
    assert!(steps > 20, "{steps}");
    for at in 1..=steps {
        assert_eq!(run(at).await.1, expected, "failed at step {at}");
    }
}

#[tokio::test(start_paused = true)]
async fn tables_that_stay_dead_are_told_and_the_loop_lives_on() {
    let faulty: Arc<dyn MapStore> = Arc::new(FaultyStore::new(small(), Fault::Dead, 5));
    let mut world = World::start(faulty, usual_interfaces());
    world.publish(web(&["10.0.0.1"]));
    let state = world.until("failed often", |state| state.failures > 10).await;
    assert_eq!((World::causes(&state), state.programmed), (vec![Cause::WriteFailed], 0));
    assert!(state.error.unwrap().contains("injected fault"));
    assert!(
        world.host.lock().unwrap().order.is_empty(),
        "half-filled tables get no programs"
    );
    let cycles = state.failures;
    tokio::time::sleep(Duration::from_mins(1)).await;
    let more = world.state.borrow().failures - cycles;
    assert!((5..=13).contains(&more), "{more} retries in a minute");
}

#[tokio::test(start_paused = true)]
async fn a_restart_with_nothing_changed_writes_nothing() {
    let mut world = World::start(memory(), usual_interfaces());
    let generation = world.publish(web(&["10.0.0.1", "10.0.0.2"]));
    world.programmed(generation).await;
    let store = world.stop().await;
    let (before, operations) = (Dump::of(store.as_ref()).unwrap(), store.operations());
    let mut world = World::start(store, usual_interfaces());
    let generation = world.publish(web(&["10.0.0.1", "10.0.0.2"]));
    world.programmed(generation).await;
    tokio::time::sleep(CHECK_EVERY * 3).await;
    let store = world.stop().await;
    assert_eq!(store.operations(), operations);
    assert_eq!(Dump::of(store.as_ref()).unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_changed_is_repaired_by_the_next_check() {
    let mut world = World::start(memory(), usual_interfaces());
    let generation = world.publish(web(&["10.0.0.1"]));
    world.programmed(generation).await;
    let expected = world.services();
    let words = world.store.words(crate::maps::Table::Services);
    for index in 0..words.len() {
        words.store(index, 0);
    }
    assert!(world.services().is_empty());
    tokio::time::sleep(CHECK_EVERY + Duration::from_secs(10)).await;
    let found = world.services();
    assert_eq!(endpoints(&found), endpoints(&expected));
    assert!(world.host.lock().unwrap().attach_calls.contains(&Trust::Nothing));
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_objects_is_told_and_stops_nothing_else() {
    let mut bad = service("bad", "10.96.0.9");
    bad["spec"]["ports"][0]["port"] = 70000.into();
    let mut world = World::start(memory(), usual_interfaces());
    let generation = world.publish(source_state(&[
        node(),
        bad,
        service("web", "10.96.0.1"),
        service("zwin", "10.96.0.1"),
        slice("web", &["10.0.0.1"]),
    ]));
    let state = world.programmed(generation).await;
    let rejected: Vec<String> = state.rejections.iter().map(|r| r.object.to_string()).collect();
    assert!(rejected.contains(&"Service default/bad".to_owned()), "{rejected:?}");
    assert_eq!(rejected.len(), 2, "{rejected:?}");
    assert_eq!(World::causes(&state), []);
    assert_eq!(endpoints(&world.services()), ["10.0.0.1"]);
}

#[tokio::test(start_paused = true)]
async fn removed_endpoints_give_their_ids_back_after_grace_and_sweep() {
    let mut world = World::start(memory(), usual_interfaces());
    let generation = world.publish(web(&["10.0.0.1", "10.0.0.2"]));
    world.programmed(generation).await;
    let used = |state: &State| state.tables.iter().find(|t| t.name == "backends").unwrap().used;
    assert_eq!(used(&world.state.borrow()), 2);
    let generation = world.publish(web(&["10.0.0.1"]));
    world.programmed(generation).await;
    world.until("freed", |state| used(state) == 1).await;
    assert!(world.sweeps.0.load(Ordering::Relaxed) > 0);
}

#[tokio::test(start_paused = true)]
async fn a_route_goes_with_its_service_when_no_connection_of_the_node_uses_it() {
    let mut world = World::start(memory(), usual_interfaces());
    let generation = world.publish(web(&["10.0.0.1"]));
    world.programmed(generation).await;
    assert_eq!(world.host.lock().unwrap().routes.len(), 1);
    let generation = world.publish(source_state(&[node()]));
    world.programmed(generation).await;
    assert!(world.host.lock().unwrap().routes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stopped_loop_leaves_tables_programs_and_routes() {
    let mut world = World::start(memory(), usual_interfaces());
    let generation = world.publish(web(&["10.0.0.1"]));
    world.programmed(generation).await;
    let host = Arc::clone(&world.host);
    let store = world.stop().await;
    assert_eq!(endpoints(&services(store.as_ref())), ["10.0.0.1"]);
    let host = host.lock().unwrap();
    assert!(host.attached.iter().any(|a| a.ifindex == STEER) && !host.routes.is_empty());
}

fn board(world: &World) -> Board {
    let identity = Identity {
        version: "1".to_owned(),
        pid: 1,
        node_name: NODE.to_owned(),
        takeover: false,
        started: now(),
        source_kind: "folder".to_owned(),
        source_location: "/f".to_owned(),
        unused_settings: Vec::new(),
    };
    let board = Board::new(identity, world.state.clone(), world.source.clone());
    board.set_store(Arc::clone(&world.store));
    board
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_when_what_the_source_held_at_the_call_is_programmed() {
    let mut world = World::start(memory(), usual_interfaces());
    let board = board(&world);
    let state = world.publisher.publish(web(&["10.0.0.1"]));
    let refresh = async {
        let asked = world.publisher.request().await.expect("the board asks");
        asked.send(state).expect("the board waits");
    };
    let (generation, ()) = tokio::join!(board.programmed(), refresh);
    assert_eq!(generation, 1);
    assert_eq!(endpoints(&world.services()), ["10.0.0.1"]);
}

#[tokio::test(start_paused = true)]
async fn waiting_does_not_end_while_writes_fail_and_says_why() {
    let faulty: Arc<dyn MapStore> = Arc::new(FaultyStore::new(small(), Fault::Dead, 1));
    let mut world = World::start(faulty, usual_interfaces());
    let board = board(&world);
    let state = world.publisher.publish(web(&["10.0.0.1"]));
    let refresh = async {
        let asked = world.publisher.request().await.expect("the board asks");
        asked.send(state).expect("the board waits");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = board.programmed() => panic!("nothing is programmed"),
        () = refresh => {}
        () = tokio::time::sleep(Duration::from_mins(5)) => {}
    }
    assert!(board.pending().contains("injected fault"), "{}", board.pending());
}

#[tokio::test(start_paused = true)]
async fn waiting_does_not_end_before_the_source_is_synced() {
    let mut world = World::start(memory(), usual_interfaces());
    let board = board(&world);
    let unread = SourceState {
        not_ready: Some("no such folder".to_owned()),
        ..SourceState::default()
    };
    let state = world.publisher.publish(unread);
    let refresh = async {
        let asked = world.publisher.request().await.expect("the board asks");
        asked.send(state).expect("the board waits");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = board.programmed() => panic!("nothing is known"),
        () = refresh => {}
        () = tokio::time::sleep(Duration::from_mins(5)) => {}
    }
    assert_eq!(board.pending(), "no such folder");
    assert!(!board.report().ready);
}
