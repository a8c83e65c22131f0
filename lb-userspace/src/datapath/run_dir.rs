//! The run directory that belongs to a pin directory: what must be remembered until the machine restarts, and no longer.
//!
//! ```text
//! <run-dir>/owner            process id of the agent, for messages only (the lock is on the pin directory)
//! <run-dir>/netns            inode of the network namespace that was served
//! <run-dir>/sysctls          one line each: `<path below /proc/sys> <value before we changed it>`
//! <run-dir>/clsact/<ifindex> we made the clsact qdisc of this interface
//! ```
//!
//! Other modules of the agent keep their socket here. Losing the directory loses no packet: cleanup then leaves the sysctls
//! as they are and qdiscs that it cannot prove to be ours.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::pins::{names, remove_if_there};

/// A run directory by its path; need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

/// A sysctl and its value before we changed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Path below /proc/sys.
    pub key: String,
    /// The value.
    pub value: String,
}

impl RunDir {
    /// Names a directory, without touching it.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Creates the directory, for root only.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root)
    }

    /// Says who the owner is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_owner(&self, pid: u32) -> io::Result<()> {
        fs::write(self.root.join("owner"), format!("{pid}\n"))
    }

    /// Process id of the owner that wrote it last; it may have ended.
    pub fn owner(&self) -> Option<u32> {
        fs::read_to_string(self.root.join("owner")).ok()?.trim().parse().ok()
    }

    /// Notes which network namespace is served: that of the calling thread.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_netns(&self) -> io::Result<()> {
        fs::write(self.root.join("netns"), format!("{}\n", current_netns()?))
    }

    /// False if another network namespace than that of the calling thread was served.
    pub fn is_this_netns(&self) -> bool {
        let noted = fs::read_to_string(self.root.join("netns"))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        noted.is_none_or(|noted| current_netns().is_ok_and(|current| current == noted))
    }

    /// Notes the value of a sysctl before its first change; later calls for the same key change nothing.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn remember(&self, key: &str, value: &str) -> io::Result<()> {
        // Two parts of the agent may remember at one time.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.remembered()?;
        if known.iter().any(|entry| entry.key == key) {
            return Ok(());
        }
        known.push(Remembered {
            key: key.to_owned(),
            value: value.to_owned(),
        });
        let lines: Vec<String> = known
            .iter()
            .map(|entry| format!("{} {}", entry.key, entry.value))
            .collect();
        // By rename, so that a stop in between leaves the old file.
        let (new, path) = (self.root.join("sysctls.new"), self.root.join("sysctls"));
        fs::write(&new, lines.join("\n"))?;
        fs::rename(new, path)
    }

    /// The remembered sysctls in the order of their changes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn remembered(&self) -> io::Result<Vec<Remembered>> {
        let text = match fs::read_to_string(self.root.join("sysctls")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let entry = |line: &str| {
            let (key, value) = line.split_once(' ')?;
            Some(Remembered {
                key: key.to_owned(),
                value: value.to_owned(),
            })
        };
        Ok(text.lines().filter_map(entry).collect())
    }

    /// Notes that the clsact qdisc of an interface is ours, before making it.
    pub(super) fn mark_qdisc(&self, ifindex: u32) -> io::Result<()> {
        fs::create_dir_all(self.qdiscs())?;
        fs::write(self.qdiscs().join(ifindex.to_string()), "")
    }

    /// Forgets such a note.
    pub(super) fn unmark_qdisc(&self, ifindex: u32) -> io::Result<()> {
        remove_if_there(&self.qdiscs().join(ifindex.to_string())).map(drop)
    }

    /// True if the clsact qdisc of this interface is ours.
    pub(super) fn has_qdisc(&self, ifindex: u32) -> bool {
        self.qdiscs().join(ifindex.to_string()).exists()
    }

    /// Interfaces whose clsact qdisc is ours.
    pub(super) fn marked_qdiscs(&self) -> io::Result<Vec<u32>> {
        Ok(names(&self.qdiscs())?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    fn qdiscs(&self) -> PathBuf {
        self.root.join("clsact")
    }
}

fn current_netns() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_of_a_sysctl_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(folder.path().join("a/b"));
        run_dir.create().unwrap();
        assert_eq!(run_dir.remembered().unwrap(), []);
        run_dir.remember("net/ipv4/conf/lo/accept_local", "0").unwrap();
        run_dir.remember("net/ipv4/ip_local_port_range", "32768 60999").unwrap();
        run_dir.remember("net/ipv4/conf/lo/accept_local", "1").unwrap();
        let expected = [
            ("net/ipv4/conf/lo/accept_local", "0"),
            ("net/ipv4/ip_local_port_range", "32768 60999"),
        ];
        let expected = expected.map(|(key, value)| Remembered {
            key: key.to_owned(),
            value: value.to_owned(),
        });
        assert_eq!(run_dir.remembered().unwrap(), expected);
    }

    #[test]
    fn qdisc_marks_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(folder.path());
        assert!(!run_dir.has_qdisc(3));
        run_dir.mark_qdisc(3).unwrap();
        assert!(run_dir.has_qdisc(3));
        assert_eq!(run_dir.marked_qdiscs().unwrap(), [3]);
        run_dir.unmark_qdisc(3).unwrap();
        run_dir.unmark_qdisc(3).unwrap();
        assert!(!run_dir.has_qdisc(3));
    }

    #[test]
    fn a_directory_of_this_network_namespace_is_recognised() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(folder.path());
        assert!(run_dir.is_this_netns());
        run_dir.write_netns().unwrap();
        assert!(run_dir.is_this_netns());
        fs::write(folder.path().join("netns"), "1\n").unwrap();
        assert!(!run_dir.is_this_netns());
    }
}
