//! `e2e --disturb`: what happens to the agents of a cluster in its life, while tests run and connections are held.
//!
//! In: a cluster with Steerway. Held are connections from a worker to a ClusterIP and from the client's machine to a node port. Beside
//! them, again and again: every agent is killed, the DaemonSet is rolled out anew, and deleted and applied. Out: what was lost; nothing
//! may be.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    deploy,
    layout::{Folders, Worker, lan},
    process::{kubectl, on_worker, within},
};
use crate::exec;

/// Connections of each of the two holders.
const CONNECTIONS: &str = "250";
/// As in tests/cluster/held.yaml.
const CLUSTER_IP: &str = "10.96.0.99:80";
const NODE_PORT: u16 = 30999;
/// Between two disturbances.
const PAUSE: Duration = Duration::from_secs(5);

/// Holds connections and disturbs the agents until `ended`, at least once in each way; what was lost, one a line.
pub(super) fn run(folders: &Folders, ended: &AtomicBool) -> Result<Vec<String>> {
    let manifest = folders.root.join("tests/cluster/held.yaml");
    exec::output(kubectl(folders).args(["apply", "-f"]).arg(&manifest))?;
    exec::output(kubectl(folders).args(["-n", "held", "rollout", "status", "deployment/held", "--timeout=120s"]))?;
    let this = std::env::current_exe()?;
    let this = this.to_string_lossy();
    let [node, _] = lan(Worker(2).last());
    let holders = [
        Holder::start(on_worker(folders, Worker(1), &this)?, CLUSTER_IP)?,
        Holder::start(within(folders, "client", &this), &format!("{node}:{NODE_PORT}"))?,
    ];
    let mut rounds = 0;
    while rounds == 0 || !ended.load(Ordering::Relaxed) {
        for (what, disturb) in [
            ("every agent killed", kill as fn(&Folders) -> Result<()>),
            ("rolled out", roll_out),
            ("deleted and applied", apply_anew),
        ] {
            thread::sleep(PAUSE);
            disturb(folders).context(what)?;
            let status = [
                "-n",
                "kube-system",
                "rollout",
                "status",
                "daemonset/steerway",
                "--timeout=240s",
            ];
            exec::output(kubectl(folders).args(status)).context(what)?;
            eprintln!("{what}");
        }
        rounds += 1;
    }
    let mut lost = Vec::new();
    for holder in holders {
        lost.extend(holder.end()?);
    }
    exec::output(kubectl(folders).args(["delete", "--wait=false", "-f"]).arg(&manifest))?;
    Ok(lost)
}

/// A process that holds connections.
struct Holder {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Holder {
    /// Starts this program anew by `command`, to hold connections to `address`, and waits until they are open.
    fn start(mut command: Command, address: &str) -> Result<Self> {
        command
            .args(["cluster", "--prepared", "hold", "--count", CONNECTIONS, address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", exec::describe(&command)))?;
        let mut output = BufReader::new(child.stdout.take().context("its output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(line == "open\n", "connections to {address} do not open: {line}");
        Ok(Self { child, output })
    }

    /// Ends it; what it says of lost connections.
    fn end(mut self) -> Result<Vec<String>> {
        drop(self.child.stdin.take());
        let lines: Vec<String> = self.output.lines().collect::<Result<_, _>>()?;
        let status = self.child.wait()?;
        for line in &lines {
            println!("{line}");
        }
        let lost: Vec<String> = lines.into_iter().filter(|line| line.starts_with("lost ")).collect();
        ensure!(status.success() || !lost.is_empty(), "a holder ended with {status}");
        Ok(lost)
    }
}

fn kill(folders: &Folders) -> Result<()> {
    for worker in folders.workers() {
        let found = exec::output(on_worker(folders, worker, "pidof")?.arg("steerway"))
            .with_context(|| format!("no agent on {}", worker.name()))?;
        let mut kill = on_worker(folders, worker, "kill")?;
        exec::output(kill.arg("-KILL").args(found.split_whitespace()))?;
    }
    Ok(())
}

fn roll_out(folders: &Folders) -> Result<()> {
    exec::output(kubectl(folders).args(["-n", "kube-system", "rollout", "restart", "daemonset/steerway"])).map(drop)
}

fn apply_anew(folders: &Folders) -> Result<()> {
    let delete = ["-n", "kube-system", "delete", "daemonset/steerway", "--timeout=120s"];
    exec::output(kubectl(folders).args(delete))?;
    deploy::apply(folders, false)
}
