//! Notices that something in the folder may have changed, by inotify.
//!
//! Watches the folder and the nearest folder above it that exists, so that a folder that is missing, removed, renamed or
//! replaced by another is noticed too. What an event says hardly matters, any one means: read again. But a file that was
//! written to and not closed yet is remembered as being written: a writer that has just truncated it must not make its
//! objects disappear. (inotify(7); a mounted ConfigMap changes by renaming the symbolic link `..data` within the folder.)

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::time::Duration;

use inotify::{Event, EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::io::unix::AsyncFd;

use crate::clock::{Instant, now};

/// How long a file that is kept open counts as being written after its last write.
const WRITING: Duration = Duration::from_secs(5);
/// Room for a dozen events or more; one with the longest name needs 272 bytes.
const BUFFER: usize = 4096;

/// The inotify instance and what it has told.
pub(super) struct Watcher {
    inotify: AsyncFd<Inotify>,
    told: Told,
}

/// What the events have told.
#[derive(Default)]
struct Told {
    /// Where the watches are.
    target: Target,
    /// By name, when a file was last written to that has not been closed since.
    being_written: BTreeMap<OsString, Instant>,
}

/// Where the watches are, as far as events need it.
#[derive(Clone, Default)]
pub(super) struct Target {
    /// The watch above the folder, and the one name there that matters.
    above: Option<(i32, OsString)>,
    /// Whether a watch could not be placed, so that changes may go unnoticed.
    pub(super) blind: bool,
}

impl Watcher {
    /// Makes an inotify instance that watches nothing yet, and what places its watches.
    pub(super) fn new() -> io::Result<(Self, Aim)> {
        let inotify = Inotify::init()?;
        let aim = Aim {
            watches: inotify.watches(),
            folder: None,
            above: None,
        };
        #[expect(
            deprecated,
            reason = "its successor is unsafe for fds that close early; Inotify owns its fd until drop"
        )]
        let inotify = AsyncFd::new(inotify)?;
        let told = Told::default();
        Ok((Self { inotify, told }, aim))
    }

    /// Takes note of where the watches are now.
    pub(super) fn set_target(&mut self, target: Target) {
        self.told.target = target;
    }

    /// Waits until something may have changed. Dropping the future loses nothing.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let Self { inotify, told } = self;
        loop {
            let mut ready = inotify.readable_mut().await?;
            match ready.try_io(|inotify| told.read(inotify.get_mut())) {
                Ok(Ok(false)) | Err(_) => {}
                Ok(Ok(true)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// Takes in every event up to now.
    pub(super) fn catch_up(&mut self) -> io::Result<()> {
        loop {
            match self.told.read(self.inotify.get_mut()) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// The files that are being written.
    pub(super) fn being_written(&mut self) -> BTreeSet<OsString> {
        self.told
            .being_written
            .retain(|_, written| now().duration_since(*written) < WRITING);
        self.told.being_written.keys().cloned().collect()
    }

    /// When the first file that is being written counts as written.
    pub(super) fn next_written(&self) -> Option<Instant> {
        self.told.being_written.values().min().map(|written| *written + WRITING)
    }
}

impl Told {
    /// Reads some events; returns whether one of them matters.
    fn read(&mut self, inotify: &mut Inotify) -> io::Result<bool> {
        let mut buffer = [0; BUFFER];
        let mut matters = false;
        for event in inotify.read_events(&mut buffer)? {
            matters |= self.take(&event);
        }
        Ok(matters)
    }

    fn take(&mut self, event: &Event<&OsStr>) -> bool {
        let above = self
            .target
            .above
            .as_ref()
            .filter(|(watch, _)| *watch == event.wd.get_watch_descriptor_id());
        match (above, event.name) {
            (Some((_, child)), Some(name)) => child == name,
            (None, Some(name)) => {
                if event.mask.contains(EventMask::MODIFY) {
                    self.being_written.insert(name.to_owned(), now());
                } else {
                    self.being_written.remove(name);
                }
                true
            }
            (_, None) => true,
        }
    }
}

/// Places the watches. Its calls look up paths and may block.
pub(super) struct Aim {
    watches: Watches,
    folder: Option<WatchDescriptor>,
    above: Option<WatchDescriptor>,
}

impl Aim {
    /// Places the watches anew where the folder, or what is above it, is another one than before.
    pub(super) fn place(&mut self, folder: &Path) -> Target {
        let mut target = Target::default();
        let inside = self.watches.add(folder, inside_mask());
        target.blind |= matches!(&inside, Err(error) if !is_absent(error));
        self.replace(inside.ok(), |aim| &mut aim.folder);

        let mut below = folder;
        let mut placed = None;
        while let Some(above) = below.parent() {
            let path = if above.as_os_str().is_empty() {
                Path::new(".")
            } else {
                above
            };
            match self.watches.add(path, above_mask()) {
                Ok(watch) => {
                    let child = below.file_name().unwrap_or_default().to_owned();
                    target.above = Some((watch.get_watch_descriptor_id(), child));
                    placed = Some(watch);
                    break;
                }
                Err(error) if is_absent(&error) => below = above,
                Err(_) => {
                    target.blind = true;
                    break;
                }
            }
        }
        self.replace(placed, |aim| &mut aim.above);
        target
    }

    fn replace(&mut self, new: Option<WatchDescriptor>, place: fn(&mut Self) -> &mut Option<WatchDescriptor>) {
        let id = new.as_ref().map(WatchDescriptor::get_watch_descriptor_id);
        let old = std::mem::replace(place(self), new);
        if let Some(old) = old.filter(|old| Some(old.get_watch_descriptor_id()) != id) {
            // Fails when the kernel has removed the watch together with its folder, which is as good.
            let _removed = self.watches.remove(old);
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn inside_mask() -> WatchMask {
    above_mask() | WatchMask::MODIFY | WatchMask::CLOSE_WRITE | WatchMask::ATTRIB
}

fn above_mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
}
