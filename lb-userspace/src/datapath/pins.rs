//! The pin directory: where programs' links and maps stay while no agent runs, and the lock that gives it one owner.
//!
//! ```text
//! <pin-dir>/layout                          symbolic link to `steerway-layout-<version>` (bpffs holds no plain files)
//! <pin-dir>/maps/<name>                     maps
//! <pin-dir>/links/<ifindex>-<ifname>-in     tcx links; `.` and `%` of the name as `%2e`, `%25` (bpffs refuses dots)
//! <pin-dir>/links/<ifindex>-<ifname>-out
//! <pin-dir>/links/<ifindex>-<ifname>-xdp    XDP links in the driver; `-xdpgeneric` behind it
//! <pin-dir>/stages/[new-]<map id>           program arrays, one a load (see load/stages.rs)
//! ```
//!
//! The mark is written before anything else, so a directory that has entries but no mark is either damaged or somebody
//! else's; it is taken only if it holds nothing but these folders. The owner holds a flock(2) on the directory itself:
//! a container with its own /run still shares it. bpffs: kernel/bpf/inode.c.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;

use super::attach::Hook;
use super::run_dir::RunDir;
use crate::clock;

/// Where bpffs belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

const MARK_PREFIX: &str = "steerway-layout-";
const LAYOUT: &str = "layout";
const MAPS: &str = "maps";
const LINKS: &str = "links";
const STAGES: &str = "stages";

/// Between two tries to get the lock.
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// Why a pin directory cannot be used.
#[derive(Debug, Error)]
pub enum PinError {
    /// The directory is not on a BPF file system.
    #[error(
        "{} is not on a BPF file system: mount one (mount -t bpf bpf {BPFFS}) or choose a directory below {BPFFS}",
        .0.display()
    )]
    NotBpffs(PathBuf),
    /// A new directory has a dot in its name.
    #[error("{}: a BPF file system refuses names with a dot: choose another pin directory", .0.display())]
    Dot(PathBuf),
    /// The directory holds what is not ours.
    #[error(
        "{} holds {entry:?}, which is not Steerway's, and no mark of ours: choose an empty pin directory, or remove the entry",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The entry.
        entry: String,
    },
    /// Another agent owns the directory.
    #[error(
        "{} belongs to another agent{}, which did not end within {} s: stop it, or choose another pin directory",
        path.display(), holder.map_or_else(String::new, |pid| format!(" (process {pid})")), waited.as_secs()
    )]
    Held {
        /// The directory.
        path: PathBuf,
        /// Process id of the owner, where it is known.
        holder: Option<u32>,
        /// How long we waited.
        waited: Duration,
    },
    /// A file operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl PinError {
    /// For `map_err`: a failed operation on `path`.
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { what, path, source }
    }
}

/// What the mark says about the maps in a pin directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// No mark and no entries: a new directory.
    Fresh,
    /// Maps of this layout version.
    Version(u32),
    /// Entries of ours, but the mark is lost or unreadable.
    Lost,
}

/// A pin directory by its path; need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir {
    root: PathBuf,
}

impl PinDir {
    /// Names a directory, without touching it.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the map `name` is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The folder of the maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join(MAPS)
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root.join(LINKS)
    }

    pub(super) fn stages(&self) -> PathBuf {
        self.root.join(STAGES)
    }

    pub(super) fn link(&self, pin: &LinkPin) -> PathBuf {
        self.links().join(pin.file_name())
    }

    pub(super) fn mark_path(&self) -> PathBuf {
        self.root.join(LAYOUT)
    }

    /// Makes the directory usable: mounts bpffs at its usual place if nobody did, and creates the directory.
    ///
    /// # Errors
    /// Not a place for pins.
    pub fn create(&self) -> Result<(), PinError> {
        if self.root.starts_with(BPFFS) && !is_bpffs(Path::new(BPFFS)) {
            mount_bpffs()?;
        }
        let mut existing = self.root.as_path();
        while !existing.exists() {
            let Some(parent) = existing.parent() else { break };
            existing = parent;
        }
        if !is_bpffs(existing) {
            return Err(PinError::NotBpffs(self.root.clone()));
        }
        let new = self.root.strip_prefix(existing).unwrap_or(&self.root);
        if new.to_string_lossy().contains('.') {
            return Err(PinError::Dot(self.root.clone()));
        }
        make_dir(&self.root)
    }

    /// Makes the folders inside. Call after [`Self::write_mark`].
    pub(super) fn create_folders(&self) -> Result<(), PinError> {
        make_dir(&self.maps())?;
        make_dir(&self.links())?;
        make_dir(&self.stages())
    }

    /// Reads the mark.
    ///
    /// # Errors
    /// The directory holds something that is not ours, or cannot be read.
    pub fn mark(&self) -> Result<Mark, PinError> {
        match fs::read_link(self.mark_path()) {
            Ok(target) => {
                let version = target
                    .to_str()
                    .and_then(|text| text.strip_prefix(MARK_PREFIX)?.parse().ok());
                return Ok(version.map_or(Mark::Lost, Mark::Version));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Not a symbolic link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(PinError::Foreign {
                    path: self.root.clone(),
                    entry: LAYOUT.to_owned(),
                });
            }
            Err(source) => {
                return Err(PinError::Io {
                    what: "read",
                    path: self.mark_path(),
                    source,
                });
            }
        }
        let entries = names(&self.root).map_err(PinError::io("list", &self.root))?;
        match entries
            .iter()
            .find(|name| ![MAPS, LINKS, STAGES].contains(&name.as_str()))
        {
            Some(entry) => Err(PinError::Foreign {
                path: self.root.clone(),
                entry: entry.clone(),
            }),
            None if entries.is_empty() => Ok(Mark::Fresh),
            None => Ok(Mark::Lost),
        }
    }

    /// Writes the mark of `version` over any other.
    pub(super) fn write_mark(&self, version: u32) -> Result<(), PinError> {
        let path = self.mark_path();
        remove_if_there(&path).map_err(PinError::io("remove", &path))?;
        std::os::unix::fs::symlink(format!("{MARK_PREFIX}{version}"), &path).map_err(PinError::io("create", &path))
    }

    /// Names of the pinned maps; empty where there is no directory.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn map_names(&self) -> io::Result<Vec<String>> {
        names(&self.maps())
    }

    /// Names of the pinned program arrays; empty where there is no directory.
    pub(super) fn stage_names(&self) -> io::Result<Vec<String>> {
        names(&self.stages())
    }

    /// The pinned links, sorted; empty where there is no directory. Files of another form are left out.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn link_pins(&self) -> io::Result<Vec<LinkPin>> {
        let mut pins: Vec<LinkPin> = names(&self.links())?
            .iter()
            .filter_map(|name| LinkPin::parse(name))
            .collect();
        pins.sort();
        Ok(pins)
    }

    /// Becomes the owner of the directory, waiting up to `wait` for another to go. `run_dir` tells who that is.
    ///
    /// # Errors
    /// [`PinError::Held`], or the directory is not there.
    pub async fn lock(&self, run_dir: &RunDir, wait: Duration) -> Result<PinLock, PinError> {
        let deadline = clock::now() + wait;
        let mut told = false;
        loop {
            if let Some(lock) = self.try_lock()? {
                return Ok(lock);
            }
            if clock::now() >= deadline {
                return Err(PinError::Held {
                    path: self.root.clone(),
                    holder: run_dir.owner(),
                    waited: wait,
                });
            }
            if !told {
                tracing::info!(pin_dir = %self.root.display(), owner = run_dir.owner(), "waiting for another agent to end");
                told = true;
            }
            tokio::time::sleep(LOCK_RETRY).await;
        }
    }

    fn try_lock(&self) -> Result<Option<PinLock>, PinError> {
        let open = || File::open(&self.root).map_err(PinError::io("open", &self.root));
        match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                // The former owner may have removed the directory, and somebody made it anew: then this lock is of no worth.
                let held = lock.metadata().map_err(PinError::io("read", &self.root))?;
                let same = fs::metadata(&self.root).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino()));
                Ok(same.then_some(PinLock { _directory: lock }))
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(PinError::Io {
                what: "lock",
                path: self.root.clone(),
                source: errno.into(),
            }),
        }
    }
}

/// Ownership of a pin directory, until dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct PinLock {
    _directory: Flock<File>,
}

/// What the name of a pinned link says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkPin {
    /// Interface index.
    pub ifindex: u32,
    /// Place.
    pub hook: Hook,
    /// Interface name when it was pinned.
    pub ifname: String,
}

impl LinkPin {
    fn file_name(&self) -> String {
        let name = self.ifname.replace('%', "%25").replace('.', "%2e");
        format!("{}-{name}-{}", self.ifindex, self.hook.suffix())
    }

    fn parse(name: &str) -> Option<Self> {
        let (ifindex, rest) = name.split_once('-')?;
        let (ifname, suffix) = rest.rsplit_once('-')?;
        Some(Self {
            ifindex: ifindex.parse().ok()?,
            hook: Hook::from_suffix(suffix)?,
            ifname: ifname.replace("%2e", ".").replace("%25", "%"),
        })
    }
}

/// Mounts bpffs at its usual place.
///
/// # Errors
/// The mount fails, or the place does not exist.
pub fn mount_bpffs() -> Result<(), PinError> {
    let none = None::<&str>;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none).map_err(|errno| PinError::Io {
        what: "mount a BPF file system at",
        path: BPFFS.into(),
        source: errno.into(),
    })
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn make_dir(path: &Path) -> Result<(), PinError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(PinError::io("create", path))
}

/// Names in a directory; none where it does not exist.
pub(super) fn names(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Removes a file; true if there was one.
pub(super) fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_pins_survive_the_round_trip() {
        for ifname in ["eth0", "eth0.100", "a-b-in", "100%.2e", "-"] {
            for hook in Hook::ALL {
                let pin = LinkPin {
                    ifindex: 17,
                    hook,
                    ifname: ifname.to_owned(),
                };
                let name = pin.file_name();
                assert!(!name.contains('.'), "{name}");
                assert_eq!(LinkPin::parse(&name), Some(pin));
            }
        }
    }

    #[test]
    fn foreign_names_are_no_link_pins() {
        for name in ["", "eth0", "x-eth0-in", "3-eth0", "3-eth0-sideways"] {
            assert_eq!(LinkPin::parse(name), None, "{name}");
        }
    }

    #[test]
    fn mark_tells_fresh_ours_lost_and_foreign_apart() {
        let folder = tempfile::tempdir().unwrap();
        let pins = PinDir::new(folder.path());
        assert_eq!(pins.mark().unwrap(), Mark::Fresh);
        pins.create_folders().unwrap();
        assert_eq!(pins.mark().unwrap(), Mark::Lost);
        pins.write_mark(7).unwrap();
        assert_eq!(pins.mark().unwrap(), Mark::Version(7));
        pins.write_mark(8).unwrap();
        assert_eq!(pins.mark().unwrap(), Mark::Version(8));
        fs::remove_file(pins.mark_path()).unwrap();
        std::os::unix::fs::symlink("elsewhere", pins.mark_path()).unwrap();
        assert_eq!(pins.mark().unwrap(), Mark::Lost);
        fs::remove_file(pins.mark_path()).unwrap();
        fs::create_dir(folder.path().join("cilium")).unwrap();
        let error = pins.mark().unwrap_err();
        assert!(
            matches!(&error, PinError::Foreign { entry, .. } if entry == "cilium"),
            "{error}"
        );
    }

    #[test]
    fn a_directory_elsewhere_is_refused_with_the_fix() {
        let folder = tempfile::tempdir().unwrap();
        let error = PinDir::new(folder.path().join("pins"))
            .create()
            .unwrap_err()
            .to_string();
        assert!(error.contains("mount -t bpf bpf /sys/fs/bpf"), "{error}");
    }

    #[tokio::test]
    async fn a_second_owner_waits_then_is_refused_and_gets_it_when_the_first_goes() {
        const WAIT: Duration = Duration::from_millis(250);
        let folder = tempfile::tempdir().unwrap();
        let pins = PinDir::new(folder.path());
        let run_dir = RunDir::new(folder.path().join("run"));
        run_dir.create().unwrap();
        run_dir.write_owner(4711).unwrap();
        let first = pins.lock(&run_dir, Duration::ZERO).await.unwrap();
        let started = clock::now();
        let error = pins.lock(&run_dir, WAIT).await.unwrap_err();
        assert!(clock::now() - started >= WAIT);
        assert!(error.to_string().contains("process 4711"), "{error}");
        let waiting = pins.lock(&run_dir, Duration::from_secs(30));
        let going = async {
            tokio::time::sleep(WAIT).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(waiting, going);
        assert!(second.is_ok());
    }
}
