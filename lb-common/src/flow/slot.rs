//! Layout of one flow entry in a slot: eight words for IPv4 (one cache line), sixteen for IPv6.
//!
//! ```text
//! word      0        1..      ..       ..        ..            ..         last-1      last
//!           control  source   dest.    protocol  new source    new dest.  backend     meta
//! words     1        1|3      1|3      1         1|3           1|3        1           1
//! ```
//! Every word carries the version in bits 48..64; a slot read is consistent when all versions equal the control word's.
//! backend = generation 16 | id 32. meta = service port id 32 | way 8 | hooks 8.

use crate::access::SetRef;
use crate::family::{Family, MOST_SIDE_WORDS, PAYLOAD_MASK, Side};
use crate::flow::state::Control;

/// The key of an entry: the packet's sides as they arrive at the hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<F: Family> {
    /// Source.
    pub src: Side<F>,
    /// Destination.
    pub dst: Side<F>,
    /// IP protocol (TCP or UDP).
    pub protocol: u8,
}

/// What the packet's sides become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite<F: Family> {
    /// New source.
    pub src: Side<F>,
    /// New destination.
    pub dst: Side<F>,
}

impl<F: Family> Key<F> {
    /// The key of the opposite direction of a packet rewritten by `rewrite`: the twin's key.
    #[inline(always)]
    #[must_use]
    pub fn twin(self, rewrite: Rewrite<F>) -> Self {
        Self {
            src: rewrite.dst,
            dst: rewrite.src,
            protocol: self.protocol,
        }
    }

    /// The key of an answer to an untranslated packet.
    #[inline(always)]
    #[must_use]
    pub fn answer(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            protocol: self.protocol,
        }
    }

    /// The rewrite of the twin.
    #[inline(always)]
    pub fn twin_rewrite(self) -> Rewrite<F> {
        Rewrite {
            src: self.dst,
            dst: self.src,
        }
    }

    /// Hash for the flow table.
    #[inline(always)]
    pub fn hash(self, seed: u64) -> u64 {
        crate::hash::sides(seed, self.src, self.dst, self.protocol)
    }
}

/// Where and how an entry applies, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Hooks (bits of [`crate::pipeline::Hook`]) at which a hit translates; a hit elsewhere is a pass.
    pub hooks: u8,
    /// How the packet goes on: a [`Way`] number.
    pub way: u8,
    /// Service port id, for display and accounting.
    pub service: u32,
    /// `layout::backend_ref` of the backend.
    pub backend: u64,
}

/// How a translated packet goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// On to the stack, which routes it.
    Stack = 0,
    /// Out of this node at once, by our own route look-up.
    Route = 1,
    /// Back out of the device it came in by (hairpin).
    Back = 2,
    /// To the host by steer0's receive path.
    Steer = 3,
    /// To the host by the loopback's receive path.
    Loopback = 4,
    /// Straight into a pod of this node, past the stack; as [`Way::Route`] where the route leads elsewhere by now.
    Pod = 5,
}

impl Way {
    /// Reads the number; unknown numbers mean the stack.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Route,
            2 => Self::Back,
            3 => Self::Steer,
            4 => Self::Loopback,
            5 => Self::Pod,
            _ => Self::Stack,
        }
    }
}

/// A whole entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<F: Family> {
    /// Key.
    pub key: Key<F>,
    /// Rewrite.
    pub rewrite: Rewrite<F>,
    /// Place.
    pub place: Place,
}

impl<F: Family> Entry<F> {
    /// An entry of nothing, as room to work in.
    #[inline(always)]
    pub fn empty() -> Self {
        let side = Side {
            addr: F::Addr::default(),
            port: 0,
        };
        Self {
            key: Key {
                src: side,
                dst: side,
                protocol: 0,
            },
            rewrite: Rewrite { src: side, dst: side },
            place: Place {
                hooks: 0,
                way: 0,
                service: 0,
                backend: 0,
            },
        }
    }

    /// Makes `twin` the twin, which applies at `place`.
    #[inline(always)]
    pub fn twin_into(&self, place: Place, twin: &mut Self) {
        twin.key.src = self.rewrite.dst;
        twin.key.dst = self.rewrite.src;
        twin.key.protocol = self.key.protocol;
        twin.rewrite.src = self.key.dst;
        twin.rewrite.dst = self.key.src;
        twin.place = place;
    }

    /// Turns the entry into its twin, but for its place.
    #[cfg_attr(target_arch = "bpf", inline(never))]
    pub fn turn(&mut self) {
        core::mem::swap(&mut self.key.src, &mut self.rewrite.dst);
        core::mem::swap(&mut self.key.dst, &mut self.rewrite.src);
    }
}

/// Word offsets inside a slot.
pub struct Words;

impl Words {
    /// Source of the key.
    pub const SRC: usize = 1;

    /// Destination of the key.
    #[inline(always)]
    pub const fn dst<F: Family>() -> usize {
        1 + F::SIDE_WORDS
    }

    /// Protocol.
    #[inline(always)]
    pub const fn protocol<F: Family>() -> usize {
        1 + 2 * F::SIDE_WORDS
    }

    /// New source.
    #[inline(always)]
    pub const fn new_src<F: Family>() -> usize {
        2 + 2 * F::SIDE_WORDS
    }

    /// New destination.
    #[inline(always)]
    pub const fn new_dst<F: Family>() -> usize {
        2 + 3 * F::SIDE_WORDS
    }

    /// Backend reference.
    #[inline(always)]
    pub const fn backend<F: Family>() -> usize {
        2 + 4 * F::SIDE_WORDS
    }

    /// Meta word.
    #[inline(always)]
    pub const fn meta<F: Family>() -> usize {
        3 + 4 * F::SIDE_WORDS
    }
}

/// Whether the slot at `base` holds `key` under `version`: [`Seen::Same`], [`Seen::Other`] where it holds another, whole.
#[inline(always)]
pub fn compare<F: Family, T: SetRef>(set: T, base: usize, version: u64, key: &Key<F>) -> Seen {
    let mut different = set.load(base + Words::protocol::<F>()) ^ (version | key.protocol as u64);
    for i in 0..F::SIDE_WORDS {
        different |= set.load(base + Words::SRC + i) ^ (version | F::side_word(key.src, i));
        different |= set.load(base + Words::dst::<F>() + i) ^ (version | F::side_word(key.dst, i));
    }
    Seen::of_difference(different)
}

/// True when the slot at `base` holds `key` under `version`.
#[inline(always)]
pub fn holds<F: Family, T: SetRef>(set: T, base: usize, version: u64, key: &Key<F>) -> bool {
    for i in 0..F::SIDE_WORDS {
        if set.load(base + Words::SRC + i) != version | F::side_word(key.src, i) {
            return false;
        }
        if set.load(base + Words::dst::<F>() + i) != version | F::side_word(key.dst, i) {
            return false;
        }
    }
    set.load(base + Words::protocol::<F>()) == version | key.protocol as u64
}

/// Loads the side whose words begin at `at`, and gathers in `different` the bits in which their version is another. Each word is
/// loaded once: what is judged is what is used.
#[inline(always)]
fn side<F: Family, T: SetRef>(set: T, at: usize, version: u64, different: &mut u64) -> Side<F> {
    let words: [u64; MOST_SIDE_WORDS] =
        core::array::from_fn(|i| if i < F::SIDE_WORDS { set.load(at + i) } else { version });
    for word in words {
        *different |= (word ^ version) & crate::layout::VERSION_MASK;
    }
    F::side_from(|i| words[i])
}

/// The service port id in a meta word.
#[inline(always)]
#[must_use]
pub const fn service(meta: u64) -> u32 {
    (meta >> 16) as u32
}

/// Rewrite and place of the slot at `base`; `None` when a word has another version (the slot is changing).
#[inline(always)]
pub fn read<F: Family, T: SetRef>(set: T, base: usize, version: u64) -> Option<(Rewrite<F>, Place)> {
    let backend = set.load(base + Words::backend::<F>());
    let meta = set.load(base + Words::meta::<F>());
    let mut different = ((backend ^ version) | (meta ^ version)) & crate::layout::VERSION_MASK;
    let src = side(set, base + Words::new_src::<F>(), version, &mut different);
    let dst = side(set, base + Words::new_dst::<F>(), version, &mut different);
    if different != 0 {
        return None;
    }
    let place = Place {
        hooks: meta as u8,
        way: (meta >> 8) as u8,
        service: service(meta),
        backend: backend & PAYLOAD_MASK,
    };
    Some((Rewrite { src, dst }, place))
}

/// Whether all words of the slot at `base` carry a version.
#[inline(always)]
pub fn is_whole<F: Family, T: SetRef>(set: T, base: usize, version: u64) -> bool {
    let mut different = 0;
    for word in Words::SRC..=Words::meta::<F>() {
        different |= set.load(base + word) ^ version;
    }
    different & crate::layout::VERSION_MASK == 0
}

/// Reads the key of the slot at `base`; `None` when a word has another version.
#[inline(always)]
pub fn read_key<F: Family, T: SetRef>(set: T, base: usize, version: u64) -> Option<Key<F>> {
    let protocol = set.load(base + Words::protocol::<F>());
    let mut different = (protocol ^ version) & crate::layout::VERSION_MASK;
    let src = side(set, base + Words::SRC, version, &mut different);
    let dst = side(set, base + Words::dst::<F>(), version, &mut different);
    let protocol = protocol as u8;
    (different == 0).then_some(Key { src, dst, protocol })
}

/// What stands under a key that is looked for with a rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Seen {
    /// No entry.
    Nothing,
    /// An entry with that rewrite.
    Same,
    /// An entry with another rewrite.
    Other,
    /// A slot that is changing.
    Changing,
}

impl Seen {
    /// From the bits in which words differ from those that are looked for.
    #[inline(always)]
    const fn of_difference(different: u64) -> Self {
        if different == 0 {
            Self::Same
        } else if different & crate::layout::VERSION_MASK == 0 {
            Self::Other
        } else {
            Self::Changing
        }
    }

    /// Reads the number; unknown numbers mean that a slot is changing.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Nothing,
            1 => Self::Same,
            2 => Self::Other,
            _ => Self::Changing,
        }
    }
}

/// Whether the slot at `base` rewrites to `src` and `dst` under `version`; never [`Seen::Nothing`].
#[inline(always)]
pub fn translates<F: Family, T: SetRef>(set: T, base: usize, version: u64, src: &Side<F>, dst: &Side<F>) -> Seen {
    let mut different = 0;
    for i in 0..F::SIDE_WORDS {
        different |= set.load(base + Words::new_src::<F>() + i) ^ (version | F::side_word(*src, i));
        different |= set.load(base + Words::new_dst::<F>() + i) ^ (version | F::side_word(*dst, i));
    }
    Seen::of_difference(different)
}

/// Reads a whole entry; false when a word has another version (the slot is changing).
#[cfg_attr(target_arch = "bpf", inline(never))]
pub fn decode_into<F: Family, T: SetRef>(set: &T, base: usize, version: u64, entry: &mut Entry<F>) -> bool {
    let set = *set;
    let Some(key) = read_key(set, base, version) else {
        return false;
    };
    entry.key = key;
    match read(set, base, version) {
        Some((rewrite, place)) => {
            entry.rewrite = rewrite;
            entry.place = place;
            true
        }
        None => false,
    }
}

/// Writes everything but the control word under `version`; the caller has taken the slot.
#[inline(always)]
pub fn write<F: Family, T: SetRef>(set: T, base: usize, version: u64, entry: &Entry<F>) {
    for i in 0..F::SIDE_WORDS {
        set.store(base + Words::SRC + i, version | F::side_word(entry.key.src, i));
        set.store(base + Words::dst::<F>() + i, version | F::side_word(entry.key.dst, i));
        set.store(
            base + Words::new_src::<F>() + i,
            version | F::side_word(entry.rewrite.src, i),
        );
        set.store(
            base + Words::new_dst::<F>() + i,
            version | F::side_word(entry.rewrite.dst, i),
        );
    }
    set.store(base + Words::protocol::<F>(), version | entry.key.protocol as u64);
    set.store(
        base + Words::backend::<F>(),
        version | (entry.place.backend & PAYLOAD_MASK),
    );
    let meta = entry.place.hooks as u64 | (entry.place.way as u64) << 8 | (entry.place.service as u64) << 16;
    set.store(base + Words::meta::<F>(), version | meta);
}

/// A whole live entry for readers that are no packets (sweep, dump): `None` where the slot is not live or is changing.
#[inline(always)]
pub fn decode<F: Family, T: SetRef>(set: T, base: usize) -> Option<(Control, Entry<F>)> {
    let control = Control::from_word(set.load(base));
    if control.phase() != crate::flow::state::LIVE {
        return None;
    }
    let key = read_key(set, base, control.version)?;
    let (rewrite, place) = read(set, base, control.version)?;
    Some((control, Entry { key, rewrite, place }))
}
