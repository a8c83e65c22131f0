//! Sums up the runs of all test binaries and prints the end of the report.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
};

use super::{libtest::Outcome, names, runner::Run};
use crate::phases::Phases;

/// What passed and what failed so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The phases of the command, printed at the end.
    pub(crate) phases: Phases,
    passed: usize,
    failures: Vec<Failure>,
    ran: BTreeSet<String>,
}

/// One failed test, or anything else that must not be overlooked.
#[derive(Debug)]
struct Failure {
    name: String,
    said: String,
}

impl Failure {
    /// How much of what a failure said is told in short: a panic's place and message.
    const SHORT: usize = 400;

    /// One line with the beginning of what it said.
    fn in_short(&self) -> String {
        let words: Vec<&str> = self.said.split_whitespace().collect();
        let said: String = words.join(" ").chars().take(Self::SHORT).collect();
        format!("FAILED: {}: {said}", self.name)
    }
}

impl Report {
    /// An empty report of a command that has already been through `phases`.
    pub(crate) fn new(phases: Phases) -> Self {
        Self {
            phases,
            ..Self::default()
        }
    }

    /// Counts the tests of one run of `binary`. `expected` are the tests that it was asked to run, where that is
    /// known: each of them that has no end counts as failed.
    pub(crate) fn add(&mut self, binary: &str, run: Run, expected: Option<&[String]>) {
        let failures_before = self.failures.len();
        let mut said = run.parser.said;
        let ended: BTreeSet<&String> = run.parser.outcomes.iter().map(|(name, _)| name).collect();
        for name in expected.into_iter().flatten().filter(|name| !ended.contains(name)) {
            self.fail(&format!("{binary} {name}"), "no end of this test was seen");
        }
        let mut examples = BTreeMap::new();
        for (name, outcome) in &run.parser.outcomes {
            let plain = format!("{binary} {}", names::without_line(name));
            // Several examples of one item differ in nothing but their lines.
            let number = examples
                .entry(plain.clone())
                .and_modify(|number| *number += 1)
                .or_insert(1);
            let full = if *number == 1 {
                plain
            } else {
                format!("{plain} #{number}")
            };
            match outcome {
                Outcome::Passed => self.passed += 1,
                Outcome::Failed => {
                    let said = said.remove(name).unwrap_or_default();
                    self.fail(&full, &said);
                }
                Outcome::Ignored => {
                    self.fail(&full, "ignored: a test runs, or it is not there");
                    continue;
                }
            }
            self.ran.insert(full);
        }
        if let Some(trouble) = run.trouble {
            self.fail(binary, &trouble);
        }
        if !run.success && self.failures.len() == failures_before {
            self.fail(binary, "it failed, but no test did");
        }
    }

    /// Counts one failure: a test, or a step that could not be done.
    pub(crate) fn fail(&mut self, name: &str, said: &str) {
        self.failures.push(Failure {
            name: name.to_owned(),
            said: said.to_owned(),
        });
    }

    /// The full names of all tests that ran, passed or failed.
    pub(crate) fn ran(&self) -> &BTreeSet<String> {
        &self.ran
    }

    /// Whether nothing has failed so far.
    pub(crate) fn is_clean(&self) -> bool {
        self.failures.is_empty()
    }

    /// Prints what each failure said, the phases' times, each failure's reason in short, for whoever sees the end alone, and
    /// the last line.
    pub(crate) fn finish(self) -> ExitCode {
        for Failure { name, said } in &self.failures {
            println!("\n---- FAILED: {name}\n{}", said.trim_end());
        }
        println!("\n{}", self.phases.table());
        for failure in &self.failures {
            println!("{}", failure.in_short());
        }
        println!("{}", self.last_line());
        if self.is_success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn last_line(&self) -> String {
        format!("{} passed, {} failed", self.passed, self.failures.len())
    }

    /// A run in which nothing passed is no success.
    fn is_success(&self) -> bool {
        self.failures.is_empty() && self.passed > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::libtest::Parser;

    fn run(lines: &[&str], success: bool) -> Run {
        let mut parser = Parser::default();
        for line in lines {
            parser.line(line);
        }
        Run {
            parser,
            trouble: None,
            success,
        }
    }

    fn report(lines: &[&str], success: bool, expected: &[&str]) -> Report {
        let mut report = Report::default();
        let expected: Vec<String> = expected.iter().map(|&name| name.to_owned()).collect();
        report.add("p/lib", run(lines, success), Some(&expected));
        report
    }

    #[test]
    fn passed_and_failed_tests_are_counted_and_named() {
        let report = report(
            &[
                "test a ... ok",
                "test b ... FAILED",
                "failures:",
                "---- b stdout ----",
                "why",
                "test result: FAILED.",
            ],
            false,
            &["a", "b"],
        );
        assert_eq!(report.last_line(), "1 passed, 1 failed");
        assert_eq!(
            (report.failures[0].name.as_str(), report.failures[0].said.as_str()),
            ("p/lib b", "why\n")
        );
        assert_eq!(report.failures[0].in_short(), "FAILED: p/lib b: why");
        assert_eq!(report.ran().iter().collect::<Vec<_>>(), ["p/lib a", "p/lib b"]);
        assert!(!report.is_success());
    }

    #[test]
    fn an_ignored_test_is_a_failure_and_did_not_run() {
        let report = report(&["test a ... ok", "test b ... ignored"], true, &["a", "b"]);
        assert_eq!(report.last_line(), "1 passed, 1 failed");
        assert_eq!(report.ran().len(), 1);
        assert!(!report.is_success());
    }

    #[test]
    fn a_test_without_an_end_is_a_failure() {
        let report = report(&["test a ... ok"], true, &["a", "b"]);
        assert_eq!(report.failures[0].name, "p/lib b");
        assert!(!report.is_success());
    }

    #[test]
    fn a_bad_exit_or_trouble_without_a_failed_test_is_a_failure() {
        assert!(!report(&["test a ... ok"], false, &["a"]).is_success());
        let mut report = Report::default();
        report.add(
            "p/lib",
            Run {
                trouble: Some("hangs".to_owned()),
                ..run(&["test a ... ok"], true)
            },
            None,
        );
        assert_eq!(report.last_line(), "1 passed, 1 failed");
    }

    #[test]
    fn no_test_at_all_is_no_success_and_all_passed_is() {
        assert!(!Report::default().is_success());
        assert!(report(&["test a ... ok"], true, &["a"]).is_success());
    }

    #[test]
    fn examples_of_one_item_are_told_apart_without_their_lines() {
        let mut report = Report::default();
        let lines = ["test src/a.rs - f (line 3) ... ok", "test src/a.rs - f (line 9) ... ok"];
        report.add("doc", run(&lines, true), None);
        assert_eq!(
            report.ran().iter().collect::<Vec<_>>(),
            ["doc src/a.rs - f", "doc src/a.rs - f #2"]
        );
        assert_eq!(report.last_line(), "2 passed, 0 failed");
    }
}
