//! A worker: one set of namespaces (network, mounts, processes, host name, IPC, cgroups) with containerd and kubelet, like a node of
//! kind without Docker.
//!
//! [`start`] begins three steps, each a process that becomes the next: `enter` moves itself into cgroups of the worker's own and
//! unshares namespaces, `first` is process 1 there ([`super::node`]). Ending the outer process ends all that is inside.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use serde_json::json;

use super::{
    layout::{Families, Folders, PREFIX, Worker},
    process::{self, kubectl, within},
};
use crate::exec;

/// How long a kubelet may take to register its node.
const REGISTER: Duration = Duration::from_mins(3);

/// Starts the worker unless it runs.
pub(super) fn start(folders: &Folders, worker: Worker) -> Result<()> {
    fs::create_dir_all(folders.worker(worker))?;
    let program = std::env::current_exe()?;
    let mut command = within(folders, &worker.name(), &program.to_string_lossy());
    command.args(["cluster", "worker", "enter", &worker.0.to_string()]);
    // Where this program finds the checkout and the cache.
    for variable in ["CARGO_MANIFEST_DIR", "STEERWAY_CACHE", "HOME"] {
        if let Some(value) = std::env::var_os(variable) {
            command.env(variable, value);
        }
    }
    process::start(folders, &worker.name(), &command)
}

/// Waits until the worker's Node is there, and gives it the ranges of its pods.
pub(super) fn register(folders: &Folders, worker: Worker, families: Families) -> Result<()> {
    let name = worker.name();
    let log = folders.worker(worker).join("disk/var/log");
    process::wait(REGISTER, &format!("{name} registers, see {}", log.display()), || {
        if process::running(folders, &name).is_none() {
            let log = folders.state("log").join(&name);
            return Ok(Err(anyhow!("{name} has ended, see {}", log.display())));
        }
        exec::output(kubectl(folders).args(["get", "node", &name]))
            .map(Ok)
            .map_err(|error| format!("{error:#}"))
    })??;
    let ranges = families.of(worker.pods());
    let patch = json!({ "spec": { "podCIDR": ranges[0], "podCIDRs": ranges } });
    exec::output(kubectl(folders).args(["patch", "node", &name, "-p", &patch.to_string()])).map(drop)
}

/// Becomes process 1 of the worker: joins its cgroups, then unshares.
pub(super) fn enter(folders: &Folders, worker: Worker) -> Result<()> {
    for hierarchy in cgroups()? {
        let own = hierarchy.join(cgroup(worker));
        fs::create_dir_all(&own).with_context(|| format!("cannot create {}", own.display()))?;
        if own.join("cpuset.cpus").is_file() && !own.join("cgroup.controllers").is_file() {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(own.join(file), fs::read(hierarchy.join(file))?)?;
            }
            fs::write(own.join("cgroup.clone_children"), "1")?;
        }
        fs::write(own.join("cgroup.procs"), std::process::id().to_string())
            .with_context(|| format!("cannot enter {}", own.display()))?;
    }
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--cgroup",
            "--fork",
            "--kill-child",
        ])
        .arg(std::env::current_exe()?)
        .args(["cluster", "worker", "first", &worker.0.to_string()])
        .env("PATH", folders.path());
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", exec::describe(&command)))
}

/// Removes the cgroups of all workers.
pub(super) fn remove_cgroups() -> Result<()> {
    for hierarchy in cgroups()? {
        let entries = fs::read_dir(&hierarchy)?.flatten();
        let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
        for entry in ours.filter(|entry| entry.path().is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    Ok(())
}

/// Where cgroup hierarchies are mounted.
fn cgroups() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    Ok(mounted(&mounts).map(PathBuf::from).collect())
}

/// The places of cgroup file systems, of both versions.
fn mounted(mounts: &str) -> impl Iterator<Item = &str> {
    mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (_, place, kind) = (words.next()?, words.next()?, words.next()?);
        matches!(kind, "cgroup" | "cgroup2").then_some(place)
    })
}

fn cgroup(worker: Worker) -> String {
    format!("{PREFIX}{}", worker.name())
}

/// Removes a cgroup with all below it. Ended processes leave it a moment later.
fn remove_cgroup(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    let mut tries = 50;
    loop {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && tries > 0 => {
                tries -= 1;
                thread::sleep(Duration::from_millis(100));
            }
            result => return result.with_context(|| format!("cannot remove {}", folder.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_cgroups_are_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found: Vec<_> = mounted(mounts).collect();
        assert_eq!(found, ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"]);
    }
}
