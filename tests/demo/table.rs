//! The live table: one line a lane, one column a backend.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::examples::Backend;
use crate::lane::{Account, Lane, Reach};
use crate::phases::PHASES;
use crate::screen::Screen;

/// What a phase is about, in a line.
pub(crate) fn head(phase: usize) -> String {
    let of = &PHASES[phase];
    format!("{}/{} {}: {}", phase + 1, PHASES.len(), of.title, of.meaning)
}

/// The frame of a phase that has lasted for `time`; `said` is what its change had to say.
pub(crate) fn frame(
    screen: &Screen,
    lanes: &[Arc<Lane>],
    backends: &[Backend],
    phase: usize,
    time: Duration,
    said: &str,
) -> String {
    let total = total(lanes.iter().map(|lane| lane.account(phase)));
    let head = head(phase);
    let mut text = format!(
        "{}\n{said}\n{:.1} s, {} requests, {} lost\n\n{:6} {:19} {:26} {:>5} {:>4}",
        screen.bold(&head),
        time.as_secs_f64(),
        total.requests,
        count_lost(screen, total.lost, 0),
        "FROM",
        "TO",
        "",
        "REQ",
        "LOST"
    );
    for backend in backends {
        _ = write!(text, " {:>5}", backend.name.to_uppercase());
    }
    text += " CLIENT SEEN  SLOWEST\n";
    for lane in lanes {
        text += &line(screen, lane, backends, phase);
    }
    text
}

fn line(screen: &Screen, lane: &Lane, backends: &[Backend], phase: usize) -> String {
    let account = lane.account(phase);
    let mut text = format!(
        "{:6} {:19} {:26} {:>5} {}",
        lane.from,
        lane.what,
        lane.target(),
        account.requests,
        count_lost(screen, account.lost, 4)
    );
    for backend in backends {
        match account.backends.get(&backend.name) {
            None => text += "     -",
            Some(count) => _ = write!(text, " {count:>5}"),
        }
    }
    let seen = lane.ledger().seen;
    let (own, others): (Vec<&IpAddr>, Vec<&IpAddr>) = seen.keys().partition(|address| lane.own.contains(address));
    let who = match (own.is_empty(), others.is_empty()) {
        (_, true) => "own",
        (true, false) => "node's",
        (false, false) => "own, node's",
    };
    _ = writeln!(text, " {who:11} {:>5} ms", account.slowest.as_millis());
    text
}

fn count_lost(screen: &Screen, lost: u64, width: usize) -> String {
    let text = format!("{lost:>width$}");
    if lost > 0 { screen.alarm(&text) } else { text }
}

/// One line on a phase under way, for who has no terminal.
pub(crate) fn progress(lanes: &[Arc<Lane>], phase: usize, time: Duration) -> String {
    let total = total(lanes.iter().map(|lane| lane.account(phase)));
    format!(
        "  {:4.1} s  {:5} requests, {} lost; new requests: {}",
        time.as_secs_f64(),
        total.requests,
        total.lost,
        spread(lanes.iter().map(AsRef::as_ref), phase)
    )
}

/// Shares of new requests that may go to any backend, by backend.
pub(crate) fn spread<'a>(lanes: impl Iterator<Item = &'a Lane>, phase: usize) -> String {
    let free = lanes.filter(|lane| lane.reach == Reach::All);
    shares(&total(free.map(|lane| lane.account(phase))).backends)
}

fn shares(counts: &BTreeMap<String, u64>) -> String {
    let all: u64 = counts.values().sum();
    let share = |count: u64| (count * 100 + all / 2).checked_div(all).unwrap_or(0);
    let shares: Vec<String> = counts
        .iter()
        .map(|(name, count)| format!("{name} {}%", share(*count)))
        .collect();
    if shares.is_empty() {
        "-".to_owned()
    } else {
        shares.join("  ")
    }
}

/// Accounts of several lanes in one.
pub(crate) fn total(accounts: impl Iterator<Item = Account>) -> Account {
    accounts.fold(Account::default(), |mut sum, account| {
        sum.requests += account.requests;
        sum.lost += account.lost;
        sum.slowest = sum.slowest.max(account.slowest);
        sum.error = sum.error.or(account.error);
        for (name, count) in account.backends {
            *sum.backends.entry(name).or_default() += count;
        }
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_and_none_is_a_dash() {
        let counts = |all: &[(&str, u64)]| all.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        assert_eq!(shares(&counts(&[("a", 2), ("b", 1)])), "a 67%  b 33%");
        assert_eq!(shares(&counts(&[])), "-");
        assert_eq!(shares(&counts(&[("a", 0)])), "a 0%");
    }

    #[test]
    fn a_total_keeps_the_slowest_and_the_first_error() {
        let account = |lost, slowest, error: Option<&str>| Account {
            requests: 5,
            lost,
            slowest: Duration::from_millis(slowest),
            error: error.map(str::to_owned),
            backends: BTreeMap::from([("a".to_owned(), 5 - lost)]),
        };
        let sum = total([account(0, 9, None), account(2, 3, Some("why"))].into_iter());
        assert_eq!((sum.requests, sum.lost, sum.slowest.as_millis()), (10, 2, 9));
        assert_eq!((sum.error.as_deref(), sum.backends["a"]), (Some("why"), 8));
    }
}
