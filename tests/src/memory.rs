//! How much memory a process takes: what it alone holds, sampled, because the kernel keeps no record of the most; and its maps.
//!
//! In: a process id. Out: `RssAnon` of proc_pid_status(5), in bytes: no part of it are files and what is shared, tables of the kernel
//! for one. Apart from it, what the kernel has set aside for the BPF maps that the process holds open. Errors: the process is gone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use std::{fs, io, panic};

/// Between two samples.
const SAMPLE: Duration = Duration::from_millis(5);

/// Anonymous memory of a process that is resident now, in bytes.
///
/// # Errors
/// There is no such process.
pub fn anonymous(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    of_status(&text).ok_or_else(|| io::Error::other(format!("process {pid} has ended")))
}

/// Does `work`, and returns what it gives and the most anonymous memory of the process meanwhile, in bytes.
///
/// # Errors
/// The process ended.
pub fn most_while<T>(pid: u32, work: impl FnOnce() -> T) -> io::Result<(T, u64)> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampling = scope.spawn(|| -> io::Result<u64> {
            let mut most = anonymous(pid)?;
            while !done.load(Ordering::Relaxed) {
                thread::sleep(SAMPLE);
                most = most.max(anonymous(pid)?);
            }
            Ok(most)
        });
        let worked = panic::catch_unwind(panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let most: io::Result<u64> = sampling.join().unwrap_or_else(|payload| panic::resume_unwind(payload));
        let worked = worked.unwrap_or_else(|payload| panic::resume_unwind(payload));
        Ok((worked, most?))
    })
}

/// What the BPF maps that a process holds open take in the kernel, in bytes, each map once.
///
/// # Errors
/// There is no such process.
pub fn of_maps(pid: u32) -> io::Result<u64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A file may have been closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        maps.extend(of_map(&text));
    }
    Ok(maps.values().sum())
}

/// A map's id and memory, of the information about an open file; nothing of other files.
fn of_map(text: &str) -> Option<(u32, u64)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((field("map_id:")?.parse().ok()?, field("memlock:")?.parse().ok()?))
}

/// `RssAnon` of a process's status, in bytes; one that has ended has none.
fn of_status(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim()
        .strip_suffix(" kB")?
        .parse::<u64>()
        .ok()
        .map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_is_what_was_held_meanwhile() {
        let pid = std::process::id();
        let before = anonymous(pid).expect("this process");
        let held = 64 << 20;
        let ((), most) = most_while(pid, || {
            let pages = std::hint::black_box(vec![1_u8; held]);
            thread::sleep(SAMPLE * 10);
            drop(pages);
        })
        .expect("this process");
        assert!(most >= held as u64, "{before} before, {most} at most");
    }

    #[test]
    fn maps_are_told_from_other_open_files() {
        let map = "pos:\t0\nmap_type:\t2\nmax_entries:\t4\nmemlock:\t4096\nmap_id:\t8\nfrozen:\t0\n";
        assert_eq!(of_map(map), Some((8, 4096)));
        assert_eq!(of_map("pos:\t0\nprog_type:\t3\nmemlock:\t4096\nprog_id:\t57\n"), None);
    }

    #[test]
    fn a_process_that_has_ended_has_no_memory() {
        assert_eq!(
            of_status("Name:\tx\nRssAnon:\t    2048 kB\nRssFile:\t 1 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(of_status("Name:\tx\nState:\tZ (zombie)\n"), None);
        assert!(anonymous(u32::MAX >> 1).is_err());
    }
}
