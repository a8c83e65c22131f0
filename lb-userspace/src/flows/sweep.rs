//! The sweep: frees what has timed out, both halves of a flow together, and notes what the rest refers to.
//!
//! A flow is over when the half that was used last is older than the time-out of what both halves have seen. Its forward half
//! goes first: if a packet of the client has refreshed it meanwhile, both stay; if one of the backend has refreshed the reply
//! half, replies are still translated and the client's next packet begins the flow anew.
//!
//! What is referred to holds for packets that began a grace period or more before the sweep: an entry that appears behind the
//! sweep's back was either chosen from the tables as they are now, or is the new twin of one that the sweep has met or will.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::access::{SetRef as _, Slots as _, TableFamily};
use lb_common::family::{Side, V4, V6};
use lb_common::flow::slot::{self, Words};
use lb_common::flow::state::{Control, DATAGRAM, FREE, LIVE, REPLY_HALF, SHARED, class, timeout_word};
use lb_common::flow::{Key, table};
use lb_common::hash;
use lb_common::layout::{SERVICES, SET_SLOTS, VERSION_MASK, config};
use lb_common::pipeline::Hook;
use lb_common::slots::home;

use super::{Slot, each_forward_half, find, slots};
use crate::maps::{MapStore, Referred, Table, WordSet, WordSlots, address_of_words};

/// Names of the classes of flows, as `lb_common::flow::state::class` numbers them.
pub const CLASSES: [&str; 5] = ["unanswered", "closing", "answered", "established", "settled"];

/// What stands in the flow table of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Slots of the table; a flow takes two.
    pub slots: u64,
    /// Slots in use.
    pub used: u64,
    /// Flows by class, see [`CLASSES`].
    pub flows: [u64; CLASSES.len()],
    /// Flows freed by this sweep because their time was over.
    pub expired: u64,
    /// Slots freed that had been left half written.
    pub abandoned: u64,
}

/// The outcome of a sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// What flows refer to.
    pub referred: Referred,
    /// Service port ids that have flows, with their number; sorted.
    pub services: Vec<(u32, u32)>,
    /// IPv4.
    pub v4: FlowCounts,
    /// IPv6.
    pub v6: FlowCounts,
}

/// Sweeps; remembers from one sweep to the next which slots were being written.
#[derive(Clone, Debug, Default)]
pub struct Sweeper {
    /// Control words of slots in no settled phase, by family and place.
    writing: [BTreeMap<(u32, usize), u64>; 2],
}

/// What one family's sweep works with.
struct Pass<'a, F: TableFamily> {
    table: WordSlots<'a>,
    seed: u64,
    /// The configuration words, for the time-outs; read once.
    timeouts: [u64; config::WORDS],
    now: u32,
    counts: FlowCounts,
    referred: &'a mut Referred,
    /// Flows by service port id.
    services: &'a mut [u32],
    family: std::marker::PhantomData<F>,
}

impl Sweeper {
    /// Sweeps both tables. `now` is the kernel's jiffies, the low 32 bits; one or two off does no harm.
    pub fn sweep(&mut self, store: &dyn MapStore, now: u32) -> Swept {
        let backends = store.words(Table::Backends).len() / Table::Backends.value_words();
        let mut referred = Referred::none(backends);
        let mut services = vec![0; SERVICES as usize];
        let [v4, v6] = &mut self.writing;
        let v4 = Pass::<V4>::new(store, now, &mut referred, &mut services).run(v4);
        let v6 = Pass::<V6>::new(store, now, &mut referred, &mut services).run(v6);
        let services = (0..).zip(services).filter(|(_, flows)| *flows > 0).collect();
        Swept {
            referred,
            services,
            v4,
            v6,
        }
    }
}

/// Addresses that TCP connections of the node itself go to, as the tables are now; see [`Referred::host_destinations`].
pub fn host_connections(store: &dyn MapStore) -> BTreeSet<IpAddr> {
    host_connections_of::<V4>(store)
        .chain(host_connections_of::<V6>(store))
        .collect()
}

fn host_connections_of<F: TableFamily>(store: &dyn MapStore) -> impl Iterator<Item = IpAddr> {
    each_forward_half::<F>(store).filter_map(|((_, set, base), control)| host_destination::<F>(set, base, control))
}

/// Where the forward entry at `base` goes, if it is an open TCP connection that the node sends through our device.
fn host_destination<F: TableFamily>(set: WordSet<'_>, base: usize, control: Control) -> Option<IpAddr> {
    let meta = set.load(base + Words::meta::<F>());
    let from_host = meta & VERSION_MASK == control.version && meta as u8 & Hook::STEER_OUT != 0;
    if !from_host || control.closed() || control.state & DATAGRAM != 0 {
        return None;
    }
    let side: Side<F> = F::side_from(|i| set.load(base + Words::dst::<F>() + i));
    Some(address_of_words(F::V6, F::to_words(side.addr)))
}

impl<'a, F: TableFamily> Pass<'a, F> {
    fn new(store: &'a dyn MapStore, now: u32, referred: &'a mut Referred, services: &'a mut [u32]) -> Self {
        let mut timeouts = [0; config::WORDS];
        for (index, word) in timeouts.iter_mut().enumerate() {
            *word = store.words(Table::Config).load(index);
        }
        let (table, seed) = (slots::<F>(store), timeouts[config::TABLE_SEED]);
        Self {
            table,
            seed,
            timeouts,
            now,
            counts: FlowCounts::default(),
            referred,
            services,
            family: std::marker::PhantomData,
        }
    }

    fn run(mut self, writing: &mut BTreeMap<(u32, usize), u64>) -> FlowCounts {
        let before = std::mem::take(writing);
        for index in 0..=self.table.mask() {
            let Some(set) = self.table.set(index) else { break };
            for slot in 0..SET_SLOTS {
                let base = slot * F::SLOT_WORDS;
                let word = set.load(base);
                let control = Control::from_word(word);
                self.counts.slots += 1;
                match control.phase() {
                    FREE => {}
                    LIVE => self.entry((index, set, base), control),
                    _ if before.get(&(index, base)) == Some(&word) => {
                        self.counts.abandoned += u64::from(table::free(set, base, control));
                    }
                    _ => {
                        self.counts.used += 1;
                        writing.insert((index, base), word);
                    }
                }
            }
        }
        self.counts
    }

    /// An entry: over, or counted with what it refers to.
    #[inline]
    fn entry(&mut self, slot: Slot<'_>, control: Control) {
        let (_, set, base) = slot;
        if control.age(self.now) as u64 > self.timeout(control.state) && self.is_over(slot, control) {
            self.counts.expired += 1;
            return;
        }
        self.counts.used += 1;
        let backend = set.load(base + Words::backend::<F>());
        let is_forward = control.state & REPLY_HALF == 0;
        let at = if is_forward { Words::dst::<F>() } else { Words::SRC };
        let side: Side<F> = F::side_from(|i| set.load(base + at + i));
        let version = (0..F::SIDE_WORDS).fold(backend, |all, i| all & set.load(base + at + i));
        if version & VERSION_MASK != control.version || backend & VERSION_MASK != control.version {
            // Replaced just now, by an entry chosen from the tables as they are.
            return;
        }
        self.referred.backends.insert(backend as u32);
        if is_forward {
            self.referred.forward_bits.insert(hash::bit::<F>(side.addr));
            self.referred
                .host_destinations
                .extend(host_destination::<F>(set, base, control));
            let service = slot::service(set.load(base + Words::meta::<F>()));
            if let Some(count) = self.services.get_mut(service as usize) {
                *count += 1;
            }
            if let Some(count) = self.counts.flows.get_mut(class(control.state) as usize) {
                *count += 1;
            }
        } else {
            self.referred.reply_bits.insert(hash::bit::<F>(side.addr));
        }
    }

    fn timeout(&self, state: u16) -> u64 {
        self.timeouts[timeout_word(state)]
    }

    /// Frees the flow of a half that is over by itself, unless the other half says otherwise.
    fn is_over(&self, at: Slot<'_>, control: Control) -> bool {
        let (_, set, base) = at;
        let Some((same, entry)) = slot::decode::<F, _>(set, base) else {
            return false;
        };
        if same != control {
            return false;
        }
        let twin_key = entry.key.twin(entry.rewrite);
        let twin = find::<F>(self.table, self.seed, &twin_key).filter(|((_, set, base), control)| {
            let rewrite = slot::read::<F, _>(*set, *base, control.version);
            rewrite.is_some_and(|(rewrite, _)| rewrite == entry.key.twin_rewrite())
        });
        let key = &entry.key;
        let Some((twin_at, twin)) = twin else {
            return self.free(at, key, control);
        };
        let state = control.state | twin.state & SHARED;
        let age = control.age(self.now).min(twin.age(self.now));
        if age as u64 <= self.timeout(state) {
            return false;
        }
        if control.state & REPLY_HALF == 0 {
            self.free(at, key, control) && {
                self.free(twin_at, &twin_key, twin);
                true
            }
        } else {
            self.free(twin_at, &twin_key, twin) && self.free(at, key, control)
        }
    }

    /// Frees the slot of a key if nobody has changed it.
    fn free(&self, (index, set, base): Slot<'_>, key: &Key<F>, seen: Control) -> bool {
        let freed = table::free(set, base, seen);
        let home = home(key.hash(self.seed), self.table.mask());
        if freed && home != index {
            table::recount_in(self.table, home, false);
        }
        freed
    }
}
