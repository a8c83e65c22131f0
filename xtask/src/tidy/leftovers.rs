//! Rules on what must not be left in the code: unfinished work, debug output, silenced lints and tests, and unsafe
//! code outside the files that are made for it.

use super::{Finding, source::Source};

/// Marks of unfinished work, in any file. Written in two parts, so that this file does not hold them.
const MARKS: [&str; 4] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
];

/// Texts that no Rust code may hold.
const LEFTOVERS: [(&str, &str); 5] = [
    (concat!("to", "do!("), "unfinished"),
    (concat!("unimple", "mented!("), "unfinished"),
    (concat!("db", "g!("), "debug output"),
    (concat!("#[ig", "nore"), "a test runs, or it is not there"),
    (concat!("#![ig", "nore"), "a test runs, or it is not there"),
];

/// Printing belongs to commands; everything else logs.
const PRINTS: [&str; 4] = ["print!(", "println!(", "eprint!(", "eprintln!("];
const PRINTING: [&str; 5] = [
    "lb-userspace/src/cli/",
    "lb-userspace/src/main.rs",
    "lb-userspace/build.rs",
    "xtask/src/",
    "tests/",
];

/// The files that may hold unsafe code.
const UNSAFE: [&str; 13] = [
    "lb-ebpf/src/packet.rs",
    "lb-ebpf/src/hops.rs",
    "lb-ebpf/src/kernel.rs",
    "lb-ebpf/src/globals.rs",
    "lb-ebpf/src/sets.rs",
    "lb-ebpf/src/stages.rs",
    "lb-ebpf/src/tables.rs",
    "lb-ebpf/bench/main.rs",
    "lb-ebpf/bench/yardsticks.rs",
    "lb-userspace/src/heap.rs",
    "lb-userspace/src/maps/mmap.rs",
    "lb-userspace/src/maps/syscall.rs",
    "tests/src/syscall.rs",
];

/// Unsafe code of one form in further files: declarations that the kernel needs, and aya's mark of plain data.
const UNSAFE_FORMS: [(&str, &str); 2] = [
    ("lb-ebpf/src/main.rs", "#[unsafe("),
    ("lb-userspace/src/maps/bpf.rs", "unsafe impl aya::Pod for "),
];

/// Finds marks of unfinished work anywhere in a file, comments included.
pub(super) fn check_words(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, line) in text.lines().enumerate() {
        for mark in MARKS.into_iter().filter(|mark| has_word(line, mark)) {
            findings.push(Finding::new(
                file,
                at + 1,
                format!("{mark}: finish it, or file an issue"),
            ));
        }
    }
    findings
}

/// Finds leftovers and misplaced unsafe code in a Rust file, tests included.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    let file = &source.file;
    let mut findings = Vec::new();
    let mut found = |at: usize, what: String| findings.push(Finding::new(file, at + 1, what));
    for (at, code) in source.code.iter().enumerate() {
        for (text, why) in LEFTOVERS.into_iter().filter(|(text, _)| has_word(code, text)) {
            found(at, format!("`{text}`: {why}"));
        }
        if is_allow_attribute(code) {
            found(at, "`allow`: mend it, or `expect` it with a reason".to_owned());
        }
        if has_word(code, "unsafe") && !may_be_unsafe(file, code) {
            found(at, "unsafe code outside the files that are made for it".to_owned());
        }
        if !source.test[at] && !PRINTING.iter().any(|place| file.starts_with(place)) {
            for print in PRINTS.into_iter().filter(|print| has_word(code, print)) {
                found(at, format!("`{print}`: only commands print; this place logs"));
            }
        }
    }
    findings
}

fn may_be_unsafe(file: &str, code: &str) -> bool {
    UNSAFE.contains(&file)
        || UNSAFE_FORMS
            .iter()
            .any(|(place, form)| *place == file && code.trim().starts_with(form))
}

/// Whether an attribute on this line (or the rest of one from the line before) allows a lint.
fn is_allow_attribute(code: &str) -> bool {
    let code = code.trim_start();
    let attribute = code.starts_with("#[") || code.starts_with("#![");
    attribute && ["[allow(", " allow(", "(allow("].iter().any(|text| code.contains(text))
        || code.starts_with("allow(clippy::")
        || code.starts_with("#[allow]")
}

/// Whether `line` holds `word` not as a part of a longer word.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let free =
            |neighbour: Option<char>, own: Option<char>| !(neighbour.is_some_and(is_part) && own.is_some_and(is_part));
        free(before, word.chars().next()) && free(after, word.chars().next_back())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(file: &str, text: &str) -> usize {
        check(&Source::new(file, text)).len()
    }

    #[test]
    fn marks_of_unfinished_work_are_found_in_comments_and_other_files_too() {
        for mark in MARKS {
            assert_eq!(
                check_words("deploy/agent.yaml", &format!("a: b\n# {mark}: later\n"))[0].line,
                2
            );
            assert!(check_words("a.rs", &format!("let {mark}S = 1;\n")).is_empty(), "{mark}");
        }
    }

    #[test]
    fn unfinished_code_debug_output_and_switched_off_tests_are_found() {
        for (text, _) in LEFTOVERS {
            assert_eq!(count("lb-common/src/a.rs", &format!("    {text})\n")), 1, "{text}");
            assert_eq!(count("lb-common/src/a.rs", &format!("    // {text})\n")), 0, "{text}");
        }
    }

    #[test]
    fn allowed_lints_are_found_in_every_form_of_attribute() {
        for bad in [
            "#[allow(dead_code)]",
            "#![allow(x)]",
            "#[cfg_attr(a, allow(x))]",
            "    allow(clippy::x)",
        ] {
            assert_eq!(count("lb-common/src/a.rs", bad), 1, "{bad}");
        }
        for good in [
            "fn allow(x: u8) {}",
            "policy.allow(x);",
            "#[expect(x, reason = \"allow(y)\")]",
        ] {
            assert_eq!(count("lb-common/src/a.rs", good), 0, "{good}");
        }
    }

    #[test]
    fn unsafe_code_stays_in_its_files() {
        let block = "let x = unsafe { *p };";
        assert_eq!(count("lb-userspace/src/flows.rs", block), 1);
        assert_eq!(count("tests/netns.rs", block), 1);
        assert_eq!(count("lb-ebpf/src/main.rs", block), 1);
        assert_eq!(count("lb-userspace/src/maps/bpf.rs", block), 1);
        assert_eq!(count("lb-ebpf/src/packet.rs", block), 0);
        assert_eq!(count("lb-ebpf/src/main.rs", "#[unsafe(no_mangle)]"), 0);
        assert_eq!(
            count("lb-userspace/src/maps/bpf.rs", "unsafe impl aya::Pod for Row {}"),
            0
        );
        assert_eq!(
            count(
                "lb-userspace/src/flows.rs",
                "#[expect(unsafe_code, reason = \"x\")] // unsafe"
            ),
            0
        );
    }

    #[test]
    fn only_commands_and_tests_print() {
        for print in PRINTS {
            let code = format!("fn a() {{ {print}\"x\"); }}\n");
            assert_eq!(count("lb-userspace/src/health.rs", &code), 1, "{print}");
            assert_eq!(count("lb-userspace/src/cli/status.rs", &code), 0, "{print}");
            assert_eq!(
                count("lb-common/src/a.rs", &format!("#[cfg(test)]\nmod tests {{\n{code}}}\n")),
                0,
                "{print}"
            );
        }
    }
}
