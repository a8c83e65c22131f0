//! All lanes at once, each on a thread of its own, and the phase that they are in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::lane::{Caller, Lane};

/// From one request of a lane to its next.
const PACE: Duration = Duration::from_millis(20);

/// Requests under way. Dropping it ends them and waits for those that are open.
#[derive(Debug)]
pub(crate) struct Traffic {
    lanes: Vec<Arc<Lane>>,
    clock: Arc<Clock>,
    threads: Vec<JoinHandle<()>>,
}

/// What the lanes go by.
#[derive(Debug, Default)]
struct Clock {
    /// Twice the number of the phase, plus one once its change is programmed.
    now: AtomicUsize,
    ended: AtomicBool,
}

impl Traffic {
    /// Starts asking, in phase 0.
    pub(crate) fn start(lanes: Vec<Lane>) -> Self {
        let lanes: Vec<Arc<Lane>> = lanes.into_iter().map(Arc::new).collect();
        let clock = Arc::<Clock>::default();
        let threads = lanes
            .iter()
            .map(|lane| {
                let (lane, clock) = (Arc::clone(lane), Arc::clone(&clock));
                thread::spawn(move || run(&lane, &clock))
            })
            .collect();
        Self { lanes, clock, threads }
    }

    /// Begins a phase; its change comes after this.
    pub(crate) fn begin(&self, phase: usize) {
        self.clock.now.store(2 * phase, Ordering::SeqCst);
    }

    /// The change of the phase that was begun is programmed.
    pub(crate) fn settled(&self, phase: usize) {
        self.clock.now.store(2 * phase + 1, Ordering::SeqCst);
    }

    pub(crate) fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// Ends the lanes and returns their accounts.
    pub(crate) fn end(mut self) -> Vec<Arc<Lane>> {
        self.stop();
        std::mem::take(&mut self.lanes)
    }

    fn stop(&mut self) {
        self.clock.ended.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // A panic has printed itself; what the lane lacks shows in its account.
            drop(thread.join());
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(lane: &Lane, clock: &Clock) {
    let mut caller = Caller::new(lane);
    while !clock.ended.load(Ordering::SeqCst) {
        let (before, started) = (clock.now.load(Ordering::SeqCst), Instant::now());
        let outcome = caller.ask();
        let took = started.elapsed();
        let stood = before % 2 == 1 && clock.now.load(Ordering::SeqCst) == before;
        lane.enter(before / 2, stood, took, outcome);
        thread::sleep(PACE.saturating_sub(took));
    }
}
