//! Routes of addresses that no Service has any more: they stay while connections of the node itself go to them.
//!
//! A TCP connection outlives its Service (kube-proxy, conntrack), but a host process reaches a VIP by its route alone. So the
//! route of an address that just lost its Service goes at once where the flow tables, read after no new flow to it can begin,
//! hold no connection of the node to it. Any other left-over route may go when a sweep, begun after the route was first seen to
//! be left over, has found none. In: what the routes leave over, what each sweep finds. Out: what may go. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What is left over, and what of it may go.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    /// What had a route after the last round.
    routed: Arc<BTreeSet<IpAddr>>,
    /// Sweeps that have ended.
    sweeps: u64,
    /// What is left over, with the number of sweeps that had ended when it was first seen.
    since: BTreeMap<IpAddr, u64>,
    /// What may go.
    free: BTreeSet<IpAddr>,
}

impl Lingering {
    /// Addresses whose routes may go while `vips` need theirs; `used` reads the addresses of the node's connections now.
    pub(super) fn may_go(
        &self,
        vips: &Arc<BTreeSet<IpAddr>>,
        used: impl FnOnce() -> BTreeSet<IpAddr>,
    ) -> BTreeSet<IpAddr> {
        let mut free = self.free.clone();
        if Arc::ptr_eq(&self.routed, vips) {
            return free;
        }
        let lost = self.routed.difference(vips);
        let mut lost = lost.filter(|address| !self.since.contains_key(*address)).peekable();
        if lost.peek().is_some() {
            let used = used();
            free.extend(lost.filter(|address| !used.contains(*address)));
        }
        free
    }

    /// Notes what has a route now: `vips`, and what is left over. What was left over before is needed again, or gone.
    pub(super) fn note(&mut self, vips: &Arc<BTreeSet<IpAddr>>, left_over: &[IpAddr]) {
        let now: BTreeSet<IpAddr> = left_over.iter().copied().collect();
        self.routed = Arc::clone(vips);
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

    /// What may go without a look at the tables.
    fn free(lingering: &Lingering) -> BTreeSet<IpAddr> {
        lingering.may_go(&Arc::default(), || panic!("nothing lost its Service just now"))
    }

    fn address(last: u8) -> IpAddr {
        [10, 96, 0, last].into()
    }

    #[test]
    fn a_route_goes_after_a_whole_sweep_without_a_flow_to_it() {
        let mut lingering = Lingering::default();
        let (used, unused) = (address(1), address(2));
        lingering.note(&Arc::default(), &[used, unused]);
        assert!(!lingering.swept(&BTreeSet::new()), "this sweep may have begun before");
        assert!(lingering.swept(&[used].into()));
        assert_eq!(free(&lingering), [unused].into());
        lingering.note(&Arc::default(), &[used]);
        assert!(free(&lingering).is_empty(), "it has gone");
        assert!(!lingering.swept(&[used].into()));
        assert!(lingering.swept(&BTreeSet::new()), "its last flow has ended");
        assert_eq!(free(&lingering), [used].into());
    }

    #[test]
    fn a_route_that_just_lost_its_service_goes_at_once_unless_it_is_used() {
        let mut lingering = Lingering::default();
        let (used, unused) = (address(1), address(2));
        lingering.note(&Arc::new([used, unused, address(3)].into()), &[]);
        let may_go = lingering.may_go(&Arc::new([address(3)].into()), || [used].into());
        assert_eq!(may_go, [unused].into());
        lingering.note(&Arc::new([address(3)].into()), &[used]);
        let may_go = lingering.may_go(&Arc::new([address(3)].into()), || {
            panic!("nothing lost its Service just now")
        });
        assert!(may_go.is_empty(), "from now on sweeps decide");
    }

    #[test]
    fn an_address_that_a_service_has_again_stays() {
        let mut lingering = Lingering::default();
        lingering.note(&Arc::default(), &[address(1)]);
        lingering.swept(&BTreeSet::new());
        lingering.note(&Arc::new([address(1)].into()), &[]);
        assert!(!lingering.swept(&BTreeSet::new()));
        lingering.note(&Arc::default(), &[address(1)]);
        assert!(!lingering.swept(&BTreeSet::new()), "it begins to wait anew");
    }
}
