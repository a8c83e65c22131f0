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
    exec::output(Command::new(&linker).arg("--version"))
        .and_then(|version| fits(&folder, version.trim(), llvm))
        .with_context(|| {
            let remedy = "and run `cargo xtask setup`: bpf-linker is built anew";
            format!(
                "{} is of no use: remove {} {remedy}",
                linker.display(),
                folder.display()
            )
        })?;
    Ok(linker)
}

/// Whether the installation in `folder`, which says that it is `version`, is the one to use with this LLVM.
fn fits(folder: &Path, version: &str, llvm: u32) -> Result<()> {
    ensure!(
        version == format!("bpf-linker {VERSION}"),
        "it says that it is {version}"
    );
    let built_with = recorded_llvm(folder)?;
    ensure!(
        built_with == llvm,
        "the compiler uses LLVM {llvm}, but it was built with LLVM {built_with}"
    );
    Ok(())
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
    use super::*;

    /// An installation that is recorded as built with `feature`.
    fn installation(feature: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let record = format!(r#"{{"installs":{{"bpf-linker {VERSION} (x)":{{"features":["{feature}"]}}}}}}"#);
        fs::write(folder.path().join(".crates2.json"), record).unwrap();
        folder
    }

    #[test]
    fn a_linker_of_the_same_llvm_fits() {
        fits(installation("llvm-22").path(), "bpf-linker 0.13.0", 22).unwrap();
    }

    #[test]
    fn a_linker_of_another_llvm_is_refused_and_both_are_named() {
        let error = fits(installation("llvm-21").path(), "bpf-linker 0.13.0", 22)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "the compiler uses LLVM 22, but it was built with LLVM 21");
    }

    #[test]
    fn a_linker_of_another_version_or_without_record_is_refused() {
        let error = fits(installation("llvm-22").path(), "bpf-linker 0.9.0", 22)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "it says that it is bpf-linker 0.9.0");
        let error = fits(installation("nothing").path(), "bpf-linker 0.13.0", 22)
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("names no LLVM version"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        assert!(
            fits(empty.path(), "bpf-linker 0.13.0", 22)
                .unwrap_err()
                .to_string()
                .contains("cannot read")
        );
    }

    #[test]
    fn a_linker_that_does_not_start_is_named_with_the_remedy() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().to_path_buf();
        let workspace = Workspace {
            target: root.join("target"),
            cache: root.join("cache"),
            root,
        };
        assert_eq!(installed(&workspace, 22), None);
        let error = check(&workspace, 22).unwrap_err().to_string();
        assert!(
            error.contains("tools/bpf-linker-0.13.0-llvm22") && error.contains("cargo xtask setup"),
            "{error}"
        );
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
