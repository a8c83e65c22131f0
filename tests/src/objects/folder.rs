//! Folders of objects, changed as a careful person or a kubelet changes them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::Manifest;

/// A folder for the source `folder`; removed when dropped.
///
/// Files appear, change and vanish in one step each: they are written elsewhere and renamed.
#[derive(Debug)]
pub struct Folder {
    root: TempDir,
    objects: PathBuf,
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Folder {
    /// An empty folder.
    #[track_caller]
    pub fn new() -> Self {
        let root = tempfile::Builder::new()
            .prefix("stw-folder-")
            .tempdir()
            .expect("a temporary directory");
        for part in ["objects", "staging"] {
            fs::create_dir(root.path().join(part)).expect("a directory in a new directory");
        }
        Self {
            objects: root.path().join("objects"),
            root,
        }
    }

    /// The path to give to the agent.
    pub fn path(&self) -> &Path {
        &self.objects
    }

    /// Writes a file of this name, or replaces it.
    #[track_caller]
    pub fn write(&self, name: &str, text: &str) {
        let staged = self.root.path().join("staging").join(name);
        fs::write(&staged, text).unwrap_or_else(|error| panic!("write {}: {error}", staged.display()));
        let place = self.path().join(name);
        fs::rename(&staged, &place).unwrap_or_else(|error| panic!("rename to {}: {error}", place.display()));
    }

    /// Removes a file.
    #[track_caller]
    pub fn remove(&self, name: &str) {
        let place = self.path().join(name);
        fs::remove_file(&place).unwrap_or_else(|error| panic!("remove {}: {error}", place.display()));
    }

    /// Writes an object to the file of its own name.
    #[track_caller]
    pub fn put(&self, object: &impl Manifest) {
        self.write(&object.file_name(), &object.to_yaml());
    }

    /// Removes the file that [`put`](Self::put) wrote for an object of this kind and name.
    #[track_caller]
    pub fn delete(&self, object: &impl Manifest) {
        self.remove(&object.file_name());
    }
}

/// A folder laid out as kubelet lays out a mounted ConfigMap: `..data` points to a directory of one version, each file
/// to `..data/<file>`, and an update swaps `..data`.
#[derive(Debug)]
pub struct ConfigMapFolder {
    root: TempDir,
    version: u32,
}

impl ConfigMapFolder {
    /// A folder with these files.
    #[track_caller]
    pub fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::Builder::new()
            .prefix("stw-configmap-")
            .tempdir()
            .expect("a temporary directory");
        let mut folder = Self { root, version: 0 };
        folder.update(files);
        folder
    }

    /// The path to give to the agent.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Replaces all files by these, as kubelet's atomic writer does (pkg/volume/util/atomic_writer.go).
    #[track_caller]
    pub fn update(&mut self, files: &[(&str, &str)]) {
        let old = format!("..version-{}", self.version);
        self.version += 1;
        let new = format!("..version-{}", self.version);
        let at = |name: &str| self.root.path().join(name);
        fs::create_dir(at(&new)).expect("a directory of the new version");
        for (name, text) in files {
            fs::write(at(&new).join(name), text).expect("a file of the new version");
        }
        symlink(&new, at("..data_tmp")).expect("a link to the new version");
        fs::rename(at("..data_tmp"), at("..data")).expect("the swap");
        for (name, _) in files.iter().filter(|(name, _)| !at(name).is_symlink()) {
            symlink(format!("..data/{name}"), at(name)).expect("a link to a new file");
        }
        for entry in fs::read_dir(self.path()).expect("the folder").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("..") && !files.iter().any(|(kept, _)| *kept == name) {
                fs::remove_file(entry.path()).expect("a link to a file that is gone");
            }
        }
        if self.version > 1 {
            fs::remove_dir_all(at(&old)).expect("the old version");
        }
    }
}

impl AsRef<Path> for ConfigMapFolder {
    fn as_ref(&self) -> &Path {
        self.path()
    }
}

impl AsRef<Path> for Folder {
    fn as_ref(&self) -> &Path {
        self.path()
    }
}
