//! `e2e`: Kubernetes' own end-to-end tests, run from the client's machine, outside the cluster.
//!
//! In: a group of tests, or an expression. Out: a list of what ran, `report/NAME.txt` in the state folder; success only if every test of
//! the group ended as its list says, none is missing, and no kube-proxy was there before or after.

use std::{
    collections::BTreeMap,
    fs,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::{
    deploy, disturb, families,
    groups::{self, Group},
    layout::{Families, Folders},
    load_balancer,
    process::within,
    report::{self, Outcome},
};
use crate::{exec, phases::Phases, workspace::Workspace};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// A group (short, services, neighbours, dual-stack, load-balancers, disruptive, control) or a regular expression on names.
    #[arg(default_value = "short")]
    focus: String,
    /// Tests at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=32))]
    processes: u8,
    /// Meanwhile hold 500 connections, and kill all agents, roll them out anew, delete and apply their DaemonSet, again and again:
    /// nothing may be lost.
    #[arg(long)]
    disturb: bool,
}

/// Tests that an expression leaves out: they need what is not here.
const LEFT_OUT: &str = r"\[Disruptive\]|\[Alpha\]|SSH|GCE|AWS|SCTPConnectivity";

pub(super) fn run(
    options: &Options,
    workspace: &Workspace,
    folders: &Folders,
    phases: &mut Phases,
) -> Result<ExitCode> {
    let group = Group::find(&options.focus);
    let expected = group.map(|group| group.expected(&folders.root)).transpose()?;
    let (name, focus) = match &expected {
        Some(expected) => (options.focus.as_str(), groups::focus(expected)),
        None => ("expression", options.focus.clone()),
    };
    if let Some(group) = group {
        fits(group, folders)?;
        if group.control {
            phases.time("remove Steerway", || deploy::remove(workspace, folders))?;
        }
        if group.load_balancer {
            load_balancer::start(folders)?;
        }
    }
    phases.time("no kube-proxy", || deploy::no_kube_proxy(folders))?;
    let started = Instant::now();
    let skip = if expected.is_some() { None } else { Some(LEFT_OUT) };
    let (found, lost) = phases.time(&format!("tests: {name}"), || {
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let disturbance = options.disturb.then(|| scope.spawn(|| disturb::run(folders, &ended)));
            let found = run_tests(options, folders, &focus, skip);
            ended.store(true, Ordering::Relaxed);
            let lost = disturbance
                .map(|thread| thread.join().expect("the disturbance"))
                .transpose()?;
            anyhow::Ok((found?, lost.unwrap_or_default()))
        })
    })?;
    let seconds = started.elapsed().as_secs();
    let list = folders.state("report").join(format!("{name}.txt"));
    fs::write(&list, report::table(&found)).with_context(|| format!("cannot write {}", list.display()))?;
    phases.time("no kube-proxy", || deploy::no_kube_proxy(folders))?;
    let mut differences = match &expected {
        Some(expected) => report::differences(expected, &found),
        None => failures(&found),
    };
    differences.extend(lost);
    for line in &differences {
        println!("{line}");
    }
    println!("{name}: {} in {seconds} s; {}", report::summary(&found), list.display());
    Ok(if differences.is_empty() && !found.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn fits(group: Group, folders: &Folders) -> Result<()> {
    let count = folders.workers().len();
    ensure!(
        count >= group.workers,
        "the group {} needs {} workers, not {count}: `cargo xtask cluster up --workers {}`",
        group.name,
        group.workers,
        group.workers
    );
    ensure!(
        !group.ipv4_only || families(folders)? == Families::V4,
        "the group {} needs a cluster without IPv6: `cargo xtask cluster down`, then `up --ipv4-only` and `deploy`",
        group.name
    );
    Ok(())
}

fn failures(found: &BTreeMap<String, Outcome>) -> Vec<String> {
    let failed = found
        .iter()
        .filter(|(_, outcome)| !matches!(outcome.state.as_str(), "passed" | "skipped"));
    failed
        .map(|(name, outcome)| {
            format!(
                "{}: {name}: {}",
                outcome.state,
                outcome.message.lines().next().unwrap_or_default()
            )
        })
        .collect()
}

fn run_tests(
    options: &Options,
    folders: &Folders,
    focus: &str,
    skip: Option<&str>,
) -> Result<BTreeMap<String, Outcome>> {
    let folder = folders.state("report");
    fs::create_dir_all(&folder)?;
    let report = folder.join("report.json");
    fs::remove_file(&report).ok();
    let log = fs::File::create(folder.join("log"))?;
    let mut command = within(folders, "client", "ginkgo");
    command
        .args([
            "--no-color",
            "--silence-skips",
            "--timeout=2h",
            "--json-report=report.json",
        ])
        .arg(format!("--output-dir={}", folder.display()))
        .arg(format!("--procs={}", options.processes))
        .arg(format!("--focus={focus}"))
        .args(skip.map(|skip| format!("--skip={skip}")))
        .arg(folders.programs.join("e2e.test"))
        .arg("--")
        .arg(format!("--kubeconfig={}", folders.kubeconfig("admin").display()))
        .arg(format!("--num-nodes={}", folders.workers().len()))
        .args([
            "--provider=skeleton",
            "--dns-domain=cluster.local",
            "--disable-log-dump",
        ])
        .arg("--dump-logs-on-failure=false")
        .stdout(log.try_clone()?)
        .stderr(log);
    // A status other than 0 tells that a test failed, which the report tells better.
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", exec::describe(&command)))?;
    let text = fs::read_to_string(&report).with_context(|| {
        format!(
            "ginkgo ended with {status} and no report, see {}",
            folder.join("log").display()
        )
    })?;
    report::outcomes(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_group() {
        use super::super::groups::GROUPS;
        let help = <Options as Args>::augment_args(clap::Command::new("e2e"))
            .render_long_help()
            .to_string();
        for group in GROUPS {
            assert!(help.contains(group.name), "{}", group.name);
        }
    }
}
