//! Times the phases of a command and tells them as they pass, on standard error.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// The phases that this command has been through, in the order of their ends.
#[derive(Debug)]
pub(crate) struct Phases {
    began: Instant,
    done: Vec<(String, Duration)>,
}

impl Default for Phases {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            done: Vec::new(),
        }
    }
}

impl Phases {
    /// Takes in what was done meanwhile elsewhere.
    pub(crate) fn append(&mut self, mut others: Self) {
        self.done.append(&mut others.done);
    }

    /// Runs `work` as the phase `name` and records how long it took, also when it fails. The error carries the name.
    pub(crate) fn time<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("==> {name}");
        let start = Instant::now();
        let result = work();
        let took = start.elapsed();
        eprintln!(
            "==> {name}: {} after {}",
            if result.is_ok() { "done" } else { "FAILED" },
            seconds(took)
        );
        self.done.push((name.to_owned(), took));
        result.with_context(|| name.to_owned())
    }

    /// All phases with their times, one a line, and the time since they began: some run beside others.
    pub(crate) fn table(&self) -> String {
        let width = self
            .done
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or(0)
            .max("total".len());
        let mut table = String::new();
        let total = self.began.elapsed();
        for (name, took) in self
            .done
            .iter()
            .map(|(name, took)| (name.as_str(), *took))
            .chain([("total", total)])
        {
            // Writing to a String cannot fail.
            let _ = writeln!(table, "{name:width$}  {:>9}", seconds(took));
        }
        table
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_phase_is_timed_and_its_error_names_it() {
        let mut phases = Phases::default();
        let error = phases
            .time("first", || Err::<(), _>(anyhow::anyhow!("why")))
            .unwrap_err();
        assert_eq!(format!("{error:#}"), "first: why");
        assert_eq!(phases.time("second", || Ok(7)).unwrap(), 7);
        let table = phases.table();
        let names: Vec<_> = table
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(names, ["first", "second", "total"]);
    }
}
