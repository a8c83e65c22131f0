//! The loop that joins source, model, plan, maps and datapath: level-triggered, one cycle at a time.
//!
//! In: the newest state of the source, the newest interface table, time. Out: tables, programs and routes as they should be,
//! and a [`State`] that tells about them. A cycle is computed from whole snapshots; events only wake the loop:
//!
//! ```text
//! source changed ┐                  ┌ our device ─ model ─ plan ─ operations ─ programs ─ routes ─ told ┐
//! table changed  ┼─ wait ─ a cycle ─┤                                                                   ├─ wait …
//! retry, check   ┘                  └ a step failed: told, and retried with backoff                     ┘
//! ```
//! Invariants.
//! - No cycle before the source was read whole once; an unreadable source changes nothing.
//! - Nothing that a node may lack for now ends the loop: it is told as a cause for not being ready.
//! - After a failed write the next cycle begins with a planner that adopts a fresh dump, and so does a check from time to time.
//! - Programs are attached only after the tables were filled, routes set only while our device has its program.
//! - Grace periods and sweeps run beside the loop and never delay a publication.
//! - When the loop ends, everything stays: forwarding goes on.

mod agent;
mod changes;
mod cycle;
mod health;
mod host;
mod linger;
mod notices;
mod pace;
mod readiness;
mod steps;
mod summary;
mod sweep;
mod tell;
mod upkeep;
mod words;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep_until;
use tracing::{error, warn};

pub use agent::{AgentError, run};
pub use host::{Host, HostError, HostStartError, KernelHost};
pub use upkeep::{Sweep, Swept};

use crate::clock::{Instant, now, wall};
use crate::config::Config;
use crate::datapath::attach::Trust;
use crate::datapath::interfaces::InterfaceTable;
use crate::datapath::steer::SteerDevice;
use crate::maps::MapStore;
use crate::plan::Planner;
use crate::source::Source;
use crate::status::State;
use changes::Tracker;
use cycle::{Fixed, Memory};
use linger::Lingering;
use pace::Pace;
use steps::Failures;
use upkeep::{Done, Upkeep};

/// Between two looks at everything, whether or not something changed: somebody may have removed a program, a route or a word.
const CHECK_EVERY: Duration = Duration::from_mins(1);

/// What the loop works with.
pub struct Parts<H> {
    /// The settings.
    pub config: Config,
    /// Objects.
    pub source: Source,
    /// Tables.
    pub store: Arc<dyn MapStore>,
    /// Programs, interfaces, routes.
    pub host: H,
    /// Looks through the flow tables.
    pub sweep: Arc<dyn Sweep>,
    /// Jiffies a second.
    pub hz: u32,
    /// Where the loop tells about itself.
    pub state: watch::Sender<State>,
    /// Random number: the seed of tables that have none yet, and what spreads retries.
    pub random: u64,
}

/// The loop's memory.
pub struct Reconciler<H> {
    fixed: Arc<Fixed>,
    source: Source,
    source_ended: bool,
    tables: watch::Receiver<Arc<InterfaceTable>>,
    tables_ended: bool,
    store: Arc<dyn MapStore>,
    host: H,
    planner: Option<Planner>,
    /// What the last cycle that wrote knows of its objects.
    memory: Option<Memory>,
    upkeep: Upkeep,
    pace: Pace,
    random: u64,
    state: watch::Sender<State>,
    /// When something changed that no cycle has seen.
    changed_at: Option<Instant>,
    /// When the next look at everything is due.
    check_at: Instant,
    /// Our device, and the generation of the table it was made for.
    steer: Option<(SteerDevice, u64)>,
    /// Routes that outlive their Services.
    lingering: Lingering,
    /// Attached programs run on tables that a cycle filled.
    filled: bool,
    /// Whether the last cycle left something out that may fit soon.
    starved: Starved,
    /// The last errors that were logged.
    logged: Vec<String>,
    /// What changed and is not programmed.
    changes: Tracker,
}

/// Whether the last cycle left something out that will fit when room becomes free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Starved {
    No,
    /// Yes, and it gave up nothing: only a sweep can free room.
    Yes,
    /// Yes, and it gave up something: a grace period frees room, too.
    GaveUp,
}

impl<H: Host> Reconciler<H> {
    /// A loop that has not begun.
    pub fn new(parts: Parts<H>) -> Self {
        let Parts {
            config,
            source,
            store,
            host,
            sweep,
            hz,
            state,
            random,
        } = parts;
        Self {
            pace: Pace::with_least(config.min_sync_period),
            fixed: Arc::new(Fixed::new(config, hz, random)),
            source,
            source_ended: false,
            tables: host.tables(),
            tables_ended: false,
            upkeep: Upkeep::new(Arc::clone(&store), sweep),
            store,
            host,
            planner: None,
            memory: None,
            random,
            state,
            changed_at: Some(now()),
            check_at: now() + CHECK_EVERY,
            steer: None,
            lingering: Lingering::default(),
            filled: false,
            starved: Starved::No,
            logged: Vec::new(),
            changes: Tracker::new(wall()),
        }
    }

    /// Runs until `stop` is ready, and returns what it tells; a cycle that is under way is finished first.
    pub async fn run<T>(mut self, stop: impl Future<Output = T>) -> T {
        let mut stop = pin!(stop);
        // The start is over, and what else is missing only a cycle can tell.
        self.state.send_modify(|state| state.not_ready.clear());
        self.see_source();
        loop {
            let due = self.due();
            let sweep_at = self.upkeep.sweep_at();
            tokio::select! {
                biased;
                told = &mut stop => return told,
                changed = self.source.changed(), if !self.source_ended => {
                    if changed.is_err() {
                        error!("the source has ended; what it held stays in force");
                        self.source_ended = true;
                    }
                    self.see_source();
                    self.changed();
                }
                changed = self.tables.changed(), if !self.tables_ended => {
                    if changed.is_err() {
                        error!("interfaces are no longer followed");
                        self.tables_ended = true;
                    }
                    self.changed();
                }
                done = self.upkeep.next() => self.take_in(done),
                () = sleep_until(sweep_at) => self.upkeep.sweep(self.planner.as_ref().map(Planner::sweep_mark)),
                () = until(due) => self.cycle().await,
            }
        }
    }

    fn changed(&mut self) {
        self.changed_at.get_or_insert_with(now);
    }

    /// When the next cycle begins.
    fn due(&self) -> Instant {
        let change = self.changed_at.map(|at| self.pace.after_change(at));
        [change, self.pace.retry_at()]
            .into_iter()
            .flatten()
            .fold(self.check_at, Instant::min)
    }

    /// Tells what the source holds, before anything of it is programmed.
    fn see_source(&mut self) {
        let source = self.source.handle().state();
        let changes = &mut self.changes;
        self.state.send_modify(|state| {
            changes.see(source.generation, &source.snapshot, &mut state.figures);
            if source.generation > state.seen {
                state.seen_at = Some(now());
                state.queued_at = Some(wall());
            }
            state.seen = source.generation;
            if state.seen > state.programmed {
                state.pending_since = state.pending_since.or(state.seen_at);
            }
            state.synced = source.synced;
            state.source_error.clone_from(&source.not_ready);
            state.services = source.snapshot.services.len();
            state.endpoint_slices = source.snapshot.slices.len();
            state.file_errors = source.file_errors.clone().into();
        });
    }

    /// Takes in what ran beside the loop.
    fn take_in(&mut self, done: Done) {
        match done {
            Done::Grace(mark) => {
                if let Some(planner) = &mut self.planner {
                    planner.grace_passed(mark);
                }
                // What the last cycle gave up is free now. A cycle that gave up nothing frees nothing.
                if self.starved == Starved::GaveUp {
                    self.changed();
                }
            }
            Done::Swept { mark, swept } => {
                if let (Some(planner), Some(mark)) = (&mut self.planner, mark) {
                    planner.swept(mark, &swept.referred);
                }
                if self.lingering.swept(&swept.referred.host_destinations) {
                    self.changed();
                }
                self.tell_swept(swept);
                if self.starved != Starved::No {
                    self.changed();
                }
            }
            Done::Failed(reason) => warn!(error = reason, "upkeep of the tables failed; tried again"),
        }
        if self.planner.as_ref().is_some_and(Planner::has_freed) {
            self.changed();
        }
        self.keep_up();
    }

    /// Starts what the planner waits for.
    fn keep_up(&mut self) {
        if let Some(planner) = &self.planner {
            if planner.needs_grace() {
                self.upkeep.grace(planner.mark());
            }
            self.upkeep.hurry(planner.needs_sweep());
        }
    }

    /// One cycle, from what source and interfaces are now.
    async fn cycle(&mut self) {
        let began = now();
        let trust = if began >= self.check_at {
            Trust::Nothing
        } else {
            Trust::Known
        };
        self.changed_at = None;
        if trust == Trust::Nothing {
            self.check_at = began + CHECK_EVERY;
        }
        let source = self.source.state();
        self.see_source();
        if !source.synced {
            self.pace.succeeded(began, began);
            return;
        }
        let mut failures = Failures::default();
        let table = self.prepare(&source, trust, &mut failures).await;
        let published = self
            .publish(Arc::clone(&source), Arc::clone(&table), trust, &mut failures)
            .await;
        let conflicts = match &published {
            Some(published) => self.attach_and_route(published, &table, trust, &mut failures).await,
            None if self.filled => {
                self.attach(&table, trust, &mut failures).await;
                Vec::new()
            }
            None => Vec::new(),
        };
        self.tell(&source, &table, published, &conflicts, &failures, began);
        let errors = failures.all();
        if errors.is_empty() {
            self.pace.succeeded(began, now());
        } else {
            self.random = next_random(self.random);
            self.pace.failed(began, now(), self.random);
        }
        self.log(errors);
        self.keep_up();
    }
}

/// Waits for a time, and not at all for one that has come: timers are as coarse as a millisecond.
async fn until(time: Instant) {
    if time > now() {
        sleep_until(time).await;
    }
}

/// The next number of a cheap sequence (splitmix64); it only spreads retries.
fn next_random(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
