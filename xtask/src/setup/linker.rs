//! bpf-linker: built from its published source into the cache, one folder per version and LLVM.
//!
//! The linker reads the bitcode that the compiler wrote, so both need the same LLVM major version. Cargo records in
//! the folder which features, hence which LLVM, the linker was built with.

use std::{
    env, fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::compiler::Compiler;
use crate::{exec, workspace::Workspace};

/// The version that is built.
const VERSION: &str = "0.13.0";

/// The LLVM versions that this version of bpf-linker can be built with.
pub(crate) const SUPPORTED_LLVM: RangeInclusive<u32> = 21..=23;

/// The LLVM of Debian's current compiler: what is installed together with it in one go.
pub(crate) const EXPECTED_LLVM: u32 = 22;

/// Where LLVM of this version is installed: `LLVM_PREFIX`, or Debian's place.
pub(crate) fn llvm_prefix(llvm: u32) -> PathBuf {
    env::var_os("LLVM_PREFIX").map_or_else(|| PathBuf::from(format!("/usr/lib/llvm-{llvm}")), PathBuf::from)
}

/// Fails with what to install if no linker can read what `compiler` writes.
pub(crate) fn check_supported(compiler: &Compiler, llvm: u32) -> Result<()> {
    let (first, last) = (SUPPORTED_LLVM.start(), SUPPORTED_LLVM.end());
    ensure!(
        SUPPORTED_LLVM.contains(&llvm),
        "{compiler} uses LLVM {llvm}, but bpf-linker {VERSION} works with LLVM {first} to {last}: install Debian's \
         rustc-web with LLVM {EXPECTED_LLVM}, or a rustup nightly of that LLVM with rust-src"
    );
    Ok(())
}

/// The linker for this LLVM, if it has been built.
pub(crate) fn installed(workspace: &Workspace, llvm: u32) -> Option<PathBuf> {
    let linker = folder(workspace, llvm).join("bin/bpf-linker");
    linker.is_file().then_some(linker)
}

/// Builds the linker.
pub(crate) fn install(workspace: &Workspace, llvm: u32) -> Result<()> {
    let folder = folder(workspace, llvm);
    let build = workspace.cache.join(format!("build/bpf-linker-{VERSION}-llvm{llvm}"));
    let mut command = exec::cargo(&workspace.root);
    command
        .env("LLVM_PREFIX", llvm_prefix(llvm))
        .env("CARGO_TARGET_DIR", &build)
        .args([
            "install",
            "bpf-linker",
            "--locked",
            "--version",
            VERSION,
            "--no-default-features",
            "--features",
        ])
        .arg(format!("llvm-{llvm}"))
        .arg("--root")
        .arg(&folder);
    exec::run(&mut command)?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}

/// Returns the built linker if it starts and was built with this LLVM; else fails and says what to do.
pub(crate) fn check(workspace: &Workspace, llvm: u32) -> Result<PathBuf> {
    let folder = folder(workspace, llvm);
    let linker = folder.join("bin/bpf-linker");
    let remedy = || {
        format!(
            "remove {} and run `cargo xtask setup`: bpf-linker is built anew with LLVM {llvm}",
            folder.display()
        )
    };
    let version = exec::output(Command::new(&linker).arg("--version")).with_context(remedy)?;
    ensure!(
        version.trim() == format!("bpf-linker {VERSION}"),
        "{} says it is {}: {}",
        linker.display(),
        version.trim(),
        remedy()
    );
    let built_with = recorded_llvm(&folder).with_context(remedy)?;
    ensure!(
        built_with == llvm,
        "the compiler uses LLVM {llvm}, but {} was built with LLVM {built_with}: {}",
        linker.display(),
        remedy()
    );
    Ok(linker)
}

fn folder(workspace: &Workspace, llvm: u32) -> PathBuf {
    workspace.cache.join(format!("tools/bpf-linker-{VERSION}-llvm{llvm}"))
}

/// The LLVM version in cargo's record of an installation: its feature `llvm-N`.
fn recorded_llvm(folder: &Path) -> Result<u32> {
    let path = folder.join(".crates2.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let record: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    let features = record["installs"]
        .as_object()
        .and_then(|installs| installs.values().next())
        .and_then(|install| install["features"].as_array());
    for feature in features.into_iter().flatten() {
        if let Some(llvm) = feature
            .as_str()
            .and_then(|name| name.strip_prefix("llvm-")?.parse().ok())
        {
            return Ok(llvm);
        }
    }
    bail!("{} names no LLVM version", path.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A cache with a stand-in for the linker that says `version` and is recorded as built with `feature`.
    fn cache(version: &str, feature: &str) -> (tempfile::TempDir, Workspace) {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().to_path_buf();
        let workspace = Workspace {
            target: root.join("target"),
            cache: root.join("cache"),
            root,
        };
        let folder = folder(&workspace, 22);
        fs::create_dir_all(folder.join("bin")).unwrap();
        fs::write(folder.join("bin/bpf-linker"), format!("#!/bin/sh\necho {version}\n")).unwrap();
        fs::set_permissions(folder.join("bin/bpf-linker"), fs::Permissions::from_mode(0o755)).unwrap();
        let record = format!(r#"{{"installs":{{"bpf-linker {VERSION} (x)":{{"features":["{feature}"]}}}}}}"#);
        fs::write(folder.join(".crates2.json"), record).unwrap();
        (temporary, workspace)
    }

    #[test]
    fn a_linker_of_the_same_llvm_is_accepted() {
        let (_folder, workspace) = cache("bpf-linker 0.13.0", "llvm-22");
        assert_eq!(check(&workspace, 22).unwrap(), installed(&workspace, 22).unwrap());
        assert_eq!(installed(&workspace, 23), None);
    }

    #[test]
    fn a_linker_of_another_llvm_is_refused_and_both_are_named() {
        let (_folder, workspace) = cache("bpf-linker 0.13.0", "llvm-21");
        let error = check(&workspace, 22).unwrap_err().to_string();
        assert!(
            error.contains("compiler uses LLVM 22") && error.contains("built with LLVM 21"),
            "{error}"
        );
    }

    #[test]
    fn a_linker_of_another_version_or_without_record_is_refused() {
        let (_folder, workspace) = cache("bpf-linker 0.9.0", "llvm-22");
        assert!(
            check(&workspace, 22)
                .unwrap_err()
                .to_string()
                .contains("says it is bpf-linker 0.9.0")
        );
        let (_folder, workspace) = cache("bpf-linker 0.13.0", "nothing");
        assert!(format!("{:#}", check(&workspace, 22).unwrap_err()).contains("names no LLVM version"));
    }

    #[test]
    fn an_llvm_out_of_range_is_refused_with_what_to_install() {
        let error = check_supported(&Compiler::Debian, 19).unwrap_err().to_string();
        assert!(
            error.contains("LLVM 19") && error.contains("install Debian's rustc-web"),
            "{error}"
        );
        assert!(check_supported(&Compiler::Debian, EXPECTED_LLVM).is_ok());
    }
}
