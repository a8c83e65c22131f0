//! Tells packets that a way out may have changed, so that they ask the kernel anew (lb-ebpf/src/hops.rs).
//!
//! In: the multicast groups of rtnetlink for everything that a route look-up depends on: links, addresses, routes, rules and
//! neighbours. Out: the word of [`Table::Epoch`], raised once for each burst of events, and when events may have been lost.
//! It is this task's alone. Without it a way out is at most a second old.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use rtnetlink::MulticastGroup;
use tokio::task::JoinHandle;

use crate::maps::{MapStore, Table};

const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Neigh,
];

/// Between two tries to open a socket.
const RETRY: Duration = Duration::from_millis(200);

/// A running watcher; it ends when this is dropped.
#[derive(Debug)]
pub struct WayWatch {
    task: JoinHandle<()>,
}

impl WayWatch {
    /// Starts watching the network namespace of the calling thread. A socket that breaks is opened anew.
    ///
    /// # Errors
    /// There is no socket.
    pub fn start(store: Arc<dyn MapStore>) -> io::Result<Self> {
        let mut open = rtnetlink::new_multicast_connection(&GROUPS);
        if let Err(error) = open {
            return Err(error);
        }
        let task = tokio::spawn(async move {
            loop {
                match open {
                    Ok((mut connection, _, mut events)) => loop {
                        tokio::select! {
                            () = &mut connection => break,
                            event = events.next() => if event.is_none() { break },
                        }
                        while let Some(Some(_)) = events.next().now_or_never() {}
                        raise(store.as_ref());
                    },
                    Err(error) => {
                        tracing::warn!(%error, "changes of routes cannot be followed; trying again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
                open = rtnetlink::new_multicast_connection(&GROUPS);
                raise(store.as_ref());
            }
        });
        Ok(Self { task })
    }
}

impl Drop for WayWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn raise(store: &dyn MapStore) {
    let words = store.words(Table::Epoch);
    words.store(0, words.load(0).wrapping_add(1));
}
