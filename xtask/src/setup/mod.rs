//! `setup`: installs what building and testing need and is missing; every other command calls [`ensure`] first.
//!
//! What is needed: a compiler for the BPF target ([`compiler`]), bpf-linker built with the same LLVM ([`linker`]), and
//! for the tests some of Debian's network tools ([`packages`]), other kernels ([`kernels`]) and a control plane
//! ([`kubernetes`]). What `cluster` alone needs ([`cluster`]), and the bench's load tools, are installed by those commands. When all
//! is there this takes well under a second and changes nothing. Two setups at once wait for each other. Whatever cannot be installed is an error that names it.
//! What is needed only when tests run is installed while they are built ([`Beside`]).

pub(crate) mod cluster;
pub(crate) mod compiler;
mod go;
pub(crate) mod kernels;
pub(crate) mod kubernetes;
mod linker;
mod packages;

use std::{
    fs::{self, File},
    path::PathBuf,
    process::ExitCode,
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;

use self::compiler::Compiler;
pub(crate) use self::linker::llvm_prefix;
use crate::{phases::Phases, workspace::Workspace};

/// Install what building and testing need and is missing.
///
/// Installs Debian's packages (as root, or by sudo) and builds bpf-linker, and for the tests a Kubernetes control plane, into
/// the cache folder ($STEERWAY_CACHE, default ~/.cache/steerway; $KUBEBUILDER_ASSETS names a control plane that is there). Where rustup has a nightly toolchain with rust-src, the kernel
/// programs are built by that one instead of Debian's compiler; STEERWAY_BPF_COMPILER=debian or =nightly decides
/// otherwise. Does nothing when all is there.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Leave out what only the tests need.
    #[arg(long)]
    build_only: bool,
}

/// How much to install.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// What compiles and links the kernel programs.
    Build,
    /// That, and the programs that tests and demo call.
    Demo,
    /// That, and load tools.
    Load,
    /// That, and the programs of a Kubernetes control plane.
    Bench,
    /// Other kernels and the control plane, without load tools.
    Test,
}

impl Scope {
    /// Whether load tools belong to it.
    fn has_load_tools(self) -> bool {
        matches!(self, Self::Load | Self::Bench)
    }

    /// What belongs to it and is missing of what is no Debian package: other kernels, and the control plane.
    fn lacks(self, workspace: &Workspace) -> Result<(Vec<&'static str>, bool)> {
        let kernels = if self == Self::Test {
            kernels::missing(workspace)
        } else {
            Vec::new()
        };
        Ok((kernels, self >= Self::Bench && kubernetes::is_missing(workspace)?))
    }
}

/// What only the running of tests needs, being installed by a thread of its own: most of it is built by Go, in one program after the other.
#[derive(Debug)]
pub(crate) struct Beside(JoinHandle<(Phases, Result<()>)>);

impl Beside {
    /// Installs what builds need, then begins with all else that tests need, and, if asked for, the test cluster.
    pub(crate) fn start(cluster: bool, workspace: &Workspace, phases: &mut Phases) -> Result<Self> {
        ensure(Scope::Build, workspace, phases)?;
        let workspace = workspace.clone();
        Ok(Self(thread::spawn(move || {
            let mut phases = Phases::default();
            let mut result = ensure(Scope::Test, &workspace, &mut phases).map(drop);
            if cluster {
                result = result.and_then(|()| ensure_cluster(&workspace, &mut phases));
            }
            (phases, result)
        })))
    }

    /// Waits until all is there.
    pub(crate) fn finish(self, phases: &mut Phases) -> Result<()> {
        let (own, result) = self.0.join().map_err(|_| anyhow!("setup has panicked"))?;
        phases.append(own);
        result
    }
}

/// What builds kernel programs, checked to be there and to fit each other.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// The compiler for the BPF target.
    pub(crate) compiler: Compiler,
    /// bpf-linker, built with the LLVM of the same major version.
    pub(crate) linker: PathBuf,
}

pub(crate) fn run(options: &Options, workspace: &Workspace, phases: &mut Phases) -> Result<ExitCode> {
    let start = Instant::now();
    let scope = if options.build_only { Scope::Build } else { Scope::Test };
    let toolchain = ensure(scope, workspace, phases)?;
    eprintln!("kernel compiler: {}", toolchain.compiler);
    eprintln!("linker:          {}", toolchain.linker.display());
    eprintln!("setup: all is there ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// Installs what `scope` needs and is missing, and returns the checked toolchain.
pub(crate) fn ensure(scope: Scope, workspace: &Workspace, phases: &mut Phases) -> Result<Toolchain> {
    let compiler = Compiler::choose()?;
    if let Some(toolchain) = ready(&compiler, scope, workspace)? {
        return Ok(toolchain);
    }
    let _lock = lock(workspace)?;
    // The compiler's LLVM is known for certain only once the compiler is there: the second round brings what belongs
    // to that version where it is not the expected one.
    for _ in 0..2 {
        let missing = packages::missing(scope, &compiler, compiler.llvm_major().ok());
        if !missing.is_empty() {
            phases.time("setup: Debian packages", || packages::install(&missing))?;
        }
    }
    let llvm = compiler.llvm_major()?;
    linker::check_supported(&compiler, llvm)?;
    if linker::installed(workspace, llvm).is_none() {
        phases.time("setup: bpf-linker", || linker::install(workspace, llvm))?;
    }
    linker::check(workspace, llvm)?;
    let (kernels, kubernetes) = scope.lacks(workspace)?;
    for version in kernels {
        phases.time(&format!("setup: Linux {version}"), || {
            kernels::install(workspace, version)
        })?;
    }
    if kubernetes {
        phases.time("setup: Kubernetes", || kubernetes::install(workspace))?;
    }
    ready(&compiler, scope, workspace)?.context("something is still missing after its installation")
}

/// Installs what the test cluster needs beside what the tests need.
pub(crate) fn ensure_cluster(workspace: &Workspace, phases: &mut Phases) -> Result<()> {
    let _lock = lock(workspace)?;
    let missing = packages::missing_for_cluster();
    if !missing.is_empty() {
        phases.time("setup: Debian packages", || packages::install(&missing))?;
    }
    if kubernetes::is_missing(workspace)? {
        phases.time("setup: Kubernetes", || kubernetes::install(workspace))?;
    }
    if cluster::is_missing(workspace)? {
        phases.time("setup: cluster", || cluster::install(workspace))?;
    }
    Ok(())
}

/// The toolchain, if nothing that `scope` needs is missing. A linker that is there but does not fit is an error.
fn ready(compiler: &Compiler, scope: Scope, workspace: &Workspace) -> Result<Option<Toolchain>> {
    let Ok(llvm) = compiler.llvm_major() else {
        return Ok(None);
    };
    let (kernels, kubernetes) = scope.lacks(workspace)?;
    if !kernels.is_empty()
        || kubernetes
        || !packages::missing(scope, compiler, Some(llvm)).is_empty()
        || linker::installed(workspace, llvm).is_none()
    {
        return Ok(None);
    }
    let linker = linker::check(workspace, llvm)?;
    Ok(Some(Toolchain {
        compiler: compiler.clone(),
        linker,
    }))
}

/// Waits until no other setup on this cache runs. Dropping the file ends the lock.
fn lock(workspace: &Workspace) -> Result<File> {
    fs::create_dir_all(&workspace.cache).with_context(|| format!("cannot create {}", workspace.cache.display()))?;
    let path = workspace.cache.join("setup.lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}
