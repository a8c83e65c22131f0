//! What runs beside the loop: grace periods and sweeps, one of each at a time, on threads of their own.
//!
//! Results carry the planner's mark from before they began; [`Upkeep::forget`] drops results that belong to a planner which
//! is no more, since marks of two planners must not be mixed.

use std::future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};

use crate::clock::{Instant, now};
use crate::maps::{MapStore, Referred};
use crate::plan::{Mark, SweepMark};
use crate::status::report::{FlowSummary, TableFill};

/// Between two sweeps while nobody waits for one: flows that timed out give their slots back.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Between two sweeps while ids or address bits wait for one.
const SWEEP_SOON: Duration = Duration::from_secs(2);

/// What a sweep found.
#[derive(Clone, Debug, PartialEq)]
pub struct Swept {
    /// What live flows refer to.
    pub referred: Referred,
    /// How full the flow tables are.
    pub fill: Vec<TableFill>,
    /// Flows by family and class.
    pub flows: Vec<FlowSummary>,
    /// Flows by service port id.
    pub services: Vec<(u32, u32)>,
}

/// Looks through the flow tables and frees what has timed out.
pub trait Sweep: Send + Sync + 'static {
    /// One whole sweep; blocks.
    ///
    /// # Errors
    /// The clock cannot be read, say; in words.
    fn sweep(&self, store: &dyn MapStore) -> Result<Swept, String>;
}

/// What has ended.
pub(super) enum Done {
    /// A grace period.
    Grace(Mark),
    /// A sweep, and the mark from before it, where a planner was there.
    Swept { mark: Option<SweepMark>, swept: Swept },
    /// One of them failed.
    Failed(String),
}

/// What is under way.
pub(super) struct Upkeep {
    store: Arc<dyn MapStore>,
    sweep: Arc<dyn Sweep>,
    graces: Option<Task<Mark, io::Result<()>>>,
    sweeps: Option<Task<SweepMark, Result<Swept, String>>>,
    swept_at: Instant,
    waited_for: bool,
}

impl Upkeep {
    pub(super) fn new(store: Arc<dyn MapStore>, sweep: Arc<dyn Sweep>) -> Self {
        Self {
            store,
            sweep,
            graces: None,
            sweeps: None,
            swept_at: now(),
            waited_for: false,
        }
    }

    /// Waits for a grace period from now on, unless one is under way: its end asks again.
    pub(super) fn grace(&mut self, mark: Mark) {
        if self.graces.is_none() {
            let grace = self.store.grace();
            self.graces = Some((Some(mark), tokio::task::spawn_blocking(move || grace.wait())));
        }
    }

    /// Whether somebody waits for a sweep.
    pub(super) fn hurry(&mut self, waited_for: bool) {
        self.waited_for = waited_for;
    }

    /// When the next sweep is due; far away while one is under way.
    pub(super) fn sweep_at(&self) -> Instant {
        match &self.sweeps {
            Some(_) => now() + SWEEP_EVERY,
            None => self.swept_at + if self.waited_for { SWEEP_SOON } else { SWEEP_EVERY },
        }
    }

    /// Begins a sweep.
    pub(super) fn sweep(&mut self, mark: Option<SweepMark>) {
        if self.sweeps.is_none() {
            let (store, sweep) = (Arc::clone(&self.store), Arc::clone(&self.sweep));
            let task = tokio::task::spawn_blocking(move || sweep.sweep(store.as_ref()));
            self.sweeps = Some((mark, task));
        }
    }

    /// The planner is no more: what is under way says nothing to the next one.
    pub(super) fn forget(&mut self) {
        if let Some((mark, _)) = &mut self.graces {
            *mark = None;
        }
        if let Some((mark, _)) = &mut self.sweeps {
            *mark = None;
        }
    }

    /// The next result; never, while nothing is under way. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Done {
        loop {
            tokio::select! {
                ended = join(&mut self.graces) => match ended {
                    (Some(mark), Ok(Ok(()))) => return Done::Grace(mark),
                    (None, Ok(Ok(()))) => {}
                    (_, Ok(Err(error))) => return Done::Failed(error.to_string()),
                    (_, Err(error)) => return Done::Failed(error.to_string()),
                },
                ended = join(&mut self.sweeps) => {
                    self.swept_at = now();
                    match ended {
                        (mark, Ok(Ok(swept))) => return Done::Swept { mark, swept },
                        (_, Ok(Err(error))) => return Done::Failed(error),
                        (_, Err(error)) => return Done::Failed(error.to_string()),
                    }
                }
            }
        }
    }
}

/// A task and the planner's mark from before it began; `None` where that planner is no more.
type Task<M, T> = (Option<M>, JoinHandle<T>);

/// Waits for a task and takes it out; for ever where there is none.
async fn join<M, T>(task: &mut Option<Task<M, T>>) -> (Option<M>, Result<T, JoinError>) {
    let Some((_, handle)) = task else {
        return future::pending().await;
    };
    let result = handle.await;
    (task.take().and_then(|(mark, _)| mark), result)
}
