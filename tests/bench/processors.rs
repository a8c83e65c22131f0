//! Which processors a thread of the bench may run on: what is measured keeps to one, or has all of them.

use std::ops::Range;
use std::thread;

use anyhow::{Result, anyhow};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps the calling thread, and what it starts from here on, on some processors.
pub(crate) fn pin(processors: Range<usize>) -> Result<()> {
    let mut set = CpuSet::new();
    for processor in processors {
        set.set(processor)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Does `work` in a thread that is kept on some processors.
pub(crate) fn on<T: Send>(processors: Range<usize>, work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(move || -> Result<T> {
            pin(processors)?;
            Ok(work())
        });
        worker
            .join()
            .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    })
}

/// All processors of this machine.
pub(crate) fn all() -> Result<Range<usize>> {
    let count = aya::util::nr_cpus().map_err(|(what, error)| anyhow!("{what}: {error}"))?;
    Ok(0..count)
}
