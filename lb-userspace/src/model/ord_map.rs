//! A sorted map whose copies share what they have in common, as persistent data structures do.
//!
//! Entries lie in chunks that copies share; a change copies the one chunk that it is in. So a copy costs one pointer a chunk,
//! and [`OrdMap::changes`] finds what differs between two copies without looking at what they share.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Most entries of a chunk.
const CHUNK: usize = 128;

/// Some entries in order, at least one.
type Chunk<K, V> = Vec<(K, V)>;

/// The map.
#[derive(Clone)]
pub struct OrdMap<K, V> {
    chunks: Vec<Arc<Chunk<K, V>>>,
    len: usize,
}

/// An entry that two maps do not have alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a, K, V> {
    /// Its key.
    pub key: &'a K,
    /// Its value before; `None` where it came.
    pub before: Option<&'a V>,
    /// Its value after; `None` where it went.
    pub after: Option<&'a V>,
}

impl<K, V> OrdMap<K, V> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entries in order.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter {
            chunks: &self.chunks,
            place: 0,
        }
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// The values in order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> OrdMap<K, V> {
    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.get_key_value(key).map(|(_, value)| value)
    }

    /// A key as it stands here, and its value.
    pub fn get_key_value(&self, key: &K) -> Option<(&K, &V)> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let place = chunk.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
        let (key, value) = &chunk[place];
        Some((key, value))
    }

    /// Whether a key has a value.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// What is different in `after`, in order of the keys. Looks at no chunk that both share; elsewhere values are compared.
    pub fn changes<'a>(&'a self, after: &'a Self) -> impl Iterator<Item = Change<'a, K, V>>
    where
        V: PartialEq,
    {
        let (mut old, mut new) = (self.iter(), after.iter());
        std::iter::from_fn(move || {
            loop {
                skip_shared(&mut old, &mut new);
                let order = match (old.peek(), new.peek()) {
                    (None, None) => return None,
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (Some((one, _)), Some((other, _))) => one.cmp(other),
                };
                let before = if order.is_le() { old.next() } else { None };
                let after = if order.is_ge() { new.next() } else { None };
                let (key, _) = after.or(before)?;
                let (before, after) = (before.map(|(_, value)| value), after.map(|(_, value)| value));
                if before != after {
                    return Some(Change { key, before, after });
                }
            }
        })
    }

    /// Where the chunk is that has a key, or would take it.
    fn chunk_of(&self, key: &K) -> usize {
        let behind = self.chunks.partition_point(|chunk| chunk[0].0 <= *key);
        behind.saturating_sub(1)
    }
}

impl<K: Ord + Clone, V: Clone> OrdMap<K, V> {
    /// Gives a key a value; returns the one that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let index = self.chunk_of(&key);
        let is_last = index + 1 >= self.chunks.len();
        let Some(chunk) = self.chunks.get_mut(index) else {
            self.chunks.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        let place = match chunk.binary_search_by(|(other, _)| other.cmp(&key)) {
            Ok(place) => return Some(std::mem::replace(&mut chunk[place].1, value)),
            Err(place) => place,
        };
        self.len += 1;
        if chunk.len() < CHUNK {
            chunk.insert(place, (key, value));
            return None;
        }
        // What comes in order fills its chunks.
        let middle = if is_last && place == CHUNK { CHUNK } else { CHUNK / 2 };
        let mut rest = chunk.split_off(middle);
        match place.checked_sub(middle) {
            Some(place) => rest.insert(place, (key, value)),
            None => chunk.insert(place, (key, value)),
        }
        self.chunks.insert(index + 1, Arc::new(rest));
        None
    }

    /// Removes a key; returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let index = self.chunk_of(key);
        let place = self.chunks.get(index)?.binary_search_by(|(other, _)| other.cmp(key));
        let place = place.ok()?;
        let chunk = Arc::make_mut(&mut self.chunks[index]);
        let (_, value) = chunk.remove(place);
        self.len -= 1;
        if chunk.is_empty() {
            self.chunks.remove(index);
        } else {
            self.join(index);
            self.join(index.saturating_sub(1));
        }
        Some(value)
    }

    /// `after`, sharing with this all that both have alike.
    #[must_use]
    pub fn changed_to(&self, after: &Self) -> Self
    where
        V: PartialEq,
    {
        let mut shared = self.clone();
        for change in self.changes(after) {
            match change.after {
                Some(value) => drop(shared.insert(change.key.clone(), value.clone())),
                None => drop(shared.remove(change.key)),
            }
        }
        shared
    }

    /// Makes one of a chunk and the next, if that is not even half full then.
    fn join(&mut self, index: usize) {
        if let Some([one, next]) = self.chunks.get_mut(index..index + 2)
            && one.len() + next.len() <= CHUNK / 2
        {
            Arc::make_mut(one).extend_from_slice(next);
            self.chunks.remove(index + 1);
        }
    }
}

/// The entries of an [`OrdMap`] in order.
pub struct Iter<'a, K, V> {
    /// What is left; the first chunk from `place` on.
    chunks: &'a [Arc<Chunk<K, V>>],
    place: usize,
}

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks,
            place: self.place,
        }
    }
}

impl<'a, K, V> Iter<'a, K, V> {
    fn peek(&self) -> Option<(&'a K, &'a V)> {
        let (key, value) = self.chunks.first()?.get(self.place)?;
        Some((key, value))
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.peek()?;
        self.place += 1;
        if let Some((first, rest)) = self.chunks.split_first()
            && self.place == first.len()
        {
            (self.chunks, self.place) = (rest, 0);
        }
        Some(entry)
    }
}

/// Goes on behind the chunks that both are about to walk.
fn skip_shared<K, V>(one: &mut Iter<'_, K, V>, other: &mut Iter<'_, K, V>) {
    while one.place == 0
        && other.place == 0
        && let (Some((a, after_a)), Some((b, after_b))) = (one.chunks.split_first(), other.chunks.split_first())
        && Arc::ptr_eq(a, b)
    {
        (one.chunks, other.chunks) = (after_a, after_b);
    }
}

impl<'a, K, V> IntoIterator for &'a OrdMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K, V> Default for OrdMap<K, V> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for OrdMap<K, V> {
    fn extend<T: IntoIterator<Item = (K, V)>>(&mut self, entries: T) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for OrdMap<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl<K: Ord, V: PartialEq> PartialEq for OrdMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.changes(other).next().is_none()
    }
}

impl<K: Ord, V: Eq> Eq for OrdMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for OrdMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn filled(keys: impl Iterator<Item = u32>) -> OrdMap<u32, u32> {
        keys.map(|key| (key, key)).collect()
    }

    #[test]
    fn what_comes_in_order_fills_its_chunks() {
        let map = filled(0..1000);
        assert_eq!((map.len(), map.chunks.len()), (1000, 1000_usize.div_ceil(CHUNK)));
    }

    #[test]
    fn a_change_copies_one_chunk() {
        let map = filled(0..10_000);
        let mut changed = map.clone();
        assert_eq!(changed.insert(5000, 0), Some(5000));
        let shared = map.chunks.iter().zip(&changed.chunks);
        assert_eq!(shared.filter(|(one, other)| !Arc::ptr_eq(one, other)).count(), 1);
        let change = Change {
            key: &5000,
            before: Some(&5000),
            after: Some(&0),
        };
        assert_eq!(map.changes(&changed).collect::<Vec<_>>(), [change]);
    }

    #[test]
    fn what_is_left_of_removed_entries_joins() {
        let mut map = filled(0..10_000);
        for key in (0..10_000).filter(|key| key % 100 != 0) {
            map.remove(&key);
        }
        assert_eq!(map.len(), 100);
        assert!(map.chunks.len() <= 4, "{} chunks", map.chunks.len());
    }

    /// Puts keys (from a range) in or takes them out.
    fn edits() -> impl Strategy<Value = Vec<(u32, u32, Option<u8>)>> {
        prop::collection::vec((0u32..800, 1u32..300, prop::option::weighted(0.6, any::<u8>())), 0..12)
    }

    fn edit(map: &mut OrdMap<u32, u8>, plain: &mut BTreeMap<u32, u8>, edits: &[(u32, u32, Option<u8>)]) {
        for (from, count, value) in edits {
            for key in *from..*from + *count {
                let (before, expected) = match value {
                    Some(value) => (map.insert(key, *value), plain.insert(key, *value)),
                    None => (map.remove(&key), plain.remove(&key)),
                };
                assert_eq!(before, expected);
            }
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_plain_map_holds_and_changes_are_what_differs(first in edits(), second in edits()) {
            let (mut map, mut plain) = (OrdMap::default(), BTreeMap::new());
            edit(&mut map, &mut plain, &first);
            let (before, plain_before) = (map.clone(), plain.clone());
            edit(&mut map, &mut plain, &second);
            prop_assert!(map.iter().eq(&plain) && before.iter().eq(&plain_before));
            prop_assert_eq!(map.len(), plain.len());
            prop_assert!(map.chunks.iter().all(|chunk| (1..=CHUNK).contains(&chunk.len())));
            prop_assert!((0..1200).all(|key| map.get(&key) == plain.get(&key)));
            let keys = plain.keys().chain(plain_before.keys()).collect::<std::collections::BTreeSet<_>>();
            let differs = keys.into_iter().filter(|key| plain.get(key) != plain_before.get(key));
            let differs: Vec<_> = differs.map(|key| (key, plain_before.get(key), plain.get(key))).collect();
            let changes: Vec<_> = before.changes(&map).map(|change| (change.key, change.before, change.after)).collect();
            prop_assert_eq!(changes, differs);
            prop_assert_eq!(before == map, plain_before == plain);
            let afresh: OrdMap<_, _> = plain.iter().map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(&before.changed_to(&afresh), &map);
        }
    }
}
