//! What an agent's programs in the kernel take while something is done, by the kernel's own statistics of them.
//!
//! In: the agent's process, which holds its programs open. Out: nanoseconds and runs. The statistics are on for that long alone, for all
//! programs of the machine; what they cost, some tens of nanoseconds a run, is in the figure.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

/// What programs took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) nanoseconds: f64,
    /// Runs; a program that another one calls at its end is part of its run.
    pub(super) times: f64,
}

/// Does `work`; what it gives, and what the programs of a process took meanwhile.
pub(super) fn spent_while<T>(pid: u32, work: impl FnOnce() -> T) -> Result<(T, Spent)> {
    let _counted = enable_stats(Stats::RunTime).context("statistics of programs")?;
    let ids = of_process(pid)?;
    ensure!(!ids.is_empty(), "process {pid} holds no programs");
    let before = spent(&ids);
    let worked = work();
    let after = spent(&ids);
    let taken = Spent {
        nanoseconds: after.nanoseconds - before.nanoseconds,
        times: after.times - before.times,
    };
    Ok((worked, taken))
}

fn spent(ids: &BTreeSet<u32>) -> Spent {
    let programs = loaded_programs().filter_map(Result::ok);
    programs
        .filter(|program| ids.contains(&program.id()))
        .fold(Spent::default(), |sum, program| Spent {
            nanoseconds: sum.nanoseconds + program.run_time().as_secs_f64() * 1e9,
            times: sum.times + program.run_count() as f64,
        })
}

/// Ids of the programs that a process holds open.
fn of_process(pid: u32) -> Result<BTreeSet<u32>> {
    let folder = fs::read_dir(format!("/proc/{pid}/fdinfo")).context("a process that runs")?;
    let texts = folder.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    Ok(texts.filter_map(|text| id(&text)).collect())
}

/// The program's id of a file's information, if it is one.
fn id(information: &str) -> Option<u32> {
    let line = information.lines().find_map(|line| line.strip_prefix("prog_id:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_other_files() {
        assert_eq!(id("pos:\t0\nprog_type:\t3\nprog_id:\t57\nrun_cnt:\t0\n"), Some(57));
        assert_eq!(id("pos:\t0\nmap_type:\t2\nmap_id:\t8\nmemlock:\t4096\n"), None);
    }
}
