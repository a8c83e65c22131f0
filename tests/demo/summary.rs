//! What is said at the end: the table of phases, the client addresses that backends saw, and the verdict.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::checks::{self, NodeAddresses};
use crate::examples::Backend;
use crate::lane::Lane;
use crate::phases::PHASES;
use crate::screen::Screen;
use crate::table;

/// Most complaints that are printed.
const MOST: usize = 20;

/// The end of the show.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) text: String,
    /// Every request was answered, by whom it should be, with the right client address.
    pub(crate) perfect: bool,
}

/// Judges the accounts. `states` are the backends of each phase.
pub(crate) fn summarise(
    screen: &Screen,
    lanes: &[Arc<Lane>],
    states: &[Vec<Backend>],
    nodes: &[NodeAddresses],
) -> Summary {
    let lanes: Vec<&Lane> = lanes.iter().map(AsRef::as_ref).collect();
    let mut text = phase_table(screen, &lanes, states.len());
    text += &seen_table(screen, &lanes);
    let all = (0..states.len()).flat_map(|phase| lanes.iter().map(move |lane| lane.account(phase)));
    let total = table::total(all);
    let mut wrong: Vec<String> = lost(&lanes, states.len());
    wrong.extend(checks::complaints(&lanes, states, nodes));
    let perfect = wrong.is_empty();
    if perfect {
        _ = write!(
            text,
            "\nNothing was lost: {} requests, all answered as they should be.",
            total.requests
        );
    } else {
        let head = format!("FAILED: {} of {} requests lost", total.lost, total.requests);
        _ = write!(text, "\n{}", screen.alarm(&head));
        for what in wrong.iter().take(MOST) {
            _ = write!(text, "\n  {what}");
        }
        if wrong.len() > MOST {
            _ = write!(text, "\n  and {} more", wrong.len() - MOST);
        }
    }
    Summary { text, perfect }
}

fn phase_table(screen: &Screen, lanes: &[&Lane], phases: usize) -> String {
    let head = format!(
        "{:16}  {:>8}  {:>5}  {:>8}  SPREAD OF NEW REQUESTS",
        "PHASE", "REQUESTS", "LOST", "SLOWEST"
    );
    let mut text = screen.bold(&head) + "\n";
    for (phase, of) in PHASES.iter().enumerate().take(phases) {
        let total = table::total(lanes.iter().map(|lane| lane.account(phase)));
        let lost = format!("{:>5}", total.lost);
        _ = writeln!(
            text,
            "{:16}  {:>8}  {}  {:>5} ms  {}",
            of.title,
            total.requests,
            if total.lost > 0 { screen.alarm(&lost) } else { lost },
            total.slowest.as_millis(),
            table::spread(lanes.iter().copied(), phase)
        );
    }
    text
}

/// Lanes that differ by protocol and family alone are told together.
fn seen_table(screen: &Screen, lanes: &[&Lane]) -> String {
    let mut ways: Vec<(String, [Seen; 2])> = Vec::new();
    for lane in lanes {
        let entry = lane.entry.map_or_else(String::new, |node| format!(" by node{node}"));
        let way = format!("{:6}  {:29}", lane.from, format!("{}{entry}", lane.what));
        let at = ways.iter().position(|(known, _)| *known == way).unwrap_or_else(|| {
            ways.push((way, <[Seen; 2]>::default()));
            ways.len() - 1
        });
        for (address, backends) in lane.ledger().seen {
            let seen = &mut ways[at].1[usize::from(!lane.own.contains(&address))];
            seen.addresses.insert(address.to_string());
            seen.backends.extend(backends);
        }
    }
    let mut text = format!("\n{}\n", screen.bold("CLIENT ADDRESS THAT THE BACKENDS SAW"));
    for (way, [own, node]) in ways {
        let told = [("its own", own), ("the node's", node)];
        let mut way = way.as_str();
        for (whose, seen) in told.iter().filter(|(_, seen)| !seen.addresses.is_empty()) {
            let (addresses, backends) = (joined(&seen.addresses), joined(&seen.backends));
            _ = writeln!(text, "{way:37}  {whose:10}  {addresses:30}  on {backends}");
            way = "";
        }
    }
    text
}

/// Client addresses of one kind, and the backends that saw them.
#[derive(Default)]
struct Seen {
    addresses: BTreeSet<String>,
    backends: BTreeSet<String>,
}

fn joined(words: &BTreeSet<String>) -> String {
    words.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn lost(lanes: &[&Lane], phases: usize) -> Vec<String> {
    let mut found = Vec::new();
    for (phase, of) in PHASES.iter().enumerate().take(phases) {
        for lane in lanes {
            let account = lane.account(phase);
            if let Some(error) = account.error {
                found.push(format!(
                    "{}: {} to {} ({}): {} of {} lost, the first: {error}",
                    of.title,
                    lane.from,
                    lane.target(),
                    lane.what,
                    account.lost,
                    account.requests
                ));
            }
        }
    }
    found
}
