//! Kernel settings below /proc/sys, read and changed in the network namespace of the calling thread.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::run_dir::RunDir;

/// Reads a setting by its path below /proc/sys, without the newline.
///
/// # Errors
/// There is no such setting, or it may not be read.
pub fn read(key: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(key))?.trim_end().to_owned())
}

/// Changes a setting unless it is so already; true if it was changed.
///
/// # Errors
/// There is no such setting, or it may not be changed.
pub(super) fn ensure(key: &str, value: &str) -> io::Result<bool> {
    if read(key)? == value {
        return Ok(false);
    }
    fs::write(path(key), value)?;
    Ok(true)
}

/// As [`ensure`], and remembers the value that was there before us.
pub(super) fn ensure_remembered(run_dir: &RunDir, key: &str, value: &str) -> io::Result<bool> {
    let before = read(key)?;
    if before == value {
        return Ok(false);
    }
    run_dir.remember(key, &before)?;
    fs::write(path(key), value)?;
    Ok(true)
}

fn path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key)
}
