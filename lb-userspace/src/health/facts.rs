//! What the health servers answer from: plain values that the loop tells.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::clock::Instant;
use crate::observe::Figures;

/// The state of the node's Service proxy at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// A change that is not programmed for this long makes the node unhealthy: twice the sync period.
    pub stuck_after: Duration,
    /// When the oldest change was seen that is not programmed yet.
    pub pending_since: Option<Instant>,
    /// When a change was last seen.
    pub queued_at: Option<SystemTime>,
    /// When everything that had been seen was last programmed.
    pub programmed_at: Option<SystemTime>,
    /// What metrics tell of the work so far.
    pub figures: Figures,
    /// Whether load balancers may send traffic here: the Node is known, not being deleted and not scaled down.
    pub node_eligible: bool,
    /// The health check node ports to serve.
    pub checks: BTreeMap<SocketAddr, Check>,
}

/// What the health check node port of a Service tells in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// Its ready endpoints on this node: different addresses over all its ports.
    pub local_endpoints: usize,
}

impl Facts {
    /// Whether changes get programmed. Starting up, idle and up to date are healthy.
    pub(super) fn is_healthy(&self, now: Instant) -> bool {
        self.pending_since
            .is_none_or(|since| now.saturating_duration_since(since) < self.stuck_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    #[test]
    fn a_change_that_waits_too_long_is_unhealthy() {
        const STUCK: Duration = Duration::from_mins(1);
        let at = now();
        let mut facts = Facts {
            stuck_after: STUCK,
            ..Facts::default()
        };
        assert!(facts.is_healthy(at));
        facts.pending_since = Some(at);
        assert!(facts.is_healthy(at + STUCK - Duration::from_secs(1)));
        assert!(!facts.is_healthy(at + STUCK));
    }
}
