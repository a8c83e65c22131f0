//! Being told to end: by a signal, or because the front is gone.
//!
//! Nothing ends at once: every wait of the show ends early and returns [`Interrupted`], so that values are dropped in
//! order and take the cluster down.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

/// The show was told to end.
#[derive(Clone, Copy, Debug, Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// Whether to end, and until when a kept cluster waits for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// The front may go without ending the show.
    alone: bool,
}

impl Stop {
    /// Follows signals and the socket to the front.
    pub(crate) fn new(front: UnixStream) -> Result<Self> {
        let stop = Self::default();
        let told = stop.clone();
        on_signals(move || told.change(|state| state.stopped = true))?;
        let told = stop.clone();
        thread::spawn(move || {
            let mut front = front;
            // The front never writes: whatever this returns, it has gone.
            _ = front.read(&mut [0]);
            told.change(|state| state.stopped |= !state.alone);
        });
        Ok(stop)
    }

    /// Lets the show live on without its front.
    pub(crate) fn stand_alone(&self) {
        self.change(|state| state.alone = true);
    }

    /// Waits for `time`.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Interrupted> {
        let deadline = Instant::now() + time;
        let mut state = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.stopped {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let (locked, _) = self
                .shared
                .1
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
            state = locked;
        }
        Err(Interrupted)
    }

    /// Waits until told to end.
    pub(crate) fn wait(&self) {
        let mut state = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.stopped {
            state = self.shared.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.1.notify_all();
    }
}

/// Calls `work` at each SIGINT, SIGTERM and SIGHUP, in place of what they do otherwise.
pub(crate) fn on_signals(work: impl Fn() + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime for signals")?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
    drop(guard);
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                work();
            }
        });
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_when_the_front_is_gone_unless_the_show_stands_alone() {
        let (front, stage) = UnixStream::pair().unwrap();
        let stop = Stop::new(stage).unwrap();
        assert!(stop.pause(Duration::from_millis(1)).is_ok());
        drop(front);
        assert!(stop.pause(Duration::from_secs(60)).is_err());
        let (front, stage) = UnixStream::pair().unwrap();
        let stop = Stop::new(stage).unwrap();
        stop.stand_alone();
        drop(front);
        assert!(stop.pause(Duration::from_millis(50)).is_ok());
    }
}
