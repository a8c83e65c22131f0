//! Source `folder`: a directory of Kubernetes YAML or JSON, read again whenever it may have changed.
//!
//! In: every file `*.yaml`, `*.yml`, `*.json` directly in the folder that is not hidden; also when the folder is a mounted
//! ConfigMap. Out: [`Source`]. Objects stand as the API server would keep them: a Service has its ClusterIP, there are no
//! controllers; only legacy Endpoints are turned into slices. A folder that is missing or goes away is reported, and the
//! last good objects stay until it is back. Where inotify is not to be had, the folder is read once a second instead.

mod decode;
mod document;
mod scan;
#[cfg(test)]
mod tests;
mod watch;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep_until, timeout};
use tracing::{error, info, warn};

use super::{Publisher, Request, Source, SourceState, channel};
use crate::clock::now;
use scan::Scanner;
use watch::{Aim, Watcher};

/// Events are left to settle for this long, so that one change of many files is one reading.
const QUIET: Duration = Duration::from_millis(20);
/// Longer than this no reading is put off, however many events come.
const LONGEST_QUIET: Duration = Duration::from_millis(250);
/// A reading without an event, for what inotify cannot see: targets of symbolic links, network file systems.
const REREAD: Duration = Duration::from_secs(30);
/// The same where watches could not be placed.
const REREAD_BLIND: Duration = Duration::from_secs(1);

/// Starts reading `folder`; `node_name` (lower case) chooses the one Node object that matters. The task ends when the
/// [`Source`] and all its handles are dropped. Must be called within a tokio runtime.
pub fn start(folder: PathBuf, node_name: Arc<str>) -> Source {
    let watching = Watcher::new()
        .inspect_err(|error| warn!(%error, "inotify is not available, the folder is read once a second instead"));
    spawn(folder, node_name, watching.ok())
}

fn spawn(folder: PathBuf, node_name: Arc<str>, watching: Option<(Watcher, Aim)>) -> Source {
    let (publisher, source) = channel("the folder has not been read yet");
    let (watcher, aim) = watching.unzip();
    let reader = Reader {
        scanner: Scanner::new(folder, node_name),
        aim,
    };
    tokio::spawn(
        Task {
            publisher,
            watcher,
            blind: false,
        }
        .run(reader),
    );
    source
}

/// What blocks: moved to a thread of its own for every reading.
struct Reader {
    scanner: Scanner,
    aim: Option<Aim>,
}

/// The background task.
struct Task {
    publisher: Publisher,
    watcher: Option<Watcher>,
    /// Whether watches are missing.
    blind: bool,
}

/// Why the folder is read.
enum Wake {
    /// Something may have changed.
    Event,
    /// It was a while ago.
    Timer,
    /// Somebody wants to know.
    Request(Request),
    /// Nobody wants to know any more.
    Stop,
}

impl Task {
    async fn run(mut self, mut reader: Reader) {
        let mut requests = Vec::new();
        loop {
            requests.extend(std::iter::from_fn(|| self.publisher.waiting_request()));
            reader = match self.read(reader).await {
                Ok((reader, state)) => {
                    for request in requests.drain(..) {
                        // Fails when the asker has gone; nobody misses the answer.
                        let _answered = request.send(Arc::clone(&state));
                    }
                    reader
                }
                Err(error) => {
                    error!(%error, "reading the folder broke off, its objects are no longer followed");
                    return;
                }
            };
            match self.wait().await {
                Wake::Request(request) => requests.push(request),
                Wake::Event => requests.extend(self.settle().await),
                Wake::Timer => {}
                Wake::Stop => return,
            }
        }
    }

    /// Reads the folder once and publishes what is new.
    async fn read(&mut self, mut reader: Reader) -> Result<(Reader, Arc<SourceState>), tokio::task::JoinError> {
        let caught_up = self.watcher.as_mut().map(Watcher::catch_up).transpose();
        self.drop_broken_watcher(caught_up.map(drop));
        let being_written = self.watcher.as_mut().map(Watcher::being_written).unwrap_or_default();
        let before = self.publisher.current();
        let current = Arc::clone(&before);
        let (reader, target, state) = tokio::task::spawn_blocking(move || {
            let target = reader.aim.as_mut().map(|aim| aim.place(reader.scanner.folder()));
            let state = reader.scanner.scan(&current, &being_written);
            (reader, target, state)
        })
        .await?;
        self.blind = target.as_ref().is_none_or(|target| target.blind);
        if let (Some(watcher), Some(target)) = (&mut self.watcher, target) {
            watcher.set_target(target);
        }
        let state = self.publisher.publish(state);
        log_news(&before, &state);
        Ok((reader, state))
    }

    async fn wait(&mut self) -> Wake {
        let blind = self.blind || self.watcher.is_none();
        let reread = now() + if blind { REREAD_BLIND } else { REREAD };
        let next_written = self.watcher.as_ref().and_then(Watcher::next_written);
        let deadline = next_written.map_or(reread, |written| written.min(reread));
        let noticed = tokio::select! {
            request = self.publisher.request() => return request.map_or(Wake::Stop, Wake::Request),
            () = sleep_until(deadline) => return Wake::Timer,
            noticed = changed(&mut self.watcher) => noticed,
        };
        self.drop_broken_watcher(noticed);
        Wake::Event
    }

    /// Waits until no more events come, or somebody asks.
    async fn settle(&mut self) -> Option<Request> {
        let latest = now() + LONGEST_QUIET;
        loop {
            let noticed = tokio::select! {
                request = self.publisher.request() => return request,
                () = sleep_until(latest) => return None,
                noticed = timeout(QUIET, changed(&mut self.watcher)) => noticed,
            };
            match noticed {
                Ok(noticed) => self.drop_broken_watcher(noticed),
                Err(_quiet) => return None,
            }
        }
    }

    fn drop_broken_watcher(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            warn!(%error, "inotify broke, the folder is read once a second instead");
            self.watcher = None;
        }
    }
}

/// Waits for an event; for ever without a watcher.
async fn changed(watcher: &mut Option<Watcher>) -> io::Result<()> {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

/// Logs what an operator would want to know of the difference between two states.
fn log_news(before: &SourceState, now: &SourceState) {
    if before.generation == now.generation {
        return;
    }
    for error in now
        .file_errors
        .iter()
        .filter(|error| !before.file_errors.contains(error))
    {
        warn!(
            file = error.file,
            line = error.line,
            reason = error.reason,
            "file cannot be read, its last good objects stay"
        );
    }
    match &now.not_ready {
        Some(reason) if before.not_ready.as_ref() != Some(reason) => warn!(reason, "source is not ready"),
        None if before.not_ready.is_some() => info!(
            services = now.snapshot.services.len(),
            slices = now.snapshot.slices.len(),
            "folder is being read"
        ),
        _ => {}
    }
}
