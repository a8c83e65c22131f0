//! One packet through one program, on the real programs and on the host's pipeline, from the same objects.
//!
//! Every case names objects, packets in, and for each packet what comes out: the bytes, how the program ends, and which
//! reasons are counted. It runs twice: by BPF_PROG_TEST_RUN on the agent's own object in a namespace of its own, and on the
//! pipeline of lb-common in this process. The agent's planner plans once, and the same operations go to the kernel's maps and to
//! the tables in memory, so seeds, generations and ids are the same; bytes, ends and counters must be the same too, and so
//! must the two flow tables after each packet. Checksums are judged by a parser that is not ours.
//!
//! And it runs a third time with the program at XDP before the one at tc (`xdp.rs`).
//!
//! Where nearly all cases fail at once, the embedded object is older than lb-common: `cargo xtask build-ebpf`.

mod affinity;
mod answers;
mod case;
mod changes;
mod compare;
mod flow;
mod fragments;
mod headers;
mod host;
mod host_routing;
mod icmp_error;
mod journeys;
mod kernel;
mod link_less;
mod many_flows;
mod masquerade;
mod node;
mod not_ours;
mod objects;
mod offload;
mod policy;
mod refusal;
mod steered;
mod xdp;

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use lb_common::layout::config;
use lb_common::verdict::REASONS;
use lb_tests::netns::Netns;
use steerway::maps::{Dump, MapStore, Table};
use steerway::plan::Planner;

use self::case::Case;
use self::compare::check;
use self::host::Host;
use self::kernel::Kernel;
use self::node::{Addresses, namespace, tables};
use self::objects::Objects;

/// Sets of each flow table.
const FLOW_SETS: u32 = 128;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// The seed of the tables.
const SEED: u64 = 0x0123_4567_89ab_cdef;
/// Bits of a flow entry's control word that say when it was last seen: the two sides have clocks of their own.
const LAST_SEEN: u64 = 0xffff_ffff;

/// A packet as it comes to a program.
#[derive(Clone, Debug)]
struct Given {
    frame: Vec<u8>,
    ifindex: u32,
    ingress_ifindex: u32,
    segment_payload: u32,
    /// A device summed it.
    summed: bool,
}

/// The two sides, with the same tables.
struct World {
    kernel: Kernel,
    host: Host,
    planner: Planner,
}

impl World {
    /// The world of all tests, one after the other: the verifier takes seconds for the programs, minutes where a processor is
    /// emulated. Nothing is published, and no flow is known.
    fn shared() -> MutexGuard<'static, Self> {
        static SHARED: LazyLock<Mutex<World>> = LazyLock::new(|| {
            let mut world = World::new(namespace("programs").nameless());
            world.kernel.load_xdp();
            Mutex::new(world)
        });
        // A test that has failed is told already.
        let mut world = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        world.clear();
        world
    }

    /// A world of one's own, without XDP.
    fn new(netns: Netns) -> Self {
        let (kernel, host) = (Kernel::load(netns), Host::new());
        let dump = Dump::of(&kernel.store).expect("what stands in the maps");
        assert_eq!(dump, Dump::of(&host.store).expect("what stands in memory"));
        Self {
            kernel,
            host,
            planner: Planner::adopt(dump, SEED),
        }
    }

    fn stores(&self) -> [&dyn MapStore; 2] {
        [&self.kernel.store, &self.host.store]
    }

    /// Plans once and publishes to both sides.
    fn publish(&mut self, objects: &Objects, words: &[(usize, u64)]) {
        let mut node = tables();
        for (index, value) in words {
            node.config[*index] = *value;
        }
        let plan = self.planner.plan(&objects.desired(), &node);
        assert!(plan.rejections.is_empty() && !plan.starved, "{:?}", plan.rejections);
        for store in self.stores() {
            plan.apply(store).expect("tables that take every operation");
        }
    }

    /// Withdraws everything and forgets all flows.
    fn clear(&mut self) {
        self.publish(&Objects::default(), &[]);
        self.forget_flows();
    }

    fn forget_flows(&self) {
        for table in [Table::FlowsV4, Table::FlowsV6] {
            for store in self.stores() {
                let words = store.words(table);
                let copied = words.copy_used();
                let set = (0..copied.len()).filter(|index| copied[*index] != 0);
                set.for_each(|index| words.store(index, 0));
            }
        }
    }

    /// Runs a case on tables without flows; gives what is wrong.
    fn run(&mut self, case: &Case, summed: bool) -> Result<(), String> {
        self.clear();
        self.publish(&case.objects, &case.words);
        for (number, step) in case.steps.iter().enumerate() {
            if let Some(objects) = step.new_objects() {
                self.publish(objects, &case.words);
            }
            check(self, step, summed).map_err(|wrong| format!("packet {number} at {step}: {wrong}"))?;
        }
        Ok(())
    }

    fn kernel_counts(&self) -> Vec<u64> {
        self.kernel.store.reasons().expect("the kernel's counters")
    }

    fn host_counts(&self) -> Vec<u64> {
        let counts = self.host.store.reasons().expect("the host's counters");
        assert_eq!(counts.len(), REASONS);
        counts
    }

    /// The first word in which the flow tables of the two sides differ, apart from times of entries. A packet's family alone is looked at: the
    /// other's programs and tables it does not meet.
    fn flow_difference(&self, frame: &[u8]) -> Option<String> {
        let (table, slot_words) = match frame.get(ETHERNET)? >> 4 {
            4 => (Table::FlowsV4, 8),
            6 => (Table::FlowsV6, 16),
            _ => return None,
        };
        let [kernel, host] = self.stores().map(|store| store.words(table).copy(0, usize::MAX));
        assert_eq!(kernel.len(), host.len());
        let rolls = FLOW_SETS as usize * table.value_words();
        let differs = |index: usize| {
            let mask = if index < rolls && index.is_multiple_of(slot_words) {
                !LAST_SEEN
            } else {
                u64::MAX
            };
            (kernel[index] ^ host[index]) & mask != 0
        };
        let index = (0..kernel.len()).find(|index| kernel[*index] != host[*index] && differs(*index))?;
        Some(format!(
            "word {index} of {} is {:#x} in the kernel, {:#x} on the host",
            table.name(),
            kernel[index],
            host[index]
        ))
    }
}

/// Runs the cases of both families and tells all that is wrong.
#[track_caller]
fn run_cases(cases: impl Fn(Addresses) -> Vec<Case>) {
    let mut world = World::shared();
    let mut wrong = Vec::new();
    for at in Addresses::BOTH {
        let cases = cases(at);
        assert!(!cases.is_empty());
        for case in cases {
            // Once as it comes from a device that sums nothing, once as from one that has summed all of it.
            for summed in [false, true] {
                if summed && !case.may_be_summed() {
                    continue;
                }
                let family = at.pick("IPv4", "IPv6");
                if let Err(text) = world.run(&case, summed) {
                    wrong.push(format!("== {} ({family}, summed: {summed})\n{text}", case.name));
                }
            }
            for outside in [false, true] {
                if let Err(text) = world.run_with_xdp(&case, outside) {
                    let family = at.pick("IPv4", "IPv6");
                    wrong.push(format!(
                        "== {} ({family}, with XDP, all from outside: {outside})\n{text}",
                        case.name
                    ));
                }
            }
        }
    }
    assert_eq!(world.host.store.words(Table::Config).load(config::TABLE_SEED), SEED);
    let [kernel, host] = world.stores().map(|store| Dump::of(store).expect("the tables"));
    assert_eq!(kernel, host, "the tables of the two sides differ");
    assert!(wrong.is_empty(), "{} cases failed\n{}", wrong.len(), wrong.join("\n"));
}
