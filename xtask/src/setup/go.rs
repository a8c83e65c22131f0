//! A Go that builds the programs of Kubernetes, and how a program is built by it.
//!
//! In: a folder with go.mod and go.sum, committed; a package. Out: the program, whole or not there. Any Go from 1.21 on will do:
//! it fetches the one that go.mod wants as a module, too. Where there is none (Debian 12's is older), that very module is
//! fetched from Go's proxy, its checksum compared, and unpacked into the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{exec, workspace::Workspace};

/// The Go that is fetched where none is installed: its version, the module's checksum (SHA-256), and where modules are had.
const GO: (&str, &str, &str) = (
    "go1.26.8.linux-amd64",
    "30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7",
    "https://proxy.golang.org/golang.org/toolchain/@v",
);

/// What makes a program of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `go build`.
    Program,
    /// `go test -c`.
    Test,
}

/// Builds the `package` of the module in `module` into the file `place`.
pub(super) fn build(
    go: &Path,
    module: &Path,
    kind: Kind,
    package: &str,
    tags: &str,
    linker: &str,
    place: &Path,
) -> Result<()> {
    let partial = place.with_extension("partial");
    let mut command = Command::new(go);
    command
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "auto")
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        // The compiler collects its garbage less often, and writes no debug information, which the linker would throw away: a seventh less time.
        .env("GOGC", "400")
        .args(match kind {
            Kind::Program => ["build"].as_slice(),
            Kind::Test => &["test", "-c"],
        })
        .args([
            "-trimpath",
            "-gcflags=all=-dwarf=false",
            "-tags",
            tags,
            "-ldflags",
            linker,
            "-o",
        ])
        .args([partial.as_path(), Path::new(package)]);
    exec::run(&mut command)?;
    fs::rename(&partial, place).with_context(|| format!("cannot rename {} to {}", partial.display(), place.display()))
}

/// A Go that builds the programs.
pub(super) fn go(workspace: &Workspace) -> Result<PathBuf> {
    let installed =
        exec::find("go").or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|path| path.is_file()));
    match installed {
        Some(go) if is_young(&exec::output(Command::new(&go).arg("version"))?) => Ok(go),
        _ => fetched_go(workspace),
    }
}

/// Whether what `go version` says is of a Go that fetches the one it is asked for (1.21 and newer).
fn is_young(said: &str) -> bool {
    let version = said.split_whitespace().find_map(|word| word.strip_prefix("go1."));
    let minor = version.and_then(|version| version.split(|c: char| !c.is_ascii_digit()).next());
    minor
        .and_then(|minor| minor.parse::<u32>().ok())
        .is_some_and(|minor| minor >= 21)
}

/// The Go of [`GO`] in the cache.
fn fetched_go(workspace: &Workspace) -> Result<PathBuf> {
    let (version, sum, modules) = GO;
    ensure!(
        cfg!(target_arch = "x86_64"),
        "no Go from 1.21 on: the tests on a real API server build it from Go modules. Install one, or let KUBEBUILDER_ASSETS name a \
         folder with etcd, kube-apiserver, kube-controller-manager, kube-proxy and kubectl"
    );
    let folder = workspace.cache.join("go").join(version);
    let go = folder.join("bin/go");
    if go.is_file() {
        return Ok(go);
    }
    let partial = workspace.cache.join("go").join(format!("{version}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let archive = partial.join("module.zip");
    exec::run(
        Command::new("curl")
            .args(["--fail", "--silent", "--show-error", "--location", "--output"])
            .arg(&archive)
            .arg(format!("{modules}/v0.0.1-{version}.zip")),
    )?;
    let found = exec::output(Command::new("sha256sum").arg(&archive))?;
    ensure!(
        found.starts_with(sum),
        "{} has the checksum {found}, not {sum}",
        archive.display()
    );
    exec::run(
        Command::new("busybox")
            .args(["unzip", "-q"])
            .arg(&archive)
            .current_dir(&partial),
    )?;
    let unpacked = partial.join(format!("golang.org/toolchain@v0.0.1-{version}"));
    fs::rename(&unpacked, &folder)
        .with_context(|| format!("cannot rename {} to {}", unpacked.display(), folder.display()))?;
    fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    Ok(go)
}

/// The version of a module in the text of a go.mod.
pub(super) fn version<'a>(text: &'a str, module: &str) -> Result<&'a str> {
    let of_line = |line: &'a str| {
        let rest = line.trim().trim_start_matches("require ").strip_prefix(module)?;
        rest.strip_prefix(' ')?.split_whitespace().next()
    };
    text.lines()
        .filter_map(of_line)
        .find(|version| version.starts_with('v'))
        .with_context(|| format!("go.mod requires no {module}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "module m\n\nrequire k8s.io/kubernetes v1.36.3\n\nrequire (\n\tgo.etcd.io/etcd/server/v3 v3.6.8 // indirect\n)\n\n\
                          replace (\n\tk8s.io/api => k8s.io/api v0.36.3\n)\n";

    #[test]
    fn versions_are_those_that_the_module_requires() {
        assert_eq!(version(MODULE, "k8s.io/kubernetes").unwrap(), "v1.36.3");
        assert_eq!(version(MODULE, "go.etcd.io/etcd/server/v3").unwrap(), "v3.6.8");
        assert!(version(MODULE, "k8s.io/api").is_err());
        assert!(version(MODULE, "k8s.io/kube").is_err());
    }

    #[test]
    fn a_go_that_cannot_fetch_another_is_too_old() {
        assert!(is_young("go version go1.26.8 linux/amd64") && is_young("go version go1.21 linux/amd64"));
        assert!(!is_young("go version go1.19.8 linux/amd64") && !is_young("no go at all"));
    }
}
