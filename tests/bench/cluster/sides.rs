//! The two that serve the cluster's objects, started and asked alike.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lb_tests::agent::Agent;
use lb_tests::kubernetes::asset;
use lb_tests::memory;
use lb_tests::netns::Netns;
use lb_tests::world::CLUSTER_CIDR;
use nix::unistd::{SysconfVar, sysconf};
use tempfile::TempDir;

use super::{Cluster, series};

/// Their names; the number of a side's node is one more than its place.
pub(crate) const SIDES: [&str; 2] = ["Steerway", "kube-proxy"];
/// Where both tell their metrics, on the node alone.
const METRICS: &str = "127.0.0.1:10249";
/// How long metrics may take to follow.
const LIMIT: Duration = Duration::from_mins(1);

/// What serves.
enum Process {
    Steerway(Agent),
    KubeProxy(
        Child,
        #[expect(dead_code, reason = "the folder of its log lives as long")] TempDir,
    ),
}

/// A side that runs; dropping it ends it and takes away what it programmed.
pub(crate) struct Running {
    process: Process,
    pub(crate) node: usize,
    pub(crate) started: Instant,
    netns: Netns,
}

impl Running {
    /// Starts a side, as on a node that was just booted.
    pub(crate) fn start(cluster: &Cluster, side: &str) -> Result<Self> {
        let place = SIDES.iter().position(|name| *name == side).context("a side")?;
        let node = cluster.world.node(place + 1);
        let kubeconfig = cluster.control.kube_proxy();
        cluster.prepare(node.number);
        let started = Instant::now();
        let process = if place == 0 {
            Process::Steerway(Agent::start_on_api(node, kubeconfig, &[]))
        } else {
            let folder = tempfile::tempdir()?;
            let log = File::create(folder.path().join("log"))?;
            let mut command = node.ns.command(asset("kube-proxy"));
            command
                .arg(format!("--kubeconfig={}", kubeconfig.display()))
                .arg(format!("--hostname-override={}", node.name))
                .arg(format!("--cluster-cidr={CLUSTER_CIDR}"))
                .args(["--proxy-mode=nftables", "--conntrack-max-per-core=0"])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log);
            Process::KubeProxy(command.spawn().context("start kube-proxy")?, folder)
        };
        Ok(Self {
            process,
            node: node.number,
            started,
            netns: node.ns.clone(),
        })
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> Result<u32> {
        match &self.process {
            Process::Steerway(agent) => agent.pid().context("an agent that runs"),
            Process::KubeProxy(child, _) => Ok(child.id()),
        }
    }

    fn metrics(&self) -> Result<String> {
        let text = self.netns.run(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect(METRICS)?;
            write!(stream, "GET /metrics HTTP/1.0\r\nHost: node\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        });
        text.context("metrics")
    }

    /// The first sync as it tells itself, in milliseconds: all of it, and of Steerway what it took to plan and write the tables.
    pub(crate) fn first_sync(&self) -> Result<(f64, f64)> {
        let started = Instant::now();
        loop {
            let found = match &self.process {
                Process::Steerway(agent) => of_log(&agent.log()),
                Process::KubeProxy(..) => {
                    let sum = series(&self.metrics()?, "kubeproxy_sync_full_proxy_rules_duration_seconds_sum");
                    sum.ok().filter(|sum| *sum > 0.0).map(|sum| (sum * 1e3, 0.0))
                }
            };
            if let Some(found) = found {
                return Ok(found);
            }
            if started.elapsed() > LIMIT {
                bail!("no first sync is told of");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Milliseconds from the last change seen to the tables written, once they are.
    pub(crate) fn seen_to_written(&self) -> Result<f64> {
        let started = Instant::now();
        loop {
            let metrics = self.metrics()?;
            let queued = series(&metrics, "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds")?;
            let written = series(&metrics, "kubeproxy_sync_proxy_rules_last_timestamp_seconds")?;
            if written >= queued {
                return Ok((written - queued) * 1e3);
            }
            if started.elapsed() > LIMIT {
                bail!("the last change is not written");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Megabytes of the kernel that its maps take.
    pub(crate) fn tables(&self) -> Result<f64> {
        Ok(memory::of_maps(self.pid()?)? as f64 / 1e6)
    }

    /// Seconds that it has had of processors.
    pub(crate) fn processor_seconds(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()?)).context("a process that runs")?;
        // The name in parentheses may hold spaces; user and system time are the 12th and 13th field after it.
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: f64 = fields
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<f64>().ok())
            .sum();
        let a_second = sysconf(SysconfVar::CLK_TCK)?.context("ticks of a second")?;
        Ok(ticks / a_second as f64)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Process::KubeProxy(child, _) = &mut self.process {
            child.kill().ok();
            child.wait().ok();
            self.netns.cmd(&["nft", "flush", "ruleset"]);
        }
    }
}

/// Milliseconds of the largest publication that the agent has logged: of all, and of planning and writing.
fn of_log(log: &str) -> Option<(f64, f64)> {
    let lines = log.lines().filter(|line| line.contains("published"));
    let line = lines.max_by_key(|line| field(line, "ops").unwrap_or(0))?;
    let table_work = field(line, "adopt_ms")? + field(line, "plan_ms")? + field(line, "write_ms")?;
    Some((field(line, "ms")? as f64, table_work as f64))
}

/// A whole number of a log line.
fn field(line: &str, name: &str) -> Option<u64> {
    let word = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    word?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_log_line_are_told_apart() {
        let line = "INFO published ops=40 ms=7 adopt_ms=1 write_ms=3";
        assert_eq!((field(line, "ms"), field(line, "write_ms")), (Some(7), Some(3)));
        assert_eq!(field(line, "plan_ms"), None);
        let log = format!("{line} plan_ms=2\nINFO published ops=1 ms=1 adopt_ms=0 plan_ms=0 write_ms=0\n");
        assert_eq!(of_log(&log), Some((7.0, 6.0)));
        assert_eq!(of_log("INFO programs loaded"), None);
    }
}
