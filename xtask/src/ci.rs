//! `ci`: everything that has to hold before a change lands, cheapest first, then all tests, then the demo and Kubernetes' own
//! tests in a cluster, on the agent that users get.
//!
//! What tests and cluster need is installed beside the checks and builds, of which none needs it.
//!
//! A failed check does not hide what comes after it: each counts as one failure in the last line, which is that of
//! `test`. The kernel crate is linted on the host, where it compiles to a stub: Debian ships no clippy for its
//! compiler.

use std::{
    env,
    process::{Command, ExitCode},
};

use anyhow::Result;
use clap::Args;

use crate::{
    build, build_ebpf, demo, exec,
    phases::Phases,
    setup::Beside,
    test::{self, Report},
    tidy,
    workspace::Workspace,
};

/// Format, tidy, lints, documentation, all tests, the demo, a cluster: what has to pass before a change lands.
///
/// The cluster is that of `cargo xtask cluster`: one that is up is used, and taken down. The last line is `N passed, N failed`; each failed check counts as one failure.
#[derive(Debug, Args)]
pub(crate) struct Options {}

pub(crate) fn run(_options: &Options, workspace: &Workspace, phases: Phases) -> ExitCode {
    let mut report = Report::new(phases);
    check(&mut report, "format", || {
        exec::run(exec::cargo(&workspace.root).args(["fmt", "--all", "--check"]))
    });
    check(&mut report, "tidy", || tidy::check(workspace));
    let setup = Beside::start(true, workspace, &mut report.phases);
    // Before the lints, because the agent's crate does not compile without the object.
    match build_ebpf::build(workspace, &mut report.phases) {
        Err(error) => report.fail("build-ebpf", &format!("{error:#}")),
        Ok(object) => {
            let cargo = || build::cargo_with_object(workspace, &object);
            check(&mut report, "lints", || {
                let arguments = [
                    "clippy",
                    "--locked",
                    "--workspace",
                    "--exclude",
                    "lb-ebpf",
                    "--all-targets",
                    "--",
                    "-Dwarnings",
                ];
                exec::run(cargo().args(arguments))
            });
            check(&mut report, "documentation", || {
                let arguments = [
                    "doc",
                    "--locked",
                    "--workspace",
                    "--exclude",
                    "lb-ebpf",
                    "--no-deps",
                    "--document-private-items",
                ];
                exec::run(cargo().env("RUSTDOCFLAGS", "-Dwarnings").args(arguments))
            });
        }
    }
    let kernel = |arguments: &[&str]| {
        let mut cargo = exec::cargo(&workspace.root);
        // Kernel programs use unstable features; a folder of its own, because the variable makes build scripts run anew.
        cargo
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", workspace.target.join("lint-ebpf"));
        exec::run(cargo.env("RUSTDOCFLAGS", "-Dwarnings").args(arguments))
    };
    check(&mut report, "lints of lb-ebpf", || {
        kernel(&[
            "clippy",
            "--locked",
            "-p",
            "lb-ebpf",
            "--all-targets",
            "--",
            "-Dwarnings",
        ])
    });
    check(&mut report, "documentation of lb-ebpf", || {
        kernel(&[
            "doc",
            "--locked",
            "-p",
            "lb-ebpf",
            "--no-deps",
            "--document-private-items",
        ])
    });
    test::run_into(&test::Options::default(), workspace, setup, &mut report);
    let demo = demo::prepare(&demo::Options::default(), workspace, &mut report.phases);
    check(&mut report, "demo", || exec::run(&mut demo?));
    cluster(&mut report);
    report.finish()
}

/// A real cluster from beginning to end, by the commands that people use; what was made of it is taken away also where a step fails.
fn cluster(report: &mut Report) {
    for arguments in [&["up"][..], &["deploy"], &["e2e", "short"], &["down"]] {
        check(report, &format!("cluster {}", arguments.join(" ")), || {
            exec::run(Command::new(env::current_exe()?).arg("cluster").args(arguments))
        });
    }
}

/// Runs one check as a phase and counts its failure.
fn check(report: &mut Report, name: &str, work: impl FnOnce() -> Result<()>) {
    if let Err(error) = report.phases.time(name, work) {
        report.fail(name, &format!("{error:#}"));
    }
}
