//! `test`: runs every test there is, on the host and as root in namespaces, and compares them with the committed list.
//!
//! The steps are in [`run_steps`], one a line. A test that was not run is as bad as one that failed: ignored tests,
//! tests of the list that did not run and tests that are not in the list count as failed. The last line on standard
//! output is `N passed, N failed`, whatever happened; the exit code is 0 only if something passed and nothing failed.

mod binaries;
mod libtest;
pub(crate) mod names;
mod report;
mod runner;
mod selection;

use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, ExitCode},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

pub(crate) use self::report::Report;
use self::{binaries::TestBinary, selection::Selection};
use crate::{
    build, build_ebpf, exec,
    phases::Phases,
    setup::{self, Beside},
    workspace::Workspace,
};

/// Packages with tests. Always all of them in one build: cargo joins the features of what it builds together, so that
/// another choice of packages compiles many dependencies again.
pub(crate) const PACKAGES: [&str; 4] = ["lb-common", "steerway", "xtask", "lb-tests"];

/// The package whose tests need root; its library's unit tests run with them.
const ROOT_PACKAGE: &str = "lb-tests/";

/// Tests that keep every processor busy for minutes, so that what waits for packets runs before them.
const LAST: &str = "kernels::";

/// Environment of every test: one that cannot run has to fail.
const VARIABLES: [(&str, &str); 2] = [("LB_TESTS_REQUIRE", "1"), ("RUST_BACKTRACE", "1")];

/// Run all tests, host and kernel; the last line is `N passed, N failed`.
///
/// Sets up what is missing, builds kernel programs and agent, then runs unit and property tests as the caller and the
/// test suite as root (by sudo where the caller is not root), in network namespaces of its own. Fails on any failure,
/// on an ignored test, and when the tests differ from tests/test-names.txt.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    selection: Selection,
    /// Write the names of all tests that ran to tests/test-names.txt, if all passed.
    #[arg(long, conflicts_with_all = ["filter", "tier"])]
    bless_names: bool,
}

pub(crate) fn run(options: &Options, workspace: &Workspace, phases: Phases) -> ExitCode {
    let mut report = Report::new(phases);
    let setup = Beside::start(false, workspace, &mut report.phases);
    run_into(options, workspace, setup, &mut report);
    report.finish()
}

/// Runs the steps and compares the names; whatever goes wrong is a failure in `report`.
pub(crate) fn run_into(options: &Options, workspace: &Workspace, setup: Result<Beside>, report: &mut Report) {
    let result = setup
        .and_then(|setup| run_steps(&options.selection, workspace, setup, report))
        .and_then(|()| check_names(options, workspace, report));
    if let Err(error) = result {
        report.fail("cargo xtask test", &format!("{error:#}"));
    }
}

/// The steps in order. An error means that a step could not be done: what comes after it is left out.
///
/// The kernel object comes first, because the agent's crate embeds it: with the same object in every step that crate
/// is compiled once. Its agent is one of the tests' profile; the one that users get has the demo. Nothing runs before `setup` is done.
fn run_steps(selection: &Selection, workspace: &Workspace, setup: Beside, report: &mut Report) -> Result<()> {
    let object = build_ebpf::build(workspace, &mut report.phases)?;
    let binaries = build_tests(selection, workspace, &object, report)?;
    setup.finish(&mut report.phases)?;
    let (root, host): (Vec<_>, Vec<_>) = binaries
        .iter()
        .partition(|binary| binary.name.starts_with(ROOT_PACKAGE));
    for binary in host {
        let mut command = Command::new(&binary.executable);
        command.envs(VARIABLES);
        run_binary(binary, command, |test| selection.takes(&binary.name, test), report)?;
    }
    if selection.wants_host() {
        examples(selection, workspace, &object, report)?;
        for binary in build_model_checked(workspace, report)? {
            let mut command = Command::new(&binary.executable);
            command.envs(VARIABLES);
            run_binary(&binary, command, |test| selection.takes(&binary.name, test), report)?;
        }
    }
    if !selection.wants_suite() {
        return Ok(());
    }
    let agent = build::agent_of_tests(workspace, &mut report.phases, &object)?;
    let kernels = setup::kernels::folder(workspace);
    let kubernetes = setup::kubernetes::folder(workspace)?;
    let mut variables: Vec<(&str, &OsStr)> = VARIABLES.map(|(name, value)| (name, value.as_ref())).to_vec();
    variables.extend([
        ("STEERWAY_EBPF", object.as_os_str()),
        ("STEERWAY_BIN", agent.as_os_str()),
        ("STEERWAY_KERNELS", kernels.as_os_str()),
        (setup::kubernetes::VARIABLE, kubernetes.as_os_str()),
    ]);
    for binary in root {
        for last in [false, true] {
            let mut command = exec::as_root(&binary.executable, &variables, "run the test suite")?;
            command.args(["--test-threads", &threads(last)?.to_string()]);
            let chosen = |test: &str| test.starts_with(LAST) == last && selection.takes(&binary.name, test);
            run_binary(binary, command, chosen, report)?;
        }
    }
    Ok(())
}

/// How many tests of the suite run at a time: most of them wait for packets now and then, [`LAST`] ones do not.
fn threads(last: bool) -> Result<usize> {
    let processors = thread::available_parallelism()
        .context("the number of processors")?
        .get();
    Ok(if last { processors } else { processors + 1 })
}

/// Builds the binaries that hold the selected tests.
fn build_tests(
    selection: &Selection,
    workspace: &Workspace,
    object: &Path,
    report: &mut Report,
) -> Result<Vec<TestBinary>> {
    let mut arguments: Vec<&str> = PACKAGES.iter().flat_map(|package| ["-p", package]).collect();
    arguments.extend(["--lib", "--bins"]);
    if selection.wants_suite() {
        arguments.extend(["--test", "suite"]);
    }
    let cargo = build::cargo_with_object(workspace, object);
    report
        .phases
        .time("build the tests", || binaries::build(cargo, &arguments))
}

/// Builds the flow table's protocol for the model checker, which wants the whole of it compiled with a flag: a target
/// folder of its own.
fn build_model_checked(workspace: &Workspace, report: &mut Report) -> Result<Vec<TestBinary>> {
    let mut cargo = exec::cargo(&workspace.root);
    cargo
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", workspace.target.join("loom"));
    let arguments = [
        "-p",
        "lb-common",
        "--features",
        "testing",
        "--test",
        "loom",
        "--release",
    ];
    report
        .phases
        .time("build the model checker's tests", || binaries::build(cargo, &arguments))
}

/// Examples in documentation, as the caller.
fn examples(selection: &Selection, workspace: &Workspace, object: &Path, report: &mut Report) -> Result<()> {
    let mut command = build::cargo_with_object(workspace, object);
    command
        .args(["test", "--locked", "--doc", "--no-fail-fast"])
        .args(PACKAGES.iter().flat_map(|package| ["-p", package]));
    command.arg("--").args(selection.filter());
    let run = report.phases.time("run the examples", || runner::run(&mut command))?;
    report.add("doc", run, None);
    Ok(())
}

/// Runs the chosen tests of one binary by `command`, which starts it.
fn run_binary(
    binary: &TestBinary,
    mut command: Command,
    chosen: impl Fn(&str) -> bool,
    report: &mut Report,
) -> Result<()> {
    let all = binary.list()?;
    let selected: Vec<String> = all.iter().filter(|test| chosen(test)).cloned().collect();
    if selected.is_empty() {
        return Ok(());
    }
    command.current_dir(&binary.folder);
    if selected.len() < all.len() {
        command.arg("--exact").args(&selected);
    }
    let run = report
        .phases
        .time(&format!("run {}", binary.name), || runner::run(&mut command))?;
    report.add(&binary.name, run, Some(&selected));
    Ok(())
}

/// Compares what ran with the committed list, or rewrites that list.
fn check_names(options: &Options, workspace: &Workspace, report: &mut Report) -> Result<()> {
    let path = workspace.root.join(names::FILE);
    if options.bless_names {
        ensure!(
            report.is_clean(),
            "{} was not written, because something failed",
            path.display()
        );
        return names::write(&path, report.ran());
    }
    let mut expected = names::read(&path)?;
    expected.retain(|name| {
        name.split_once(' ')
            .is_some_and(|(binary, test)| options.selection.takes(binary, test))
    });
    for difference in names::differences(&expected, report.ran()) {
        report.fail(
            &difference,
            "`cargo xtask test --bless-names` rewrites the list, if this is meant",
        );
    }
    Ok(())
}
