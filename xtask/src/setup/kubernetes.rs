//! The programs of a Kubernetes control plane, for the tests on a real API server: built from Go modules into the cache.
//!
//! In: tests/kubernetes/go.mod, which names the versions, and go.sum. Out: `kubernetes/VERSIONS` in the cache with every program,
//! whole or not there. Where `KUBEBUILDER_ASSETS` names a folder that has them (as for controllers' tests elsewhere), that is
//! taken and nothing is built. Any Go from 1.21 on will do: it fetches the one that go.mod wants as a module, too. Where there is
//! none (Debian 12's is older), that very module is fetched from Go's proxy, its checksum compared, and unpacked into the cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{exec, workspace::Workspace};

/// The variable by which tests find the programs.
pub(crate) const VARIABLE: &str = "KUBEBUILDER_ASSETS";

/// The programs and their packages; the slowest first, since the others share most of what it compiles.
const PROGRAMS: [(&str, &str); 4] = [
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    (
        "kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
    ),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("etcd", "go.etcd.io/etcd/server/v3"),
];

/// The Go that is fetched where none is installed: its version, the module's checksum (SHA-256), and where modules are had.
const GO: (&str, &str, &str) = (
    "go1.26.8.linux-amd64",
    "30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7",
    "https://proxy.golang.org/golang.org/toolchain/@v",
);

/// Where the programs are or will be. An error if go.mod names no version, or `KUBEBUILDER_ASSETS` a folder that lacks one.
pub(crate) fn folder(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(given) = env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let given = PathBuf::from(given);
        if let Some(name) = lacking(&given) {
            bail!(
                "{VARIABLE} is {}, which has no {name}: add it, or unset the variable and all are built",
                given.display()
            );
        }
        return Ok(given);
    }
    let path = module(workspace).join("go.mod");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (kubernetes, etcd) = (
        version(&text, "k8s.io/kubernetes")?,
        version(&text, "go.etcd.io/etcd/server/v3")?,
    );
    Ok(workspace.cache.join(format!("kubernetes/{kubernetes}-etcd-{etcd}")))
}

/// Whether a program is missing.
pub(crate) fn is_missing(workspace: &Workspace) -> Result<bool> {
    folder(workspace).map(|folder| lacking(&folder).is_some())
}

/// Builds what is missing.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    let folder = folder(workspace)?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let go = go(workspace)?;
    let text = fs::read_to_string(module(workspace).join("go.mod"))?;
    let flags = format!("-s -w {}", stamp(version(&text, "k8s.io/kubernetes")?)?);
    for (name, package) in PROGRAMS {
        let place = folder.join(name);
        if place.is_file() {
            continue;
        }
        let partial = folder.join(format!("{name}.partial"));
        let mut command = Command::new(&go);
        command
            .current_dir(module(workspace))
            .env("CGO_ENABLED", "0")
            .env("GOTOOLCHAIN", "auto")
            .env("GOFLAGS", "-mod=readonly -buildvcs=false")
            .args(["build", "-trimpath", "-ldflags", &flags, "-o"])
            .args([partial.as_path(), Path::new(package)]);
        exec::run(&mut command)?;
        fs::rename(&partial, &place)
            .with_context(|| format!("cannot rename {} to {}", partial.display(), place.display()))?;
    }
    Ok(())
}

fn module(workspace: &Workspace) -> PathBuf {
    workspace.root.join("tests/kubernetes")
}

/// The first program that a folder lacks.
fn lacking(folder: &Path) -> Option<&'static str> {
    let names = PROGRAMS.iter().map(|(name, _)| *name);
    names.into_iter().find(|name| !folder.join(name).is_file())
}

/// A Go that builds the programs.
fn go(workspace: &Workspace) -> Result<PathBuf> {
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
        "no Go from 1.21 on: the tests on a real API server build it from Go modules. Install one, or let {VARIABLE} name a \
         folder with etcd, kube-apiserver, kube-controller-manager and kubectl"
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
fn version<'a>(text: &'a str, module: &str) -> Result<&'a str> {
    let of_line = |line: &'a str| {
        let rest = line.trim().trim_start_matches("require ").strip_prefix(module)?;
        rest.strip_prefix(' ')?.split_whitespace().next()
    };
    text.lines()
        .filter_map(of_line)
        .find(|version| version.starts_with('v'))
        .with_context(|| format!("tests/kubernetes/go.mod requires no {module}"))
}

/// Linker flags that tell the programs their version; without it clients see v0.0.0, and some refuse.
fn stamp(version: &str) -> Result<String> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    ensure!(!minor.is_empty(), "{version} is no version of Kubernetes");
    let package = "k8s.io/component-base/version";
    Ok(format!(
        "-X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    ))
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

    #[test]
    fn programs_are_told_their_version() {
        assert!(stamp("v1.36.3").unwrap().ends_with("gitMinor=36"));
        assert!(stamp("v1").is_err());
    }

    #[test]
    fn a_folder_lacks_what_is_not_in_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(lacking(folder.path()), Some("kube-apiserver"));
        for (name, _) in PROGRAMS {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(lacking(folder.path()), None);
    }
}
