//! What changes in the source between two looks at it, and how long changes of endpoints take until they are programmed.
//!
//! Pure: time is an argument. Snapshots share what does not change, so that a comparison looks at little else. The time of a
//! trigger is the EndpointSlice controller's annotation; triggers from before the agent's start are not counted, as kube-proxy
//! does not (`pkg/proxy/endpointschangetracker.go`).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::model::{Family, ObjectKey, OrdMap, SliceObject, Snapshot};
use crate::observe::{Changes, Figures};

/// What was seen last, and what waits to be programmed.
#[derive(Debug)]
pub(super) struct Tracker {
    started: SystemTime,
    generation: u64,
    snapshot: Arc<Snapshot>,
    /// Changes that are not programmed, by the generation that has them.
    services: Vec<(u64, u64)>,
    slices: Vec<(u64, u64)>,
    triggers: Vec<(u64, Family, SystemTime)>,
}

impl Tracker {
    pub(super) fn new(started: SystemTime) -> Self {
        Self {
            started,
            generation: 0,
            snapshot: Arc::default(),
            services: Vec::new(),
            slices: Vec::new(),
            triggers: Vec::new(),
        }
    }

    /// Looks at what the source holds; a generation that was seen before is passed over.
    pub(super) fn see(&mut self, generation: u64, snapshot: &Arc<Snapshot>, figures: &mut Figures) {
        if generation <= self.generation {
            return;
        }
        let count = |changed: u64, waiting: &mut Vec<(u64, u64)>, changes: &mut Changes| {
            if changed > 0 {
                waiting.push((generation, changed));
                changes.total += changed;
                changes.pending += changed;
            }
        };
        let services = changed(&self.snapshot.services, &snapshot.services, |_| {});
        count(services, &mut self.services, &mut figures.services);
        let (started, triggers) = (self.started, &mut self.triggers);
        let note = |slice: &Arc<SliceObject>| {
            let since_1970 = slice.triggered_at.and_then(|micros| u64::try_from(micros).ok());
            let at = since_1970.map(|micros| UNIX_EPOCH + Duration::from_micros(micros));
            let fresh = at.filter(|at| *at >= started);
            triggers.extend(fresh.map(|at| (generation, slice.family, at)));
        };
        let slices = changed(&self.snapshot.slices, &snapshot.slices, note);
        count(slices, &mut self.slices, &mut figures.slices);
        self.generation = generation;
        self.snapshot = Arc::clone(snapshot);
    }

    /// All up to `generation` is programmed, at this time.
    pub(super) fn programmed(&mut self, generation: u64, at: SystemTime, figures: &mut Figures) {
        let done = |waiting: &mut Vec<(u64, u64)>, changes: &mut Changes| {
            let done = waiting.extract_if(.., |(of, _)| *of <= generation);
            changes.pending -= done.map(|(_, count)| count).sum::<u64>();
        };
        done(&mut self.services, &mut figures.services);
        done(&mut self.slices, &mut figures.slices);
        for (_, family, trigger) in self.triggers.extract_if(.., |(of, ..)| *of <= generation) {
            // A controller's clock may be ahead of ours.
            let took = at.duration_since(trigger).unwrap_or(Duration::ZERO);
            let [v4, v6] = &mut figures.programming;
            match family {
                Family::V4 => v4.add(took),
                Family::V6 => v6.add(took),
            }
        }
    }
}

/// How many objects came, changed or went; `each` sees those that came or changed.
fn changed<T: Eq>(
    before: &OrdMap<ObjectKey, Arc<T>>,
    after: &OrdMap<ObjectKey, Arc<T>>,
    mut each: impl FnMut(&Arc<T>),
) -> u64 {
    let changes = before.changes(after);
    changes
        .inspect(|change| change.after.into_iter().for_each(&mut each))
        .count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceState;
    use crate::test_objects::{service, slice, source_state};

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    /// A slice that was triggered in this second after 2027-01-15T08:00:00Z.
    fn triggered(service: &str, second: u32, addresses: &[&str]) -> serde_json::Value {
        let mut slice = slice(service, addresses);
        slice["metadata"]["annotations"] = serde_json::json!({ "endpoints.kubernetes.io/last-change-trigger-time": format!("2027-01-15T08:00:{second:02}.25Z") });
        slice
    }

    fn see(tracker: &mut Tracker, generation: u64, state: &SourceState, figures: &mut Figures) {
        tracker.see(generation, &state.snapshot, figures);
    }

    #[test]
    fn changes_wait_until_their_generation_is_programmed() {
        let (mut tracker, mut figures) = (Tracker::new(at(10)), Figures::default());
        let first = source_state(&[
            service("a", "10.96.0.1"),
            service("b", "10.96.0.2"),
            slice("a", &["10.244.0.1"]),
        ]);
        see(&mut tracker, 1, &first, &mut figures);
        assert_eq!(figures.services, Changes { total: 2, pending: 2 });
        assert_eq!(figures.slices, Changes { total: 1, pending: 1 });
        // One goes, one comes, one stays; and nothing is counted twice.
        let second = source_state(&[
            service("a", "10.96.0.1"),
            service("c", "10.96.0.3"),
            slice("a", &["10.244.0.1"]),
        ]);
        see(&mut tracker, 2, &second, &mut figures);
        see(&mut tracker, 2, &second, &mut figures);
        assert_eq!(figures.services, Changes { total: 4, pending: 4 });
        tracker.programmed(1, at(11), &mut figures);
        assert_eq!(figures.services, Changes { total: 4, pending: 2 });
        tracker.programmed(2, at(12), &mut figures);
        assert_eq!(figures.services, Changes { total: 4, pending: 0 });
        assert_eq!(figures.slices, Changes { total: 1, pending: 0 });
    }

    #[test]
    fn the_time_since_the_trigger_counts_once_for_each_changed_slice() {
        let (mut tracker, mut figures) = (Tracker::new(at(10)), Figures::default());
        let old = source_state(&[triggered("a", 9, &["10.244.0.1"])]);
        see(&mut tracker, 1, &old, &mut figures);
        tracker.programmed(1, at(11), &mut figures);
        assert_eq!(figures.programming[0].count, 0, "triggered before the start");
        let new = source_state(&[triggered("a", 20, &["10.244.0.2"]), triggered("b", 21, &["10.244.0.3"])]);
        see(&mut tracker, 2, &new, &mut figures);
        see(&mut tracker, 3, &new, &mut figures);
        tracker.programmed(3, at(22), &mut figures);
        let [v4, v6] = &figures.programming;
        assert_eq!((v4.count, v4.sum, v6.count), (2, Duration::from_millis(2500), 0));
        tracker.programmed(4, at(30), &mut figures);
        assert_eq!(figures.programming[0].count, 2);
    }
}
