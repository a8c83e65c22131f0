//! Reads what a Rust test binary prints: which test ended how, and what a failed one said.
//!
//! Source: the "pretty" format of Rust's libtest, the only stable one. Lines that belong to no test are ignored here;
//! whoever reads the result has to compare it with the tests that were asked for.

use std::collections::BTreeMap;

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ran and passed.
    Passed,
    /// It ran and failed.
    Failed,
    /// It did not run.
    Ignored,
}

/// What has been read so far.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// Each test with its end, in the order of ends.
    pub(crate) outcomes: Vec<(String, Outcome)>,
    /// What failed tests wrote, by test.
    pub(crate) said: BTreeMap<String, String>,
    section: Section,
}

/// Where in its output the binary is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Section {
    /// Tests run.
    #[default]
    Tests,
    /// The outputs of failed tests, between two of them.
    Failures,
    /// The output of this failed test.
    FailureOf(String),
}

impl Parser {
    /// Reads one line. Returns whether it is worth showing at once: outputs of failed tests are not, since they are
    /// shown at the end.
    pub(crate) fn line(&mut self, line: &str) -> bool {
        if line.starts_with("test result: ") {
            self.section = Section::Tests;
            return true;
        }
        if line == "failures:" {
            self.section = Section::Failures;
            return false;
        }
        if self.section == Section::Tests {
            self.outcomes.extend(outcome(line));
            return true;
        }
        if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.section = Section::FailureOf(name.to_owned());
        } else if let Section::FailureOf(name) = &self.section {
            let said = self.said.entry(name.clone()).or_default();
            said.push_str(line);
            said.push('\n');
        }
        false
    }
}

/// Reads `test NAME ... END`. Something that the test's children wrote may stand between the dots and the end.
fn outcome(line: &str) -> Option<(String, Outcome)> {
    let (name, end) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let name = name.strip_suffix(" - should panic").unwrap_or(name).to_owned();
    if end == "ignored" || end.starts_with("ignored, ") {
        Some((name, Outcome::Ignored))
    } else if end.ends_with("FAILED") {
        Some((name, Outcome::Failed))
    } else if end.ends_with("ok") {
        Some((name, Outcome::Passed))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 4 tests
test flow::tests::one ... ok
test flow::tests::two ... FAILED
test flow::tests::three - should panic ... ok
test slow ... ignored, needs a day

failures:

---- flow::tests::two stdout ----
thread 'flow::tests::two' panicked at src/flow.rs:1:2:
test looks::like ... ok


failures:
    flow::tests::two

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn ends_and_outputs_of_tests_are_read() {
        let mut parser = Parser::default();
        let shown: Vec<&str> = OUTPUT.lines().filter(|line| parser.line(line)).collect();
        let expected = [
            ("flow::tests::one", Outcome::Passed),
            ("flow::tests::two", Outcome::Failed),
            ("flow::tests::three", Outcome::Passed),
            ("slow", Outcome::Ignored),
        ];
        assert_eq!(
            parser.outcomes,
            expected.map(|(name, outcome)| (name.to_owned(), outcome))
        );
        let said = &parser.said["flow::tests::two"];
        assert!(
            said.starts_with("thread 'flow::tests::two' panicked") && said.contains("looks::like"),
            "{said}"
        );
        assert!(!shown.iter().any(|line| line.contains("panicked")) && shown.last().unwrap().contains("2 passed"));
    }

    #[test]
    fn a_second_binary_of_the_same_output_is_read_too() {
        let mut parser = Parser::default();
        for line in OUTPUT.lines().chain(["running 1 test", "test other ... ok"]) {
            parser.line(line);
        }
        assert_eq!(parser.outcomes.last().unwrap(), &("other".to_owned(), Outcome::Passed));
    }

    #[test]
    fn what_a_child_writes_before_the_end_does_not_hide_the_end() {
        assert_eq!(
            outcome("test a ... ping: sentok"),
            Some(("a".to_owned(), Outcome::Passed))
        );
        assert_eq!(outcome("test a ... "), None);
        assert_eq!(outcome("test a has been running for over 60 seconds"), None);
        assert_eq!(outcome("test result: ok. 1 passed"), None);
    }
}
