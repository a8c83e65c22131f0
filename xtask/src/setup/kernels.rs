//! The kernels of other nodes, for the tests in virtual machines: Debian's packages, unpacked and not installed.
//!
//! In: the cache. Out: `kernels/VERSION` in it with the package's `boot` and `lib/modules`, whole or not there. The package's
//! exact name changes with every security update, so the newest of the day is taken, once.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{exec, workspace::Workspace};

/// The oldest kernel that is supported, and the one between it and the newest: Debian 12's and its backport.
pub(crate) const VERSIONS: [&str; 2] = ["6.1", "6.12"];

/// The folder with a folder for each version.
pub(crate) fn folder(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("kernels")
}

/// The versions that are not there.
pub(crate) fn missing(workspace: &Workspace) -> Vec<&'static str> {
    let folder = folder(workspace);
    VERSIONS
        .into_iter()
        .filter(|version| !folder.join(version).exists())
        .collect()
}

/// Downloads and unpacks the kernel `version`.
pub(crate) fn install(workspace: &Workspace, version: &str) -> Result<()> {
    let mut search = Command::new("apt-cache");
    let known = exec::output(search.args(["pkgnames", &format!("linux-image-{version}.")]))?;
    let package = newest(&known, version)
        .with_context(|| format!("Debian's package sources have no linux-image-{version}.*-cloud-amd64"))?;
    let folder = folder(workspace);
    let partial = folder.join(format!("{version}.partial"));
    // What a former run left unfinished.
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    exec::run(
        Command::new("apt-get")
            .args(["-qq", "download", package])
            .current_dir(&partial),
    )?;
    let archive = fs::read_dir(&partial)
        .with_context(|| format!("cannot read {}", partial.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package} left no package"))?;
    exec::run(Command::new("dpkg-deb").arg("-x").args([&archive, &partial]))?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    let done = folder.join(version);
    fs::rename(&partial, &done).with_context(|| format!("cannot rename {} to {}", partial.display(), done.display()))
}

/// The newest cloud image of `version` among package names, one a line.
fn newest<'a>(names: &'a str, version: &str) -> Option<&'a str> {
    let prefix = format!("linux-image-{version}.");
    names
        .lines()
        .filter(|name| name.starts_with(&prefix) && name.ends_with("-cloud-amd64"))
        .max_by_key(|name| numbers(name))
}

/// The numbers in a name, in order.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_image_is_the_one_with_the_highest_numbers() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64\nlinux-image-6.1.0-57-amd64\n\
                     linux-image-6.1.0-57-cloud-amd64-dbg\nlinux-image-6.12.9+deb12-cloud-amd64\n";
        assert_eq!(newest(names, "6.1"), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(names, "6.12"), Some("linux-image-6.12.9+deb12-cloud-amd64"));
        assert_eq!(newest(names, "5.15"), None);
    }
}
