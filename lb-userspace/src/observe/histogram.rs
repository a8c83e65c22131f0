//! Durations counted by size, for Prometheus.

use std::time::Duration;

/// kube-proxy's buckets for the time that a cycle takes: one millisecond to sixteen seconds, each twice the last.
static CYCLES: [u32; 15] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

/// Its buckets for the time from a change of endpoints to its programming: a quarter and half of a second, each second of a minute, each five
/// of the next, each half minute of the next three.
static PROGRAMMING: [u32; 80] = programming();

const fn programming() -> [u32; 80] {
    let mut bounds = [0; 80];
    (bounds[0], bounds[1]) = (250, 500);
    let mut at = 2;
    while at < bounds.len() {
        let step = match at {
            2 => 500,
            3..62 => 1000,
            62..74 => 5000,
            _ => 30_000,
        };
        bounds[at] = bounds[at - 1] + step;
        at += 1;
    }
    bounds
}

/// Counts of durations; never reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Upper bounds in milliseconds; what is longer counts in the total alone.
    bounds: &'static [u32],
    counts: Box<[u64]>,
    /// How many durations there were.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
}

impl Histogram {
    /// For the time that cycles take.
    pub fn cycles() -> Self {
        Self::new(&CYCLES)
    }

    /// For the time from a change to its programming.
    pub fn programming() -> Self {
        Self::new(&PROGRAMMING)
    }

    fn new(bounds: &'static [u32]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len()].into(),
            count: 0,
            sum: Duration::ZERO,
        }
    }

    /// Counts a duration.
    pub fn add(&mut self, duration: Duration) {
        let bucket = self.bounds.iter().position(|bound| duration <= of_bound(*bound));
        if let Some(count) = bucket.and_then(|bucket| self.counts.get_mut(bucket)) {
            *count += 1;
        }
        self.count += 1;
        self.sum += duration;
    }

    /// For each bucket its upper bound and how many durations were no longer than that.
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> {
        let mut total = 0;
        self.bounds.iter().zip(&self.counts).map(move |(bound, count)| {
            total += count;
            (of_bound(*bound), total)
        })
    }
}

fn of_bound(milliseconds: u32) -> Duration {
    Duration::from_millis(milliseconds.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_count_in_every_bucket_that_holds_them() {
        let mut histogram = Histogram::cycles();
        for milliseconds in [1, 2, 3, 20_000] {
            histogram.add(Duration::from_millis(milliseconds));
        }
        let counts: Vec<u64> = histogram.cumulative().map(|(_, count)| count).collect();
        assert_eq!(counts[..3], [1, 2, 3]);
        assert_eq!((counts[14], histogram.count), (3, 4));
        assert_eq!(histogram.cumulative().last().unwrap().0, Duration::from_millis(16_384));
        assert_eq!(histogram.sum, Duration::from_millis(20_006));
    }

    #[test]
    fn programming_has_kube_proxys_buckets() {
        let bounds: Vec<u32> = Histogram::programming()
            .cumulative()
            .map(|(bound, _)| bound.as_millis() as u32)
            .collect();
        let (seconds, fives, halves) = (1..60, (60..120).step_by(5), (120..=300).step_by(30));
        let wanted = seconds.chain(fives).chain(halves).map(|seconds| seconds * 1000);
        assert_eq!(bounds, [250, 500].into_iter().chain(wanted).collect::<Vec<u32>>());
    }
}
