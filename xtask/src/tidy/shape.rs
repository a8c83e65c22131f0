//! Rules on the shape of files: their size, head and name, and the vocabulary of names in them.

use super::{Finding, source::Source};

/// More lines than this, tests left out, are more than one file should hold.
const MAX_LINES: usize = 500;

/// A head shorter than this (in characters) says nothing.
const MIN_HEAD: usize = 40;

/// File and folder names that say nothing of what is inside.
const EMPTY_NAMES: [&str; 9] = [
    "utils", "util", "helpers", "helper", "types", "common", "misc", "shared", "base",
];

/// Words of other projects for things that have one name here, with that name.
const FOREIGN_WORDS: [(&str, &str); 8] = [
    ("real", "backend"),
    ("upstream", "backend"),
    ("ring", "backend table"),
    ("xlat", "DNAT or SNAT"),
    ("sticky", "affinity"),
    ("session_map", "flow table"),
    ("vserver", "frontend"),
    ("utils", "a name that says what is inside"),
];

/// Words that introduce a name which the vocabulary rules.
const DEFINING: [&str; 7] = ["struct", "enum", "union", "trait", "type", "static", "mod"];

/// Checks the name of a file and of the folders that it is in.
pub(super) fn check_name(file: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for part in file.split('/') {
        let stem = part.split('.').find(|stem| !stem.is_empty()).unwrap_or(part);
        if EMPTY_NAMES.contains(&stem) {
            findings.push(Finding::new(
                file,
                0,
                format!("the name `{part}` does not say what is inside"),
            ));
        } else if let Some((word, ours)) = foreign_word(stem) {
            findings.push(Finding::new(
                file,
                0,
                format!("`{part}` says {word}; here that is {ours}"),
            ));
        }
    }
    findings
}

/// Checks size, head and names of a Rust file.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let in_tests = source.file.starts_with("tests/");
    let lines = if in_tests {
        source.code.len()
    } else {
        source.product().count()
    };
    if lines > MAX_LINES {
        findings.push(Finding::new(
            &source.file,
            0,
            format!("{lines} lines without tests, at most {MAX_LINES} are allowed"),
        ));
    }
    if head(source).chars().count() < MIN_HEAD {
        let what = format!("no `//!` head of {MIN_HEAD} characters and more that says what the file holds");
        findings.push(Finding::new(&source.file, 1, what));
    }
    for (at, code) in source.code.iter().enumerate() {
        for name in defined_names(code) {
            if let Some((word, ours)) = foreign_word(name) {
                findings.push(Finding::new(
                    &source.file,
                    at + 1,
                    format!("`{name}` says {word}; here that is {ours}"),
                ));
            }
        }
    }
    findings
}

/// The text of the `//!` lines at the top; only inner attributes may come before them.
fn head(source: &Source) -> String {
    let mut head = String::new();
    let mut depth = 0_usize;
    for (line, code) in source.text.iter().zip(&source.code) {
        if let Some(text) = line.strip_prefix("//!") {
            head.push_str(text.trim());
        } else if !head.is_empty() {
            break;
        } else if depth > 0 || line.starts_with("#![") {
            depth = (depth + code.matches('[').count()).saturating_sub(code.matches(']').count());
        } else if !line.trim().is_empty() {
            break;
        }
    }
    head
}

/// The names that a line of code defines.
fn defined_names(code: &str) -> Vec<&str> {
    let words: Vec<&str> = code
        .split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty())
        .collect();
    words
        .windows(2)
        .filter(|pair| DEFINING.contains(&pair[0]) && pair[1] != "mut")
        .map(|pair| pair[1])
        .collect()
}

/// The foreign word in a name, whichever way its words are joined, and our word for the thing.
fn foreign_word(name: &str) -> Option<(&'static str, &'static str)> {
    let snake = format!("_{}_", snake_case(name));
    FOREIGN_WORDS
        .into_iter()
        .find(|(word, _)| snake.contains(&format!("_{word}_")))
}

/// `RealServer`, `real-server` and `REAL_SERVER` become `real_server`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    let mut before_lower = false;
    for c in name.chars() {
        if c.is_uppercase() && before_lower {
            snake.push('_');
        }
        before_lower = c.is_lowercase() || c.is_ascii_digit();
        snake.extend(if c == '-' { '_' } else { c }.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "//! This head says in a full sentence what the file holds.\n";

    fn whats(text: &str) -> Vec<String> {
        check(&Source::new("lb-common/src/flow.rs", text))
            .into_iter()
            .map(|finding| finding.what)
            .collect()
    }

    #[test]
    fn a_file_of_500_lines_passes_and_of_501_fails_tests_left_out() {
        let lines = |count: usize| format!("{HEAD}{}", "fn a() {}\n".repeat(count - 1));
        assert!(whats(&lines(500)).is_empty());
        assert!(whats(&lines(501))[0].starts_with("501 lines"));
        let with_tests = format!("{}#[cfg(test)]\nmod tests {{\n    fn b() {{}}\n}}\n", lines(500));
        assert!(whats(&with_tests).is_empty());
        let suite = Source::new("tests/suite/netns/big.rs", &lines(501));
        assert_eq!(check(&suite).len(), 1);
    }

    #[test]
    fn a_file_without_a_head_that_says_something_fails() {
        for bad in [
            "",
            "fn a() {}\n",
            "//! stub\nfn a() {}\n",
            "// This is no head but an ordinary comment, however long.\n",
        ] {
            assert_eq!(whats(bad).len(), 1, "{bad}");
        }
        let late = format!("fn a() {{}}\n{HEAD}");
        assert_eq!(whats(&late).len(), 1);
    }

    #[test]
    fn inner_attributes_may_come_before_the_head() {
        assert!(whats(&format!("#![no_std]\n#![cfg_attr(\n    x,\n    y\n)]\n\n{HEAD}")).is_empty());
    }

    #[test]
    fn names_that_say_nothing_fail_as_files_and_as_folders() {
        for bad in [
            "lb-common/src/utils.rs",
            "tests/helpers.rs",
            "a/types/mod.rs",
            "lb-userspace/src/common.rs",
        ] {
            assert_eq!(check_name(bad).len(), 1, "{bad}");
        }
        for good in ["lb-common/src/lib.rs", ".ci/run", "lb-userspace/src/maps/mod.rs"] {
            assert!(check_name(good).is_empty(), "{good}");
        }
    }

    #[test]
    fn words_of_other_projects_fail_in_names_of_files_types_maps_and_modules() {
        assert_eq!(check_name("lb-userspace/src/upstream_list.rs").len(), 1);
        for bad in [
            "struct RealServer;",
            "pub enum Upstream {}",
            "type HashRing = u8;",
            "static SESSION_MAP: u8 = 0;",
            "mod xlat;",
            "static mut VSERVER: u8 = 0;",
            "trait StickyTable {}",
        ] {
            let found = whats(&format!("{HEAD}{bad}\n"));
            assert_eq!(found.len(), usize::from(!bad.contains("mut")), "{bad}: {found:?}");
        }
    }

    #[test]
    fn the_same_letters_in_other_words_and_in_comments_pass() {
        for good in [
            "struct Realm;",
            "static EVENTS: RingBuf = x;",
            "struct Stringy;",
            "// struct Real",
            "fn ring() {}",
        ] {
            assert!(whats(&format!("{HEAD}{good}\n")).is_empty(), "{good}");
        }
    }
}
