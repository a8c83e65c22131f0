//! A service port of the model in the terms of the tables: flags of its frontends, states and flags of its backends, the
//! header of its block. Pure translation; ids and places are the caller's business.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::layout::{
    BACKEND_HOST, BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BACKEND_ON_NODE, BACKEND_SERVING, BACKEND_V6,
    BLOCK_EXTERNAL_DROP, BLOCK_EXTERNAL_LOCAL, BLOCK_HEADER_WORDS, BLOCK_INSIDE_DROP, BLOCK_INSIDE_LOCAL,
    BLOCK_INTERNAL_DROP, BLOCK_INTERNAL_LOCAL, BLOCK_RANGES, FRONTEND_CLUSTER, FRONTEND_NODE_PORT, FRONTEND_RANGES,
    FRONTEND_VALID, FrontendValue, Run, block, owner_word,
};

use super::slot::{FrontendKey, node_port_address};
use crate::model::{
    Backend, BackendSet, Choice, EndpointAddress, Family, Frontend, FrontendKind, ServicePort, ServicePortKey,
    SourceRanges, WhenEmpty,
};

/// The addresses of this node, asked about for every endpoint of the cluster.
#[derive(Clone, Copy)]
pub(super) struct Own<'a> {
    addresses: &'a BTreeSet<IpAddr>,
    /// One bit for the last byte of each address, modulo 64.
    last_bytes: u64,
}

impl<'a> Own<'a> {
    pub(super) fn new(addresses: &'a BTreeSet<IpAddr>) -> Self {
        let last_bytes = addresses.iter().fold(0, |bits, address| bits | Self::bit(address));
        Self { addresses, last_bytes }
    }

    fn bit(address: &IpAddr) -> u64 {
        let last = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        1 << (last % 64)
    }

    #[inline]
    fn contains(&self, address: &IpAddr) -> bool {
        self.last_bytes & Self::bit(address) != 0 && self.addresses.contains(address)
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

/// How many ids the two sets of a block have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Members of the cluster set.
    pub(super) cluster: u32,
    /// Members of the local set.
    pub(super) local: u32,
    /// Whether both have the same members; then they share a run.
    pub(super) same: bool,
}

impl Shape {
    /// A block without backends.
    pub(super) const EMPTY: Self = Self {
        cluster: 0,
        local: 0,
        same: true,
    };

    /// Counts a backend in.
    pub(super) fn add(&mut self, state: u8) {
        let (cluster, local) = (state & BACKEND_IN_CLUSTER != 0, state & BACKEND_IN_LOCAL != 0);
        self.cluster += u32::from(cluster);
        self.local += u32::from(local);
        self.same &= cluster == local;
    }

    /// Ids in the block.
    pub(super) fn ids(self) -> u32 {
        if self.same {
            self.cluster
        } else {
            self.cluster + self.local
        }
    }

    fn run(self, set: BackendSet) -> Run {
        match set {
            BackendSet::Cluster => Run {
                offset: 0,
                length: self.cluster,
            },
            BackendSet::Local if self.same => Run {
                offset: 0,
                length: self.local,
            },
            BackendSet::Local => Run {
                offset: self.cluster,
                length: self.local,
            },
        }
    }
}

/// The header of a block.
pub(super) fn header(
    id: u32,
    generation: u16,
    wanted: &ServicePort,
    shape: Shape,
) -> [u64; BLOCK_HEADER_WORDS as usize] {
    let mut flags = if matches!(wanted.source_ranges, SourceRanges::AllowAll) {
        0
    } else {
        BLOCK_RANGES
    };
    let mut run = |choice: Choice, local: u16, drop: u16| {
        let run = shape.run(choice.set);
        if choice.set == BackendSet::Local {
            flags |= local;
        }
        // Only an empty run can drop: the flag of another would change the block for nothing.
        if run.length == 0 && choice.when_empty == WhenEmpty::Drop {
            flags |= drop;
        }
        run.word()
    };
    let mut words = [0; BLOCK_HEADER_WORDS as usize];
    words[block::INTERNAL as usize] = run(wanted.internal, BLOCK_INTERNAL_LOCAL, BLOCK_INTERNAL_DROP);
    words[block::EXTERNAL as usize] = run(wanted.external, BLOCK_EXTERNAL_LOCAL, BLOCK_EXTERNAL_DROP);
    words[block::INSIDE as usize] = run(wanted.external_from_inside, BLOCK_INSIDE_LOCAL, BLOCK_INSIDE_DROP);
    words[block::AFFINITY as usize] = u64::from(wanted.affinity_seconds.unwrap_or(0));
    words[block::OWNER as usize] = owner_word(id, generation, flags);
    words
}
