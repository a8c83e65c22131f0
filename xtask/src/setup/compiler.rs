//! The compiler for the BPF target, and the environment that it has to run in.
//!
//! Stable Rust ships no library for `bpfel-unknown-none`. Debian does, prebuilt, for its own compiler; a rustup nightly
//! with the component rust-src builds it (`-Z build-std=core`). `RUSTC_BOOTSTRAP=1` opens the unstable features that
//! kernel programs need on Debian's stable compiler.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::exec;

/// Environment variable that overrides the choice: `debian` or `nightly`.
const CHOICE: &str = "STEERWAY_BPF_COMPILER";

/// A compiler that can build for `bpfel-unknown-none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// /usr/bin/rustc and /usr/bin/cargo with Debian's prebuilt core library.
    Debian,
    /// The rustup toolchain of this name, which has rust-src.
    Nightly(String),
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian => f.write_str("/usr/bin/rustc of Debian"),
            Self::Nightly(toolchain) => write!(f, "rustup's {toolchain} with rust-src"),
        }
    }
}

impl Compiler {
    /// Chooses by what is on this machine; nothing is started or installed.
    pub(crate) fn choose() -> Result<Self> {
        let nightly = rustup_home().and_then(|home| nightly_with_source(&home.join("toolchains")));
        let choice = env::var(CHOICE).ok();
        match (choice.as_deref(), nightly) {
            (None | Some("nightly"), Some(toolchain)) => Ok(Self::Nightly(toolchain)),
            (Some("nightly"), None) => {
                bail!("{CHOICE}=nightly, but rustup has no nightly toolchain with the component rust-src")
            }
            (None | Some("debian"), _) if Path::new("/usr/bin/apt-get").exists() => Ok(Self::Debian),
            (None | Some("debian"), _) => bail!(
                "no compiler for kernel programs: this is no Debian system; with rustup, install nightly and its source: \
                 rustup toolchain install nightly --component rust-src"
            ),
            (Some(other), _) => bail!("{CHOICE} is {other}, but has to be debian or nightly"),
        }
    }

    /// The major version of the LLVM that the compiler's bitcode is written by. An error if there is no compiler.
    pub(crate) fn llvm_major(&self) -> Result<u32> {
        let mut command = match self {
            Self::Debian => Command::new("/usr/bin/rustc"),
            Self::Nightly(toolchain) => {
                let mut command = Command::new("rustup");
                command.args(["run", toolchain, "rustc"]);
                command
            }
        };
        clean(&mut command);
        let said = exec::output(command.arg("-vV"))?;
        llvm_major(&said).with_context(|| format!("{} -vV names no LLVM version", exec::describe(&command)))
    }

    /// A cargo command that compiles with this compiler for the BPF target; the subcommand is `build`.
    pub(crate) fn cargo_build(&self) -> Command {
        let mut command;
        match self {
            Self::Debian => {
                command = Command::new("/usr/bin/cargo");
                clean(&mut command);
                command
                    .env("RUSTC", "/usr/bin/rustc")
                    .env("RUSTC_BOOTSTRAP", "1")
                    .arg("build");
            }
            Self::Nightly(toolchain) => {
                command = Command::new("rustup");
                clean(&mut command);
                command.args(["run", toolchain, "cargo", "build", "-Z", "build-std=core"]);
            }
        }
        command
    }
}

/// Removes what rustup, `cargo run` and the caller's host builds leave in the environment: another cargo would take it
/// for its own. What says where registries and caches are stays.
fn clean(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_foreign) {
            command.env_remove(name);
        }
    }
}

fn is_foreign(name: &str) -> bool {
    const KEPT: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRY_",
        "CARGO_REGISTRIES_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    // LD_LIBRARY_PATH: cargo run puts its toolchain's libraries first.
    const REMOVED: [&str; 4] = ["LD_LIBRARY_PATH", "RUSTUP_TOOLCHAIN", "RUST_RECURSION_COUNT", "CARGO"];
    const REMOVED_STARTS: [&str; 4] = ["CARGO_", "RUSTC", "RUSTDOC", "RUSTFLAGS"];
    REMOVED.contains(&name)
        || (REMOVED_STARTS.iter().any(|start| name.starts_with(start))
            && !KEPT.iter().any(|kept| name.starts_with(kept)))
}

fn llvm_major(version: &str) -> Option<u32> {
    version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?
        .split('.')
        .next()?
        .trim()
        .parse()
        .ok()
}

fn rustup_home() -> Option<PathBuf> {
    env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".rustup")))
}

/// The nightly toolchain in `toolchains` that has the library's source; of several, the undated one.
fn nightly_with_source(toolchains: &Path) -> Option<String> {
    let mut names: Vec<String> = fs::read_dir(toolchains)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("nightly"))
        .filter(|name| {
            toolchains
                .join(name)
                .join("lib/rustlib/src/rust/library/core/src/lib.rs")
                .is_file()
        })
        .collect();
    // "nightly-x86_64-..." sorts after "nightly-2026-...".
    names.sort();
    names.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_major_is_read_from_the_verbose_version() {
        assert_eq!(llvm_major("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\nhost: x\n"), None);
    }

    #[test]
    fn what_another_toolchain_left_is_removed_and_where_registries_are_stays() {
        for name in [
            "CARGO",
            "CARGO_MANIFEST_DIR",
            "CARGO_TARGET_DIR",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_PROFILE_RELEASE_LTO",
            "LD_LIBRARY_PATH",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTDOCFLAGS",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(is_foreign(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_HTTP_PROXY",
            "PATH",
            "HOME",
            "RUSTUP_HOME",
            "RUST_LOG",
        ] {
            assert!(!is_foreign(name), "{name}");
        }
    }

    #[test]
    fn only_a_nightly_with_source_counts_and_the_undated_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let add = |name: &str, with_source: bool| {
            let source = folder.path().join(name).join("lib/rustlib/src/rust/library/core/src");
            fs::create_dir_all(if with_source { &source } else { folder.path() }).unwrap();
            if with_source {
                fs::write(source.join("lib.rs"), "").unwrap();
            }
        };
        add("stable-x86_64-unknown-linux-gnu", true);
        assert_eq!(nightly_with_source(folder.path()), None);
        add("nightly-2026-01-01-x86_64-unknown-linux-gnu", true);
        assert_eq!(
            nightly_with_source(folder.path()).unwrap(),
            "nightly-2026-01-01-x86_64-unknown-linux-gnu"
        );
        add("nightly-x86_64-unknown-linux-gnu", true);
        assert_eq!(
            nightly_with_source(folder.path()).unwrap(),
            "nightly-x86_64-unknown-linux-gnu"
        );
        assert_eq!(nightly_with_source(Path::new("/no/such/folder")), None);
    }
}
