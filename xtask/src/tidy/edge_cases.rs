//! The table of edge cases names tests that exist: `tests/edge-cases.md` against the list of all tests.
//!
//! A row is `| number | what | proof |`. The proof names tests in backquotes as the list has them (binary, space, test), or
//! says `later` and why. In: both texts. Out: one finding for a test that the list does not have, a row without a proof, and
//! a number that is missing or doubled.

use std::collections::BTreeSet;

use super::Finding;

/// The table's place in the checkout.
pub(super) const FILE: &str = "tests/edge-cases.md";

/// The last number; cases found later stand between others, with a letter.
const LAST: usize = 62;
const LETTERED: [&str; 4] = ["9b", "15b", "24b", "29b"];

/// Compares the table with the names of all tests.
pub(super) fn check(table: &str, names: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut missing: BTreeSet<String> = (1..=LAST).map(|number| number.to_string()).collect();
    missing.extend(LETTERED.map(str::to_owned));
    for (index, line) in table.lines().enumerate() {
        let mut finding = |what: String| findings.push(Finding::new(FILE, index + 1, what));
        let Some((number, proof)) = row(line) else {
            continue;
        };
        if !missing.remove(number) {
            finding(format!("case {number} stands here again, or is none"));
        }
        let tests: Vec<&str> = quoted(proof).collect();
        if tests.is_empty() && !proof.trim().starts_with("later:") {
            finding(format!("case {number} has neither a test nor a reason to come later"));
        }
        for test in tests.into_iter().filter(|test| !names.contains(*test)) {
            finding(format!("there is no test {test}"));
        }
    }
    findings.extend(
        missing
            .iter()
            .map(|number| Finding::new(FILE, 0, format!("case {number} is missing"))),
    );
    findings
}

/// Number and proof of a row of the table's body.
fn row(line: &str) -> Option<(&str, &str)> {
    let mut cells = line.strip_prefix('|')?.splitn(3, '|').map(str::trim);
    let (number, _what, proof) = (cells.next()?, cells.next()?, cells.next()?);
    number
        .starts_with(|first: char| first.is_ascii_digit())
        .then_some((number, proof))
}

/// Texts in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(change: impl Fn(&str) -> Option<&'static str>) -> String {
        let numbers = (1..=LAST).map(|number| number.to_string());
        let rows = numbers.chain(LETTERED.map(str::to_owned)).map(|number| {
            let proof = change(&number).unwrap_or("`suite a::b`");
            format!("| {number} | what | {proof} |\n")
        });
        "| case | what | proof |\n|---|---|---|\n".to_owned() + &rows.collect::<String>()
    }

    fn found(table: &str) -> Vec<String> {
        let names = ["suite a::b".to_owned()].into();
        check(table, &names).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn a_whole_table_of_tests_that_exist_and_reasons_passes() {
        let whole = table(|number| (number == "9b").then_some("later: not there yet"));
        assert_eq!(found(&whole), [""; 0]);
    }

    #[test]
    fn a_test_that_does_not_exist_and_a_case_without_proof_are_found() {
        let wrong = table(|number| match number {
            "3" => Some("`suite a::b`, `suite a::c`"),
            "4" => Some("surely"),
            _ => None,
        });
        assert_eq!(
            found(&wrong),
            [
                "there is no test suite a::c",
                "case 4 has neither a test nor a reason to come later"
            ]
        );
    }

    #[test]
    fn cases_that_are_missing_or_doubled_are_found() {
        let doubled = table(|_| None) + "| 7 | again | `suite a::b` |\n";
        assert_eq!(found(&doubled), ["case 7 stands here again, or is none"]);
        let cut = table(|_| None).replace("| 62 |", "|  |");
        assert_eq!(found(&cut), ["case 62 is missing"]);
    }
}
