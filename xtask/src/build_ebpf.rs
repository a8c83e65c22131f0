//! `build-ebpf`: compiles the kernel programs for the BPF target and links them into one object with BTF.
//!
//! In: the package lb-ebpf, or another one given by its manifest. Out: `target/bpf/steerway-ebpf`, whose time stamp
//! changes only when its content does. The folder `target/bpf` belongs to the BPF compiler alone, because it is
//! another compiler than the host's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    exec,
    phases::Phases,
    setup::{self, Scope, Toolchain},
    workspace::Workspace,
};

/// The name of the kernel crate's binary, hence of the object.
pub(crate) const BINARY: &str = "steerway-ebpf";
/// The bench's own programs.
const BENCH: &str = "steerway-bench";

const TARGET: &str = "bpfel-unknown-none";

/// What the programs have to be compiled and linked with, whichever compiler does it.
const FLAGS: [&str; 4] = [
    // Atomic operations that return a value, 32-bit registers and jumps: every kernel that we run on has them.
    "-Ctarget-cpu=v3",
    // Map definitions and bpftool need BTF, which the linker makes from debug information.
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    // Without this, setting 16 bytes and more to zero becomes a call to a loop over bytes.
    "-Clink-arg=--disable-expand-memcpy-in-order",
];

/// Build the kernel programs into target/bpf/steerway-ebpf.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Build the package of this manifest, with a binary steerway-ebpf, in place of lb-ebpf.
    #[arg(long, hide = true)]
    manifest_path: Option<PathBuf>,
    /// Build into this folder in place of target/bpf.
    #[arg(long, hide = true, requires = "manifest_path")]
    out: Option<PathBuf>,
}

pub(crate) fn run(options: &Options, workspace: &Workspace, phases: &mut Phases) -> Result<ExitCode> {
    let object = match &options.manifest_path {
        None => build(workspace, phases)?,
        Some(manifest) => {
            let toolchain = setup::ensure(Scope::Build, workspace, phases)?;
            let folder = options.out.clone().unwrap_or_else(|| workspace.target.join("bpf"));
            phases.time("build-ebpf", || compile(&toolchain, manifest, &folder, BINARY))?
        }
    };
    println!("{}", object.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the kernel object of this checkout, after setting up what that needs, and returns its path.
pub(crate) fn build(workspace: &Workspace, phases: &mut Phases) -> Result<PathBuf> {
    of_checkout(workspace, phases, BINARY)
}

/// As [`build`], for the programs of the bench.
pub(crate) fn build_bench(workspace: &Workspace, phases: &mut Phases) -> Result<PathBuf> {
    of_checkout(workspace, phases, BENCH)
}

fn of_checkout(workspace: &Workspace, phases: &mut Phases, binary: &str) -> Result<PathBuf> {
    let toolchain = setup::ensure(Scope::Build, workspace, phases)?;
    phases.time(&format!("build {binary}"), || {
        compile(
            &toolchain,
            &workspace.root.join("lb-ebpf/Cargo.toml"),
            &workspace.target.join("bpf"),
            binary,
        )
    })
}

fn compile(toolchain: &Toolchain, manifest: &Path, folder: &Path, binary: &str) -> Result<PathBuf> {
    let linker = toolchain
        .linker
        .to_str()
        .context("the path of bpf-linker is no UTF-8")?;
    let mut flags: Vec<String> = FLAGS.map(str::to_owned).to_vec();
    flags.push(format!("-Clinker={linker}"));
    let mut command = toolchain.compiler.cargo_build();
    command
        // With a target given, these flags reach neither build scripts nor macros.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args([
            "--release",
            "--locked",
            "--target",
            TARGET,
            "--bin",
            binary,
            "--manifest-path",
        ])
        .arg(manifest)
        .arg("--target-dir")
        .arg(folder);
    exec::run(&mut command)?;
    let built = folder.join(TARGET).join("release").join(binary);
    let stripped = folder.join(TARGET).join("release").join(format!("{binary}.stripped"));
    // BTF stays; of the debug information that it was made from nothing is needed, and every agent would read it at its start.
    let objcopy = setup::llvm_prefix(toolchain.compiler.llvm_major()?).join("bin/llvm-objcopy");
    exec::run(Command::new(objcopy).arg("--strip-debug").args([&built, &stripped]))?;
    let content = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    let object = folder.join(binary);
    exec::write_if_changed(&object, &content)?;
    Ok(object)
}
