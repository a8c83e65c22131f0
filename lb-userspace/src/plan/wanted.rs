//! A service port of the model in the terms of the tables: flags of its frontends, states and flags of its backends, its
//! source ranges. Pure translation; ids and places are the caller's business.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::layout::{
    BACKEND_HOST, BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BACKEND_ON_NODE, BACKEND_SERVING, BACKEND_V6, FRONTEND_CLUSTER,
    FRONTEND_NODE_PORT, FRONTEND_RANGES, FRONTEND_VALID, FrontendValue,
};

use super::slot::{FrontendKey, node_port_address};
use crate::model::{
    Backend, EndpointAddress, Family, Frontend, FrontendKind, ServicePort, ServicePortKey, SourceRanges,
};

/// The addresses of this node, asked about for every endpoint of the cluster.
#[derive(Clone, Copy)]
pub(super) struct Own<'a> {
    addresses: &'a BTreeSet<IpAddr>,
    /// One bit for the last byte of each address: says no to most endpoints without a search.
    last_bytes: [u64; 4],
}

impl<'a> Own<'a> {
    pub(super) fn new(addresses: &'a BTreeSet<IpAddr>) -> Self {
        let mut last_bytes = [0; 4];
        for address in addresses {
            let last = Self::last_byte(address);
            last_bytes[usize::from(last / 64)] |= 1 << (last % 64);
        }
        Self { addresses, last_bytes }
    }

    fn last_byte(address: &IpAddr) -> u8 {
        match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        }
    }

    #[inline]
    fn contains(&self, address: &IpAddr) -> bool {
        let last = Self::last_byte(address);
        self.last_bytes[usize::from(last / 64)] >> (last % 64) & 1 != 0 && self.addresses.contains(address)
    }
}

/// Whether packets should find a frontend: a ClusterIP that is an address of this node (a node-local DNS cache listens
/// there) is left to the host.
pub(super) fn is_published(frontend: &Frontend, own: Own<'_>) -> bool {
    frontend.kind != FrontendKind::ClusterIp || frontend.address.is_none_or(|address| !own.contains(&address))
}

/// Key and value of a frontend of service port `id`.
pub(super) fn frontend_entry(key: &ServicePortKey, frontend: &Frontend, id: u32) -> (FrontendKey, FrontendValue) {
    let protocol = key.protocol.number();
    let address = frontend.address.unwrap_or_else(|| node_port_address(key.family));
    let kind = match frontend.kind {
        FrontendKind::ClusterIp => FRONTEND_CLUSTER,
        FrontendKind::LoadBalancerIp => FRONTEND_RANGES,
        FrontendKind::ExternalIp => 0,
        FrontendKind::NodePort => FRONTEND_NODE_PORT,
    };
    let value = FrontendValue {
        protocol,
        flags: FRONTEND_VALID | kind,
        service: id,
    };
    (
        FrontendKey {
            address,
            port: frontend.port,
            protocol,
        },
        value,
    )
}

/// The inverse of [`frontend_entry`].
pub(super) fn frontend_of_entry(key: &FrontendKey, value: FrontendValue) -> Frontend {
    let kind = match value.flags & (FRONTEND_CLUSTER | FRONTEND_RANGES | FRONTEND_NODE_PORT) {
        FRONTEND_CLUSTER => FrontendKind::ClusterIp,
        FRONTEND_RANGES => FrontendKind::LoadBalancerIp,
        0 => FrontendKind::ExternalIp,
        _ => FrontendKind::NodePort,
    };
    let address = (kind != FrontendKind::NodePort).then_some(key.address);
    Frontend {
        kind,
        address,
        port: key.port,
    }
}

/// The state bits of a backend. One that nothing uses is still serving while it answers, so that its UDP flows stay; one
/// that is chosen although it does not answer (`publishNotReadyAddresses`) keeps what it is given.
pub(super) fn backend_state(backend: &Backend) -> u8 {
    let cluster = if backend.in_cluster_set {
        BACKEND_IN_CLUSTER | BACKEND_SERVING
    } else {
        0
    };
    let local = if backend.in_local_set {
        BACKEND_IN_LOCAL | BACKEND_SERVING
    } else {
        0
    };
    cluster | local | if backend.conditions.serving { BACKEND_SERVING } else { 0 }
}

/// Whether a state is that of a backend which new flows may go to.
pub(super) fn is_chosen(state: u8) -> bool {
    state & (BACKEND_IN_CLUSTER | BACKEND_IN_LOCAL) != 0
}

/// The flags of a backend.
pub(super) fn backend_flags(at: &EndpointAddress, backend: &Backend, own: Own<'_>) -> u16 {
    let on_node = if backend.local { BACKEND_ON_NODE } else { 0 };
    let host = if own.contains(&at.address) {
        BACKEND_HOST | BACKEND_ON_NODE
    } else {
        0
    };
    on_node | host | if at.address.is_ipv6() { BACKEND_V6 } else { 0 }
}

/// The ranges to enter for a service port, sorted; `None` when every source may use it.
pub(super) fn source_ranges(wanted: &ServicePort, family: Family, own: Own<'_>) -> Option<Vec<IpNet>> {
    let SourceRanges::Ranges { ranges, allow_node } = &wanted.source_ranges else {
        return None;
    };
    let mut entries = ranges.clone();
    if *allow_node {
        let addresses = own.addresses.iter().filter(|address| Family::of(**address) == family);
        entries.extend(addresses.map(|address: &IpAddr| IpNet::from(*address)));
    }
    entries.sort_unstable();
    entries.dedup();
    Some(entries)
}
