//! Nothing is used anew while a packet or a flow could still mean its last owner.

use std::sync::Arc;

use lb_common::layout::{BackendControl, ServiceWord};

use super::world::{SMALL, adopt, desired, key, node, service_port, services, store};
use crate::maps::{MapStore as _, MemoryStore, Referred, Table};
use crate::model::{DesiredState, Family, Protocol};
use crate::plan::Planner;

struct World {
    store: MemoryStore,
    planner: Planner,
}

impl World {
    fn new() -> Self {
        let store = store(SMALL);
        let planner = adopt(&store);
        Self { store, planner }
    }

    fn publish(&mut self, desired: &DesiredState) {
        let plan = self.planner.plan(desired, &node());
        assert!(plan.rejections.is_empty());
        plan.apply(&self.store).unwrap();
    }

    fn grace(&mut self) {
        assert!(self.planner.needs_grace());
        self.planner.grace_passed(self.planner.mark());
        assert!(!self.planner.needs_grace());
    }

    /// Flows go to these backends.
    fn sweep(&mut self, backends: &[u32]) {
        let mut referred = Referred::none(256);
        for id in backends {
            referred.backends.insert(*id);
        }
        self.planner.swept(self.planner.sweep_mark(), &referred);
    }

    fn control(&self, id: u32) -> BackendControl {
        BackendControl::from_word(self.store.words(Table::Backends).load(id as usize * 4))
    }

    /// The id of the published backend on a pod.
    fn backend(&self, host: u8) -> Option<u32> {
        let words = self.store.words(Table::Backends);
        let address = u64::from(u32::from_ne_bytes([10, 1, 0, host]));
        (1..SMALL.backends).find(|id| self.control(*id).state != 0 && words.load(*id as usize * 4 + 1) == address)
    }

    fn block(&self, service: u32) -> u32 {
        ServiceWord::from_word(self.store.words(Table::Services).load(service as usize))
            .unwrap()
            .offset
    }
}

fn web(pods: impl IntoIterator<Item = u8>) -> DesiredState {
    desired([(key("web", Protocol::Tcp, Family::V4), service_port(Family::V4, 0, pods))])
}

#[test]
fn a_block_is_not_written_again_before_its_grace_period() {
    let mut world = World::new();
    world.publish(&web([1]));
    let first = world.block(1);
    let content = world.store.words(Table::Arena).copy(first as usize, 16);
    for pods in [2..3, 3..4, 4..5] {
        world.publish(&web(pods));
        assert_eq!(world.store.words(Table::Arena).copy(first as usize, 16), content);
        assert_ne!(world.block(1), first);
    }
    world.grace();
    world.publish(&web([5]));
    assert_eq!(world.block(1), first);
}

#[test]
fn a_backend_id_waits_for_grace_and_sweep_and_comes_back_in_a_new_generation() {
    let mut world = World::new();
    world.publish(&web([1, 2]));
    let id = world.backend(1).unwrap();
    let generation = world.control(id).generation;
    world.publish(&web([2]));
    assert_eq!(
        (world.control(id).state, world.control(id).generation),
        (0, generation),
        "its flows still know it"
    );
    world.sweep(&[]);
    world.publish(&web([2, 3]));
    assert_ne!(world.backend(3), Some(id), "no grace period has passed");
    world.grace();
    world.sweep(&[id]);
    world.publish(&web([2, 3, 4]));
    assert_ne!(world.backend(4), Some(id), "a flow refers to it");
    world.sweep(&[]);
    world.publish(&web([2, 3, 4, 5]));
    assert_eq!(world.backend(5), Some(id));
    assert_eq!(world.control(id).generation, generation + 1);
}

#[test]
fn a_sweep_that_began_before_the_grace_period_ended_frees_nothing() {
    let mut world = World::new();
    world.publish(&web([1, 2]));
    let id = world.backend(1).unwrap();
    world.publish(&web([2]));
    let early = world.planner.sweep_mark();
    world.grace();
    world.planner.swept(early, &Referred::none(256));
    world.publish(&web([2, 3]));
    assert_ne!(world.backend(3), Some(id));
}

#[test]
fn an_endpoint_that_returns_while_flows_remember_it_has_its_id_back() {
    let mut world = World::new();
    world.publish(&web([1, 2]));
    let before = world.control(world.backend(1).unwrap());
    let id = world.backend(1);
    world.publish(&web([2]));
    world.grace();
    world.sweep(&[id.unwrap()]);
    world.publish(&web([1, 2]));
    assert_eq!((world.backend(1), world.control(id.unwrap())), (id, before));
    world.grace();
    world.sweep(&[]);
    world.publish(&web([1, 2, 3]));
    assert_ne!(world.backend(3), id, "it is in use");
}

#[test]
fn a_service_id_waits_for_its_last_flow_and_keeps_its_name() {
    let mut world = World::new();
    world.publish(&services(1, 1));
    let backend = world.backend(0).unwrap();
    world.publish(&desired([]));
    world.grace();
    world.sweep(&[backend]);
    world.publish(&desired([]));
    assert_eq!(
        world.store.names().unwrap()[&1],
        "default/web0:http/TCP/IPv4",
        "its flow still shows it"
    );
    world.publish(&web([7]));
    assert!(world.store.names().unwrap()[&2].contains("web:"), "id 1 is not free");
    world.sweep(&[]);
    assert!(world.planner.has_freed());
    world.publish(&web([7]));
    assert_eq!(world.store.names().unwrap().keys().copied().collect::<Vec<_>>(), [2]);
    let mut both = web([7]);
    let mut other = service_port(Family::V4, 0, [0]);
    other.frontends[0].port = 81;
    both.service_ports
        .insert(key("other", Protocol::Tcp, Family::V4), Arc::new(other));
    world.publish(&both);
    assert!(world.store.names().unwrap()[&1].contains("other:"));
    let word = ServiceWord::from_word(world.store.words(Table::Services).load(1)).unwrap();
    assert_eq!(word.generation, 2);
}

#[test]
fn address_bits_stay_while_flows_have_the_address() {
    let mut world = World::new();
    let bits = |world: &World, table| {
        world
            .store
            .words(table)
            .copy_used()
            .iter()
            .map(|word| word.count_ones())
            .sum()
    };
    let (forward, reply): (u32, u32) = (bits(&world, Table::ForwardBits), bits(&world, Table::ReplyBits));
    world.publish(&desired([]));
    let node_only: u32 = bits(&world, Table::ForwardBits);
    assert_eq!((forward, reply), (0, 0));
    world.publish(&web([1]));
    world.publish(&desired([]));
    world.grace();
    let vip = super::super::bits::bit_of("10.96.0.0".parse().unwrap());
    let mut referred = Referred::none(256);
    referred.forward_bits.insert(vip);
    referred.backends.insert(1);
    world.planner.swept(world.planner.sweep_mark(), &referred);
    world.publish(&desired([]));
    assert_eq!(
        (bits(&world, Table::ForwardBits), bits(&world, Table::ReplyBits)),
        (node_only + 1, 1)
    );
    for _ in 0..2 {
        world.planner.grace_passed(world.planner.mark());
        world.sweep(&[]);
        world.publish(&desired([]));
    }
    assert_eq!(
        (bits(&world, Table::ForwardBits), bits(&world, Table::ReplyBits)),
        (node_only, 0)
    );
    assert!(!world.planner.needs_sweep() && !world.planner.has_freed());
}
