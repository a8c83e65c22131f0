//! Keeps one store like the API's collection: a whole list, then a watch from where the list ended, for ever.
//!
//! ```text
//! list (streaming, else pages) ─► store replaced ─► watch ─► ended by the server: watch on from the last version
//!    ▲                                                │
//!    └── version expired, history older, asked for ◄──┴─► failed: told, waited, watch on from the last version
//! ```
//! Invariants.
//! - The store changes by a complete list or by an event, never by part of a list; a failure removes nothing.
//! - Whoever asks for a reading gets one that began after the question.
//! - The server's history is compared with ours before we go on in it: a server whose data was restored from a backup would
//!   otherwise be silent, and we would keep what it no longer has. That costs a list of one object every few minutes.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::access::Access;
use super::backoff::{Backoff, spread};
use super::kinds::{Kind, read, read_bare};
use super::requests::{Lines, RequestError, Requests};
use super::store::{Fresh, Store};
use crate::clock::now;
use crate::model::Names;

/// The first requests of agents that start together are spread over this time.
const START_SPREAD: Duration = Duration::from_millis(200);
/// How long one watch lasts: between these, so that watches do not end together.
const WATCH: Range<Duration> = Duration::from_mins(5)..Duration::from_mins(10);
/// A watch that ends sooner counts as a failure for the next one's wait.
const SHORT: Duration = Duration::from_secs(1);
/// How often it is looked whether a kind that the server lacks has come, in a range to spread it.
pub(super) const ABSENT: Range<Duration> = Duration::from_mins(5)..Duration::from_mins(10);
/// Texts are forgotten after this many events at the latest.
const EVENTS_PER_PRUNE: u32 = 1024;

/// A store that the reflector writes and the source reads.
pub(super) type Shared<T> = Arc<Mutex<Store<T>>>;

/// Locks a store. A holder that panicked left it whole: each change is one insertion or assignment.
pub(super) fn lock<T>(store: &Mutex<Store<T>>) -> MutexGuard<'_, Store<T>> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows one kind.
pub(super) struct Reflector<K: Kind> {
    access: Arc<Access>,
    /// Which of the objects, by field.
    fields: Option<String>,
    store: Shared<K::Reduced>,
    /// Told after every change of the store.
    changed: Arc<Notify>,
    /// The number of the reading that is wanted.
    wanted: watch::Receiver<u64>,
    names: Names,
    events: u32,
    requests: Option<Requests>,
    backoff: Backoff,
    /// The version up to which the store is known to be whole; `None` when only a list can tell.
    version: Option<String>,
    /// Whether the next list is to be paged, since a streaming one failed.
    paged: bool,
}

/// How a list was read.
#[derive(Clone, Copy, Debug)]
enum By {
    Streaming,
    Pages,
}

impl<K: Kind> Reflector<K> {
    /// A reflector that has not begun.
    pub(super) fn new(
        access: Arc<Access>,
        fields: Option<String>,
        store: Shared<K::Reduced>,
        changed: Arc<Notify>,
        wanted: watch::Receiver<u64>,
    ) -> Self {
        Self {
            access,
            fields,
            store,
            changed,
            wanted,
            names: Names::default(),
            events: 0,
            requests: None,
            backoff: Backoff::default(),
            version: None,
            paged: false,
        }
    }

    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        sleep(spread(Duration::ZERO, START_SPREAD)).await;
        loop {
            let began = now();
            let wait = match self.attempt().await {
                Ok(()) if now() - began >= SHORT || self.is_asked() => None,
                Ok(()) => Some(self.backoff.next(None)),
                Err(error) => Some(self.take_in(&error)),
            };
            if let Some(wait) = wait {
                tokio::select! {
                    () = sleep(wait) => {}
                    _ = self.wanted.changed() => {}
                }
            }
        }
    }

    /// Whether a reading is wanted that has not begun.
    fn is_asked(&self) -> bool {
        lock(&self.store).listed() < Some(*self.wanted.borrow())
    }

    /// Notes a failure and returns how long to wait.
    fn take_in(&mut self, error: &RequestError) -> Duration {
        self.requests = None;
        let code = error.code();
        if code == Some(410) {
            info!(kind = K::KIND.as_str(), "the watch's version has expired, listing anew");
            self.version = None;
            return self.backoff.next(None);
        }
        if K::OPTIONAL && matches!(code, Some(403 | 404)) {
            self.version = None;
            let number = *self.wanted.borrow_and_update();
            let mut store = lock(&self.store);
            if store.listed().is_none() || !store.usable().is_empty() {
                info!(
                    kind = K::KIND.as_str(),
                    code, "not offered to us by the API server, done without"
                );
            }
            store.replace(Fresh::default(), number);
            drop(store);
            self.changed.notify_one();
            return spread(ABSENT.start, ABSENT.end);
        }
        let reason = chain(error);
        let wait = self.backoff.next(error.retry_after());
        let mut store = lock(&self.store);
        let first = store.failure().is_none();
        if store.set_failure(Some(reason.clone())) {
            self.changed.notify_one();
        }
        drop(store);
        let (kind, retry_ms) = (K::KIND.as_str(), wait.as_millis() as u64);
        if first {
            warn!(
                kind,
                error = reason,
                retry_ms,
                "objects cannot be followed, what was read stays in force"
            );
        } else {
            debug!(kind, error = reason, retry_ms, "objects cannot be followed");
        }
        wait
    }

    /// Lists if need be, then watches until the server ends the watch or a reading is wanted.
    async fn attempt(&mut self) -> Result<(), RequestError> {
        let requests = match self.requests.take() {
            Some(requests) => requests,
            None => Requests::new::<K>(self.access.client().await?, self.fields.clone()),
        };
        let result = self.attempt_with(&requests).await;
        self.requests = Some(requests);
        result
    }

    async fn attempt_with(&mut self, requests: &Requests) -> Result<(), RequestError> {
        let number = *self.wanted.borrow_and_update();
        if lock(&self.store).listed() < Some(number) {
            self.version = None;
        }
        if self.version.is_some() {
            self.check_history(requests).await?;
        }
        let mut lines = None;
        if self.version.is_none() {
            lines = self.list(requests, number).await?;
        }
        let mut lines = if let Some(lines) = lines {
            lines
        } else {
            let seconds = spread(WATCH.start, WATCH.end).as_secs() as u32;
            requests.watch(self.version.as_deref(), seconds).await?
        };
        if lock(&self.store).set_failure(None) {
            info!(kind = K::KIND.as_str(), "objects are followed again");
            self.changed.notify_one();
        }
        lines.expect_bookmarks();
        loop {
            tokio::select! {
                biased;
                _ = self.wanted.changed() => return Ok(()),
                event = lines.event() => {
                    let Some(event) = event? else { return Ok(()) };
                    let (what, text) = (event.what.as_ref(), event.object());
                    if what == "ERROR" {
                        return Err(event.error());
                    }
                    let version = apply::<K>(&self.store, &mut self.names, what, text);
                    if !version.is_empty() {
                        self.version = Some(version);
                    }
                    self.backoff.reset();
                    if what != "BOOKMARK" {
                        self.changed.notify_one();
                        self.events += 1;
                    }
                }
            }
            if self.events >= EVENTS_PER_PRUNE {
                self.prune();
            }
        }
    }

    /// Forgets the version if the server has not come as far yet.
    async fn check_history(&mut self, requests: &Requests) -> Result<(), RequestError> {
        let page = requests.page(1, None).await?;
        let theirs = page.list()?.metadata.resource_version.unwrap_or_default();
        let number = |text: &str| text.parse::<u64>().ok();
        let ours = self.version.as_deref().and_then(number);
        if let (Some(ours), Some(theirs)) = (ours, number(&theirs))
            && theirs < ours
        {
            warn!(
                kind = K::KIND.as_str(),
                ours, theirs, "the API server's data is older than ours, listing anew"
            );
            self.version = None;
        }
        Ok(())
    }

    /// Reads a whole list into the store; the watch that goes on behind it, if there is one.
    async fn list(&mut self, requests: &Requests, number: u64) -> Result<Option<Lines>, RequestError> {
        let began = now();
        let (by, fresh, version, lines) = if let Some((fresh, version, lines)) = self.stream(requests).await? {
            (By::Streaming, fresh, version, Some(lines))
        } else {
            let (fresh, version) = self.pages(requests).await?;
            (By::Pages, fresh, version, None)
        };
        let (kind, objects, ms) = (K::KIND.as_str(), fresh.len(), (now() - began).as_millis() as u64);
        let mut store = lock(&self.store);
        let news = store.listed().is_none() || store.failure().is_some();
        store.replace(fresh, number);
        drop(store);
        if news {
            info!(kind, ?by, objects, ms, "objects listed");
        } else {
            debug!(kind, ?by, objects, ms, "objects listed");
        }
        self.version = Some(version);
        self.paged = false;
        self.backoff.reset();
        self.prune();
        self.changed.notify_one();
        Ok(lines)
    }

    /// A list by a watch that begins with all objects; `None` where the server does not offer it.
    async fn stream(
        &mut self,
        requests: &Requests,
    ) -> Result<Option<(Fresh<K::Reduced>, String, Lines)>, RequestError> {
        if self.paged {
            return Ok(None);
        }
        let mut lines = match requests.watch(None, WATCH.end.as_secs() as u32).await {
            Ok(lines) => lines,
            // The parameters are not known, or the feature is off.
            Err(error) if matches!(error.code(), Some(400 | 405 | 422)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut fresh = Fresh::default();
        // Whatever breaks it off: pages may do.
        self.paged = true;
        loop {
            let event = lines.event().await?.ok_or(RequestError::Incomplete)?;
            match event.what.as_ref() {
                "ADDED" | "MODIFIED" => {
                    let object = read::<K>(event.object(), &mut self.names);
                    lock(&self.store).add_to(&mut fresh, object);
                }
                "DELETED" => fresh.remove(&read_bare(event.object()).0),
                "ERROR" => return Err(event.error()),
                "BOOKMARK" if event.ends_list() => {
                    let (_, version) = read_bare(event.object());
                    return Ok(Some((fresh, version, lines)));
                }
                _ => {}
            }
        }
    }

    /// A list in pages.
    async fn pages(&mut self, requests: &Requests) -> Result<(Fresh<K::Reduced>, String), RequestError> {
        let mut fresh = Fresh::default();
        let mut go_on: Option<String> = None;
        loop {
            let page = requests.page(K::PAGE, go_on.as_deref()).await?;
            let list = page.list()?;
            for item in list.items() {
                let object = read::<K>(item, &mut self.names);
                lock(&self.store).add_to(&mut fresh, object);
            }
            go_on = list.metadata.go_on.filter(|token| !token.is_empty());
            if go_on.is_none() {
                return Ok((fresh, list.metadata.resource_version.unwrap_or_default()));
            }
        }
    }

    fn prune(&mut self) {
        self.names.prune();
        self.events = 0;
    }
}

/// Changes the store as an event says, and returns the version that it tells.
fn apply<K: Kind>(store: &Shared<K::Reduced>, names: &mut Names, what: &str, text: &str) -> String {
    match what {
        "ADDED" | "MODIFIED" => {
            let mut object = read::<K>(text, names);
            let version = std::mem::take(&mut object.version);
            lock(store).apply(object);
            version
        }
        "DELETED" => {
            let (key, version) = read_bare(text);
            lock(store).remove(&key);
            version
        }
        // A bookmark; whatever else a newer server may send has a version, too.
        _ => read_bare(text).1,
    }
}

/// An error with its causes, those left out that repeat the one before.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
