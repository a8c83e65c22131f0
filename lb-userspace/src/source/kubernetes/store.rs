//! What is held of one kind of object: the reduced form of each, and what is wrong with it.
//!
//! A list replaces the whole store at once; until it is complete nothing changes. An object that did not change keeps its
//! shared copy over a list, so that a list costs no second copy of everything and comparing with what was before is cheap.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{ObjectKey, Rejection};

/// One object as read from the API.
#[derive(Debug)]
pub(super) struct Object<T> {
    pub(super) key: ObjectKey,
    /// `metadata.resourceVersion`.
    pub(super) version: String,
    /// `None` when nothing of the object can be used.
    pub(super) content: Option<T>,
    /// Whether the fields' types were wrong, so that not even a part could be read.
    pub(super) undecodable: bool,
    pub(super) rejections: Vec<Rejection>,
}

/// One object as held.
#[derive(Debug, PartialEq, Eq)]
struct Held<T> {
    content: Option<Arc<T>>,
    rejections: Box<[Rejection]>,
}

/// All objects of a kind.
#[derive(Debug)]
pub(super) struct Store<T> {
    objects: BTreeMap<ObjectKey, Held<T>>,
    /// The number of the list that it was filled by; `None` before the first.
    listed: Option<u64>,
    /// Why it cannot be brought up to date at present.
    failure: Option<String>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            listed: None,
            failure: None,
        }
    }
}

/// A list that is being read.
#[derive(Debug)]
pub(super) struct Fresh<T>(BTreeMap<ObjectKey, Held<T>>);

impl<T> Default for Fresh<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Fresh<T> {
    /// How many objects it has so far.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes back an object that went while the list was read.
    pub(super) fn remove(&mut self, key: &ObjectKey) {
        self.0.remove(key);
    }
}

impl<T: PartialEq> Store<T> {
    /// Adds an object to a list, sharing what is held of it already.
    pub(super) fn add_to(&self, fresh: &mut Fresh<T>, object: Object<T>) {
        let known = self.objects.get_key_value(&object.key);
        let held = hold(
            object.content,
            object.undecodable,
            object.rejections,
            known.map(|(_, held)| held),
        );
        let key = known.map_or(object.key, |(key, _)| key.clone());
        fresh.0.insert(key, held);
    }

    /// Puts a whole list in the place of what was held.
    pub(super) fn replace(&mut self, fresh: Fresh<T>, number: u64) {
        self.objects = fresh.0;
        self.listed = Some(number);
        self.failure = None;
    }

    /// Adds or replaces one object.
    pub(super) fn apply(&mut self, object: Object<T>) {
        let held = hold(
            object.content,
            object.undecodable,
            object.rejections,
            self.objects.get(&object.key),
        );
        self.objects.insert(object.key, held);
    }

    /// Removes one object.
    pub(super) fn remove(&mut self, key: &ObjectKey) {
        self.objects.remove(key);
    }
}

impl<T> Store<T> {
    /// Tells whether the store can be brought up to date; returns whether that is news.
    pub(super) fn set_failure(&mut self, failure: Option<String>) -> bool {
        let news = self.failure != failure;
        self.failure = failure;
        news
    }

    /// Why it cannot be brought up to date at present.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The number of the list that it was filled by.
    pub(super) fn listed(&self) -> Option<u64> {
        self.listed
    }

    /// What can be used, by name.
    pub(super) fn usable(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<T>)> {
        self.objects
            .iter()
            .filter_map(|(key, held)| held.content.as_ref().map(|content| (key, content)))
    }

    /// What is wrong with single objects.
    pub(super) fn rejections(&self) -> impl Iterator<Item = &Rejection> {
        self.objects.values().flat_map(|held| &held.rejections)
    }
}

/// The form in which an object is held, given what is held of it already: an undecodable one keeps its last good form.
fn hold<T: PartialEq>(
    content: Option<T>,
    undecodable: bool,
    mut rejections: Vec<Rejection>,
    known: Option<&Held<T>>,
) -> Held<T> {
    let before = known.and_then(|known| known.content.as_ref());
    let content = match (content, before) {
        (Some(content), Some(before)) if content == **before => Some(Arc::clone(before)),
        (Some(content), _) => Some(Arc::new(content)),
        (None, Some(before)) if undecodable => {
            for rejection in &mut rejections {
                rejection
                    .reason
                    .push_str("; the last good form of this object stays in force");
            }
            Some(Arc::clone(before))
        }
        (None, _) => None,
    };
    Held {
        content,
        rejections: rejections.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, content: Option<u32>, undecodable: bool) -> Object<u32> {
        Object {
            key: ObjectKey::new("ns", name),
            version: "1".to_owned(),
            content,
            undecodable,
            rejections: Vec::new(),
        }
    }

    fn shown(store: &Store<u32>) -> Vec<(String, u32)> {
        store
            .usable()
            .map(|(key, value)| (key.name.to_string(), **value))
            .collect()
    }

    #[test]
    fn a_list_replaces_everything_and_shares_what_is_equal() {
        let mut store = Store::default();
        store.apply(object("gone", Some(1), false));
        store.apply(object("same", Some(2), false));
        store.apply(object("changed", Some(3), false));
        let before = Arc::clone(store.usable().find(|(key, _)| &*key.name == "same").unwrap().1);
        let mut fresh = Fresh::default();
        store.add_to(&mut fresh, object("same", Some(2), false));
        store.add_to(&mut fresh, object("changed", Some(4), false));
        store.add_to(&mut fresh, object("new", Some(5), false));
        assert_eq!(store.listed(), None);
        store.replace(fresh, 7);
        assert_eq!(store.listed(), Some(7));
        let expected = [("changed", 4), ("new", 5), ("same", 2)];
        assert_eq!(shown(&store), expected.map(|(name, value)| (name.to_owned(), value)));
        let after = store.usable().find(|(key, _)| &*key.name == "same").unwrap().1;
        assert!(Arc::ptr_eq(&before, after));
    }

    #[test]
    fn an_undecodable_object_keeps_its_last_good_form_and_a_useless_one_does_not() {
        let mut store = Store::default();
        store.apply(object("a", Some(1), false));
        store.apply(object("a", None, true));
        assert_eq!(shown(&store), [("a".to_owned(), 1)]);
        store.apply(object("a", None, false));
        assert_eq!(shown(&store), []);
        store.apply(object("b", None, true));
        assert_eq!(shown(&store), []);
        store.remove(&ObjectKey::new("ns", "a"));
        assert_eq!(store.objects.len(), 1);
    }
}
