//! Routes of all VIPs, and of the ranges that VIPs are allocated from, to steer0, kept in step with a wanted set.
//!
//! `VIP/32 | VIP/128 dev steer0 src <address of the node> proto 83`: the protocol number is the mark of ownership, so routes of
//! ours survive the agent, are found again, and nobody else's is ever touched. Addresses that the node itself has get none.
//! A range's route catches what no VIP's does: addresses that are allocated to nobody, which no program takes from steer0, so
//! that they are dropped there (kube-proxy's nftables mode drops them, too). It has the highest metric, so that a route of
//! somebody else for the same range goes before. All changes go by [`Bulk`], many in one datagram. Sources: rtnetlink(7), ip-route(8).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, RouteMessageBuilder};
use serde::Serialize;
use thiserror::Error;

use crate::datapath::bulk::Bulk;
use crate::datapath::netlink::Netlink;

/// Our number among routing protocols; unused in iproute2's list.
pub(crate) const PROTOCOL: u8 = 83;

/// Metric of the ranges' routes.
const RANGE_METRIC: u32 = u32::MAX - 1;

/// Why routes are not as they should be.
#[derive(Debug, Error)]
pub enum RouteError {
    /// The kernel refused to list them.
    #[error("cannot list routes")]
    List(#[source] rtnetlink::Error),
    /// Some changes failed; the others have been made.
    #[error("{failed} routes to VIPs cannot be changed, among them {address}")]
    Change {
        /// How many.
        failed: usize,
        /// The destination of the first of them.
        address: IpNet,
        /// Its cause; `ENOBUFS` also where the kernel's answer was lost, so that it may have been made.
        #[source]
        source: Errno,
    },
}

/// What routes there must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteNeeds {
    /// Interface index of steer0.
    pub steer_ifindex: u32,
    /// VIPs.
    pub vips: Arc<BTreeSet<IpAddr>>,
    /// Ranges that VIPs are allocated from.
    pub ranges: Vec<IpNet>,
    /// Addresses of the node's interfaces: they get no route, and only they can be sources.
    pub local: BTreeSet<IpAddr>,
    /// Of the routes that no VIP needs, those that may go: the others are left over. `None`: all may.
    pub may_go: Option<BTreeSet<IpAddr>>,
    /// Preferred source of IPv4; without one the kernel chooses.
    pub source_v4: Option<Ipv4Addr>,
    /// Preferred source of IPv6.
    pub source_v6: Option<Ipv6Addr>,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RouteReport {
    /// New routes.
    pub added: usize,
    /// Routes that got another source or device.
    pub changed: usize,
    /// Routes that went.
    pub removed: usize,
    /// Addresses with a route that no VIP needs and that may not go yet.
    pub left_over: Vec<IpAddr>,
    /// VIPs that have somebody else's route: theirs is left alone, host processes do not reach the VIP through us.
    pub conflicts: Vec<IpAddr>,
}

/// Way out and preferred source of a route.
type Route = (u32, Option<IpAddr>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Add(IpNet, Route),
    Change(IpNet, Route),
    Remove(IpNet),
}

/// Keeps the routes; remembers what it did, so that a small change costs little and none next to nothing.
#[derive(Debug)]
pub struct VipRoutes {
    netlink: Netlink,
    bulk: Bulk,
    known: Option<BTreeMap<IpNet, Route>>,
    conflicts: BTreeSet<IpNet>,
    /// The needs of the last sync that succeeded, and what there was to tell of it.
    served: Option<(RouteNeeds, RouteReport)>,
}

impl VipRoutes {
    /// Changes nothing yet.
    ///
    /// # Errors
    /// No rtnetlink sockets.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            netlink: Netlink::open()?,
            bulk: Bulk::open()?,
            known: None,
            conflicts: BTreeSet::new(),
            served: None,
        })
    }

    /// Forgets what is known, so that the next [`Self::sync`] asks the kernel: for when somebody may have changed routes.
    pub fn distrust(&mut self) {
        self.known = None;
        self.served = None;
    }

    /// Makes the kernel's routes those that are needed.
    ///
    /// # Errors
    /// Some could not be changed; call again. All others have been made.
    pub async fn sync(&mut self, needs: RouteNeeds) -> Result<RouteReport, RouteError> {
        if let Some((_, report)) = self.served.as_ref().filter(|(served, _)| *served == needs) {
            return Ok(report.clone());
        }
        self.served = None;
        let mut known = if let Some(known) = self.known.take() {
            known
        } else {
            self.conflicts.clear();
            own_routes(self.netlink.handle()).await?
        };
        let wanted = wanted(&needs);
        self.conflicts.retain(|vip| wanted.contains_key(vip));
        let ops = plan(&known, &wanted, &self.conflicts, needs.may_go.as_ref());
        let mut report = self.change(&mut known, ops).await?;
        let left_over = known.keys().filter(|vip| !wanted.contains_key(vip));
        report.left_over = left_over.filter_map(single).collect();
        self.known = Some(known);
        report.conflicts = self.conflicts.iter().filter_map(single).collect();
        let nothing_done = RouteReport {
            left_over: report.left_over.clone(),
            conflicts: report.conflicts.clone(),
            ..RouteReport::default()
        };
        self.served = Some((needs, nothing_done));
        Ok(report)
    }

    /// Removes every route of ours; returns how many there were.
    pub(in crate::datapath) async fn remove_all(&mut self) -> Result<usize, RouteError> {
        self.distrust();
        let mut known = own_routes(self.netlink.handle()).await?;
        let ops = known.keys().map(|&vip| Op::Remove(vip)).collect();
        Ok(self.change(&mut known, ops).await?.removed)
    }

    /// Makes these changes and counts them. Where there is a route of somebody else is noted as a conflict.
    async fn change(&mut self, known: &mut BTreeMap<IpNet, Route>, ops: Vec<Op>) -> Result<RouteReport, RouteError> {
        let results = self.bulk.ask(ops.iter().copied().map(request)).await;
        let mut report = RouteReport::default();
        let mut failures = Vec::new();
        for (op, result) in ops.into_iter().zip(results) {
            match (op, result) {
                (Op::Add(vip, route), Ok(())) => {
                    known.insert(vip, route);
                    report.added += 1;
                }
                (Op::Change(vip, route), Ok(())) => {
                    known.insert(vip, route);
                    report.changed += 1;
                }
                (Op::Remove(vip), Ok(()) | Err(Errno::ESRCH)) => {
                    known.remove(&vip);
                    report.removed += 1;
                }
                (Op::Add(vip, _), Err(Errno::EEXIST)) => {
                    self.conflicts.insert(vip);
                }
                (Op::Add(vip, _) | Op::Change(vip, _) | Op::Remove(vip), Err(error)) => failures.push((vip, error)),
            }
        }
        match failures.first() {
            None => Ok(report),
            Some(&(address, source)) => Err(RouteError::Change {
                failed: failures.len(),
                address,
                source,
            }),
        }
    }
}

/// The address of a destination that is no range.
fn single(destination: &IpNet) -> Option<IpAddr> {
    (destination.prefix_len() == destination.max_prefix_len()).then(|| destination.addr())
}

fn wanted(needs: &RouteNeeds) -> BTreeMap<IpNet, Route> {
    let source = |destination: &IpNet| match destination {
        IpNet::V4(_) => needs.source_v4.map(IpAddr::V4),
        IpNet::V6(_) => needs.source_v6.map(IpAddr::V6),
    };
    // The kernel refuses a source that it does not have.
    let usable = |destination: &IpNet| source(destination).filter(|address| needs.local.contains(address));
    let vips = needs.vips.difference(&needs.local).map(|vip| IpNet::from(*vip));
    vips.chain(needs.ranges.iter().copied())
        .map(|destination| (destination, (needs.steer_ifindex, usable(&destination))))
        .collect()
}

fn plan(
    known: &BTreeMap<IpNet, Route>,
    wanted: &BTreeMap<IpNet, Route>,
    conflicts: &BTreeSet<IpNet>,
    may_go: Option<&BTreeSet<IpAddr>>,
) -> Vec<Op> {
    let made = wanted.iter().filter_map(|(&vip, &route)| match known.get(&vip) {
        None if conflicts.contains(&vip) => None,
        None => Some(Op::Add(vip, route)),
        Some(&found) if found != route => Some(Op::Change(vip, route)),
        Some(_) => None,
    });
    let may_go = |vip: &IpNet| may_go.is_none_or(|free| single(vip).is_none_or(|address| free.contains(&address)));
    let gone = known
        .keys()
        .filter(|vip| !wanted.contains_key(vip) && may_go(vip))
        .map(|&vip| Op::Remove(vip));
    made.chain(gone).collect()
}

fn request(op: Op) -> NetlinkMessage<RouteNetlinkMessage> {
    let (message, flags) = match op {
        Op::Add(vip, route) => (
            RouteNetlinkMessage::NewRoute(message(vip, Some(route))),
            NLM_F_CREATE | NLM_F_EXCL,
        ),
        // Ours is the only route to the address with this metric, so it is ours that is replaced.
        Op::Change(vip, route) => (
            RouteNetlinkMessage::NewRoute(message(vip, Some(route))),
            NLM_F_CREATE | NLM_F_REPLACE,
        ),
        Op::Remove(vip) => (RouteNetlinkMessage::DelRoute(message(vip, None)), 0),
    };
    let mut request = NetlinkMessage::from(message);
    request.header.flags = flags;
    request
}

fn message(destination: IpNet, route: Option<Route>) -> RouteMessage {
    let own = RouteProtocol::from(PROTOCOL);
    let (oif, source) = route.unzip();
    let source = source.flatten();
    let mut message = match destination {
        IpNet::V4(destination) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(destination.addr(), destination.prefix_len())
                .protocol(own);
            // As iproute2 does for routes without a gateway.
            builder = builder.scope(RouteScope::Link);
            if let Some(oif) = oif {
                builder = builder.output_interface(oif);
            }
            if let Some(IpAddr::V4(source)) = source {
                builder = builder.pref_source(source);
            }
            builder.build()
        }
        IpNet::V6(destination) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(destination.addr(), destination.prefix_len())
                .protocol(own);
            if let Some(oif) = oif {
                builder = builder.output_interface(oif);
            }
            if let Some(IpAddr::V6(source)) = source {
                builder = builder.pref_source(source);
            }
            builder.build()
        }
    };
    if single(&destination).is_none() {
        message.attributes.push(RouteAttribute::Priority(RANGE_METRIC));
    }
    message
}

/// The routes with our protocol number in the main table.
async fn own_routes(handle: &Handle) -> Result<BTreeMap<IpNet, Route>, RouteError> {
    let mut found = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let mut routes = handle.route().get(request).execute();
        while let Some(route) = routes.try_next().await.map_err(RouteError::List)? {
            found.extend(own_route(&route));
        }
    }
    Ok(found)
}

fn own_route(message: &RouteMessage) -> Option<(IpNet, Route)> {
    if u8::from(message.header.protocol) != PROTOCOL || message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut vip, mut oif, mut source) = (None, 0, None);
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            vip = ip_of(address);
        } else if let RouteAttribute::Oif(ifindex) = attribute {
            oif = *ifindex;
        } else if let RouteAttribute::PrefSource(address) = attribute {
            source = ip_of(address);
        }
    }
    let destination = IpNet::new(vip?, message.header.destination_prefix_length).ok()?;
    Some((destination, (oif, source)))
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(ip) = address {
        Some((*ip).into())
    } else if let RouteAddress::Inet6(ip) = address {
        Some((*ip).into())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|text| ip(text)).collect()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap_or_else(|_| ip(text).into())
    }

    #[test]
    fn vips_get_a_route_with_the_source_of_their_family_unless_they_are_local() {
        let (vips, local) = (
            Arc::new(set(&["10.96.0.1", "192.0.2.1", "fd00:96::1"])),
            set(&["192.0.2.1", "127.0.0.1"]),
        );
        let needs = RouteNeeds {
            steer_ifindex: 7,
            vips,
            ranges: vec![net("10.96.0.0/16")],
            local,
            may_go: None,
            source_v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            // Not configured on any interface yet.
            source_v6: Some("fd00::1".parse().unwrap()),
        };
        let expected = BTreeMap::from([
            (net("10.96.0.0/16"), (7, Some(ip("192.0.2.1")))),
            (net("10.96.0.1"), (7, Some(ip("192.0.2.1")))),
            (net("fd00:96::1"), (7, None)),
        ]);
        assert_eq!(wanted(&needs), expected);
    }

    #[test]
    fn the_plan_holds_only_differences() {
        let route = (7, Some(ip("192.0.2.1")));
        let known = BTreeMap::from([
            (net("10.0.0.1"), route),
            (net("10.0.0.2"), route),
            (net("10.0.0.3"), (6, None)),
        ]);
        assert_eq!(plan(&known, &known, &BTreeSet::new(), None), []);
        let wanted = BTreeMap::from([
            (net("10.0.0.1"), route),
            (net("10.0.0.3"), route),
            (net("10.0.0.4"), route),
        ]);
        let expected = [
            Op::Change(net("10.0.0.3"), route),
            Op::Add(net("10.0.0.4"), route),
            Op::Remove(net("10.0.0.2")),
        ];
        assert_eq!(plan(&known, &wanted, &BTreeSet::new(), None), expected);
        assert_eq!(
            plan(&known, &wanted, &BTreeSet::from([net("10.0.0.4")]), None),
            [expected[0], expected[2]]
        );
        let kept = plan(&known, &wanted, &BTreeSet::new(), Some(&BTreeSet::new()));
        assert_eq!(kept, expected[..2], "nothing may go yet");
    }

    #[test]
    fn routes_are_recognised_by_protocol_and_table() {
        let route = (7, Some(ip("fd00::1")));
        let range = net("fd00:96::/112");
        assert_eq!(own_route(&message(range, Some(route))), Some((range, route)));
        let vip = net("fd00:96::1");
        let mut message = message(vip, Some(route));
        assert_eq!(own_route(&message), Some((vip, route)));
        message.header.protocol = RouteProtocol::Static;
        assert_eq!(own_route(&message), None);
        message.header.protocol = RouteProtocol::from(PROTOCOL);
        message.header.table = 100;
        assert_eq!(own_route(&message), None);
    }
}
