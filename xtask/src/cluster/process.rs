//! Processes of the cluster: started in a network namespace, in a session of their own, with a log and a file with the process id.
//!
//! A process of ours is recognised by its network namespace, so that a number that a file names is never ended when it is
//! somebody else's by now.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::layout::{Folders, PREFIX, Worker};
use crate::exec;

/// Where `ip netns` keeps its namespaces.
pub(super) const NETNS: &str = "/run/netns";

/// A command in one of the cluster's network namespaces.
pub(super) fn within(folders: &Folders, namespace: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={NETNS}/{PREFIX}{namespace}"))
        .arg(program)
        .env("PATH", folders.path())
        .env("KUBECONFIG", folders.kubeconfig("admin"));
    command
}

/// A command in all namespaces and cgroups of a worker: it counts as a process of that node.
pub(super) fn on_worker(folders: &Folders, worker: Worker, program: &str) -> Result<Command> {
    let init = first_process(folders, worker)?;
    let mut command = Command::new("nsenter");
    command
        .args(["-m", "-n", "-p", "-u", "-i", "-C", "-t", &init.to_string(), program])
        .env("PATH", folders.path());
    Ok(command)
}

/// kubectl as the administrator, from the client's machine.
pub(super) fn kubectl(folders: &Folders) -> Command {
    within(folders, "client", "kubectl")
}

/// Starts `command` unless its process runs; its output goes to `log/NAME`.
pub(super) fn start(folders: &Folders, name: &str, command: &Command) -> Result<()> {
    if running(folders, name).is_some() {
        return Ok(());
    }
    let log = folders.state("log").join(name);
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut detached = Command::new("setsid");
    detached.arg(command.get_program()).args(command.get_args());
    for (variable, value) in command.get_envs() {
        if let Some(value) = value {
            detached.env(variable, value);
        }
    }
    detached.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut child = detached
        .spawn()
        .with_context(|| format!("cannot start {}", exec::describe(&detached)))?;
    let file = pid_file(folders, name);
    fs::write(&file, child.id().to_string()).with_context(|| format!("cannot write {}", file.display()))?;
    // Until it has entered its namespace it is not known as ours.
    wait(
        Duration::from_secs(20),
        &format!("{name} starts, see {}", log.display()),
        || {
            if is_ours(child.id()) {
                return Ok(Ok(()));
            }
            match child.try_wait() {
                Ok(None) => Err("it is not in its namespace yet".to_owned()),
                ended => Ok(Err(anyhow!("{name} has ended, see {}: {ended:?}", log.display()))),
            }
        },
    )?
}

/// The process id of a process that was started and still runs.
pub(super) fn running(folders: &Folders, name: &str) -> Option<u32> {
    let text = fs::read_to_string(pid_file(folders, name)).ok()?;
    text.parse().ok().filter(|pid| is_ours(*pid))
}

/// Ends a process if it runs, and waits for its end.
pub(super) fn end(folders: &Folders, name: &str) -> Result<()> {
    if let Some(pid) = running(folders, name) {
        // An API server without etcd would never end by itself.
        exec::output(Command::new("kill").args(["-KILL", &pid.to_string()]))?;
        wait(Duration::from_secs(20), &format!("{name} ends"), || {
            if is_ours(pid) {
                Err("it runs".to_owned())
            } else {
                Ok(())
            }
        })?;
    }
    fs::remove_file(pid_file(folders, name)).ok();
    Ok(())
}

/// The names of all processes that were started.
pub(super) fn names(folders: &Folders) -> Vec<String> {
    let entries = fs::read_dir(&folders.state).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| entry.file_name().into_string().ok());
    files
        .filter_map(|file| Some(file.strip_suffix(".pid")?.to_owned()))
        .collect()
}

/// The worker's first process, as this machine numbers it.
pub(super) fn first_process(folders: &Folders, worker: Worker) -> Result<u32> {
    let name = worker.name();
    let outer = running(folders, &name).with_context(|| format!("{name} does not run: `cargo xtask cluster up`"))?;
    let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?;
    let first = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
    first.with_context(|| format!("{name} has no process"))
}

/// Asks until `work` succeeds. What it said last is in the error.
pub(super) fn wait<T>(limit: Duration, what: &str, mut work: impl FnMut() -> Result<T, String>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match work() {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= deadline => bail!("not within {} s: {what}: {reason}", limit.as_secs()),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn pid_file(folders: &Folders, name: &str) -> std::path::PathBuf {
    folders.state(format!("{name}.pid"))
}

/// Whether a process lives, no zombie, in a network namespace of the cluster.
fn is_ours(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    if matches!(state, None | Some('Z' | 'X')) {
        return false;
    }
    let inode = |path: &Path| {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(path).map(|found| found.ino()).ok()
    };
    let Some(own) = inode(Path::new(&format!("/proc/{pid}/ns/net"))) else {
        return false;
    };
    let entries = fs::read_dir(NETNS).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .any(|entry| inode(&entry.path()) == Some(own))
}
