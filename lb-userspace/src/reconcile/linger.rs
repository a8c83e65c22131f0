//! Routes of addresses that no Service has any more: they stay while connections of the node itself go to them.
//!
//! A TCP connection outlives its Service (kube-proxy, conntrack), but a host process reaches a VIP by its route alone. So a
//! left-over route may go only when a sweep of the flow tables, begun after the route was first seen to be left over, has
//! found no flow of the node to its address. In: what the routes leave over, what each sweep finds. Out: what may go. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What is left over, and what of it may go.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    /// Sweeps that have ended.
    sweeps: u64,
    /// What is left over, with the number of sweeps that had ended when it was first seen.
    since: BTreeMap<IpAddr, u64>,
    /// What may go.
    free: BTreeSet<IpAddr>,
}

impl Lingering {
    /// Addresses whose routes may go.
    pub(super) fn free(&self) -> &BTreeSet<IpAddr> {
        &self.free
    }

    /// Notes what the routes leave over now; what is not among it is needed again, or gone.
    pub(super) fn note(&mut self, left_over: &[IpAddr]) {
        let now: BTreeSet<IpAddr> = left_over.iter().copied().collect();
        self.since.retain(|address, _| now.contains(address));
        self.free.retain(|address| now.contains(address));
        for address in now {
            self.since.entry(address).or_insert(self.sweeps);
        }
    }

    /// A sweep has ended that found the node's flows to go to `used`; true when something may go.
    ///
    /// The first sweep to end after an address was noted may have begun before.
    pub(super) fn swept(&mut self, used: &BTreeSet<IpAddr>) -> bool {
        self.sweeps += 1;
        let ended = self.sweeps;
        let unused = self
            .since
            .iter()
            .filter(|(address, since)| **since + 1 < ended && !used.contains(address));
        self.free = unused.map(|(address, _)| *address).collect();
        !self.free.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 96, 0, last].into()
    }

    #[test]
    fn a_route_goes_after_a_whole_sweep_without_a_flow_to_it() {
        let mut lingering = Lingering::default();
        let (used, unused) = (address(1), address(2));
        lingering.note(&[used, unused]);
        assert!(!lingering.swept(&BTreeSet::new()), "this sweep may have begun before");
        assert!(lingering.swept(&[used].into()));
        assert_eq!(*lingering.free(), [unused].into());
        lingering.note(&[used]);
        assert!(lingering.free().is_empty(), "it has gone");
        assert!(!lingering.swept(&[used].into()));
        assert!(lingering.swept(&BTreeSet::new()), "its last flow has ended");
        assert_eq!(*lingering.free(), [used].into());
    }

    #[test]
    fn an_address_that_a_service_has_again_stays() {
        let mut lingering = Lingering::default();
        lingering.note(&[address(1)]);
        lingering.swept(&BTreeSet::new());
        lingering.note(&[]);
        assert!(!lingering.swept(&BTreeSet::new()));
        lingering.note(&[address(1)]);
        assert!(!lingering.swept(&BTreeSet::new()), "it begins to wait anew");
    }
}
