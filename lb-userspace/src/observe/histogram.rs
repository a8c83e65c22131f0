//! Durations counted by size, for Prometheus: kube-proxy's buckets of one millisecond to sixteen seconds, each twice the last.

use std::time::Duration;

/// Buckets with an upper bound; what is longer counts in the total alone.
pub(super) const BUCKETS: usize = 15;

/// Counts of durations; never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    /// How many durations there were.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&mut self, duration: Duration) {
        if let Some(bucket) = (0..BUCKETS).find(|bucket| duration <= bound(*bucket)) {
            self.counts[bucket] += 1;
        }
        self.count += 1;
        self.sum += duration;
    }

    /// For each bucket its upper bound and how many durations were no longer than that.
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> {
        let mut total = 0;
        self.counts.iter().enumerate().map(move |(bucket, count)| {
            total += count;
            (bound(bucket), total)
        })
    }
}

fn bound(bucket: usize) -> Duration {
    Duration::from_millis(1 << bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_count_in_every_bucket_that_holds_them() {
        let mut histogram = Histogram::default();
        for milliseconds in [1, 2, 3, 20_000] {
            histogram.add(Duration::from_millis(milliseconds));
        }
        let counts: Vec<u64> = histogram.cumulative().map(|(_, count)| count).collect();
        assert_eq!(counts[..3], [1, 2, 3]);
        assert_eq!((counts[14], histogram.count), (3, 4));
        assert_eq!(histogram.cumulative().last().unwrap().0, Duration::from_millis(16_384));
        assert_eq!(histogram.sum, Duration::from_millis(20_006));
    }
}
