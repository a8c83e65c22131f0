//! `deploy`: Steerway's image on every worker, and its manifests applied by kubectl, as on any cluster.
//!
//! In: the agent that `cargo xtask build` made, and an overlay of deploy/kustomize that names the API server. Out: a DaemonSet that
//! is rolled out, DNS that works through it, and the proof that no kube-proxy is anywhere.

use std::{process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::{
    images,
    layout::{Folders, Worker},
    process::{self, kubectl, on_worker},
};
use crate::{exec, phases::Phases, workspace::Workspace};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// With three capabilities and an init container instead of all privileges.
    #[arg(long)]
    pub(super) unprivileged: bool,
}

/// Deploys, or deploys anew.
pub(super) fn run(options: &Options, workspace: &Workspace, folders: &Folders, phases: &mut Phases) -> Result<()> {
    let workers = folders.workers();
    ensure!(!workers.is_empty(), "no cluster is up: `cargo xtask cluster up`");
    phases.time("image", || {
        let archive = images::steerway(folders, &workspace.agent())?;
        import(folders, &workers, &archive)
    })?;
    phases.time("manifests", || {
        let set = [
            "-n",
            "kube-system",
            "get",
            "daemonset/steerway",
            "--ignore-not-found",
            "-o",
            "name",
        ];
        let is_there = !exec::output(kubectl(folders).args(set))?.trim().is_empty();
        apply(folders, options.unprivileged)?;
        if is_there {
            // The image has the same name in every version.
            exec::output(kubectl(folders).args(["-n", "kube-system", "rollout", "restart", "daemonset/steerway"]))?;
        }
        Ok(())
    })?;
    phases.time("rollout", || {
        for object in ["daemonset/steerway", "deployment/coredns"] {
            exec::run(kubectl(folders).args(["-n", "kube-system", "rollout", "status", object, "--timeout=240s"]))?;
        }
        Ok(())
    })?;
    phases.time("no kube-proxy", || no_kube_proxy(folders))
}

/// Applies the manifests.
pub(super) fn apply(folders: &Folders, unprivileged: bool) -> Result<()> {
    let overlay = if unprivileged {
        "overlay-unprivileged"
    } else {
        "overlay"
    };
    let folder = folders.root.join("tests/cluster").join(overlay);
    exec::run(kubectl(folders).args(["apply", "-k"]).arg(folder))
}

/// Imports an archive on all workers at once.
fn import(folders: &Folders, workers: &[Worker], archive: &std::path::Path) -> Result<()> {
    thread::scope(|scope| {
        let started: Vec<_> = workers
            .iter()
            .map(|worker| {
                scope.spawn(move || {
                    let mut command = on_worker(folders, *worker, "ctr")?;
                    exec::output(command.args(["-n", "k8s.io", "images", "import"]).arg(archive))
                })
            })
            .collect();
        for import in started {
            import.join().ok().context("an import panicked")??;
        }
        Ok(())
    })
}

/// Fails if a worker has rules or a process of kube-proxy, or the cluster a DaemonSet of it.
pub(super) fn no_kube_proxy(folders: &Folders) -> Result<()> {
    for worker in folders.workers() {
        let name = worker.name();
        let tables = exec::output(on_worker(folders, worker, "nft")?.args(["list", "tables"]))?;
        ensure!(
            !tables.contains("kube-proxy"),
            "{name} has tables of kube-proxy:\n{tables}"
        );
        let processes = exec::output(on_worker(folders, worker, "ps")?.args(["-e", "-o", "comm="]))?;
        ensure!(
            processes.lines().all(|process| process.trim() != "kube-proxy"),
            "kube-proxy runs on {name}"
        );
    }
    no_kube_proxy_set(&mut kubectl(folders))
}

/// Fails if the cluster that `kubectl` knows has a DaemonSet of kube-proxy, by its name or its image.
pub(super) fn no_kube_proxy_set(kubectl: &mut Command) -> Result<()> {
    let sets = exec::output(kubectl.args(["get", "daemonsets", "--all-namespaces", "-o", IMAGES]))?;
    ensure!(
        !sets.contains("kube-proxy"),
        "the cluster has a DaemonSet of kube-proxy:\n{sets}"
    );
    Ok(())
}

/// kubectl's form of names and images.
const IMAGES: &str =
    "jsonpath={range .items[*]}{.metadata.name} {.spec.template.spec.containers[*].image}{\"\\n\"}{end}";

/// Takes Steerway away from every worker, with all of its traces: the cluster has no Service proxy then.
pub(super) fn remove(workspace: &Workspace, folders: &Folders) -> Result<()> {
    exec::output(kubectl(folders).args([
        "-n",
        "kube-system",
        "delete",
        "daemonset/steerway",
        "deployment/coredns",
        "--ignore-not-found",
        "--timeout=120s",
    ]))?;
    let pods = ["-n", "kube-system", "get", "pods", "-o", "name"];
    process::wait(Duration::from_mins(2), "the agents' pods end", || {
        let found = exec::output(kubectl(folders).args(pods)).map_err(|error| format!("{error:#}"))?;
        if found.trim().is_empty() { Ok(()) } else { Err(found) }
    })?;
    for worker in folders.workers() {
        let agent = workspace.agent();
        let mut command = on_worker(folders, worker, &agent.to_string_lossy())?;
        exec::output(command.arg("cleanup"))?;
    }
    Ok(())
}
