//! Which frontends a service port has, and who gets one that several claim.
//!
//! A frontend belongs to one service port. Where several claim it, the ClusterIP goes first (the API server gave it to one
//! Service; an external IP anybody can write down), then the oldest Service, then the first by namespace and name; the
//! others are told. A frontend with an address of its own goes before a NodePort on the same address: they are different
//! frontends here, and whoever looks up asks for the address first.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use super::address::Family;
use super::desired::{Frontend, FrontendKind};
use super::object::{ObjectKey, ObjectKind, ObjectRef, Rejection};
use super::port::Protocol;
use super::service::{PortObject, ServiceObject};

/// What only one service port can have.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Claim {
    /// `None` for the node's own addresses.
    address: Option<IpAddr>,
    family: Family,
    port: u16,
    protocol: Protocol,
}

/// A port of a Service, as an owner of frontends.
#[derive(Clone, Copy)]
pub(super) struct Claimant<'a> {
    pub(super) key: &'a ObjectKey,
    pub(super) service: &'a ServiceObject,
    pub(super) port: &'a PortObject,
}

impl Claimant<'_> {
    fn is(self, other: Self) -> bool {
        self.key == other.key && self.port.index == other.port.index
    }
}

/// Who owns what. Claims have to come in order of precedence.
#[derive(Default)]
pub(super) struct Claims<'a> {
    frontends: HashMap<Claim, Claimant<'a>>,
    health_check_ports: HashMap<u16, &'a ObjectKey>,
}

impl<'a> Claims<'a> {
    /// Sets the ClusterIP frontends of a port aside, before any other kind is claimed.
    pub(super) fn reserve_cluster_ips(&mut self, claimant: Claimant<'a>) {
        for family in Family::BOTH {
            if let Some(address) = *claimant.service.cluster_ips.get(family) {
                let claim = claimant.claim(family, Some(address), claimant.port.port);
                self.frontends.entry(claim).or_insert(claimant);
            }
        }
    }

    /// The frontends that a port gets in a family, sorted.
    pub(super) fn frontends(
        &mut self,
        claimant: Claimant<'a>,
        family: Family,
        allow_external_ips: bool,
        rejections: &mut Vec<Rejection>,
    ) -> Vec<Frontend> {
        let mut frontends: Vec<Frontend> = Vec::new();
        claimant.for_each(family, allow_external_ips, |frontend, field| {
            let claim = claimant.claim(family, frontend.address, frontend.port);
            let owner = *self.frontends.entry(claim).or_insert(claimant);
            if !owner.is(claimant) {
                rejections.push(claimant.lost_to(owner, frontend, field));
            } else if frontends.iter().all(|other| other.address != frontend.address) {
                frontends.push(frontend);
            }
        });
        frontends.sort_unstable();
        frontends
    }

    /// The health check port of a Service, unless another has it.
    pub(super) fn health_check_port(
        &mut self,
        key: &'a ObjectKey,
        service: &ServiceObject,
        rejections: &mut Vec<Rejection>,
    ) -> Option<u16> {
        let port = service.health_check_node_port?;
        match self.health_check_ports.entry(port) {
            Entry::Vacant(free) => {
                free.insert(key);
                Some(port)
            }
            Entry::Occupied(taken) => {
                rejections.push(Rejection {
                    object: ObjectRef::namespaced(ObjectKind::Service, key),
                    field: "spec.healthCheckNodePort".into(),
                    reason: format!(
                        "{port} belongs to Service {}, which came first; use another",
                        taken.get()
                    ),
                });
                None
            }
        }
    }
}

impl Claimant<'_> {
    fn claim(self, family: Family, address: Option<IpAddr>, port: u16) -> Claim {
        Claim {
            address,
            family,
            port,
            protocol: self.port.protocol,
        }
    }

    /// Visits what the port asks for, in the order of [`FrontendKind`], each with the way to its field.
    fn for_each(self, family: Family, allow_external_ips: bool, mut visit: impl FnMut(Frontend, Field)) {
        let Self { service, port, .. } = self;
        let of_family = |address: IpAddr| Family::of(address) == family;
        let mut addressed = |kind, address, field| {
            visit(
                Frontend {
                    kind,
                    address,
                    port: port.port,
                },
                field,
            );
        };
        if let Some(address) = *service.cluster_ips.get(family) {
            addressed(FrontendKind::ClusterIp, Some(address), Field::ClusterIp);
        }
        for ip in service.load_balancer_ips.iter().filter(|ip| of_family(ip.address)) {
            addressed(FrontendKind::LoadBalancerIp, Some(ip.address), Field::Ingress(ip.index));
        }
        for ip in service
            .external_ips
            .iter()
            .filter(|ip| allow_external_ips && of_family(ip.address))
        {
            addressed(FrontendKind::ExternalIp, Some(ip.address), Field::ExternalIp(ip.index));
        }
        if let Some(node_port) = port.node_port {
            let frontend = Frontend {
                kind: FrontendKind::NodePort,
                address: None,
                port: node_port,
            };
            visit(frontend, Field::NodePort(port.index));
        }
    }

    fn lost_to(self, owner: Claimant<'_>, frontend: Frontend, field: Field) -> Rejection {
        let what = match frontend.address {
            Some(address) => format!("port {}/{} of {address}", frontend.port, self.port.protocol),
            None => format!("{}/{}", frontend.port, self.port.protocol),
        };
        let owner = if owner.key == self.key {
            format!("spec.ports[{}] of the same Service", owner.port.index)
        } else {
            format!("Service {}, which came first", owner.key)
        };
        Rejection {
            object: ObjectRef::namespaced(ObjectKind::Service, self.key),
            field: field.path(),
            reason: format!("{what} belongs to {owner}; use another"),
        }
    }
}

/// The field that a frontend comes from; its text is only made for a rejection.
#[derive(Clone, Copy)]
enum Field {
    ClusterIp,
    Ingress(u16),
    ExternalIp(u16),
    NodePort(u16),
}

impl Field {
    fn path(self) -> String {
        match self {
            Self::ClusterIp => "spec.clusterIP".into(),
            Self::Ingress(index) => format!("status.loadBalancer.ingress[{index}].ip"),
            Self::ExternalIp(index) => format!("spec.externalIPs[{index}]"),
            Self::NodePort(index) => format!("spec.ports[{index}].nodePort"),
        }
    }
}
