//! `cluster`: a real Kubernetes cluster on this machine, for Steerway as its only Service proxy.
//!
//! One control plane and up to nine workers, each a set of namespaces with kubelet, containerd, cgroups and bpffs of its own; images
//! built here, no registry. All that runs lives in namespaces and cgroups that begin with `swc-`, all that is written in one state
//! folder; `down` takes both away. Every step is idempotent: what is there is left as it is.

mod archive;
mod control_plane;
mod credentials;
mod deploy;
mod disturb;
mod down;
mod e2e;
mod groups;
mod hold;
mod images;
mod kind;
mod layout;
mod load_balancer;
mod network;
mod node;
mod node_files;
mod process;
mod report;
mod worker;

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::process::CommandExt as _,
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};

use self::layout::{Families, Folders, MAX_WORKERS, Worker};
use crate::{build, exec, phases::Phases, setup, workspace::Workspace};

/// Run a Kubernetes cluster on this machine, deploy Steerway to it, and run Kubernetes' own end-to-end tests.
///
/// Builds kubelet, containerd, CoreDNS and the tests from Go modules the first time (about ten minutes on two cores). Works as
/// root, by sudo where the caller is not root, in namespaces and cgroups of its own.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
    /// A cluster of kind, in Docker's containers, instead of our own: up, deploy, kubectl, down.
    #[arg(long, global = true)]
    kind: bool,
    /// Everything is set up and built: the step that is left needs root.
    #[arg(long, global = true, hide = true)]
    prepared: bool,
}

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
enum Action {
    /// Bring the cluster up, without a Service proxy.
    Up(Up),
    /// Take the cluster away, with everything that it made.
    Down,
    /// Build the agent, load its image on every worker and apply deploy/ with kubectl.
    Deploy(deploy::Options),
    /// Run Kubernetes' own end-to-end tests and compare what ran, by name, with what kube-proxy passes.
    E2e(e2e::Options),
    /// Run kubectl as the cluster's administrator.
    Kubectl {
        /// Its arguments, after `--`.
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Run a command on a worker, in all of its namespaces.
    On {
        /// The worker's number.
        #[arg(value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_WORKERS)))]
        worker: u8,
        /// The command, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// A step of a worker's start.
    #[command(hide = true)]
    Worker {
        #[command(subcommand)]
        step: Step,
    },
    /// The stand-in for a cloud's load balancers.
    #[command(hide = true)]
    LoadBalancer,
    /// Connections that are held while tests run.
    #[command(hide = true)]
    Hold(hold::Options),
}

/// A step of a worker's start.
#[derive(Debug, Subcommand)]
enum Step {
    /// Joins cgroups, unshares namespaces.
    Enter { worker: u8 },
    /// Is process 1.
    First { worker: u8 },
}

#[derive(Debug, Args)]
struct Up {
    /// How many workers; six make two in each of three zones.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_WORKERS)))]
    workers: u8,
    /// Without IPv6.
    #[arg(long)]
    ipv4_only: bool,
}

impl Up {
    fn families(&self) -> Families {
        if self.ipv4_only { Families::V4 } else { Families::Dual }
    }
}

pub(crate) fn run(options: &Options, workspace: &Workspace, phases: &mut Phases) -> Result<ExitCode> {
    if options.kind {
        kind::run(&options.action, workspace, phases)?;
        return Ok(ExitCode::SUCCESS);
    }
    let folders = Folders::new(workspace)?;
    if !options.prepared {
        match &options.action {
            Action::Up(_) | Action::E2e(_) => setup::ensure_cluster(workspace, phases)?,
            Action::Deploy(_) => drop(build::build(workspace, phases)?),
            Action::Down
            | Action::Kubectl { .. }
            | Action::On { .. }
            | Action::Worker { .. }
            | Action::LoadBalancer
            | Action::Hold(_) => {}
        }
        if !exec::is_root()? {
            return become_root(workspace);
        }
    }
    match &options.action {
        Action::Up(up) => bring_up(up, workspace, &folders, phases)?,
        Action::Down => down::run(&folders, phases)?,
        Action::Deploy(options) => deploy::run(options, workspace, &folders, phases)?,
        Action::E2e(options) => return e2e::run(options, workspace, &folders, phases),
        Action::Kubectl { arguments } => {
            let error = process::kubectl(&folders).args(arguments).exec();
            return Err(error).context("cannot start kubectl");
        }
        Action::On { worker, command } => {
            let (program, arguments) = command.split_first().context("no command")?;
            let mut command = process::on_worker(&folders, Worker(*worker), &program.to_string_lossy())?;
            return Err(command.args(arguments).exec()).context("cannot start nsenter");
        }
        Action::Worker { step } => match step {
            Step::Enter { worker } => worker::enter(&folders, Worker(*worker))?,
            Step::First { worker } => node::run(&folders, Worker(*worker), families(&folders)?)?,
        },
        Action::LoadBalancer => load_balancer::run(&folders)?,
        Action::Hold(options) => return hold::run(options),
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts this command again as root.
fn become_root(workspace: &Workspace) -> Result<ExitCode> {
    let variables: [(&str, &OsStr); 2] = [
        ("STEERWAY_CACHE", workspace.cache.as_os_str()),
        ("CARGO_TARGET_DIR", workspace.target.as_os_str()),
    ];
    let mut command = exec::as_root(std::env::current_exe()?, &variables, "make namespaces and cgroups")?;
    command.args(std::env::args_os().skip(1).take(1)).arg("--prepared");
    let error = command.args(std::env::args_os().skip(2)).exec();
    Err(error).with_context(|| format!("cannot start {}", exec::describe(&command)))
}

fn bring_up(up: &Up, workspace: &Workspace, folders: &Folders, phases: &mut Phases) -> Result<()> {
    let wanted = up.families();
    fs::create_dir_all(folders.state("log")).with_context(|| format!("cannot create {}", folders.state.display()))?;
    let file = folders.state("families");
    if file.is_file() {
        ensure!(
            families(folders)? == wanted,
            "a cluster of other address families is up: `cargo xtask cluster down` first"
        );
    }
    fs::write(&file, if up.ipv4_only { "IPv4" } else { "both" })?;
    let workers = Worker::all(up.workers);
    phases.time("network", || network::make(folders, &workers))?;
    phases.time("credentials", || credentials::make(folders))?;
    phases.time("images", || images::make(workspace, folders))?;
    phases.time("control plane", || control_plane::start(folders, wanted))?;
    phases.time("workers", || {
        for worker in &workers {
            worker::start(folders, *worker)?;
        }
        for worker in &workers {
            worker::register(folders, *worker, wanted)?;
        }
        exec::output(process::kubectl(folders).args([
            "wait",
            "--for=condition=Ready",
            "node",
            "--all",
            "--timeout=180s",
        ]))
        .map(drop)
    })?;
    phases.time("DNS", || {
        let manifest = folders.root.join("tests/cluster/coredns.yaml");
        exec::output(process::kubectl(folders).args(["apply", "-f"]).arg(manifest)).map(drop)
    })?;
    eprint!("{}", phases.table());
    eprintln!(
        "KUBECONFIG={} (or `cargo xtask cluster kubectl -- …`)",
        folders.kubeconfig("admin").display()
    );
    Ok(())
}

/// The address families of the cluster that is up.
fn families(folders: &Folders) -> Result<Families> {
    let text = fs::read_to_string(folders.state("families")).context("no cluster is up: `cargo xtask cluster up`")?;
    Ok(if text == "IPv4" { Families::V4 } else { Families::Dual })
}
