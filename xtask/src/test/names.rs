//! The committed list of all tests: a test that vanishes, or never runs, is noticed.
//!
//! One name a line, sorted: the binary (`package/lib`, `package/bin`, `lb-tests/suite`, or `doc` for all examples), a
//! space, the test.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, ensure};

/// The list's place in the checkout.
pub(crate) const FILE: &str = "tests/test-names.txt";

/// Reads the list. It has to be sorted, without duplicates and empty lines.
pub(crate) fn read(path: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read {}; `cargo xtask test --bless-names` writes it",
            path.display()
        )
    })?;
    let disorder = first_disorder(&text);
    ensure!(
        disorder.is_none(),
        "{}:{} is out of order, doubled or empty",
        path.display(),
        disorder.unwrap_or(0)
    );
    Ok(text.lines().map(str::to_owned).collect())
}

/// The number (from 1) of the first line that does not sort after the line before it, or is empty.
pub(crate) fn first_disorder(text: &str) -> Option<usize> {
    let lines: Vec<&str> = text.lines().collect();
    (0..lines.len())
        .find(|&at| lines[at].is_empty() || at > 0 && lines[at - 1] >= lines[at])
        .map(|at| at + 1)
}

/// Writes the list anew.
pub(crate) fn write(path: &Path, ran: &BTreeSet<String>) -> Result<()> {
    let text: String = ran.iter().flat_map(|name| [name.as_str(), "\n"]).collect();
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// One sentence for each listed test that did not run and each test that ran and is not listed.
pub(crate) fn differences(expected: &BTreeSet<String>, ran: &BTreeSet<String>) -> Vec<String> {
    let missing = expected
        .difference(ran)
        .map(|name| format!("listed in {FILE} but did not run: {name}"));
    let unlisted = ran
        .difference(expected)
        .map(|name| format!("ran but is not listed in {FILE}: {name}"));
    missing.chain(unlisted).collect()
}

/// The name of a documentation example without its line number, which changes with every edit above it.
pub(crate) fn without_line(name: &str) -> String {
    let Some((before, rest)) = name.split_once(" (line ") else {
        return name.to_owned();
    };
    let Some((number, after)) = rest.split_once(')') else {
        return name.to_owned();
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return name.to_owned();
    }
    format!("{before}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_test_that_did_not_run_and_one_that_is_not_listed_are_both_told() {
        let told = differences(&set(&["a", "b"]), &set(&["b", "c"]));
        assert_eq!(told.len(), 2);
        assert!(told[0].contains("did not run: a") && told[1].contains("not listed") && told[1].ends_with(": c"));
        assert!(differences(&set(&["a"]), &set(&["a"])).is_empty());
    }

    #[test]
    fn disorder_doubles_and_empty_lines_are_found() {
        assert_eq!(first_disorder("a\nb\nc\n"), None);
        assert_eq!(first_disorder("a\nc\nb\n"), Some(3));
        assert_eq!(first_disorder("a\na\n"), Some(2));
        assert_eq!(first_disorder("\na\n"), Some(1));
    }

    #[test]
    fn what_was_written_is_read_back_and_a_missing_list_says_how_to_write_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names.txt");
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("--bless-names"));
        write(&path, &set(&["x b", "x a"])).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "x a\nx b\n");
        assert_eq!(read(&path).unwrap(), set(&["x a", "x b"]));
    }

    #[test]
    fn line_numbers_of_examples_are_left_out() {
        assert_eq!(
            without_line("src/sum.rs - sum::fold (line 12)"),
            "src/sum.rs - sum::fold"
        );
        assert_eq!(
            without_line("src/sum.rs - sum (line 3) - compile fail"),
            "src/sum.rs - sum - compile fail"
        );
        assert_eq!(without_line("flow::tests::one"), "flow::tests::one");
        assert_eq!(without_line("a (line x)"), "a (line x)");
    }
}
