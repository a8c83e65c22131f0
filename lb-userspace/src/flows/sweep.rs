//! The sweep: frees what has timed out, both halves of a flow together, and notes what the rest refers to.
//!
//! A flow is over when the half that was used last is older than the time-out of what both halves have seen. Its forward half
//! goes first: if a packet of the client has refreshed it meanwhile, both stay; if one of the backend has refreshed the reply
//! half, replies are still translated and the client's next packet begins the flow anew.
//!
//! A flow is judged by one thread at a time, whichever meets one of its halves first: the other half is then found free. A half that was counted
//! and only then freed with its other half stays counted, as one that was met earlier always did.
//!
//! A slot that is taken and holds no entry is about to be written by a packet, or was freed and is about to be left. Where it was so at all
//! sweeps for a minute and was not taken anew meanwhile, whoever had it lost its races for the roll, or was
//! killed (a processor may stand still for seconds). The sweep leaves it then. An entry that is being displaced stands, and is referred to: it may come back.
//!
//! What is referred to holds for packets that began a grace period or more before the sweep: an entry that appears behind the
//! sweep's back was either chosen from the tables as they are now, or is the new twin of one that the sweep has met or will.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::mem::take;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lb_common::access::{Rolls as _, SetRef as _, Slots as _, TableFamily};
use lb_common::family::{Side, V4, V6};
use lb_common::flow::roll::Roll;
use lb_common::flow::slot::{self, Words};
use lb_common::flow::state::{Control, DATAGRAM, HELD, LIVE, REPLY_HALF, SHARED, class, timeout_word};
use lb_common::flow::{Key, table};
use lb_common::hash;
use lb_common::layout::{SERVICES, SET_SLOTS, VERSION_MASK, config};
use lb_common::pipeline::Hook;
use lb_common::slots::home;

use super::walk::{in_parts, threads, walk};
use super::{Slot, all_sets, find, slots, timeouts};
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
    /// Slots left that had been taken for a minute and held nothing.
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

/// Sweeps; remembers from one sweep to the next which slots were taken and held no entry.
#[derive(Clone, Debug, Default)]
pub struct Sweeper {
    /// Those slots, by family.
    unsettled: [Unsettled; 2],
}

/// Slots that were taken and held no entry, by place: what their set's roll tells of them and their control word, and since when, in jiffies.
type Unsettled = BTreeMap<(u32, usize), ((u64, u64), u32)>;

/// Seconds after which a slot that is taken and holds no entry is left.
const ABANDONED: u64 = 60;

/// What one family's sweep works with.
struct Pass<'a, F> {
    table: WordSlots<'a>,
    seed: u64,
    /// The configuration words, for the time-outs; read once.
    timeouts: [u64; config::WORDS],
    now: u32,
    /// As the last sweep left it.
    before: Unsettled,
    /// Held while a flow is judged and freed: both its halves may be met at once, by two threads.
    judging: Mutex<()>,
    family: PhantomData<fn() -> F>,
}

/// What one thread has found.
struct Found {
    counts: FlowCounts,
    referred: Referred,
    /// Flows by service port id.
    services: Vec<u32>,
    /// Of one family.
    unsettled: Unsettled,
}

impl Sweeper {
    /// Sweeps both tables, by several threads where they are large. `now` is the kernel's jiffies, the low 32 bits; one or two off does no
    /// harm.
    pub fn sweep(&mut self, store: &dyn MapStore, now: u32) -> Swept {
        let sets = [all_sets(slots::<V4>(store)), all_sets(slots::<V6>(store))];
        self.sweep_by(threads(sets.iter().map(Range::len).sum()), store, now)
    }

    /// [`Sweeper::sweep`] by so many threads.
    pub(super) fn sweep_by(&mut self, threads: usize, store: &dyn MapStore, now: u32) -> Swept {
        let backends = store.words(Table::Backends).len() / Table::Backends.value_words();
        let mut found: Vec<_> = (0..threads).map(|_| Found::nothing(backends)).collect();
        let [unsettled_v4, unsettled_v6] = &mut self.unsettled;
        let v4 = Pass::<V4>::new(store, now, take(unsettled_v4)).run(unsettled_v4, &mut found);
        let v6 = Pass::<V6>::new(store, now, take(unsettled_v6)).run(unsettled_v6, &mut found);
        let all = found
            .into_iter()
            .reduce(Found::join)
            .unwrap_or_else(|| Found::nothing(backends));
        let services = (0..).zip(all.services).filter(|(_, flows)| *flows > 0).collect();
        Swept {
            referred: all.referred,
            services,
            v4,
            v6,
        }
    }
}

impl Found {
    fn nothing(backends: usize) -> Self {
        Self {
            counts: FlowCounts::default(),
            referred: Referred::none(backends),
            services: vec![0; SERVICES as usize],
            unsettled: Unsettled::new(),
        }
    }

    /// Both together, but for what is of one family.
    fn join(mut self, other: Self) -> Self {
        self.referred.join(other.referred);
        for (all, more) in self.services.iter_mut().zip(other.services) {
            *all += more;
        }
        self
    }
}

impl FlowCounts {
    fn join(mut self, other: &Self) -> Self {
        self.slots += other.slots;
        self.used += other.used;
        for (all, more) in self.flows.iter_mut().zip(other.flows) {
            *all += more;
        }
        self.expired += other.expired;
        self.abandoned += other.abandoned;
        self
    }
}

/// Addresses that TCP connections of the node itself go to, as the tables are now; see [`Referred::host_destinations`].
pub fn host_connections(store: &dyn MapStore) -> BTreeSet<IpAddr> {
    host_connections_of::<V4>(store)
        .chain(host_connections_of::<V6>(store))
        .collect()
}

fn host_connections_of<F: TableFamily>(store: &dyn MapStore) -> impl Iterator<Item = IpAddr> {
    let table = slots::<F>(store);
    let sets = all_sets(table);
    let threads = threads(sets.len());
    let mut found = vec![BTreeSet::new(); threads];
    in_parts(sets, threads, &mut found, |found, part| {
        walk::<F>(table, part, |batch| {
            let all = batch.forward();
            found.extend(all.filter_map(|(_, (_, set, base), control)| host_destination::<F>(set, base, control)));
        });
    });
    found.into_iter().flatten()
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
    fn new(store: &'a dyn MapStore, now: u32, before: Unsettled) -> Self {
        let timeouts = timeouts(store);
        Self {
            table: slots::<F>(store),
            seed: timeouts[config::TABLE_SEED],
            timeouts,
            now,
            before,
            judging: Mutex::new(()),
            family: PhantomData,
        }
    }

    /// Sweeps the family's table, each thread with what it finds of its own; the counts of all.
    fn run(self, unsettled: &mut Unsettled, found: &mut [Found]) -> FlowCounts {
        in_parts(all_sets(self.table), found.len(), found, |found, part| {
            self.part(part, found);
        });
        *unsettled = found.iter_mut().flat_map(|part| take(&mut part.unsettled)).collect();
        found
            .iter_mut()
            .map(|part| take(&mut part.counts))
            .fold(FlowCounts::default(), |all, more| all.join(&more))
    }

    fn part(&self, sets: Range<u32>, found: &mut Found) {
        found.counts.slots += (sets.len() * SET_SLOTS) as u64;
        walk::<F>(self.table, sets, |batch| {
            for (_, slot, control) in batch.forward() {
                self.forward(slot, control, found);
            }
            for (_, slot, control) in batch.reply() {
                self.reply(slot, control, found);
            }
            for (_, slot, control) in batch.unsettled() {
                self.unsettled(slot, control, found);
            }
        });
    }

    /// A slot that was taken and held no entry: left, if it has been so for long.
    fn unsettled(&self, (index, set, base): Slot<'_>, control: Control, found: &mut Found) {
        // What another thread of the sweep has freed is left by then.
        let _judging = self.judge();
        let (roll, slot) = (Roll::from_word(self.table.roll(index)), table::slot_of::<F>(base));
        if roll.taken() >> slot & 1 == 0 {
            return;
        }
        let state = (roll.of_slot(slot), control.word());
        let before = self.before.get(&(index, base)).filter(|(before, _)| *before == state);
        let since = before.map_or(self.now, |(_, since)| *since);
        let is_abandoned = u64::from(self.now.wrapping_sub(since)) >= ABANDONED * self.timeouts[config::HZ].max(1)
            && set.cas(base, control.word(), Control::nothing(0).word()) == control.word();
        if is_abandoned {
            table::leave_in::<F, _>(self.table, index, base);
            found.counts.abandoned += 1;
        } else {
            found.counts.used += 1;
            found.unsettled.insert((index, base), (state, since));
        }
    }

    /// A forward half: over, or counted with what it refers to.
    #[inline]
    fn forward(&self, slot: Slot<'_>, control: Control, found: &mut Found) {
        let (_, set, base) = slot;
        let Some(side) = self.stays(slot, control, Words::dst::<F>(), found) else {
            return;
        };
        found.referred.forward_bits.insert(hash::bit::<F>(side.addr));
        found
            .referred
            .host_destinations
            .extend(host_destination::<F>(set, base, control));
        let service = slot::service(set.load(base + Words::meta::<F>()));
        if let Some(count) = found.services.get_mut(service as usize) {
            *count += 1;
        }
        if let Some(count) = found.counts.flows.get_mut(class(control.state) as usize) {
            *count += 1;
        }
    }

    /// A reply half: over, or counted with what it refers to.
    #[inline]
    fn reply(&self, slot: Slot<'_>, control: Control, found: &mut Found) {
        if let Some(side) = self.stays(slot, control, Words::SRC, found) {
            found.referred.reply_bits.insert(hash::bit::<F>(side.addr));
        }
    }

    /// The side at `at` of an entry that stays, which is counted with its backend.
    #[inline]
    fn stays(&self, slot: Slot<'_>, control: Control, at: usize, found: &mut Found) -> Option<Side<F>> {
        let (_, set, base) = slot;
        if self.is_late(control) && self.is_gone(slot, found) {
            return None;
        }
        found.counts.used += 1;
        let backend = set.load(base + Words::backend::<F>());
        let side: Side<F> = F::side_from(|i| set.load(base + at + i));
        let version = (0..F::SIDE_WORDS).fold(backend, |all, i| all & set.load(base + at + i));
        if version & VERSION_MASK != control.version || backend & VERSION_MASK != control.version {
            // Replaced just now, by an entry chosen from the tables as they are.
            return None;
        }
        found.referred.backends.insert(backend as u32);
        Some(side)
    }

    /// Frees the flow of a half that is over by itself, unless the other half says otherwise. True as well where the half is gone by now.
    #[cold]
    fn is_gone(&self, slot: Slot<'_>, found: &mut Found) -> bool {
        let (_, set, base) = slot;
        let _judging = self.judge();
        // What was freed since the control word was read may be this one, or may have been counted beside it.
        let control = Control::from_word(set.load(base));
        if control.phase() != LIVE {
            return control.phase() != HELD;
        }
        let is_over = self.is_late(control) && self.is_over(slot, control);
        found.counts.expired += u64::from(is_over);
        is_over
    }

    fn judge(&self) -> MutexGuard<'_, ()> {
        self.judging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a half is over by itself.
    #[inline]
    fn is_late(&self, control: Control) -> bool {
        control.age(self.now) as u64 > self.timeout(control.state)
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

    /// Frees the entry of a key if nobody has changed it, and leaves its slot.
    fn free(&self, (index, set, base): Slot<'_>, key: &Key<F>, seen: Control) -> bool {
        let freed = table::free::<F, _>(set, base, seen);
        if freed {
            table::leave_in::<F, _>(self.table, index, base);
            let home = home(key.hash(self.seed), self.table.mask());
            if home != index {
                table::recount_in(self.table, home, false);
            }
        }
        freed
    }
}
