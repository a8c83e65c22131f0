//! The endpoints of one service port, joined from all slices of its Service.
//!
//! A slice's port joins by (name, protocol); its number may differ from slice to slice (named target ports). Where two
//! slices have the same address and port, one that is not terminating wins, since an address may already belong to a new
//! pod; else the one in the slice that comes first by name. Source: kube-proxy `pkg/proxy/endpointslicecache.go`.

use super::desired::{EndpointAddress, ServicePortKey};
use super::slice::{EndpointObject, SliceObject};

/// An endpoint with the port of one service port.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) at: EndpointAddress,
    pub(super) endpoint: &'a EndpointObject,
}

/// Fills `candidates` with the endpoints of `key`, sorted by address and port, each once.
pub(super) fn gather<'a>(key: &ServicePortKey, slices: &[&'a SliceObject], candidates: &mut Vec<Candidate<'a>>) {
    candidates.clear();
    for slice in slices.iter().filter(|slice| slice.family == key.family) {
        let ports = slice
            .ports
            .iter()
            .filter(|port| port.name == key.port && port.protocol == key.protocol);
        for port in ports {
            candidates.extend(slice.endpoints.iter().map(|endpoint| Candidate {
                at: EndpointAddress {
                    address: endpoint.address,
                    port: port.port,
                },
                endpoint,
            }));
        }
    }
    // The sort is stable: among equals the order of the slices remains.
    candidates.sort_by_key(|candidate| (candidate.at, candidate.endpoint.conditions.terminating));
    candidates.dedup_by_key(|candidate| candidate.at);
}
