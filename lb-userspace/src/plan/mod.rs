//! From desired state to stores: stable ids, the exact image of the tables, and the operations that lead to it, in an order
//! that is safe to stop at any point.
//!
//! In: a [`crate::maps::Dump`] once, then a [`DesiredState`] and [`NodeTables`] each cycle. Out: a [`Plan`]. Pure: no I/O, no clock, no
//! randomness; equal input and history give equal bytes. There is no failure: what does not fit is left out with a
//! [`Rejection`], everything else goes on, and it is tried again in every cycle. Beside that a cycle looks only at what is not
//! as the last one wanted it.
//!
//! ```text
//! let mut planner = Planner::adopt(Dump::of(store)?, seed);
//! loop {
//!     let plan = planner.plan(&desired, &node);
//!     if plan.apply(store).is_err() { planner = Planner::adopt(Dump::of(store)?, seed); continue later }
//!     if planner.needs_grace() { let mark = planner.mark(); store.grace().wait(); planner.grace_passed(mark) }
//!     if planner.needs_sweep() { let mark = planner.sweep_mark(); sweep; planner.swept(mark, &referred) }
//! }
//! ```
//! Invariants.
//! - *Way in*: backends, then a fresh immutable block, then the service word by one store, then bits, then frontends. *Way
//!   out*: the reverse. See `image::Phase`.
//! - Several words at once are written only where no packet looks: a block without service word, a free backend id, a slot
//!   without valid bit. Everything else changes by one aligned store.
//! - A block and a service port's id are used again after a grace period; a backend id and a cleared address bit only after
//!   a sweep that began later found no flow with them.
//! - A backend id belongs to one (service port, address, port) for as long as that endpoint exists or has flows; it is found
//!   again in the tables after a restart, as is a service port's id by its name.

mod addresses;
mod adopt;
mod arena;
mod bits;
mod block;
mod ids;
mod image;
mod name;
mod publish;
mod reject;
mod retire;
mod room;
mod service;
mod slot;
#[cfg(test)]
mod tests;
mod wanted;
mod withdraw;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::layout::{self, Device, config};

pub use name::{parse_service_port_name, service_port_name};

use crate::maps::{MapError, MapOp, MapStore, OpList, SourceRange, Table};
use crate::model::{DesiredState, OrdMap, Rejection, ServicePort, ServicePortKey};
use addresses::Addresses;
use arena::Arena;
use bits::AddressBits;
use ids::IdPool;
use image::{Draft, Phase};
use service::Services;
use slot::Slot;
use wanted::Own;

/// What the tables say of this node, decided elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTables {
    /// Every address that an interface of this node carries.
    pub addresses: BTreeSet<IpAddr>,
    /// Those on which NodePorts answer.
    pub nodeport_addresses: BTreeSet<IpAddr>,
    /// The configuration words (`lb_common::layout::config`). The table seed is not taken from here: it stays what it is.
    pub config: [u64; config::WORDS],
    /// The devices with a role, by interface index.
    pub devices: BTreeMap<u32, Device>,
}

impl Default for NodeTables {
    fn default() -> Self {
        Self {
            addresses: BTreeSet::new(),
            nodeport_addresses: BTreeSet::new(),
            config: [0; config::WORDS],
            devices: BTreeMap::new(),
        }
    }
}

/// What one cycle has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The operations, stage by stage.
    pub stages: Vec<OpList>,
    /// All that is not programmed because it does not fit or cannot be forwarded, sorted.
    pub rejections: Vec<Rejection>,
    /// True when something was left out that would fit after a grace period or a sweep.
    pub starved: bool,
    /// Number of devices that found no room.
    pub devices_left_out: usize,
}

impl Plan {
    /// True when the tables are as they should be.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.stages.iter().map(OpList::len).sum()
    }

    /// Carries all operations out. After a failure the tables are between the old state and the new one, and the planner is
    /// ahead of them: go on with a planner that adopts a fresh dump.
    pub fn apply(&self, store: &dyn MapStore) -> Result<(), MapError> {
        self.stages.iter().try_for_each(|stage| stage.apply(store))
    }
}

/// A moment between two cycles, before a grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

/// A moment before a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SweepMark(u64);

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The map's name.
    pub map: &'static str,
    /// Entries in use, also those that wait for a grace period or a sweep.
    pub used: u64,
    /// Entries that there can be.
    pub capacity: u64,
}

/// Knows what is published and what to change.
#[derive(Clone, Debug)]
pub struct Planner {
    /// The service ports that the last cycle was to publish.
    wanted: OrdMap<ServicePortKey, Arc<ServicePort>>,
    draft: Draft,
    services: Services,
    arena: Arena,
    backend_ids: IdPool,
    forward: AddressBits,
    reply: AddressBits,
    addresses: Addresses,
    ranges: [usize; 2],
    devices: BTreeMap<u32, Device>,
    names: BTreeSet<u32>,
    /// The node of the last cycle.
    node: NodeTables,
    /// The seed for tables that have none.
    seed: u64,
    /// Cycles so far; stamps what is given up.
    epoch: u64,
    /// Everything given up until here is out of sight of all packets.
    graced: u64,
    /// Withdrawn service ports and when.
    gone_services: BTreeMap<u32, u64>,
    /// Withdrawn backends and when.
    gone_backends: BTreeMap<u32, u64>,
    /// Freed backend ids whose records do not say so yet.
    freed_backends: BTreeSet<u32>,
    /// Names of freed ids.
    gone_names: BTreeSet<u32>,
    /// Entries found in the tables that belong to nothing.
    strays: Leftovers,
    /// True until the first cycle, which trusts nothing.
    adopted: bool,
    rejected: BTreeMap<ServicePortKey, Vec<Rejection>>,
    starved: bool,
}

/// What a cycle takes away, after all that it adds.
#[derive(Clone, Debug, Default)]
struct Leftovers {
    /// Slots, unless somebody takes them over.
    slots: Vec<Slot>,
    /// Service words.
    services: Vec<u32>,
    /// Backends and their last state.
    states: Vec<(u32, u8)>,
    /// Source ranges.
    ranges: Vec<SourceRange>,
    /// References of backends that clients may remember.
    affinity: Vec<u64>,
    /// Backends that nothing published has, unless that changed meanwhile.
    stray_backends: Vec<u32>,
}

impl Planner {
    /// What leads from what is published to what is desired.
    pub fn plan(&mut self, desired: &DesiredState, node: &NodeTables) -> Plan {
        self.epoch += 1;
        let recheck = std::mem::take(&mut self.adopted) || self.node.addresses != node.addresses;
        let retry = std::mem::take(&mut self.rejected);
        self.starved = false;
        self.configure(node);
        if recheck {
            self.forward.settle(&mut self.draft, self.epoch);
            self.reply.settle(&mut self.draft, self.epoch);
        }

        let own = Own::new(&node.addresses);
        let before = std::mem::replace(&mut self.wanted, desired.service_ports.clone());
        let before = if recheck { OrdMap::default() } else { before };
        let (changed, gone) = self.compare(&before, &desired.service_ports, &retry, recheck);
        let mut leftovers = std::mem::take(&mut self.strays);
        let mut names = Vec::new();
        for (key, wanted) in changed {
            match reject::never(key) {
                Some(reason) => self.reject(key, reason),
                None => self.publish(key, wanted, own, &mut names, &mut leftovers),
            }
        }
        if !names.is_empty() {
            self.draft.push(Phase::Names, MapOp::PutNames(names.into()));
        }
        for id in gone {
            self.withdraw(id, &mut leftovers);
        }
        self.publish_addresses(desired, node, recheck);
        self.take_away(leftovers);
        let devices_left_out = self.publish_devices(&node.devices);
        self.node.clone_from(node);

        let mut rejections: Vec<Rejection> = self.rejected.values().flatten().cloned().collect();
        rejections.extend(self.addresses.rejections(desired));
        rejections.sort();
        Plan {
            stages: self.draft.take(),
            rejections,
            starved: self.starved,
            devices_left_out,
        }
    }

    /// How full the tables are.
    pub fn fill(&self) -> Vec<Fill> {
        let words = |table| u64::from(self.draft.length(table));
        let slots = |v6| {
            let table = Table::frontends(v6);
            Fill {
                map: table.name(),
                used: self.draft.valid_slots[usize::from(v6)],
                capacity: words(table) / (table.value_words() / layout::SET_SLOTS) as u64,
            }
        };
        let arena = self.draft.length(Table::Arena);
        let backends = words(Table::Backends) / layout::BACKEND_WORDS as u64;
        let free = self.backend_ids.available() as u64;
        vec![
            slots(false),
            slots(true),
            Fill {
                map: Table::Services.name(),
                used: self.services.len() as u64,
                capacity: words(Table::Services) - 1,
            },
            Fill {
                map: Table::Arena.name(),
                used: u64::from(self.arena.used_units(arena)) * u64::from(arena::UNIT),
                capacity: arena.into(),
            },
            Fill {
                map: Table::Backends.name(),
                used: backends - 1 - free,
                capacity: backends - 1,
            },
        ]
    }

    /// Bytes of heap that the planner keeps, near enough; texts that it shares with the model are not counted.
    pub fn heap_bytes(&self) -> usize {
        self.draft.heap_bytes()
            + self.services.heap_bytes()
            + self.addresses.heap_bytes()
            + self.forward.heap_bytes()
            + self.reply.heap_bytes()
    }

    /// Service ports that may need work: those that are not as they were `before`, and those to `retry`; and live ones that
    /// are not wanted any more. Both in order of their keys. With a `recheck`, nothing but what stands in the tables is trusted.
    fn compare<'a>(
        &self,
        before: &'a OrdMap<ServicePortKey, Arc<ServicePort>>,
        desired: &'a OrdMap<ServicePortKey, Arc<ServicePort>>,
        retry: &BTreeMap<ServicePortKey, Vec<Rejection>>,
        recheck: bool,
    ) -> (Vec<(&'a ServicePortKey, &'a ServicePort)>, Vec<u32>) {
        let live = |id: &u32| self.services.get(*id).is_some_and(service::ServiceState::is_live);
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for change in before.changes(desired) {
            match change.after {
                Some(wanted) => changed.push((change.key, &**wanted)),
                None => gone.extend(self.services.id(change.key).filter(live)),
            }
        }
        if !retry.is_empty() {
            let retried = retry.keys().filter_map(|key| desired.get_key_value(key));
            changed.extend(retried.map(|(key, wanted)| (key, &**wanted)));
            changed.sort_by_key(|(key, _)| *key);
            changed.dedup_by_key(|(key, _)| *key);
        }
        if recheck {
            let stays = |key| desired.contains_key(key) && reject::never(key).is_none();
            let known = self.services.by_key().filter(|(key, _)| !stays(key));
            gone = known.map(|(_, id)| id).filter(live).collect();
        }
        (changed, gone)
    }

    fn configure(&mut self, node: &NodeTables) {
        for (index, wanted) in node.config.iter().enumerate() {
            let index = index as u32;
            let word = match index as usize {
                config::TABLE_SEED => match self.draft.seed() {
                    0 => self.seed,
                    seed => seed,
                },
                _ => *wanted,
            };
            self.draft.write(Phase::Config, Table::Config, index, &[word]);
        }
    }

    /// Writes devices that changed and removes those that are gone; gives the number of those without room.
    fn publish_devices(&mut self, wanted: &BTreeMap<u32, Device>) -> usize {
        let room = layout::DEVICES as usize;
        let gone: Vec<u32> = self
            .devices
            .keys()
            .copied()
            .filter(|ifindex| !wanted.contains_key(ifindex))
            .collect();
        for ifindex in gone {
            self.devices.remove(&ifindex);
            self.draft.push(Phase::DevicesGone, MapOp::RemoveDevice(ifindex));
        }
        let mut left_out = 0;
        for (ifindex, device) in wanted {
            let before = self.devices.get(ifindex);
            if before == Some(device) {
                continue;
            }
            if before.is_none() && self.devices.len() >= room {
                left_out += 1;
                continue;
            }
            self.devices.insert(*ifindex, *device);
            self.draft
                .push(Phase::Devices, MapOp::PutDevice(*ifindex, Box::new(*device)));
        }
        left_out
    }
}
