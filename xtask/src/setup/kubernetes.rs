//! The programs of a Kubernetes control plane, for the tests on a real API server: built from Go modules into the cache.
//!
//! In: tests/kubernetes/go.mod, which names the versions, and go.sum. Out: `kubernetes/VERSIONS` in the cache with every program,
//! whole or not there. Where `KUBEBUILDER_ASSETS` names a folder that has them (as for controllers' tests elsewhere), that is
//! taken and nothing is built.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::go::{self, Kind, version};
use crate::workspace::Workspace;

/// The variable by which tests find the programs.
pub(crate) const VARIABLE: &str = "KUBEBUILDER_ASSETS";

/// The programs and their packages; the slowest first, since the others share most of what it compiles.
const PROGRAMS: [(&str, &str); 5] = [
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    (
        "kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
    ),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    ("etcd", "go.etcd.io/etcd/server/v3"),
];

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
    let go = go::go(workspace)?;
    let text = fs::read_to_string(module(workspace).join("go.mod"))?;
    let flags = linker_flags(version(&text, "k8s.io/kubernetes")?)?;
    for (name, package) in PROGRAMS {
        let place = folder.join(name);
        if !place.is_file() {
            go::build(&go, &module(workspace), Kind::Program, package, "", &flags, &place)?;
        }
    }
    Ok(())
}

/// The module that all of Kubernetes is built from.
pub(super) fn module(workspace: &Workspace) -> PathBuf {
    workspace.root.join("tests/kubernetes")
}

/// The first program that a folder lacks.
fn lacking(folder: &Path) -> Option<&'static str> {
    let names = PROGRAMS.iter().map(|(name, _)| *name);
    names.into_iter().find(|name| !folder.join(name).is_file())
}

/// Linker flags that tell the programs their version; without it clients see v0.0.0, and some refuse.
pub(super) fn linker_flags(version: &str) -> Result<String> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    ensure!(!minor.is_empty(), "{version} is no version of Kubernetes");
    let package = "k8s.io/component-base/version";
    Ok(format!(
        "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_their_version() {
        assert!(linker_flags("v1.36.3").unwrap().ends_with("gitMinor=36"));
        assert!(linker_flags("v1").is_err());
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
