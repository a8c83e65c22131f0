//! What is held of one kind of object: the reduced form of each, and what is wrong with it.
//!
//! A list replaces the whole store at once; until it is complete nothing changes. An object that did not change keeps its
//! shared copy over a list, so that a list costs no second copy of everything and comparing with what was before is cheap.
//! What is handed out shares all that does not change later.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{ObjectKey, OrdMap, Rejection};

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

/// Objects as held.
#[derive(Debug)]
struct Objects<T> {
    /// What can be used.
    usable: OrdMap<ObjectKey, Arc<T>>,
    /// What is wrong with those that something is wrong with.
    rejections: BTreeMap<ObjectKey, Vec<Rejection>>,
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self {
            usable: OrdMap::default(),
            rejections: BTreeMap::new(),
        }
    }
}

impl<T> Objects<T> {
    fn insert(&mut self, key: ObjectKey, content: Option<Arc<T>>, rejections: Vec<Rejection>) {
        if rejections.is_empty() {
            self.rejections.remove(&key);
        } else {
            self.rejections.insert(key.clone(), rejections);
        }
        match content {
            Some(content) => drop(self.usable.insert(key, content)),
            None => drop(self.usable.remove(&key)),
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        self.usable.remove(key);
        self.rejections.remove(key);
    }
}

/// All objects of a kind.
#[derive(Debug)]
pub(super) struct Store<T> {
    objects: Objects<T>,
    /// The number of the list that it was filled by; `None` before the first.
    listed: Option<u64>,
    /// Why it cannot be brought up to date at present.
    failure: Option<String>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self {
            objects: Objects::default(),
            listed: None,
            failure: None,
        }
    }
}

/// A list that is being read.
#[derive(Debug)]
pub(super) struct Fresh<T>(Objects<T>);

impl<T> Default for Fresh<T> {
    fn default() -> Self {
        Self(Objects::default())
    }
}

impl<T> Fresh<T> {
    /// How many objects it has so far that can be used.
    pub(super) fn len(&self) -> usize {
        self.0.usable.len()
    }

    /// Takes back an object that went while the list was read.
    pub(super) fn remove(&mut self, key: &ObjectKey) {
        self.0.remove(key);
    }
}

impl<T: Eq> Store<T> {
    /// Adds an object to a list, sharing what is held of it already.
    pub(super) fn add_to(&self, fresh: &mut Fresh<T>, object: Object<T>) {
        let known = self.objects.usable.get_key_value(&object.key);
        let key = known.map_or_else(|| object.key.clone(), |(key, _)| key.clone());
        let (content, rejections) = hold(object, known.map(|(_, content)| content));
        fresh.0.insert(key, content, rejections);
    }

    /// Puts a whole list in the place of what was held.
    pub(super) fn replace(&mut self, fresh: Fresh<T>, number: u64) {
        self.objects = Objects {
            usable: self.objects.usable.changed_to(&fresh.0.usable),
            rejections: fresh.0.rejections,
        };
        self.listed = Some(number);
        self.failure = None;
    }

    /// Adds or replaces one object.
    pub(super) fn apply(&mut self, object: Object<T>) {
        let key = object.key.clone();
        let (content, rejections) = hold(object, self.objects.usable.get(&key));
        self.objects.insert(key, content, rejections);
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
    pub(super) fn usable(&self) -> &OrdMap<ObjectKey, Arc<T>> {
        &self.objects.usable
    }

    /// What is wrong with single objects.
    pub(super) fn rejections(&self) -> impl Iterator<Item = &Rejection> {
        self.objects.rejections.values().flatten()
    }
}

/// The form in which an object is held, given what is held of it already: an undecodable one keeps its last good form.
fn hold<T: PartialEq>(object: Object<T>, before: Option<&Arc<T>>) -> (Option<Arc<T>>, Vec<Rejection>) {
    let mut rejections = object.rejections;
    let content = match (object.content, before) {
        (Some(content), Some(before)) if content == **before => Some(Arc::clone(before)),
        (Some(content), _) => Some(Arc::new(content)),
        (None, Some(before)) if object.undecodable => {
            for rejection in &mut rejections {
                rejection
                    .reason
                    .push_str("; the last good form of this object stays in force");
            }
            Some(Arc::clone(before))
        }
        (None, _) => None,
    };
    (content, rejections)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectKind, ObjectRef};

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
        let usable = store.usable().iter();
        usable.map(|(key, value)| (key.name.to_string(), **value)).collect()
    }

    #[test]
    fn a_list_replaces_everything_and_shares_what_is_equal() {
        let mut store = Store::default();
        store.apply(object("gone", Some(1), false));
        store.apply(object("same", Some(2), false));
        store.apply(object("changed", Some(3), false));
        let before = Arc::clone(store.usable().get(&ObjectKey::new("ns", "same")).unwrap());
        let mut fresh = Fresh::default();
        store.add_to(&mut fresh, object("same", Some(2), false));
        store.add_to(&mut fresh, object("changed", Some(4), false));
        store.add_to(&mut fresh, object("new", Some(5), false));
        assert_eq!(store.listed(), None);
        store.replace(fresh, 7);
        assert_eq!(store.listed(), Some(7));
        let expected = [("changed", 4), ("new", 5), ("same", 2)];
        assert_eq!(shown(&store), expected.map(|(name, value)| (name.to_owned(), value)));
        let after = store.usable().get(&ObjectKey::new("ns", "same")).unwrap();
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
        let rejection = Rejection {
            object: ObjectRef::namespaced(ObjectKind::Service, &ObjectKey::new("ns", "b")),
            field: "spec".to_owned(),
            reason: "is wrong".to_owned(),
        };
        let mut wrong = object("b", None, true);
        wrong.rejections.push(rejection);
        store.apply(wrong);
        assert_eq!(store.rejections().count(), 1);
        store.remove(&ObjectKey::new("ns", "b"));
        assert_eq!(store.rejections().count(), 0);
    }
}
