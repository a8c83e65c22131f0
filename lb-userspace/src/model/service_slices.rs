//! The slices of each Service, kept in step with the slices of snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::object::{ObjectKey, ObjectKind, ObjectRef, Rejection};
use super::ord_map::OrdMap;
use super::service::ServiceObject;
use super::slice::SliceObject;

/// Namespace, Service and name of a slice.
type SliceKey = (Arc<str>, Arc<str>, Arc<str>);

/// The slices that proxies see, by their Service.
#[derive(Debug, Default)]
pub(super) struct ServiceSlices {
    slices: BTreeMap<SliceKey, Arc<SliceObject>>,
    /// Goes before every name.
    first: Arc<str>,
}

impl ServiceSlices {
    /// Takes over what is different in `after`; `touched` is told each Service that a changed slice is or was of.
    pub(super) fn follow(
        &mut self,
        before: &OrdMap<ObjectKey, Arc<SliceObject>>,
        after: &OrdMap<ObjectKey, Arc<SliceObject>>,
        mut touched: impl FnMut(ObjectKey),
    ) {
        for change in before.changes(after) {
            let ObjectKey { namespace, name } = change.key;
            let mut key = |slice: &SliceObject| {
                touched(ObjectKey {
                    namespace: Arc::clone(namespace),
                    name: Arc::clone(&slice.service),
                });
                (Arc::clone(namespace), Arc::clone(&slice.service), Arc::clone(name))
            };
            if let Some(old) = change.before.filter(|old| !old.headless) {
                self.slices.remove(&key(old));
            }
            if let Some(new) = change.after.filter(|new| !new.headless) {
                self.slices.insert(key(new), Arc::clone(new));
            }
        }
    }

    /// The slices that count for a Service, in order of their names. There is no mirroring for one with a selector, whose own
    /// slices are the truth: what is told where it has no slice of its own.
    pub(super) fn of(&self, key: &ObjectKey, service: &ServiceObject) -> (Vec<&SliceObject>, Option<Rejection>) {
        let ObjectKey { namespace, name } = key;
        let first = (Arc::clone(namespace), Arc::clone(name), Arc::clone(&self.first));
        let own = self.slices.range(first..);
        let own = own.take_while(|((in_namespace, of, _), _)| in_namespace == namespace && of == name);
        let mut slices: Vec<&SliceObject> = own.map(|(_, slice)| &**slice).collect();
        let all = slices.len();
        slices.retain(|slice| !(service.has_selector && slice.mirrored));
        let unmirrored = slices.is_empty() && all > 0;
        let rejection = unmirrored.then(|| Rejection {
            object: ObjectRef::namespaced(ObjectKind::Endpoints, key),
            field: "subsets".into(),
            reason: "are not mirrored, because the Service has a selector; use an EndpointSlice, or remove \
                     spec.selector from the Service"
                .into(),
        });
        (slices, rejection)
    }
}
