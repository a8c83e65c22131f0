//! One reading of the folder: which files there are, what changed, and the snapshot that they make together.
//!
//! Blocking; runs outside the async threads. A file is parsed again only when its bytes changed. A file that cannot be
//! read or parsed keeps its last good objects, an object whose types are wrong its last good form; a file that is gone
//! takes its objects along. Where two files have the same object, the first by file name has it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::decode::{Content, Entry};
use super::document::{ParseError, parse_json, parse_yaml};
use crate::model::{Names, ObjectRef, Rejection, Snapshot};
use crate::source::{FileError, SourceState};

/// The largest file that is read, in bytes; some forty thousand Services.
const LARGEST_FILE: u64 = 128 << 20;

/// Reads the folder again and again.
pub(super) struct Scanner {
    folder: PathBuf,
    node_name: Arc<str>,
    names: Names,
    /// By file name.
    files: BTreeMap<OsString, KnownFile>,
    synced: bool,
}

/// What is known of a file.
#[derive(Default)]
struct KnownFile {
    /// Hash of the bytes that were read last; `None` when they could not be read.
    hash: Option<u64>,
    /// The last good objects.
    entries: Vec<Entry>,
    error: Option<ParseError>,
}

impl Scanner {
    pub(super) fn new(folder: PathBuf, node_name: Arc<str>) -> Self {
        Self {
            folder,
            node_name,
            names: Names::default(),
            files: BTreeMap::new(),
            synced: false,
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reads what changed and returns the state, based on the current one. Files in `being_written` stay as they are.
    pub(super) fn scan(&mut self, current: &SourceState, being_written: &BTreeSet<OsString>) -> SourceState {
        let listed = match list(&self.folder) {
            Ok(listed) => listed,
            Err(error) => {
                let reason = format!("the folder {} cannot be read: {error}", self.folder.display());
                return SourceState {
                    not_ready: Some(reason),
                    ..current.clone()
                };
            }
        };
        let before = self.files.len();
        self.files.retain(|name, _| listed.contains(name));
        let mut changed = self.files.len() != before || !self.synced;
        for name in listed.difference(being_written) {
            changed |= self.read(name);
        }
        self.synced = true;
        if !changed {
            return SourceState {
                not_ready: None,
                ..current.clone()
            };
        }
        let state = self.merge(&current.snapshot);
        self.names.prune();
        state
    }

    /// Brings one file up to date; returns whether anything about it changed.
    fn read(&mut self, name: &OsStr) -> bool {
        let text = match read_text(&self.folder.join(name)) {
            // Gone since it was listed, or a symbolic link to nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.files.remove(name).is_some(),
            text => text,
        };
        let known = self.files.entry(name.to_owned()).or_default();
        let parsed = match text {
            Ok(text) => {
                let hash = hash(&text);
                if known.hash.replace(hash) == Some(hash) {
                    return false;
                }
                let json = Path::new(name).extension() == Some(OsStr::new("json"));
                if json {
                    parse_json(&text, &mut self.names)
                } else {
                    parse_yaml(&text, &mut self.names)
                }
            }
            Err(error) => {
                known.hash = None;
                Err(ParseError {
                    line: None,
                    reason: error.to_string(),
                })
            }
        };
        match parsed {
            Ok(mut entries) => {
                keep_last_good(&mut entries, &known.entries);
                known.entries = entries;
                known.error = None;
                true
            }
            Err(error) => {
                let changed = known.error.as_ref() != Some(&error);
                known.error = Some(error);
                changed
            }
        }
    }

    /// Joins all files into one state, which shares with the one before what did not change.
    fn merge(&self, before: &Snapshot) -> SourceState {
        let mut snapshot = Snapshot::default();
        let mut rejections = Vec::new();
        let mut file_errors = Vec::new();
        let mut owners: BTreeMap<&ObjectRef, &OsStr> = BTreeMap::new();
        for (file, known) in &self.files {
            for entry in &known.entries {
                if let Some(owner) = owners.get(&entry.object) {
                    rejections.push(lost_to(&entry.object, owner, file));
                    continue;
                }
                owners.insert(&entry.object, file);
                rejections.extend_from_slice(&entry.rejections);
                self.add(&mut snapshot, entry.content.as_ref());
            }
            if let Some(error) = &known.error {
                file_errors.push(FileError {
                    file: file.display().to_string(),
                    line: error.line,
                    reason: error.reason.clone(),
                });
            }
        }
        rejections.sort_unstable();
        snapshot.services = before.services.changed_to(&snapshot.services);
        snapshot.slices = before.slices.changed_to(&snapshot.slices);
        SourceState {
            generation: 0,
            synced: true,
            not_ready: None,
            snapshot: Arc::new(snapshot),
            rejections,
            file_errors,
        }
    }

    fn add(&self, snapshot: &mut Snapshot, content: Option<&Content>) {
        match content {
            Some(Content::Service(key, service)) => {
                snapshot.services.insert(key.clone(), Arc::clone(service));
            }
            Some(Content::Slices(slices)) => snapshot.slices.extend(slices.iter().cloned()),
            Some(Content::Node(node)) if node.name == self.node_name => snapshot.node = Some(Arc::clone(node)),
            Some(Content::ServiceRanges(ranges)) => snapshot.service_cidrs.extend_from_slice(ranges),
            Some(Content::Node(node)) => snapshot.other_nodes.extend(&node.addresses),
            None => {}
        }
    }
}

/// The names of the files that may hold objects: `.yaml`, `.yml` or `.json`, not hidden.
fn list(folder: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let extension = Path::new(&name).extension().and_then(OsStr::to_str);
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if !hidden && matches!(extension, Some("yaml" | "yml" | "json")) {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Reads a regular file. A named pipe or the like would block, and counts as absent, as does a folder.
fn read_text(path: &Path) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    if metadata.len() > LARGEST_FILE {
        let reason = format!("the file is larger than {} MiB; split it", LARGEST_FILE >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    // A file that grows meanwhile is cut here, and read again when its writer is done.
    let mut text = String::new();
    File::open(path)?.take(LARGEST_FILE).read_to_string(&mut text)?;
    Ok(text)
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(text.as_bytes());
    hasher.finish()
}

/// Gives objects that could not be decoded the form that they had in the same file before.
fn keep_last_good(entries: &mut [Entry], before: &[Entry]) {
    for entry in entries.iter_mut().filter(|entry| entry.undecodable) {
        let last = before
            .iter()
            .find(|last| last.object == entry.object)
            .and_then(|last| last.content.clone());
        if last.is_some() {
            entry.content = last;
            for rejection in &mut entry.rejections {
                rejection
                    .reason
                    .push_str("; the last good form of this object stays in force");
            }
        }
    }
}

fn lost_to(object: &ObjectRef, owner: &OsStr, file: &OsStr) -> Rejection {
    let reason = if owner == file {
        format!(
            "{} has this object twice, the first counts; remove the other",
            file.display()
        )
    } else {
        format!(
            "{} has this object too and comes first; remove it from {}",
            owner.display(),
            file.display()
        )
    };
    Rejection {
        object: object.clone(),
        field: "metadata.name".into(),
        reason,
    }
}
