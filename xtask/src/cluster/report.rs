//! What ginkgo reports, reduced to the tests that ran, and compared with what was expected.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::groups::Expected;

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    /// As ginkgo says: `passed`, `failed`, `skipped` by the test itself, `timedout` and so on.
    pub(super) state: String,
    /// How long it took.
    pub(super) seconds: u64,
    /// Why it did not pass.
    pub(super) message: String,
}

/// The tests that ran, by name. What the choice of tests left out is in ginkgo's report too, without a message.
pub(super) fn outcomes(report: &str) -> Result<BTreeMap<String, Outcome>> {
    let suites: Value = serde_json::from_str(report).context("ginkgo's report is no JSON")?;
    let mut outcomes = BTreeMap::new();
    let specs = suites.as_array().into_iter().flatten();
    for spec in specs.flat_map(|suite| suite["SpecReports"].as_array().into_iter().flatten()) {
        let message = spec["Failure"]["Message"].as_str().unwrap_or_default();
        let state = spec["State"].as_str().unwrap_or_default();
        if spec["LeafNodeType"] != "It" || (matches!(state, "skipped" | "pending") && message.is_empty()) {
            continue;
        }
        let texts = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
        let words: Vec<&str> = texts.chain([&spec["LeafNodeText"]]).filter_map(Value::as_str).collect();
        let outcome = Outcome {
            state: state.to_owned(),
            seconds: spec["RunTime"].as_u64().unwrap_or_default() / 1_000_000_000,
            message: message.to_owned(),
        };
        outcomes.insert(words.join(" "), outcome);
    }
    Ok(outcomes)
}

/// All differences, one a line; empty if everything is as expected.
pub(super) fn differences(expected: &[Expected], found: &BTreeMap<String, Outcome>) -> Vec<String> {
    let mut lines = Vec::new();
    for test in expected {
        match found.get(&test.name) {
            None => lines.push(format!("did not run: {}", test.name)),
            Some(outcome) if outcome.state != test.state => lines.push(format!(
                "{} instead of {}: {}: {}",
                outcome.state,
                test.state,
                test.name,
                outcome.message.lines().next().unwrap_or_default()
            )),
            Some(_) => {}
        }
    }
    let others = found
        .keys()
        .filter(|name| expected.iter().all(|test| test.name != **name));
    lines.extend(others.map(|name| format!("ran, and is not in the list: {name}")));
    lines
}

/// One test a line, as a list for people, and for a baseline: state, seconds, name.
pub(super) fn table(found: &BTreeMap<String, Outcome>) -> String {
    let mut text = String::new();
    for (name, outcome) in found {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}\t{}\t{name}", outcome.state, outcome.seconds);
    }
    text
}

/// How many tests ended in each state.
pub(super) fn summary(found: &BTreeMap<String, Outcome>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in found.values() {
        *counts.entry(&outcome.state).or_default() += 1;
    }
    let parts: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    if parts.is_empty() {
        "nothing ran".to_owned()
    } else {
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"[{"SpecReports": [
        {"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeText": "should work",
            "State": "passed", "RunTime": 2500000000},
        {"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-network]"], "LeafNodeText": "broken", "State": "failed",
            "RunTime": 1, "Failure": {"Message": "why\nmore"}},
        {"LeafNodeType": "It", "ContainerHierarchyTexts": [], "LeafNodeText": "elsewhere", "State": "skipped"},
        {"LeafNodeType": "It", "ContainerHierarchyTexts": [], "LeafNodeText": "no IPv6", "State": "skipped",
            "Failure": {"Message": "needs IPv6"}},
        {"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"}]}]"#;

    fn expected(state: &str, name: &str) -> Expected {
        Expected {
            name: name.to_owned(),
            state: state.to_owned(),
        }
    }

    #[test]
    fn only_what_ran_or_skipped_itself_counts() {
        let found = outcomes(REPORT).unwrap();
        assert_eq!(
            table(&found),
            "passed\t2\t[sig-network] Services should work\nfailed\t0\t[sig-network] broken\nskipped\t0\tno IPv6\n"
        );
        assert_eq!(summary(&found), "1 failed, 1 passed, 1 skipped");
    }

    #[test]
    fn what_did_not_run_is_as_bad_as_what_failed() {
        let found = outcomes(REPORT).unwrap();
        let list = [
            expected("passed", "[sig-network] broken"),
            expected("passed", "[sig-network] Services should work"),
            expected("passed", "absent"),
        ];
        assert_eq!(
            differences(&list, &found),
            [
                "failed instead of passed: [sig-network] broken: why",
                "did not run: absent",
                "ran, and is not in the list: no IPv6"
            ]
        );
    }
}
