//! Kernel modules out of an unpacked kernel package: found by name, unpacked, in the order in which they can be inserted.
//!
//! What a module needs stands in its own `.modinfo` section (`depends=a,b`); the package has no index before it is installed.
//! A name without a file is built into the kernel, or unknown to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Unpacks `names` and what they need from below `modules` into `into`; returns the files' names in the order of insertion.
#[track_caller]
pub(super) fn unpack(modules: &Path, names: &[&str], into: &Path) -> Vec<String> {
    let mut files = Vec::new();
    collect(modules, &mut files);
    let mut ordered = Vec::new();
    for name in names {
        unpack_one(&files, name, into, &mut ordered);
    }
    ordered
}

fn unpack_one(files: &[PathBuf], name: &str, into: &Path, ordered: &mut Vec<String>) {
    let target = format!("{}.ko", name.replace('-', "_"));
    if ordered.contains(&target) {
        return;
    }
    let Some(file) = files
        .iter()
        .find(|file| module_name(file).as_deref() == Some(target.as_str()))
    else {
        return;
    };
    let content = if file.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz")
            .args(["--decompress", "--stdout"])
            .arg(file)
            .output()
            .expect("xz");
        assert!(output.status.success(), "xz cannot unpack {}", file.display());
        output.stdout
    } else {
        fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    for needed in depends(&content) {
        unpack_one(files, &needed, into, ordered);
    }
    fs::write(into.join(&target), content).expect("a module of the machine");
    ordered.push(target);
}

/// `NAME.ko` of a module's file, whatever packs it.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?.replace('-', "_");
    let end = name.find(".ko")? + ".ko".len();
    Some(name[..end].to_owned())
}

/// Names in the `depends=` line of a module's information.
fn depends(content: &[u8]) -> Vec<String> {
    const LINE: &[u8] = b"\0depends=";
    let Some(at) = content.windows(LINE.len()).position(|window| window == LINE) else {
        return Vec::new();
    };
    let rest = &content[at + LINE.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let line = String::from_utf8_lossy(&rest[..end]).into_owned();
    line.split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Every file below `folder`.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&path, files),
            Ok(kind) if kind.is_file() => files.push(path),
            _ => {}
        }
    }
}
