//! `tidy`: the project's rules that neither compiler nor clippy checks.
//!
//! Each rule is a pure function from texts to findings, with tests that show it fail. Rules look at code with comments
//! and literals blanked out ([`source`]), so they cannot be fooled by prose; they read tokens, not types, so they can
//! be evaded on purpose. In: all files of the checkout. Out: one line `file:line: what` per finding on standard output.

mod arrows;
mod edge_cases;
mod leftovers;
mod licences;
mod manifests;
mod shape;
mod source;
mod uses;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::source::Source;
use crate::{exec, test::names, workspace::Workspace};

/// Check the rules that compiler and clippy do not know.
///
/// Size, head and name of files, vocabulary, which module may use which, unsafe code, leftovers, licences and versions
/// of dependencies, order of the list of tests, and that the edge cases' tests are in it.
#[derive(Debug, Args)]
pub(crate) struct Options {}

/// One place that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// Relative to the checkout.
    file: String,
    /// From 1; 0 means the file as a whole.
    line: usize,
    what: String,
}

impl Finding {
    fn new(file: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

pub(crate) fn run(_options: &Options, workspace: &Workspace) -> Result<ExitCode> {
    check(workspace)?;
    println!("tidy");
    Ok(ExitCode::SUCCESS)
}

/// Applies every rule, prints the findings, and fails if there is one.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut files = Vec::new();
    collect(&workspace.root, Path::new(""), &mut files)?;
    files.sort();
    let mut findings = Vec::new();
    for file in &files {
        let path = workspace.root.join(file);
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // A picture or another binary file is no business of the rules on texts.
        findings.extend(
            String::from_utf8(content).map_or_else(|_| shape::check_name(file), |text| check_text(file, &text)),
        );
    }
    let mut cargo = exec::cargo(&workspace.root);
    let metadata = exec::output(cargo.args(["metadata", "--format-version", "1", "--locked"]))?;
    let metadata = serde_json::from_str(&metadata).context("cargo metadata wrote no JSON")?;
    findings.extend(licences::check(&metadata));
    findings.extend(arrows::check_packages(&metadata));
    findings.extend(check_edge_cases(workspace)?);
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    ensure!(findings.is_empty(), "{} places break a rule", findings.len());
    // What finds no file finds no fault.
    ensure!(
        files.iter().any(|file| file == "Cargo.toml"),
        "{} holds no workspace",
        workspace.root.display()
    );
    Ok(())
}

/// Compares the table of edge cases with the list of tests.
fn check_edge_cases(workspace: &Workspace) -> Result<Vec<Finding>> {
    let path = workspace.root.join(edge_cases::FILE);
    let table = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let names = names::read(&workspace.root.join(names::FILE))?;
    Ok(edge_cases::check(&table, &names))
}

/// Applies the rules that concern one text file.
fn check_text(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = shape::check_name(file);
    findings.extend(leftovers::check_words(file, text));
    if file == "Cargo.toml" || file.ends_with("/Cargo.toml") {
        findings.extend(manifests::check(file, text));
    }
    if file == names::FILE {
        findings
            .extend(names::first_disorder(text).map(|line| Finding::new(file, line, "out of order, doubled or empty")));
    }
    if Path::new(file).extension().is_some_and(|extension| extension == "rs") {
        let source = Source::new(file, text);
        findings.extend(shape::check(&source));
        findings.extend(leftovers::check(&source));
        findings.extend(arrows::check(&source));
    }
    findings
}

/// Collects the paths of all files below `root`, except what no one edits.
fn collect(root: &Path, folder: &Path, files: &mut Vec<String>) -> Result<()> {
    const LEFT_OUT: [&str; 3] = [".git", "target", "Cargo.lock"];
    let path = root.join(folder);
    for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
        let name = entry.file_name();
        if folder == Path::new("") && LEFT_OUT.iter().any(|&left_out| name == left_out) {
            continue;
        }
        let inner: PathBuf = folder.join(&name);
        let kind = entry
            .file_type()
            .with_context(|| format!("cannot tell what {} is", inner.display()))?;
        if kind.is_dir() {
            collect(root, &inner, files)?;
        } else if kind.is_file() {
            files.push(
                inner
                    .to_str()
                    .with_context(|| format!("{} is no UTF-8", inner.display()))?
                    .to_owned(),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_file_meets_its_rules() {
        let bad_source = "fn main() { let x = unsafe { 1 }; }\n";
        let found = check_text("lb-userspace/src/health.rs", bad_source);
        assert!(found.iter().any(|finding| finding.what.contains("unsafe")), "{found:?}");
        assert!(found.iter().any(|finding| finding.what.contains("//!")), "{found:?}");
        assert_eq!(check_text(names::FILE, "b\na\n")[0].line, 2);
        assert!(!check_text("Cargo.toml", "[workspace.dependencies]\nx = \"1\"\n").is_empty());
        assert!(!check_text("docs/utils.rs", "//! Something that is said about it in full.\n").is_empty());
        assert!(check_text("LICENSE-MIT", "MIT License\n").is_empty());
    }

    #[test]
    fn findings_are_printed_as_file_line_and_text() {
        assert_eq!(Finding::new("a/b.rs", 3, "why").to_string(), "a/b.rs:3: why");
    }

    #[test]
    fn all_files_are_collected_except_targets_and_history() {
        let folder = tempfile::tempdir().unwrap();
        for file in [
            ".git/config",
            "target/x.rs",
            "a/target/y.rs",
            ".ci/run",
            "Cargo.toml",
            "Cargo.lock",
        ] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let mut files = Vec::new();
        collect(folder.path(), Path::new(""), &mut files).unwrap();
        files.sort();
        assert_eq!(files, [".ci/run", "Cargo.toml", "a/target/y.rs"]);
    }
}
