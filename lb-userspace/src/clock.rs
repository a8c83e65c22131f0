//! The one place that reads a clock.
//!
//! Ages and deadlines use the monotonic clock of tokio, which tests pause. The wall clock is only shown, never computed with.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use tokio::time::Instant;

/// Now on the monotonic clock.
pub fn now() -> Instant {
    Instant::now()
}

/// Now on the wall clock, for people and probes to read.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Seconds since the Unix epoch on the wall clock, for people to read.
pub fn wall_seconds() -> u64 {
    wall().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
