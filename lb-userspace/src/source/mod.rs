//! Where objects come from: one background task a source, one interface for all.
//!
//! A source reads objects, reduces them with the model's conversions and publishes whole [`SourceState`]s, each a full
//! replacement with a generation that grows by one. Nothing of a published state changes later. A source never fails
//! for good: what it cannot read it reports, and keeps the last good objects. It decides nothing about traffic.

pub mod folder;
pub mod kubernetes;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::model::{Rejection, Snapshot};

/// What a source holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// Grows by one with every change of anything below; 0 before anything was read.
    pub generation: u64,
    /// Whether the source has ever been read whole. Until then the snapshot is empty and must not be acted on.
    pub synced: bool,
    /// Why the source cannot be read at present; the snapshot is then the last good one.
    pub not_ready: Option<String>,
    /// The objects.
    pub snapshot: Arc<Snapshot>,
    /// What is wrong with single objects, sorted.
    pub rejections: Vec<Rejection>,
    /// The files that cannot be read, sorted by name.
    pub file_errors: Vec<FileError>,
}

/// A file that cannot be read; its last good objects stay in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileError {
    /// The file's name within the folder.
    pub file: String,
    /// The line, from 1, where there is one to name.
    pub line: Option<u64>,
    /// What is wrong.
    pub reason: String,
}

/// The source's task has ended; only happens while the agent shuts down or when the task itself broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source has stopped")]
pub struct SourceClosed;

/// The receiving end of a source, for the one who acts on its states.
#[derive(Debug)]
pub struct Source {
    states: watch::Receiver<Arc<SourceState>>,
    handle: SourceHandle,
}

impl Source {
    /// Waits for a state that neither this nor [`Source::state`] has returned yet. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Result<Arc<SourceState>, SourceClosed> {
        self.states
            .changed()
            .await
            .map_err(|watch::error::RecvError { .. }| SourceClosed)?;
        Ok(self.state())
    }

    /// The state now.
    pub fn state(&mut self) -> Arc<SourceState> {
        Arc::clone(&self.states.borrow_and_update())
    }

    /// A handle for those who ask, such as the status socket.
    pub fn handle(&self) -> SourceHandle {
        self.handle.clone()
    }
}

/// Asks a source; cheap to clone.
#[derive(Clone, Debug)]
pub struct SourceHandle {
    states: watch::Receiver<Arc<SourceState>>,
    requests: mpsc::Sender<Request>,
}

/// Asks for a reading that starts after the request was received.
pub(crate) type Request = oneshot::Sender<Arc<SourceState>>;

impl SourceHandle {
    /// Reads the source anew and returns what it held: everything that was in it when this was called is in the state
    /// returned, or reported in it. The generation is the old one if nothing had changed.
    pub async fn refresh(&self) -> Result<Arc<SourceState>, SourceClosed> {
        let (reply, state) = oneshot::channel();
        self.requests
            .send(reply)
            .await
            .map_err(|mpsc::error::SendError(_)| SourceClosed)?;
        state.await.map_err(|oneshot::error::RecvError { .. }| SourceClosed)
    }

    /// The state now, without reading.
    pub fn state(&self) -> Arc<SourceState> {
        Arc::clone(&self.states.borrow())
    }
}

/// The sending end of a source, for its task.
#[derive(Debug)]
pub(crate) struct Publisher {
    states: watch::Sender<Arc<SourceState>>,
    requests: mpsc::Receiver<Request>,
}

/// Makes both ends of a source; it starts without objects, not synced, at generation 0.
pub(crate) fn channel(not_ready: &str) -> (Publisher, Source) {
    const WAITING_REQUESTS: usize = 16;
    let first = SourceState {
        not_ready: Some(not_ready.into()),
        ..SourceState::default()
    };
    let (send_state, states) = watch::channel(Arc::new(first));
    let (send_request, requests) = mpsc::channel(WAITING_REQUESTS);
    let handle = SourceHandle {
        states: states.clone(),
        requests: send_request,
    };
    (
        Publisher {
            states: send_state,
            requests,
        },
        Source { states, handle },
    )
}

impl Publisher {
    /// The state published last.
    pub(crate) fn current(&self) -> Arc<SourceState> {
        Arc::clone(&self.states.borrow())
    }

    /// Publishes a state as the next generation, unless it equals the current one. Returns what is current now.
    pub(crate) fn publish(&mut self, mut state: SourceState) -> Arc<SourceState> {
        let current = self.current();
        state.generation = current.generation;
        if state == *current {
            return current;
        }
        state.generation += 1;
        let state = Arc::new(state);
        self.states.send_replace(Arc::clone(&state));
        state
    }

    /// The next request; `None` when nobody holds the other end any more. Dropping the future loses nothing.
    pub(crate) async fn request(&mut self) -> Option<Request> {
        self.requests.recv().await
    }

    /// A request that is waiting already.
    fn waiting_request(&mut self) -> Option<Request> {
        self.requests.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn equal_state_is_no_new_generation() {
        let (mut publisher, mut source) = channel("not read yet");
        assert_eq!((source.state().generation, source.state().synced), (0, false));
        let synced = SourceState {
            synced: true,
            ..SourceState::default()
        };
        assert_eq!(publisher.publish(synced.clone()).generation, 1);
        assert_eq!(publisher.publish(synced).generation, 1);
        assert_eq!(source.changed().await.map(|state| state.generation), Ok(1));
        drop(publisher);
        assert_eq!(source.changed().await, Err(SourceClosed));
    }
}
