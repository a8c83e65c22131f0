//! How long to wait before the API server is asked again, spread so that the agents of a cluster do not ask at once.
//!
//! Doubles from a quarter of a second to half a minute, as client-go's reflector does within its bounds; each wait is
//! drawn from between its half and its whole.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// First wait after a failure.
const FIRST: Duration = Duration::from_millis(250);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(30);

/// The waits after failures in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure; no shorter than the server asked for.
    pub(super) fn next(&mut self, at_least: Option<Duration>) -> Duration {
        let wait = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let asked = at_least.unwrap_or_default();
        asked + spread(wait / 2, wait)
    }

    /// Something worked.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A random time between two.
pub(super) fn spread(shortest: Duration, longest: Duration) -> Duration {
    // The keys of every new state are random: the only randomness that the standard library offers.
    let random = (RandomState::new().hash_one(0_u8) >> 32) as u32;
    shortest
        + longest
            .saturating_sub(shortest)
            .mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_anew() {
        let mut backoff = Backoff::default();
        for expected in [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            let expected = Duration::from_millis(expected);
            let wait = backoff.next(None);
            assert!(
                wait >= expected / 2 && wait <= expected,
                "{wait:?}, expected {expected:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next(None) <= FIRST);
    }

    #[test]
    fn the_servers_wish_is_kept() {
        let wish = Duration::from_secs(7);
        assert!(Backoff::default().next(Some(wish)) > wish);
    }

    #[test]
    fn agents_do_not_wait_alike() {
        let waits: std::collections::BTreeSet<Duration> = (0..100).map(|_| spread(Duration::ZERO, LONGEST)).collect();
        assert!(waits.len() > 90, "{}", waits.len());
    }
}
