//! When the next cycle begins: at once when idle, with a growing pause under load, and after a failure with backoff.
//!
//! Pure: time and randomness are arguments. The pause is twice the time that the last cycle took, so that the loop uses a
//! third of one CPU at most; a burst of events within it makes one cycle.

use std::time::Duration;

use crate::clock::Instant;

/// Shortest pause between two cycles: what a burst of inotify or netlink events needs to arrive.
const SHORTEST: Duration = Duration::from_millis(10);
/// Longest pause between two cycles, however long they take.
const LONGEST: Duration = Duration::from_secs(1);
/// First wait after a failure; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_secs(10);

/// The history that decides when to go on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Least pause, from the configuration.
    least: Duration,
    not_before: Option<Instant>,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Pace {
    /// A pace that never pauses shorter than `least`.
    pub(super) fn with_least(least: Duration) -> Self {
        Self {
            least,
            ..Self::default()
        }
    }

    /// When a cycle for a change that was seen at `now` may begin.
    pub(super) fn after_change(&self, now: Instant) -> Instant {
        self.not_before.map_or(now, |at| at.max(now))
    }

    /// When the failed cycle is tried again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Notes a cycle that ended well.
    pub(super) fn succeeded(&mut self, began: Instant, ended: Instant) {
        self.paused(began, ended);
        self.failures = 0;
        self.retry_at = None;
    }

    /// Notes a cycle that failed; `random` spreads retries over half of their wait.
    pub(super) fn failed(&mut self, began: Instant, ended: Instant, random: u64) {
        self.paused(began, ended);
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(16)).min(LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        let spread = (wait / 2).mul_f64(f64::from((random >> 32) as u32) / f64::from(u32::MAX));
        self.retry_at = Some(ended + wait - spread);
    }

    fn paused(&mut self, began: Instant, ended: Instant) {
        self.not_before = Some(ended + ((ended - began) * 2).clamp(SHORTEST, LONGEST).max(self.least));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_configured_pause_is_kept() {
        let start = now();
        let mut pace = Pace::with_least(MS * 3000);
        pace.succeeded(start, start + MS);
        assert_eq!(pace.after_change(start), start + MS * 3001);
    }

    #[test]
    fn an_idle_loop_begins_at_once() {
        let start = now();
        let mut pace = Pace::default();
        assert_eq!(pace.after_change(start), start);
        pace.succeeded(start, start + 5 * MS);
        assert_eq!(pace.after_change(start + 100 * MS), start + 100 * MS);
    }

    #[test]
    fn a_busy_loop_pauses_twice_as_long_as_it_worked_within_bounds() {
        let start = now();
        let mut pace = Pace::default();
        for (took, pause) in [(MS, SHORTEST), (50 * MS, 100 * MS), (9000 * MS, LONGEST)] {
            pace.succeeded(start, start + took);
            assert_eq!(pace.after_change(start + took), start + took + pause);
        }
    }

    #[test]
    fn failures_wait_longer_each_time_up_to_a_limit_and_are_forgotten_on_success() {
        let start = now();
        let mut pace = Pace::default();
        let mut waits = Vec::new();
        for _ in 0..20 {
            pace.failed(start, start, 0);
            waits.push(pace.retry_at().unwrap() - start);
        }
        assert_eq!(waits[..3], [100 * MS, 200 * MS, 400 * MS]);
        assert_eq!(waits[19], LAST_RETRY);
        pace.failed(start, start, u64::MAX);
        let wait = pace.retry_at().unwrap() - start;
        assert!(wait >= LAST_RETRY / 2 && wait < LAST_RETRY * 51 / 100, "{wait:?}");
        pace.succeeded(start, start);
        assert_eq!(pace.retry_at(), None);
        pace.failed(start, start, 0);
        assert_eq!(pace.retry_at().unwrap() - start, 100 * MS);
    }
}
