//! A flow table of two sets whose words loom watches, and what all cases share.
//!
//! The memory model: plain loads and stores are relaxed, so that a reader may see any value that coherence allows. A
//! compare-and-swap is sequentially consistent where it succeeds: the kernel makes value-returning atomics full barriers
//! (Documentation/atomic_t.txt). loom treats such accesses as acquire and release only, so a fence stands behind them, which
//! loom does order. One that fails orders nothing.

use lb_common::access::{Rolls, Route, RouteKind, SetRef, Slots, TableFamily, Tables, WordRef};
use lb_common::family::{Family, V4};
use lb_common::flow::roll::Roll;
use lb_common::flow::slot::{self, Entry, Key, Place, Rewrite};
use lb_common::flow::state::{Control, FREE, GONE, LIVE, PHASE};
use lb_common::layout::{AffinityKey, AffinityValue, BACKEND_WORDS, Device, FragmentKey, SET_SLOTS, config};
use lb_common::slots::home;
use lb_common::testing::{Entered, enter_pair, side};
use lb_common::verdict::Reason;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering, fence};

/// Sets of the table: the least that user space makes.
pub(crate) const SETS: usize = 2;
/// Words of a set.
const SET_WORDS: usize = V4::SLOT_WORDS * SET_SLOTS;
/// Jiffies at which everything happens, and at which old entries were last seen.
pub(crate) const NOW: u32 = 1000;
pub(crate) const LONG_AGO: u32 = 10;
/// Every time-out.
const TIMEOUT: u64 = 500;

/// The table: its sets, and their rolls behind them.
#[derive(Debug)]
pub(crate) struct Model {
    words: Vec<AtomicU64>,
}

impl Model {
    /// A table with these words.
    pub(crate) fn new(words: &[u64]) -> Arc<Self> {
        let words = words.iter().map(|word| AtomicU64::new(*word)).collect();
        Arc::new(Self { words })
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Set<'a>(&'a [AtomicU64]);

impl SetRef for Set<'_> {
    fn load(self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn store(self, word: usize, value: u64) {
        self.0[word].store(value, Ordering::Relaxed);
    }

    fn cas(self, word: usize, old: u64, new: u64) -> u64 {
        Word(&self.0[word]).cas(old, new)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Word<'a>(&'a AtomicU64);

impl WordRef for Word<'_> {
    fn load(self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn cas(self, old: u64, new: u64) -> u64 {
        match self.0.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(found) => {
                fence(Ordering::SeqCst);
                found
            }
            Err(found) => found,
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Table<'a>(&'a Model);

impl<'a> Rolls for Table<'a> {
    type Roll = Word<'a>;

    fn roll_at(self, index: u32) -> Option<Word<'a>> {
        self.0.words.get(SETS * SET_WORDS + index as usize).map(Word)
    }
}

impl<'a> Slots for Table<'a> {
    type Set = Set<'a>;

    fn mask(self) -> u32 {
        SETS as u32 - 1
    }

    fn set(self, index: u32) -> Option<Set<'a>> {
        let start = index as usize * SET_WORDS;
        self.0.words.get(start..start + SET_WORDS).map(Set)
    }
}

impl<'a> Tables for &'a Model {
    type Flows<F: TableFamily> = Table<'a>;
    type Frontends<F: TableFamily> = Table<'a>;

    fn flows<F: TableFamily>(&self) -> Table<'a> {
        Table(self)
    }

    fn frontends<F: TableFamily>(&self) -> Table<'a> {
        Table(self)
    }

    fn config(&self, word: usize) -> u64 {
        match word {
            config::TABLE_SEED => 1,
            config::HZ => 100,
            _ => TIMEOUT,
        }
    }

    fn now(&self) -> u32 {
        NOW
    }

    // The table's protocol asks for nothing else.
    fn service(&self, _id: u32) -> u64 {
        0
    }
    fn arena(&self, _index: u32) -> u64 {
        0
    }
    fn block(&self, _offset: u32) -> Option<impl Fn(u32) -> u64 + Copy> {
        None::<fn(u32) -> u64>
    }
    fn backend(&self, _id: u32) -> Option<[u64; BACKEND_WORDS]> {
        None
    }
    fn forward_bits(&self, _word: u32) -> u64 {
        0
    }
    fn reply_bits(&self, _word: u32) -> u64 {
        0
    }
    fn device(&self, _ifindex: u32) -> Option<Device> {
        None
    }
    fn in_ranges<F: TableFamily>(&self, _service: u32, _addr: F::Addr) -> bool {
        false
    }
    fn affinity<F: TableFamily>(&self, _key: &AffinityKey) -> Option<AffinityValue> {
        None
    }
    fn remember_affinity<F: TableFamily>(&self, _key: &AffinityKey, _value: &AffinityValue) {}
    fn fragment<F: TableFamily>(&self, _key: &FragmentKey) -> Option<u64> {
        None
    }
    fn remember_fragment<F: TableFamily>(&self, _key: &FragmentKey, _ports: u64) {}
    fn route<F: TableFamily>(&self, _ifindex: u32, _saddr: F::Addr, _daddr: F::Addr, _length: u16) -> Route<F::Addr> {
        Route::without(RouteKind::None)
    }
    fn answer_token(&self) -> bool {
        false
    }
    fn count(&self, _reason: Reason) {}
}

/// An entry as it stands at the end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Standing {
    pub(crate) control: Control,
    pub(crate) entry: Entry<V4>,
}

/// All entries, after all threads have ended. Fails where a slot is left half written, or where a roll does not tell what stands.
pub(crate) fn standing(model: &Model) -> Vec<Standing> {
    let (standing, abandoned) = standing_beside_abandoned(model);
    assert_eq!(abandoned, 0, "slots are taken where nothing stands: {standing:?}");
    standing
}

/// [`standing`], and how many slots are taken in which nothing stands.
pub(crate) fn standing_beside_abandoned(model: &Model) -> (Vec<Standing>, usize) {
    let mut standing = Vec::new();
    let (mut abandoned, mut spilled) = (0, [0; SETS]);
    let rolls: Vec<Roll> = (0..SETS as u32)
        .map(|set| Roll::from_word(Table(model).roll(set)))
        .collect();
    for index in 0..SETS {
        let set = Table(model).set(index as u32).expect("a set");
        for slot in 0..SET_SLOTS {
            let base = slot * V4::SLOT_WORDS;
            let is_taken = rolls[index].taken() >> slot & 1 == 1;
            let control = Control::from_word(set.load(base));
            match control.state & PHASE {
                FREE | GONE => {
                    assert!(is_taken || set.load(base) == 0, "a slot that was left holds something");
                    abandoned += usize::from(is_taken);
                }
                LIVE => {
                    assert!(is_taken, "an entry stands in a slot that is not taken");
                    let (control, entry) = slot::decode::<V4, _>(set, base).expect("a live slot is whole");
                    let home = home(entry.key.hash(1), SETS as u32 - 1) as usize;
                    spilled[home] += u64::from(home != index);
                    standing.push(Standing { control, entry });
                }
                _ => panic!("an entry is still held"),
            }
        }
    }
    for (roll, spilled) in rolls.iter().zip(spilled) {
        assert!(roll.spilled() >= spilled, "spilled entries would not be found");
    }
    (standing, abandoned)
}

/// Fails unless every entry has its twin and no key stands twice.
pub(crate) fn assert_whole_pairs(standing: &[Standing]) {
    for (index, one) in standing.iter().enumerate() {
        let twin = one.entry.key.twin(one.entry.rewrite);
        let twins = standing
            .iter()
            .filter(|other| other.entry.key == twin && other.entry.rewrite == one.entry.key.twin_rewrite());
        assert_eq!(twins.count(), 1, "half a flow stands: {one:?} in {standing:?}");
        assert!(
            standing[index + 1..]
                .iter()
                .all(|other| other.entry.key != one.entry.key),
            "a key stands twice: {standing:?}"
        );
    }
}

/// The forward half of flow `n`: its own client port, towards the backend as `seen`, the port that the backend sees.
pub(crate) fn flow(n: u16, seen: u16) -> Entry<V4> {
    Entry {
        key: Key {
            src: side([192, 0, 2, 1].into(), n),
            dst: side([10, 96, 0, 10].into(), 80),
            protocol: 6,
        },
        rewrite: Rewrite {
            src: side([198, 51, 100, 1].into(), seen),
            dst: side([10, 1, 0, 20].into(), 8080),
        },
        place: Place {
            hooks: 1,
            way: 0,
            service: 7,
            backend: 1 << 32 | 1,
        },
    }
}

/// The place of every reply half.
pub(crate) const REPLY_PLACE: Place = Place {
    hooks: 2,
    way: 0,
    service: 7,
    backend: 1 << 32 | 1,
};

/// The reply half of a forward half.
pub(crate) fn reply_of(forward: &Entry<V4>) -> Entry<V4> {
    let mut reply = Entry::empty();
    forward.twin_into(REPLY_PLACE, &mut reply);
    reply
}

/// Enters both halves of a flow, as a packet does.
pub(crate) fn enter(model: &Model, forward: Entry<V4>, state: u16) -> Entered {
    enter_pair(&model, &forward, &reply_of(&forward), LIVE | state)
}

/// The words of a table in which these flows were entered with these states, last seen at a time, and then `taken` slots of
/// each set were filled with settled strangers.
pub(crate) struct Prepared {
    words: Vec<u64>,
}

impl Prepared {
    /// An empty table.
    pub(crate) fn new() -> Self {
        Self {
            words: vec![0; SETS * SET_WORDS],
        }
    }

    /// Places an entry in a slot, without asking where it belongs.
    pub(crate) fn place(mut self, set: usize, slot: usize, entry: &Entry<V4>, state: u16, last_seen: u32) -> Self {
        let version = VERSION;
        let control = Control {
            version,
            state: LIVE | state,
            last_seen,
        };
        let base = set * SET_WORDS + slot * V4::SLOT_WORDS;
        let key_and_rewrite = [entry.key.src, entry.key.dst, entry.rewrite.src, entry.rewrite.dst];
        let [src, dst, new_src, new_dst] = key_and_rewrite.map(|side| version | V4::side_word(side, 0));
        let place = entry.place;
        let meta = u64::from(place.hooks) | u64::from(place.way) << 8 | u64::from(place.service) << 16;
        let slot_words = [
            control.word(),
            src,
            dst,
            version | u64::from(entry.key.protocol),
            new_src,
            new_dst,
            version | place.backend,
            version | meta,
        ];
        self.words[base..base + slot_words.len()].copy_from_slice(&slot_words);
        self
    }

    /// Fills every slot that is free, but for those given, with settled strangers.
    pub(crate) fn full_but(mut self, free: &[(usize, usize)]) -> Self {
        for set in 0..SETS {
            for slot in 0..SET_SLOTS {
                let control = self.words[set * SET_WORDS + slot * V4::SLOT_WORDS];
                if control == 0 && !free.contains(&(set, slot)) {
                    let stranger = flow(9000 + (set * SET_SLOTS + slot) as u16, 1);
                    self = self.place(set, slot, &stranger, STRANGER, NOW);
                }
            }
        }
        self
    }

    pub(crate) fn model(&self) -> Arc<Model> {
        let mut rolls = [Roll::from_word(VERSION); SETS];
        for (set, words_of_set) in self.words.chunks(SET_WORDS).enumerate() {
            for (number, slot) in words_of_set
                .chunks(V4::SLOT_WORDS)
                .enumerate()
                .filter(|(_, slot)| slot[0] != 0)
            {
                let side = |word: u64| V4::side_from(|_| word);
                let key = Key::<V4> {
                    src: side(slot[1]),
                    dst: side(slot[2]),
                    protocol: slot[3] as u8,
                };
                let hash = key.hash(1);
                let home = home(hash, SETS as u32 - 1) as usize;
                rolls[set] = rolls[set].take(number, hash);
                if home != set {
                    rolls[home] = rolls[home].recounted(true);
                }
            }
        }
        let rolls = rolls.iter().map(|roll| roll.word());
        Model::new(&self.words.iter().copied().chain(rolls).collect::<Vec<_>>())
    }
}

/// The version of what stands at first.
const VERSION: u64 = 5 << 48;

/// State of a stranger: settled, so that nobody displaces it.
const STRANGER: u16 = {
    use lb_common::flow::state::{ESTABLISHED, REPLIED, SETTLED};
    REPLIED | ESTABLISHED | SETTLED
};

/// Entries that are no strangers.
pub(crate) fn known(standing: Vec<Standing>) -> Vec<Standing> {
    standing
        .into_iter()
        .filter(|one| one.entry.key.src.port < 9000)
        .collect()
}

/// Runs a case with a bound of preemptions.
pub(crate) fn explore(preemptions: usize, case: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    if builder.preemption_bound.is_none() {
        builder.preemption_bound = Some(preemptions);
    }
    builder.max_branches = 10_000;
    builder.check(case);
}
