//! nftables rules that a test puts into a namespace, and their counts.

use crate::netns::Netns;

/// Makes (or replaces in one step) a table with one base chain. `table` is family and name (`inet t`), `chain` its type,
/// hook and priority (`filter hook forward priority 0`); `rules` stand one a line. A rule may say `counter name hits`.
#[track_caller]
pub fn set_rules(place: &impl AsRef<Netns>, table: &str, chain: &str, rules: &str) {
    place.as_ref().nft(&format!(
        "table {table}\ndelete table {table}\ntable {table} {{\ncounter hits {{ }}\nchain base {{\ntype {chain}\n{rules}\n}}\n}}\n"
    ));
}

/// Removes a table.
#[track_caller]
pub fn remove_rules(place: &impl AsRef<Netns>, table: &str) {
    place.as_ref().nft(&format!("delete table {table}\n"));
}

/// Packets that the rules with `counter name hits` of a table have met.
#[track_caller]
pub fn rule_hits(place: &impl AsRef<Netns>, table: &str) -> u64 {
    let listed = place.as_ref().ok(&[
        &["nft", "list", "counter"][..],
        &table.split(' ').collect::<Vec<_>>(),
        &["hits"],
    ]
    .concat());
    let mut words = listed.split_whitespace().skip_while(|word| *word != "packets");
    words
        .nth(1)
        .and_then(|count| count.parse().ok())
        .unwrap_or_else(|| panic!("no counter in {listed}"))
}
