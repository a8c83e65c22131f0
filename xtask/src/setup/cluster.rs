//! The programs that the test cluster alone needs: kubelet, scheduler, containerd, CoreDNS, and the end-to-end tests with their
//! helpers; built from Go modules into the cache when `cargo xtask cluster` is asked for.
//!
//! In: the go.mod of tests/kubernetes and of the modules in tests/cluster, which name the versions. Out: `cluster/VERSIONS` in the
//! cache with every program, whole or not there; what is there is kept.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    go::{self, Kind, version},
    kubernetes,
};
use crate::{exec, workspace::Workspace};

/// Where a program comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    Kubernetes,
    Containerd,
    CoreDns,
}

impl Module {
    const ALL: [Self; 3] = [Self::Kubernetes, Self::Containerd, Self::CoreDns];

    fn folder(self, workspace: &Workspace) -> PathBuf {
        match self {
            Self::Kubernetes => kubernetes::module(workspace),
            Self::Containerd => workspace.root.join("tests/cluster/containerd"),
            Self::CoreDns => workspace.root.join("tests/cluster/coredns"),
        }
    }

    /// The required module whose version is the programs'.
    fn required(self) -> &'static str {
        match self {
            Self::Kubernetes => "k8s.io/kubernetes",
            Self::Containerd => "github.com/containerd/containerd/v2",
            Self::CoreDns => "github.com/coredns/coredns",
        }
    }

    fn version(self, workspace: &Workspace) -> Result<String> {
        let path = self.folder(workspace).join("go.mod");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(version(&text, self.required())?.to_owned())
    }

    /// Build tags and linker flags.
    fn flags(self, version: &str) -> Result<(&'static str, String)> {
        Ok(match self {
            Self::Kubernetes => ("", kubernetes::linker_flags(version)?),
            Self::Containerd => (
                "no_btrfs,no_devmapper,no_zfs",
                format!("-s -w -X {}/version.Version={version}", self.required()),
            ),
            Self::CoreDns => ("", "-s -w".to_owned()),
        })
    }
}

/// The programs, their modules and packages.
const PROGRAMS: [(&str, Module, Kind, &str); 10] = [
    (
        "kube-scheduler",
        Module::Kubernetes,
        Kind::Program,
        "k8s.io/kubernetes/cmd/kube-scheduler",
    ),
    (
        "kubelet",
        Module::Kubernetes,
        Kind::Program,
        "k8s.io/kubernetes/cmd/kubelet",
    ),
    (
        "containerd",
        Module::Containerd,
        Kind::Program,
        "github.com/containerd/containerd/v2/cmd/containerd",
    ),
    (
        "containerd-shim-runc-v2",
        Module::Containerd,
        Kind::Program,
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
    ),
    (
        "ctr",
        Module::Containerd,
        Kind::Program,
        "github.com/containerd/containerd/v2/cmd/ctr",
    ),
    ("coredns", Module::CoreDns, Kind::Program, "."),
    (
        "agnhost",
        Module::Kubernetes,
        Kind::Program,
        "k8s.io/kubernetes/test/images/agnhost",
    ),
    (
        "regression-issue-74839",
        Module::Kubernetes,
        Kind::Program,
        "k8s.io/kubernetes/test/images/regression-issue-74839",
    ),
    (
        "ginkgo",
        Module::Kubernetes,
        Kind::Program,
        "github.com/onsi/ginkgo/v2/ginkgo",
    ),
    ("e2e.test", Module::Kubernetes, Kind::Test, "k8s.io/kubernetes/test/e2e"),
];

/// Where the programs are or will be.
pub(crate) fn folder(workspace: &Workspace) -> Result<PathBuf> {
    let [kubernetes, containerd, coredns] = Module::ALL.map(|module| module.version(workspace));
    let name = format!("{}-containerd-{}-coredns-{}", kubernetes?, containerd?, coredns?);
    Ok(workspace.cache.join("cluster").join(name))
}

/// The sources of Kubernetes in Go's module cache.
pub(crate) fn sources(workspace: &Workspace) -> Result<PathBuf> {
    let mut list = Command::new(go::go(workspace)?);
    list.current_dir(Module::Kubernetes.folder(workspace))
        .env("GOFLAGS", "-mod=readonly")
        .args(["list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]);
    Ok(PathBuf::from(exec::output(&mut list)?.trim()))
}

/// Whether a program is missing.
pub(super) fn is_missing(workspace: &Workspace) -> Result<bool> {
    Ok(lacks_one(&folder(workspace)?))
}

/// Builds what is missing.
pub(super) fn install(workspace: &Workspace) -> Result<()> {
    let folder = folder(workspace)?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let go = go::go(workspace)?;
    for (name, module, kind, package) in PROGRAMS {
        let place = folder.join(name);
        if place.is_file() {
            continue;
        }
        let (tags, linker) = module.flags(&module.version(workspace)?)?;
        go::build(&go, &module.folder(workspace), kind, package, tags, &linker, &place)?;
    }
    Ok(())
}

fn lacks_one(folder: &Path) -> bool {
    PROGRAMS.iter().any(|(name, ..)| !folder.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_complete_with_every_program_only() {
        let folder = tempfile::tempdir().unwrap();
        for (name, ..) in PROGRAMS {
            assert!(lacks_one(folder.path()), "without {name}");
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert!(!lacks_one(folder.path()));
    }

    #[test]
    fn versions_name_the_folder() {
        let workspace = Workspace::locate().unwrap();
        let folder = folder(&workspace).unwrap();
        let name = folder.file_name().unwrap().to_string_lossy();
        assert!(
            name.starts_with("v1.") && name.contains("-containerd-v2.") && name.contains("-coredns-v1."),
            "{name}"
        );
    }
}
