//! Source `kubernetes`: Services, EndpointSlices, this node's Node and ServiceCIDRs of an API server, by list and watch; and
//! of other Nodes the addresses, where a Service may have one of them.
//!
//! In: an [`Access`] and the node's name. Out: [`Source`]. It needs what kube-proxy's role `system:node-proxier` allows, and
//! no more. Nothing is published as synced before every kind was listed once. While the API server is away, or refuses, the
//! source tells so and keeps all it has; what was deleted meanwhile goes with the list that follows. This is the only module
//! that uses `kube`; of that crate it uses client and credentials. Its watcher is not used: that one hands out deltas object
//! by object, holds back what a store needs to share objects over a list, and cannot be asked for a reading.

mod access;
mod backoff;
mod events;
mod kinds;
mod nodes;
mod reflector;
mod requests;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

pub use access::Access;
pub use events::{Notices, Topic, record};

use super::{Publisher, Request, Source, SourceState, channel};
use crate::clock::{Instant, now};
use crate::model::{NodeObject, ObjectKey, ObjectKind, OrdMap, Rejection, ServiceObject, SliceObject, Snapshot};
use kinds::{EndpointSlices, Kind, Nodes, ServiceCidrs, Services};
use nodes::{NodeLookup, SharedKnown, lock_known};
use reflector::{Reflector, Shared, lock};
use store::Store;

/// Between two states that are published, so that a burst of events is one state.
const PAUSE: Duration = Duration::from_millis(20);

/// Starts following an API server; `node_name` (lower case) chooses the one Node object that matters. The task ends when the
/// [`Source`] and all its handles are dropped. Must be called within a tokio runtime.
pub fn start(access: Access, node_name: &str) -> Source {
    let (publisher, source) = channel("the API server has not been read yet");
    let access = Arc::new(access);
    let changed = Arc::new(Notify::new());
    let (wanted, _) = watch::channel(0);
    let (addresses, to_compare) = watch::channel(Arc::default());
    let node = ObjectKey::new("", node_name);
    let known = SharedKnown::default();
    let lookup = NodeLookup::new(
        Arc::clone(&access),
        node.clone(),
        to_compare,
        Arc::clone(&known),
        Arc::clone(&changed),
    );
    let mut task = Task {
        publisher,
        stores: Stores::default(),
        node,
        compared: OrdMap::default(),
        addresses,
        known,
        location: access.to_string(),
        changed,
        wanted,
        waiting: Vec::new(),
        tasks: JoinSet::new(),
    };
    task.follow::<Services>(
        &access,
        Some("spec.clusterIP!=None".to_owned()),
        task.stores.services.clone(),
    );
    task.follow::<EndpointSlices>(&access, None, task.stores.slices.clone());
    task.follow::<Nodes>(
        &access,
        Some(format!("metadata.name={node_name}")),
        task.stores.nodes.clone(),
    );
    task.follow::<ServiceCidrs>(&access, None, task.stores.ranges.clone());
    task.tasks.spawn(lookup.run());
    tokio::spawn(task.run());
    source
}

/// What is held of each kind.
#[derive(Default)]
struct Stores {
    services: Shared<ServiceObject>,
    slices: Shared<SliceObject>,
    nodes: Shared<NodeObject>,
    ranges: Shared<Vec<ipnet::IpNet>>,
}

/// What the source tells of a kind beside its objects.
struct Condition {
    kind: ObjectKind,
    listed: Option<u64>,
    failure: Option<String>,
}

impl Condition {
    fn of<T>(kind: ObjectKind, store: &Mutex<Store<T>>) -> Self {
        let store = lock(store);
        Self {
            kind,
            listed: store.listed(),
            failure: store.failure().map(str::to_owned),
        }
    }
}

/// The background task that joins the stores.
struct Task {
    publisher: Publisher,
    stores: Stores,
    /// The name of this node's Node.
    node: ObjectKey,
    /// The Services that [`Task::addresses`] are of.
    compared: OrdMap<ObjectKey, Arc<ServiceObject>>,
    /// The addresses of Services that may be other nodes'.
    addresses: watch::Sender<Arc<BTreeSet<IpAddr>>>,
    /// Which of them are.
    known: SharedKnown,
    /// How the API server is reached, for people.
    location: String,
    changed: Arc<Notify>,
    /// Numbers the readings that are wanted.
    wanted: watch::Sender<u64>,
    /// Who waits for which reading.
    waiting: Vec<(u64, Request)>,
    /// Reflectors and look-up; they end with the task.
    tasks: JoinSet<()>,
}

impl Task {
    fn follow<K: Kind>(&mut self, access: &Arc<Access>, fields: Option<String>, store: Shared<K::Reduced>) {
        let (changed, wanted) = (Arc::clone(&self.changed), self.wanted.subscribe());
        let reflector = Reflector::<K>::new(Arc::clone(access), fields, store, changed, wanted);
        self.tasks.spawn(reflector.run());
    }

    async fn run(mut self) {
        let mut not_before: Option<Instant> = None;
        loop {
            tokio::select! {
                request = self.publisher.request() => {
                    let Some(request) = request else { return };
                    let number = *self.wanted.borrow() + 1;
                    self.waiting.push((number, request));
                    self.wanted.send_replace(number);
                }
                () = self.changed.notified() => {
                    if let Some(at) = not_before {
                        sleep_until(at).await;
                    }
                    self.publish();
                    not_before = Some(now() + PAUSE);
                }
            }
        }
    }

    /// Publishes what the stores hold, and answers those whose reading is complete.
    fn publish(&mut self) {
        let conditions = self.conditions();
        // What was listed before the objects are read is in them.
        let listed = conditions.iter().map(|condition| condition.listed).min().flatten();
        let not_ready = not_ready(&conditions, &self.location);
        let read = listed.map(|_| self.read());
        let compared = read.as_ref().is_some_and(|(snapshot, _)| self.compare(snapshot));
        // An agent that starts anew must not take routes away for want of a comparison.
        let complete = read.filter(|_| compared || self.publisher.current().synced);
        let state = if let Some((mut snapshot, rejections)) = complete {
            snapshot.other_nodes = lock_known(&self.known).others(&self.addresses.borrow());
            SourceState {
                generation: 0,
                synced: true,
                not_ready,
                snapshot: Arc::new(snapshot),
                rejections,
                file_errors: Vec::new(),
            }
        } else {
            SourceState {
                not_ready,
                ..SourceState::default()
            }
        };
        let state = self.publisher.publish(state);
        let answered = self
            .waiting
            .extract_if(.., |(number, _)| compared && Some(*number) <= listed);
        for (_, request) in answered {
            // Fails when the asker has gone; nobody misses the answer.
            let _answered = request.send(Arc::clone(&state));
        }
    }

    /// Has the addresses compared that may be other nodes'; returns whether all were.
    fn compare(&mut self, snapshot: &Snapshot) -> bool {
        if self.compared != snapshot.services {
            self.compared = snapshot.services.clone();
            let services = snapshot.services.values();
            let fields = services.flat_map(|service| service.load_balancer_ips.iter().chain(&service.external_ips));
            let addresses: BTreeSet<IpAddr> = fields.map(|field| field.address).collect();
            self.addresses.send_if_modified(|known| {
                let news = **known != addresses;
                if news {
                    *known = Arc::new(addresses);
                }
                news
            });
        }
        lock_known(&self.known).covers(&self.addresses.borrow())
    }

    fn conditions(&self) -> [Condition; 4] {
        [
            Condition::of(Services::KIND, &self.stores.services),
            Condition::of(EndpointSlices::KIND, &self.stores.slices),
            Condition::of(Nodes::KIND, &self.stores.nodes),
            Condition::of(ServiceCidrs::KIND, &self.stores.ranges),
        ]
    }

    fn read(&self) -> (Snapshot, Vec<Rejection>) {
        let mut snapshot = Snapshot::default();
        let mut rejections = Vec::new();
        {
            let store = lock(&self.stores.services);
            snapshot.services = store.usable().clone();
            rejections.extend(store.rejections().cloned());
        }
        {
            let store = lock(&self.stores.slices);
            snapshot.slices = store.usable().clone();
            rejections.extend(store.rejections().cloned());
        }
        {
            let store = lock(&self.stores.nodes);
            snapshot.node = store.usable().get(&self.node).cloned();
            rejections.extend(store.rejections().cloned());
        }
        {
            let store = lock(&self.stores.ranges);
            let ranges = store.usable().values();
            snapshot.service_cidrs = ranges.flat_map(|ranges| ranges.iter().copied()).collect();
            rejections.extend(store.rejections().cloned());
        }
        rejections.sort_unstable();
        (snapshot, rejections)
    }
}

/// Why the API server cannot be read; the first cause, and all kinds that have one.
fn not_ready(conditions: &[Condition], location: &str) -> Option<String> {
    let names = |wanted: fn(&Condition) -> bool| {
        let kinds = conditions.iter().filter(|condition| wanted(condition));
        kinds
            .map(|condition| condition.kind.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    if let Some(cause) = conditions.iter().find_map(|condition| condition.failure.as_deref()) {
        let kinds = names(|condition| condition.failure.is_some());
        return Some(format!("{location}: {cause} ({kinds})"));
    }
    let missing = names(|condition| condition.listed.is_none());
    (!missing.is_empty()).then(|| format!("{location}: not read yet: {missing}"))
}
