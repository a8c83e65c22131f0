//! Where things are: the checkout, the target folder, the cache outside the checkout.
//!
//! Environment: `CARGO_TARGET_DIR` moves the target folder (relative to the checkout, as for cargo's own runs at its
//! root), `STEERWAY_CACHE` moves the cache (default `~/.cache/steerway`). Nothing is created here.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The folders that every command works in, all absolute.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    /// The checkout's root, where the workspace manifest lies.
    pub(crate) root: PathBuf,
    /// Cargo's target folder for host builds.
    pub(crate) target: PathBuf,
    /// What is built once per machine and version, shared between checkouts.
    pub(crate) cache: PathBuf,
}

impl Workspace {
    /// Finds the checkout that this xtask was built from, and the folders that go with it.
    pub(crate) fn locate() -> Result<Self> {
        let manifest =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().context("xtask's folder has no parent")?.to_path_buf();
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder));
        let cache = match env::var_os("STEERWAY_CACHE") {
            Some(folder) => root.join(folder),
            None => Path::new(&env::var_os("HOME").context("neither STEERWAY_CACHE nor HOME is set")?)
                .join(".cache/steerway"),
        };
        Ok(Self { root, target, cache })
    }

    /// The agent that `build` leaves.
    pub(crate) fn agent(&self) -> PathBuf {
        self.target.join("release/steerway")
    }
}
