//! Which addresses of Services are addresses of other nodes: asked when such an address appears, not watched.
//!
//! Some load balancers announce nodes' own addresses; those must get no route of ours. To know them one has to read other
//! Nodes. kube-proxy's role allows that, but watching all Nodes from every node is what large clusters cannot bear: each
//! kubelet's status would go to each agent. So the Nodes are listed, in pages of a few fields, only when an address appears
//! that was not compared yet, no sooner than the size of the cluster allows, and once an hour while there are any. Until an
//! address was compared it counts as another node's: host processes go by the network's way to it, pods are served at once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::access::Access;
use super::backoff::{Backoff, spread};
use super::kinds::{Kind as _, Nodes, read};
use super::reflector::{ABSENT, chain};
use super::requests::{RequestError, Requests};
use crate::model::{Names, ObjectKey};

/// Time between two lists for each node that there is: with five thousand nodes four minutes, with two a tenth of a second.
const PER_NODE: Duration = Duration::from_millis(50);
/// When addresses are compared again although none is new: a node may have come that has one of them.
const REFRESH: Duration = Duration::from_hours(1);

/// What is known of other nodes' addresses.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The addresses that were compared.
    checked: Arc<BTreeSet<IpAddr>>,
    /// Those among them that are other nodes'.
    taken: BTreeSet<IpAddr>,
    /// Nodes may not be listed: no address counts as another node's.
    refused: bool,
}

impl Known {
    /// Whether all of `addresses` were compared.
    pub(super) fn covers(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        self.refused || addresses.is_subset(&self.checked)
    }

    /// Those of `addresses` that are, or may be, other nodes'.
    pub(super) fn others(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let may_be = |address: &&IpAddr| self.taken.contains(address) || !self.checked.contains(address);
        let all = addresses.iter().filter(may_be).copied();
        if self.refused { BTreeSet::new() } else { all.collect() }
    }
}

/// What [`NodeLookup`] writes and the source reads.
pub(super) type SharedKnown = Arc<Mutex<Known>>;

/// Locks it. A holder that panicked left it whole: each change is one assignment.
pub(super) fn lock_known(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compares addresses with those of the other nodes.
pub(super) struct NodeLookup {
    access: Arc<Access>,
    /// The name of this node's Node.
    own: ObjectKey,
    wanted: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    known: SharedKnown,
    changed: Arc<Notify>,
    backoff: Backoff,
}

impl NodeLookup {
    /// A look-up that has not begun; `changed` is told after each answer.
    pub(super) fn new(
        access: Arc<Access>,
        own: ObjectKey,
        wanted: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
        known: SharedKnown,
        changed: Arc<Notify>,
    ) -> Self {
        Self {
            access,
            own,
            wanted,
            known,
            changed,
            backoff: Backoff::default(),
        }
    }

    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        loop {
            let wanted = Arc::clone(&self.wanted.borrow_and_update());
            if lock_known(&self.known).covers(&wanted) {
                tokio::select! {
                    changed = self.wanted.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        continue;
                    }
                    () = sleep(spread(REFRESH, REFRESH * 2)) => {}
                }
            }
            if wanted.is_empty() {
                continue;
            }
            let wait = self.look_up(wanted).await;
            sleep(wait).await;
        }
    }

    /// Compares once, and returns how long to wait before it may be done again.
    async fn look_up(&mut self, wanted: Arc<BTreeSet<IpAddr>>) -> Duration {
        let mut known = Known::default();
        let wait = match self.list(&wanted).await {
            Ok((taken, nodes)) => {
                debug!(
                    addresses = wanted.len(),
                    nodes,
                    others = taken.len(),
                    "addresses compared with the nodes'"
                );
                known.checked = wanted;
                known.taken = taken;
                self.backoff.reset();
                PER_NODE.saturating_mul(nodes)
            }
            Err(error) if matches!(error.code(), Some(403 | 404)) => {
                known.refused = true;
                if !lock_known(&self.known).refused {
                    info!("Nodes may not be listed: no Service address is taken for another node's");
                }
                spread(ABSENT.start, ABSENT.end)
            }
            Err(error) => {
                let wait = self.backoff.next(error.retry_after());
                warn!(
                    error = chain(&error),
                    retry_ms = wait.as_millis() as u64,
                    "Service addresses cannot be compared with the nodes'"
                );
                return wait;
            }
        };
        *lock_known(&self.known) = known;
        self.changed.notify_one();
        wait
    }

    /// Those of `wanted` that are addresses of other nodes, and how many nodes there are.
    async fn list(&self, wanted: &BTreeSet<IpAddr>) -> Result<(BTreeSet<IpAddr>, u32), RequestError> {
        let requests = Requests::new::<Nodes>(self.access.client().await?, None);
        let mut names = Names::default();
        let (mut taken, mut nodes) = (BTreeSet::new(), 0);
        let mut go_on: Option<String> = None;
        loop {
            let page = requests.page(Nodes::PAGE, go_on.as_deref()).await?;
            let list = page.list()?;
            for item in list.items() {
                let node = read::<Nodes>(item, &mut names);
                nodes += 1;
                if node.key != self.own {
                    let addresses = node.content.iter().flat_map(|node| node.addresses.iter());
                    taken.extend(addresses.filter(|address| wanted.contains(address)));
                }
            }
            go_on = list.metadata.go_on.filter(|token| !token.is_empty());
            if go_on.is_none() {
                return Ok((taken, nodes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn an_address_counts_as_another_nodes_until_it_was_compared() {
        let known = Known {
            checked: Arc::new(set(&["192.0.2.1", "192.0.2.2"])),
            taken: set(&["192.0.2.2"]),
            refused: false,
        };
        let asked = set(&["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        assert!(!known.covers(&asked));
        assert_eq!(known.others(&asked), set(&["192.0.2.2", "192.0.2.3"]));
        assert!(known.covers(&set(&["192.0.2.1"])));
        assert_eq!(known.others(&set(&["192.0.2.1"])), set(&[]));
    }

    #[test]
    fn where_nodes_may_not_be_listed_no_address_is_another_nodes() {
        let known = Known {
            refused: true,
            ..Known::default()
        };
        let asked = set(&["192.0.2.1"]);
        assert!(known.covers(&asked) && known.others(&asked).is_empty());
    }
}
