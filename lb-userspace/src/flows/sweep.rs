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
//! Both tables are one work, of many pieces, so that no thread waits for another before the last piece; a thread counts all that it meets in one place.
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
use lb_common::flow::state::{Control, DATAGRAM, HELD, LIVE, REPLY_HALF, RESET, SHARED, class, timeout_word};
use lb_common::flow::{Key, table};
use lb_common::hash;
use lb_common::layout::{SERVICES, SET_SLOTS, VERSION_MASK, config};
use lb_common::pipeline::Hook;
use lb_common::slots::home;

use super::walk::{piece, share, threads, walk};
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
type Unsettled = BTreeMap<u32, ((u64, u64), u32)>;

/// Seconds after which a slot that is taken and holds no entry is left.
const ABANDONED: u64 = 60;
/// Pieces of each table for each thread: the last one to end is not far behind.
const PIECES: usize = 64;

/// States that a control word may tell, phases included.
const STATES: usize = 2 * RESET as usize;
/// [`timeout_word`] of each.
const TIMEOUT_WORDS: [u8; STATES] = {
    let mut words = [0; STATES];
    let mut state = 0;
    while state < STATES {
        words[state] = timeout_word(state as u16) as u8;
        state += 1;
    }
    words
};

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
    referred: Referred,
    /// Flows by service port id.
    services: Vec<u32>,
    /// By family.
    tables: [Standing; 2],
}

/// What one thread has found in one family's table.
struct Standing {
    /// All but the flows, which are in `states`.
    counts: FlowCounts,
    /// Halves by state.
    states: [u32; STATES],
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
        let [before_v4, before_v6] = take(&mut self.unsettled);
        let v4 = Pass::<V4>::new(store, now, before_v4);
        let v6 = Pass::<V6>::new(store, now, before_v6);
        let pieces = threads * PIECES;
        share(2 * pieces, &mut found, |found, number| {
            if number < pieces {
                v4.piece(pieces, number, found);
            } else {
                v6.piece(pieces, number - pieces, found);
            }
        });
        let all = found
            .into_iter()
            .reduce(Found::join)
            .unwrap_or_else(|| Found::nothing(backends));
        let services = (0..).zip(all.services).filter(|(_, flows)| *flows > 0).collect();
        let [(v4, unsettled_v4), (v6, unsettled_v6)] = all.tables.map(Standing::told);
        self.unsettled = [unsettled_v4, unsettled_v6];
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
            referred: Referred::none(backends),
            services: vec![0; SERVICES as usize],
            tables: [Standing::nothing(), Standing::nothing()],
        }
    }

    fn join(mut self, other: Self) -> Self {
        self.referred.join(other.referred);
        for (all, more) in self.services.iter_mut().zip(other.services) {
            *all += more;
        }
        for (all, more) in self.tables.iter_mut().zip(other.tables) {
            all.join(more);
        }
        self
    }
}

impl Standing {
    fn nothing() -> Self {
        Self {
            counts: FlowCounts::default(),
            states: [0; STATES],
            unsettled: Unsettled::new(),
        }
    }

    fn join(&mut self, other: Self) {
        self.counts.slots += other.counts.slots;
        self.counts.used += other.counts.used;
        self.counts.expired += other.counts.expired;
        self.counts.abandoned += other.counts.abandoned;
        for (all, more) in self.states.iter_mut().zip(other.states) {
            *all += more;
        }
        self.unsettled.extend(other.unsettled);
    }

    /// The counts, with the flows of each class, and the slots that were taken and held no entry.
    fn told(mut self) -> (FlowCounts, Unsettled) {
        for (state, halves) in (0..).zip(self.states) {
            if state & REPLY_HALF == 0
                && let Some(flows) = self.counts.flows.get_mut(class(state) as usize)
            {
                *flows += u64::from(halves);
            }
        }
        (self.counts, self.unsettled)
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
    let pieces = threads * PIECES;
    share(pieces, &mut found, |found, number| {
        walk::<F>(table, piece(&sets, pieces, number), |slot, control| {
            if control.stands() && is_from_host::<F>(slot.words, control) {
                found.extend(host_destination::<F>(slot.words, control));
            }
        });
    });
    found.into_iter().flatten()
}

/// Whether an entry is a forward half of what the node itself sends through our device.
#[inline]
fn is_from_host<F: TableFamily>(words: WordSet<'_>, control: Control) -> bool {
    // The version, and a hook, in one: rarely so, which is then all that is to be guessed.
    let from_host = u64::from(Hook::STEER_OUT);
    let meta = words.load(Words::meta::<F>()) & (VERSION_MASK | from_host);
    meta == control.version | from_host && control.state & REPLY_HALF == 0
}

/// Where such an entry goes, if it is an open TCP connection.
#[cold]
fn host_destination<F: TableFamily>(words: WordSet<'_>, control: Control) -> Option<IpAddr> {
    if control.closed() || control.state & DATAGRAM != 0 {
        return None;
    }
    let side: Side<F> = F::side_from(|i| words.load(Words::dst::<F>() + i));
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

    /// Sweeps a piece of the family's table.
    fn piece(&self, pieces: usize, number: usize, found: &mut Found) {
        let sets = piece(&all_sets(self.table), pieces, number);
        found.tables[usize::from(F::V6)].counts.slots += (sets.len() * SET_SLOTS) as u64;
        walk::<F>(self.table, sets, |slot, control| {
            if control.stands() {
                self.half(slot, control, found);
            } else {
                self.unsettled(slot.place, control.word(), &mut found.tables[usize::from(F::V6)]);
            }
        });
    }

    /// A slot that was taken and held no entry: left, if it has been so for long.
    #[cold]
    fn unsettled(&self, place: u32, word: u64, found: &mut Standing) {
        let Some(slot) = Slot::at::<F>(self.table, place) else {
            return;
        };
        // What another thread of the sweep has freed is left by then.
        let _judging = self.judge();
        let roll = Roll::from_word(self.table.roll(slot.set()));
        if roll.taken() >> slot.number() & 1 == 0 {
            return;
        }
        let state = (roll.of_slot(slot.number()), word);
        let before = self.before.get(&slot.place).filter(|(before, _)| *before == state);
        let since = before.map_or(self.now, |(_, since)| *since);
        let is_abandoned = u64::from(self.now.wrapping_sub(since)) >= ABANDONED * self.timeouts[config::HZ].max(1)
            && slot.words.cas(0, word, Control::nothing(0).word()) == word;
        if is_abandoned {
            slot.leave::<F>(self.table);
            found.counts.abandoned += 1;
        } else {
            found.counts.used += 1;
            found.unsettled.insert(slot.place, (state, since));
        }
    }

    /// Half a flow: over, or counted with what it refers to. Which half it is, no branch depends on: it is as good as random.
    #[inline(always)]
    fn half(&self, slot: Slot<'_>, control: Control, found: &mut Found) {
        let words = slot.words;
        let standing = &mut found.tables[usize::from(F::V6)];
        if self.is_late(control) && self.is_gone(slot.place, standing) {
            return;
        }
        standing.counts.used += 1;
        let is_reply = control.state & REPLY_HALF != 0;
        let at = if is_reply { Words::SRC } else { Words::dst::<F>() };
        let backend = words.load(Words::backend::<F>());
        let side: Side<F> = F::side_from(|i| words.load(at + i));
        let version = (0..F::SIDE_WORDS).fold(backend, |all, i| all & words.load(at + i));
        if version & VERSION_MASK != control.version || backend & VERSION_MASK != control.version {
            // Replaced just now, by an entry chosen from the tables as they are.
            return;
        }
        standing.states[control.state as usize % STATES] += 1;
        let referred = &mut found.referred;
        referred.backends.insert(backend as u32);
        let bits = [&mut referred.forward_bits, &mut referred.reply_bits];
        bits[usize::from(is_reply)].insert(hash::bit::<F>(side.addr));
        let service = slot::service(words.load(Words::meta::<F>()));
        if let Some(count) = found.services.get_mut(service as usize) {
            *count += u32::from(!is_reply);
        }
        if is_from_host::<F>(words, control) {
            referred.host_destinations.extend(host_destination::<F>(words, control));
        }
    }

    /// Frees the flow of a half that is over by itself, unless the other half says otherwise. True as well where the half is gone by now.
    #[cold]
    fn is_gone(&self, place: u32, found: &mut Standing) -> bool {
        let Some(slot) = Slot::at::<F>(self.table, place) else {
            return true;
        };
        let _judging = self.judge();
        // What was freed since the control word was read may be this one, or may have been counted beside it.
        let control = Control::from_word(slot.words.load(0));
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

    #[inline]
    fn timeout(&self, state: u16) -> u64 {
        self.timeouts[TIMEOUT_WORDS[state as usize % STATES] as usize % config::WORDS]
    }

    /// Frees the flow of a half that is over by itself, unless the other half says otherwise.
    fn is_over(&self, at: Slot<'_>, control: Control) -> bool {
        let Some((same, entry)) = slot::decode::<F, _>(at.words, 0) else {
            return false;
        };
        if same != control {
            return false;
        }
        let twin_key = entry.key.twin(entry.rewrite);
        let twin = find::<F>(self.table, self.seed, &twin_key).filter(|(twin, control)| {
            let rewrite = slot::read::<F, _>(twin.words, 0, control.version);
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
    fn free(&self, slot: Slot<'_>, key: &Key<F>, seen: Control) -> bool {
        let freed = table::free::<F, _>(slot.words, 0, seen);
        if freed {
            slot.leave::<F>(self.table);
            let home = home(key.hash(self.seed), self.table.mask());
            if home != slot.set() {
                table::recount_in(self.table, home, false);
            }
        }
        freed
    }
}
