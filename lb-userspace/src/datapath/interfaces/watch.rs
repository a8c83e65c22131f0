//! Keeps the interface table current: events patch the last dump and are published at once; a fresh dump confirms them.
//!
//! In: the multicast groups link, address and route of rtnetlink, and the rules, which may change live. Out: a
//! `tokio::sync::watch` channel with the newest table; it changes only when the table does. A fresh dump is made 200 ms after
//! the last event that mattered (at most 600 ms after the first), at once when events were lost (ENOBUFS) or cannot be
//! interpreted alone, and every 30 s. If the connection breaks, a new one is opened.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::{Change, Dump, InterfaceTable, Rules, interface_table};
use crate::clock;
use crate::datapath::netlink::Netlink;

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Bytes of the socket's receive buffer: our own routes come back as events, thousands at a start. The kernel grants what
/// net.core.rmem_max allows; losing events costs a dump, no more.
const RECEIVE_BUFFER: libc::c_int = 4 << 20;

const QUIET: Duration = Duration::from_millis(200);
const LATEST: Duration = Duration::from_millis(600);
const PERIOD: Duration = Duration::from_secs(30);
/// Between two tries after a failure.
const RETRY: Duration = Duration::from_millis(200);

/// Why interfaces cannot be watched.
#[derive(Debug, Error)]
pub enum WatchError {
    /// No socket.
    #[error("cannot open an rtnetlink socket")]
    Socket(#[source] io::Error),
    /// The socket of events is closed; a new one is needed.
    #[error("no more events come")]
    Ended,
    /// The kernel refused a dump.
    #[error("cannot list {what}")]
    List {
        /// What was listed.
        what: &'static str,
        /// The cause.
        #[source]
        source: rtnetlink::Error,
    },
}

/// A running watcher; it ends when this is dropped.
#[derive(Debug)]
pub struct InterfaceWatch {
    tables: watch::Receiver<Arc<InterfaceTable>>,
    task: JoinHandle<()>,
}

impl InterfaceWatch {
    /// Starts watching the network namespace of the calling thread; the first table is there on return.
    ///
    /// # Errors
    /// The first dump fails. Later failures are retried and logged.
    pub async fn start(rules: watch::Receiver<Rules>) -> Result<Self, WatchError> {
        let mut feed = Feed::open()?;
        let dump = feed.dump().await?;
        let mut state = State {
            dump,
            rules,
            table: InterfaceTable::default(),
        };
        state.renew();
        let (sender, tables) = watch::channel(Arc::new(state.table.clone()));
        let task = tokio::spawn(async move { state.follow(feed, sender).await });
        Ok(Self { tables, task })
    }

    /// The newest table, and notice of changes.
    pub fn tables(&self) -> watch::Receiver<Arc<InterfaceTable>> {
        self.tables.clone()
    }
}

impl Drop for InterfaceWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Makes one table without watching.
///
/// # Errors
/// The kernel refuses the dump.
pub async fn snapshot(rules: &Rules) -> Result<InterfaceTable, WatchError> {
    let mut feed = Feed::open()?;
    Ok(InterfaceTable {
        generation: 1,
        ..interface_table(&feed.dump().await?, rules)
    })
}

/// Events, and dumps on a socket of their own: an event carries the sequence number of whoever asked for the change, and
/// where it arrives beside answers it is taken for the answer to a request of ours with the same number.
struct Feed {
    requests: Netlink,
    events: Events,
    /// No more events come.
    ended: bool,
    connection: JoinHandle<()>,
}

type Events = futures_util::stream::BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>;

impl Feed {
    fn open() -> Result<Self, WatchError> {
        let requests = Netlink::open().map_err(WatchError::Socket)?;
        let (mut connection, _, events) = rtnetlink::new_multicast_connection(&GROUPS).map_err(WatchError::Socket)?;
        let socket = rtnetlink::sys::AsyncSocket::socket_mut(connection.socket_mut());
        socket.set_rx_buf_sz(RECEIVE_BUFFER).map_err(WatchError::Socket)?;
        let events = events.map(|(message, _)| message).boxed();
        Ok(Self {
            requests,
            events,
            ended: false,
            connection: tokio::spawn(connection),
        })
    }

    async fn dump(&mut self) -> Result<Dump, WatchError> {
        if self.ended {
            return Err(WatchError::Ended);
        }
        let mut dump = Dump::default();
        let failed = |what| move |source| WatchError::List { what, source };
        let handle = self.requests.handle();
        let mut links = handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(failed("links"))? {
            dump.apply(&RouteNetlinkMessage::NewLink(link));
        }
        let mut addresses = handle.address().get().execute();
        while let Some(address) = addresses.try_next().await.map_err(failed("addresses"))? {
            dump.apply(&RouteNetlinkMessage::NewAddress(address));
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let mut routes = handle.route().get(request).execute();
            while let Some(route) = routes.try_next().await.map_err(failed("routes"))? {
                dump.apply(&RouteNetlinkMessage::NewRoute(route));
            }
        }
        // A link may have gone between the dumps.
        let Dump { links, addresses, .. } = &mut dump;
        addresses.retain(|ifindex, _| links.contains_key(ifindex));
        Ok(dump)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

struct State {
    dump: Dump,
    rules: watch::Receiver<Rules>,
    table: InterfaceTable,
}

impl State {
    /// Recomputes the table; true if it changed.
    fn renew(&mut self) -> bool {
        let generation = self.table.generation;
        let table = interface_table(&self.dump, &self.rules.borrow_and_update());
        let table = InterfaceTable { generation, ..table };
        if generation != 0 && table == self.table {
            return false;
        }
        self.table = InterfaceTable {
            generation: generation + 1,
            ..table
        };
        true
    }

    async fn follow(mut self, mut feed: Feed, tables: watch::Sender<Arc<InterfaceTable>>) {
        let mut due = Due::new(clock::now());
        let mut rules_live = true;
        loop {
            let now = clock::now();
            if now >= due.at {
                match feed.dump().await {
                    Ok(dump) => {
                        self.dump = dump;
                        due = Due::new(clock::now());
                    }
                    Err(error) => {
                        tracing::warn!(error = %with_source(&error), "interfaces cannot be listed; trying again");
                        due.at = now + RETRY;
                        if let Ok(fresh) = Feed::open() {
                            feed = fresh;
                        }
                    }
                }
            } else {
                tokio::select! {
                    event = feed.events.next(), if !feed.ended => if let Some(event) = event {
                        self.take(&event, &mut feed, &mut due);
                    } else {
                        feed.ended = true;
                        due.at = now;
                    },
                    changed = self.rules.changed(), if rules_live => rules_live = changed.is_ok(),
                    () = sleep_until(due.at) => {}
                }
            }
            if self.renew() && tables.send(Arc::new(self.table.clone())).is_err() {
                return;
            }
        }
    }

    /// Takes in an event and those that wait behind it, so that a burst makes one table.
    fn take(&mut self, event: &NetlinkMessage<RouteNetlinkMessage>, feed: &mut Feed, due: &mut Due) {
        let mut change = self.apply(event);
        while let Some(Some(event)) = futures_util::FutureExt::now_or_never(feed.events.next()) {
            change = change.max(self.apply(&event));
        }
        due.note(change, clock::now());
    }

    fn apply(&mut self, event: &NetlinkMessage<RouteNetlinkMessage>) -> Change {
        if let NetlinkPayload::InnerMessage(message) = &event.payload {
            self.dump.apply(message)
        } else {
            // Overrun: events were lost.
            Change::Unknown
        }
    }
}

/// When the next dump is due.
#[derive(Debug)]
struct Due {
    at: Instant,
    /// When the first event since the last dump came.
    first: Option<Instant>,
}

impl Due {
    fn new(now: Instant) -> Self {
        Self {
            at: now + PERIOD,
            first: None,
        }
    }

    fn note(&mut self, change: Change, now: Instant) {
        match change {
            Change::Nothing => {}
            Change::Patched => {
                let first = *self.first.get_or_insert(now);
                // Never later than already promised, save that quiet may be waited for up to a limit.
                self.at = (now + QUIET).min(first + LATEST);
            }
            Change::Unknown => {
                self.first.get_or_insert(now);
                self.at = now;
            }
        }
    }
}

fn with_source(error: &WatchError) -> String {
    let source = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
    format!("{error}{source}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_follows_events_soon_and_a_storm_cannot_put_it_off() {
        let start = clock::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut due = Due::new(start);
        due.note(Change::Nothing, at(10));
        assert_eq!(due.at, start + PERIOD);
        due.note(Change::Patched, at(20));
        assert_eq!(due.at, at(220));
        for ms in (100..2000).step_by(100) {
            due.note(Change::Patched, at(ms));
            assert!(due.at <= at(620), "{ms}");
        }
        due.note(Change::Unknown, at(30));
        assert_eq!(due.at, at(30));
    }
}
