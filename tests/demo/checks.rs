//! What must be true of every answer, beyond that it came: who gave it, and which client address it was asked from.
//!
//! Pure functions from accounts to complaints.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::examples::{Backend, State};
use crate::lane::{Account, Lane, Reach};
use crate::phases::PHASES;

/// A node as others see it.
#[derive(Clone, Debug)]
pub(crate) struct NodeAddresses {
    pub(crate) number: usize,
    pub(crate) addresses: [IpAddr; 2],
}

/// All that was not as it should be. `states` are the backends of each phase.
pub(crate) fn complaints(lanes: &[&Lane], states: &[Vec<Backend>], nodes: &[NodeAddresses]) -> Vec<String> {
    let mut found = Vec::new();
    for (phase, backends) in states.iter().enumerate() {
        let title = PHASES[phase].title;
        let mut reached = BTreeSet::new();
        for lane in lanes {
            let account = lane.account(phase);
            let name = || format!("{title}: {} to {}", lane.from, lane.target());
            found.extend(complaint(&account, &allowed(lane, backends), lane.reach).map(|what| name() + ": " + &what));
            if lane.reach == Reach::All {
                reached.extend(account.backends.into_keys());
            }
        }
        let serving = backends.iter().filter(|backend| backend.state == State::Serving);
        let left_out = serving.filter(|backend| !reached.contains(&backend.name));
        found.extend(left_out.map(|backend| format!("{title}: {} got no request", backend.name)));
    }
    let last = states.last().map_or(&[][..], Vec::as_slice);
    found.extend(lanes.iter().flat_map(|lane| wrongly_seen(lane, last, nodes)));
    found
}

/// The backends that may answer a lane's requests.
fn allowed<'a>(lane: &Lane, backends: &'a [Backend]) -> BTreeSet<&'a str> {
    let takes = |backend: &&Backend| match lane.reach {
        Reach::All | Reach::One => backend.state == State::Serving,
        Reach::OnNode => backend.state == State::Serving && Some(backend.node) == lane.entry,
        Reach::OneServing => backend.state != State::Removed,
        Reach::Opened => true,
    };
    let names = backends.iter().filter(takes).map(|backend| backend.name.as_str());
    names.collect()
}

fn complaint(account: &Account, allowed: &BTreeSet<&str>, reach: Reach) -> Option<String> {
    let answered: Vec<&str> = account.backends.keys().map(String::as_str).collect();
    if account.requests == 0 {
        Some("no request was made".to_owned())
    } else if let Some(stranger) = answered.iter().find(|name| !allowed.contains(**name)) {
        Some(format!("{stranger} answered, which takes no such requests now"))
    } else if matches!(reach, Reach::One | Reach::OneServing) && answered.len() > 1 {
        Some(format!("answered by {}, not by one", answered.join(" and ")))
    } else {
        None
    }
}

/// Client addresses that a backend may not have seen: it has to see the client's own, except for a request from outside
/// that the node it came to had to pass on to another node.
fn wrongly_seen(lane: &Lane, backends: &[Backend], nodes: &[NodeAddresses]) -> Vec<String> {
    let entry = nodes.iter().find(|node| Some(node.number) == lane.entry);
    let on_entry = |name: &str| {
        let backend = backends.iter().find(|backend| backend.name == name);
        backend.is_some_and(|backend| Some(backend.node) == lane.entry)
    };
    let mut found = Vec::new();
    for (address, names) in lane.ledger().seen {
        let passed_on = entry.is_some_and(|node| node.addresses.contains(&address));
        for name in names {
            if !(lane.own.contains(&address) || passed_on && !on_entry(&name)) {
                found.push(format!(
                    "{} to {}: {name} saw {address} as client",
                    lane.from,
                    lane.target()
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(answered: &[(&str, u64)]) -> Account {
        Account {
            requests: 10,
            backends: answered
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect(),
            ..Account::default()
        }
    }

    #[test]
    fn an_answer_by_a_backend_that_takes_none_is_a_complaint() {
        let allowed = BTreeSet::from(["a", "b"]);
        assert_eq!(complaint(&account(&[("a", 5), ("b", 5)]), &allowed, Reach::All), None);
        assert!(complaint(&account(&[("a", 9), ("c", 1)]), &allowed, Reach::All).is_some());
    }

    #[test]
    fn affinity_and_a_flow_stay_with_one_backend() {
        let allowed = BTreeSet::from(["a", "b"]);
        for reach in [Reach::One, Reach::OneServing] {
            assert_eq!(complaint(&account(&[("b", 10)]), &allowed, reach), None);
            assert!(complaint(&account(&[("a", 9), ("b", 1)]), &allowed, reach).is_some());
        }
    }

    #[test]
    fn a_lane_that_asked_nothing_is_a_complaint() {
        assert!(complaint(&Account::default(), &BTreeSet::new(), Reach::All).is_some());
    }
}
