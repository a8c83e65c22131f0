//! Finds the kernel object that `cargo xtask build-ebpf` made and hands it to the crate; compiles nothing itself.
//!
//! In: `STEERWAY_EBPF`, the object's path; without it `bpf/steerway-ebpf` in the target folder (`CARGO_TARGET_DIR`,
//! else `target` in the checkout). Out: a copy in `OUT_DIR`, whose path the crate reads at compile time as
//! `env!("STEERWAY_EBPF_OBJECT")` and embeds by `aya::include_bytes_aligned!`. No object is an error that names the
//! command which makes it, unless `STEERWAY_NO_EBPF=1`: then the copy is empty, and loading has to say so. That is
//! for lints and unit tests on machines without the BPF compiler.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

fn main() -> ExitCode {
    for variable in ["STEERWAY_EBPF", "STEERWAY_NO_EBPF", "CARGO_TARGET_DIR"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    match embed() {
        Ok(object) => {
            println!("cargo::rustc-env=STEERWAY_EBPF_OBJECT={}", object.display());
            ExitCode::SUCCESS
        }
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

/// Copies the object, or nothing, into `OUT_DIR` and returns the copy's path.
fn embed() -> Result<PathBuf, String> {
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: this is no build by cargo")?;
    let copy = Path::new(&out).join("steerway-ebpf");
    let content = if env::var_os("STEERWAY_NO_EBPF").is_some_and(|value| value == "1") {
        Vec::new()
    } else {
        let object = object()?;
        println!("cargo::rerun-if-changed={}", object.display());
        fs::read(&object).map_err(|error| {
            format!(
                "no kernel object at {} ({error}): `cargo xtask build-ebpf` makes it, STEERWAY_NO_EBPF=1 does without",
                object.display()
            )
        })?
    };
    fs::write(&copy, content).map_err(|error| format!("cannot write {}: {error}", copy.display()))?;
    Ok(copy)
}

/// Where the object has to be.
fn object() -> Result<PathBuf, String> {
    let manifest =
        env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set: this is no build by cargo")?;
    let root = Path::new(&manifest).parent().ok_or("the package is in no workspace")?;
    // A path that is not absolute counts from the checkout's root, where xtask starts cargo.
    Ok(match env::var_os("STEERWAY_EBPF") {
        Some(object) => root.join(object),
        None => root
            .join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
            .join("bpf/steerway-ebpf"),
    })
}
