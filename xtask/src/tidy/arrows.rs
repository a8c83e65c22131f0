//! Who may use whom: between packages, between the agent's modules, and which module may use which foreign crate.
//!
//! The arrows are those of ARCHITECTURE.md: lb-common is below everything, `source -> model -> plan -> maps` are
//! joined by `reconcile` alone, and each foreign interface (aya, clap, kube, the clock) has one place.

use serde_json::Value;

use super::{
    Finding,
    source::Source,
    uses::{self, Path},
};

/// Which packages of the workspace a package may depend on.
const PACKAGES: [(&str, &[&str]); 5] = [
    ("lb-common", &[]),
    ("lb-ebpf", &["lb-common"]),
    ("steerway", &["lb-common"]),
    ("lb-tests", &["lb-common", "steerway"]),
    ("xtask", &[]),
];

/// The agent's sources, that the following rules are about.
const AGENT: &str = "lb-userspace/src/";

/// Modules of the agent that a module may not use. `plan` knows the operations that `maps` defines.
const MODULES: [(&str, &[&str]); 9] = [
    (
        "model",
        &[
            "source",
            "plan",
            "maps",
            "reconcile",
            "datapath",
            "flows",
            "observe",
            "health",
            "cli",
            "config",
            "clock",
        ],
    ),
    (
        "plan",
        &[
            "source",
            "reconcile",
            "datapath",
            "flows",
            "observe",
            "health",
            "cli",
            "config",
            "clock",
        ],
    ),
    (
        "source",
        &[
            "plan",
            "maps",
            "reconcile",
            "datapath",
            "flows",
            "observe",
            "health",
            "cli",
        ],
    ),
    (
        "maps",
        &[
            "source",
            "model",
            "plan",
            "reconcile",
            "datapath",
            "flows",
            "observe",
            "health",
            "cli",
        ],
    ),
    ("reconcile", &["cli"]),
    ("datapath", &["source", "model", "plan", "reconcile", "cli"]),
    ("flows", &["source", "model", "plan", "reconcile", "cli"]),
    ("observe", &["source", "model", "plan", "reconcile", "cli"]),
    ("health", &["source", "model", "plan", "reconcile", "cli"]),
];

/// The part of lb-common that only tests have.
const HOST_PART: &str = "lb-common/src/testing/";

/// Foreign paths that belong to some places of the agent, by the start of the file's path inside the sources.
const PLACES: [(&str, &[&str]); 6] = [
    (
        "aya",
        &[
            "maps/bpf.rs",
            "maps/error.rs",
            "datapath/",
            "datapath.rs",
            "observe/",
            "observe.rs",
        ],
    ),
    ("clap", &["cli/", "cli.rs"]),
    ("kube", &["source/kubernetes/"]),
    ("Instant::now", &["clock.rs"]),
    ("SystemTime::now", &["clock.rs"]),
    ("env::var", &["config/", "config.rs"]),
];

/// What modules that compute may not touch, so that the same input gives the same output.
const IMPURE: [&str; 11] = [
    "aya",
    "kube",
    "tokio",
    "nix",
    "libc",
    "inotify",
    "rtnetlink",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
];
const PURE_MODULES: [&str; 2] = ["model", "plan"];

/// Checks the paths that a file of the agent or of lb-common names.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Path { line, path } in uses::paths(source) {
        for what in broken(&source.file, &path) {
            findings.push(Finding::new(&source.file, line, what));
        }
    }
    findings
}

fn broken(file: &str, path: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let in_kernel = file.starts_with("lb-common/src/") && !file.starts_with(HOST_PART);
    if in_kernel && (within(path, "std") || within(path, "alloc")) {
        broken.push(format!("`{path}`: lb-common runs in the kernel and uses core alone"));
    }
    let Some(inside) = file.strip_prefix(AGENT) else {
        return broken;
    };
    let module = inside.split(['/', '.']).next().unwrap_or(inside);
    for (from, forbidden) in MODULES {
        let used = path
            .strip_prefix("crate::")
            .or_else(|| path.strip_prefix("steerway::"))
            .unwrap_or("");
        if from == module && forbidden.iter().any(|to| within(used, to)) {
            broken.push(format!("`{path}`: {from} may not use it"));
        }
    }
    for (foreign, places) in PLACES {
        let named = if foreign.contains("::") {
            ends_with_path(path, foreign)
        } else {
            within(path, foreign)
        };
        if named && !places.iter().any(|place| inside.starts_with(place)) {
            broken.push(format!("`{path}`: {foreign} belongs to {}", places.join(" ")));
        }
    }
    if PURE_MODULES.contains(&module) && IMPURE.iter().any(|foreign| within(path, foreign)) {
        broken.push(format!("`{path}`: {module} is pure and may not use it"));
    }
    if PURE_MODULES.contains(&module)
        && ["std::time::Instant", "std::time::SystemTime"]
            .iter()
            .any(|clock| within(path, clock))
    {
        broken.push(format!("`{path}`: {module} takes the time as an argument"));
    }
    broken
}

/// Whether `path` is `prefix` or something inside it.
fn within(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Whether `path` ends with `end` as whole names, with anything that starts like its last name (`var`, `var_os`).
fn ends_with_path(path: &str, end: &str) -> bool {
    path.find(end).is_some_and(|at| at == 0 || path[..at].ends_with("::"))
}

/// Checks the dependencies between the packages of the workspace in the output of `cargo metadata`.
pub(super) fn check_packages(metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|package| package["source"].is_null())
    {
        let name = package["name"].as_str().unwrap_or_default();
        let file = format!("the manifest of {name}");
        let Some((_, allowed)) = PACKAGES.iter().find(|(package, _)| *package == name) else {
            findings.push(Finding::new(
                &file,
                0,
                "which packages it may use is not written in xtask/src/tidy/arrows.rs",
            ));
            continue;
        };
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for used in dependencies
            .filter(|used| !used["path"].is_null())
            .filter_map(|used| used["name"].as_str())
        {
            if !allowed.contains(&used) {
                findings.push(Finding::new(&file, 0, format!("it may not use {used}")));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn count(file: &str, text: &str) -> usize {
        check(&Source::new(file, text)).len()
    }

    #[test]
    fn arrows_between_modules_cannot_be_reversed() {
        for (file, text) in [
            ("model/service.rs", "use crate::plan::Op;\n"),
            ("plan/diff.rs", "use crate::source::Source;\n"),
            ("maps/bpf.rs", "use crate::{model::Snapshot};\n"),
            ("source/folder.rs", "fn a() { crate::reconcile::wake(); }\n"),
            ("health.rs", "use super::model::Snapshot;\n"),
            ("datapath/load.rs", "use crate::plan;\n"),
            ("reconcile.rs", "use crate::cli::Args;\n"),
        ] {
            assert_eq!(count(&format!("{AGENT}{file}"), text), 1, "{file}: {text}");
        }
        for (file, text) in [
            ("plan/diff.rs", "use crate::{maps::MapOp, model::DesiredState};\n"),
            ("reconcile.rs", "use crate::{maps, model, plan, source};\n"),
            ("maps/bpf.rs", "use super::MapStore;\nuse lb_common::layout;\n"),
            ("cli/run.rs", "use crate::{datapath, reconcile};\n"),
        ] {
            assert_eq!(count(&format!("{AGENT}{file}"), text), 0, "{file}: {text}");
        }
    }

    #[test]
    fn foreign_crates_stay_in_their_places() {
        for (file, text) in [
            ("flows.rs", "use aya::maps::Array;\n"),
            ("config.rs", "use clap::Parser;\n"),
            ("source/folder.rs", "fn a(client: kube::Client) {}\n"),
            ("reconcile.rs", "fn a() { let now = std::time::Instant::now(); }\n"),
            ("reconcile.rs", "fn a() { SystemTime::now(); }\n"),
            ("cli/run.rs", "fn a() { env::var_os(x); }\n"),
        ] {
            assert_eq!(count(&format!("{AGENT}{file}"), text), 1, "{file}: {text}");
        }
        for (file, text) in [
            ("maps/bpf.rs", "use aya::maps::Array;\n"),
            ("maps/error.rs", "use aya::maps::MapError;\n"),
            ("datapath/load.rs", "use aya::Ebpf;\n"),
            ("cli/mod.rs", "use clap::Parser;\n"),
            ("source/kubernetes/access.rs", "use kube::Client;\n"),
            ("clock.rs", "fn a() { std::time::Instant::now(); }\n"),
            ("config.rs", "fn a() { std::env::var(x); }\n"),
            ("flows.rs", "use crate::aya_like::X;\n"),
        ] {
            assert_eq!(count(&format!("{AGENT}{file}"), text), 0, "{file}: {text}");
        }
    }

    #[test]
    fn modules_that_compute_touch_nothing_outside() {
        for text in [
            "use tokio::sync::Notify;\n",
            "use std::fs;\n",
            "use std::time::Instant;\n",
            "use nix::net;\n",
        ] {
            assert_eq!(count(&format!("{AGENT}model/mod.rs"), text), 1, "{text}");
            assert_eq!(count(&format!("{AGENT}plan/image.rs"), text), 1, "{text}");
        }
        assert_eq!(
            count(
                &format!("{AGENT}model/mod.rs"),
                "use std::time::Duration;\nuse std::net::IpAddr;\n"
            ),
            0
        );
    }

    #[test]
    fn the_kernels_library_uses_core_alone() {
        assert_eq!(count("lb-common/src/wire/ipv4.rs", "use std::net::Ipv4Addr;\n"), 1);
        assert_eq!(
            count(
                "lb-common/src/wire/ipv4.rs",
                "extern crate alloc;\nuse alloc::vec::Vec;\n"
            ),
            1
        );
        assert_eq!(count("lb-common/src/wire/ipv4.rs", "use core::net::Ipv4Addr;\n"), 0);
        assert_eq!(count("lb-common/src/testing/buffer.rs", "use std::net::Ipv4Addr;\n"), 0);
    }

    #[test]
    fn dependencies_between_packages_follow_the_table() {
        let package = |name: &str, used: &[&str]| {
            let used: Vec<_> = used
                .iter()
                .map(|used| json!({"name": used, "path": format!("/w/{used}")}))
                .collect();
            json!({"name": name, "source": null, "dependencies": used})
        };
        let check = |package: Value| check_packages(&json!({ "packages": [package] })).len();
        assert_eq!(check(package("steerway", &["lb-common"])), 0);
        assert_eq!(check(package("lb-common", &["steerway"])), 1);
        assert_eq!(check(package("xtask", &["lb-common"])), 1);
        assert_eq!(check(package("unheard-of", &[])), 1);
        assert_eq!(
            check(json!({"name": "aya", "source": "registry+x", "dependencies": []})),
            0
        );
    }
}
