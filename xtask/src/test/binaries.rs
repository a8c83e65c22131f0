//! Builds test binaries with cargo and asks each for the tests that it holds.
//!
//! Running the binaries one by one, not through `cargo test`, tells which test belongs to which crate, and lets one
//! of them run as root while cargo runs as the caller.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::exec;

/// One executable with tests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TestBinary {
    /// `package/lib`, `package/bin`, or `package/NAME` of an integration test: the first word of its tests' names.
    pub(crate) name: String,
    /// The file to start.
    pub(crate) executable: PathBuf,
    /// The package's folder, where its tests expect to be started.
    pub(crate) folder: PathBuf,
}

impl TestBinary {
    /// The names of all tests in the binary, ignored ones included.
    pub(crate) fn list(&self) -> Result<Vec<String>> {
        let mut command = Command::new(&self.executable);
        let listing = exec::output(command.args(["--list", "--format", "terse"]).current_dir(&self.folder))?;
        Ok(listing
            .lines()
            .filter_map(|line| line.strip_suffix(": test"))
            .map(str::to_owned)
            .collect())
    }
}

/// Builds by `cargo` the tests that the arguments `selection` choose, and returns them in the order of their names.
pub(crate) fn build(mut cargo: Command, selection: &[&str]) -> Result<Vec<TestBinary>> {
    cargo
        .args([
            "test",
            "--no-run",
            "--locked",
            "--message-format",
            "json-render-diagnostics",
        ])
        .args(selection);
    eprintln!("  $ {}", exec::describe(&cargo));
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "{} ended with {}",
        exec::describe(&cargo),
        output.status
    );
    let messages = String::from_utf8(output.stdout).context("cargo wrote no UTF-8")?;
    let mut binaries = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("a message of cargo is no JSON")?;
        binaries.extend(test_binary(&message)?);
    }
    binaries.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(binaries)
}

/// The test binary that a message of cargo tells of, if it does
/// (<https://doc.rust-lang.org/cargo/reference/external-tools.html>, artifact messages).
fn test_binary(message: &Value) -> Result<Option<TestBinary>> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return Ok(None);
    }
    let Some(executable) = message["executable"].as_str() else {
        return Ok(None);
    };
    let folder = message["manifest_path"]
        .as_str()
        .and_then(|manifest| Path::new(manifest).parent());
    let package = message["package_id"].as_str().and_then(package_name);
    let kind = message["target"]["kind"][0].as_str();
    let target = message["target"]["name"].as_str();
    let (Some(folder), Some(package), Some(kind), Some(target)) = (folder, package, kind, target) else {
        anyhow::bail!("cargo's message on {executable} lacks package, target or manifest");
    };
    let part = if kind == "test" { target } else { kind };
    Ok(Some(TestBinary {
        name: format!("{package}/{part}"),
        executable: executable.into(),
        folder: folder.to_path_buf(),
    }))
}

/// The name in a package id, `path+file:///folder/NAME#VERSION` or `...#NAME@VERSION`.
fn package_name(id: &str) -> Option<&str> {
    let (location, version) = id.rsplit_once('#')?;
    match version.split_once('@') {
        Some((name, _)) => Some(name),
        None => location.rsplit('/').next(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(kind: &str, target: &str, test: bool) -> Value {
        json!({
            "reason": "compiler-artifact",
            "package_id": "path+file:///w/lb-userspace#steerway@0.1.0",
            "manifest_path": "/w/lb-userspace/Cargo.toml",
            "target": { "kind": [kind], "name": target },
            "profile": { "test": test },
            "executable": "/t/debug/deps/x",
        })
    }

    #[test]
    fn a_test_artifact_is_named_by_package_and_kind_or_by_integration_test() {
        let name = |kind, target| test_binary(&message(kind, target, true)).unwrap().unwrap().name;
        assert_eq!(name("lib", "steerway"), "steerway/lib");
        assert_eq!(name("bin", "steerway"), "steerway/bin");
        assert_eq!(name("test", "suite"), "steerway/suite");
        let binary = test_binary(&message("lib", "steerway", true)).unwrap().unwrap();
        assert_eq!(binary.folder, Path::new("/w/lb-userspace"));
    }

    #[test]
    fn other_messages_are_no_test_binaries_and_incomplete_ones_are_errors() {
        assert_eq!(test_binary(&message("bin", "steerway", false)).unwrap(), None);
        assert_eq!(
            test_binary(&json!({"reason": "build-finished", "success": true})).unwrap(),
            None
        );
        let mut incomplete = message("lib", "steerway", true);
        incomplete["package_id"] = Value::Null;
        assert!(test_binary(&incomplete).is_err());
    }

    #[test]
    fn package_ids_name_the_package_after_or_before_the_hash() {
        assert_eq!(
            package_name("path+file:///w/lb-userspace#steerway@0.1.0"),
            Some("steerway")
        );
        assert_eq!(package_name("path+file:///w/lb-common#0.1.0"), Some("lb-common"));
    }
}
