//! Entries that stand for an address as a whole: what becomes of a port that no frontend has, and of a ping.
//!
//! | address | entry |
//! |---|---|
//! | of this node, NodePorts answer on it | node: look the port up among the NodePorts |
//! | of this node | none: the host answers for itself, whoever else claims the address |
//! | a ClusterIP | refuse, and answer pings |
//! | a LoadBalancer or external IP | answer pings |

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::layout::{FRONTEND_ECHO, FRONTEND_NODE, FRONTEND_REFUSE, FRONTEND_VALID, FrontendValue};

use super::bits::bit_of;
use super::image::Phase;
use super::slot::{FrontendKey, Slot};
use super::{NodeTables, Planner};
use crate::model::{DesiredState, Frontend, FrontendKind, ObjectKey, ObjectKind, ObjectRef, OrdMap, Rejection};

/// The addresses with an entry, and what decides about it.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    entries: BTreeMap<IpAddr, Slot>,
    /// LoadBalancer and external IPs, with the number of frontends.
    external: BTreeMap<IpAddr, u32>,
    /// ClusterIPs and their Services.
    cluster_ips: OrdMap<IpAddr, ObjectKey>,
    /// What has to be looked at again.
    touched: BTreeSet<IpAddr>,
    /// Addresses whose entry found no room.
    unplaced: BTreeSet<IpAddr>,
}

impl Addresses {
    /// Takes over an entry that was found published.
    pub(super) fn adopt(&mut self, address: IpAddr, slot: Slot) {
        self.entries.insert(address, slot);
    }

    /// Whether an entry stands in a slot.
    pub(super) fn has_slot(&self, slot: Slot) -> bool {
        self.entries.values().any(|own| *own == slot)
    }

    /// Counts a frontend.
    pub(super) fn add_frontend(&mut self, frontend: &Frontend) {
        if let Some(address) = external_address(frontend) {
            *self.external.entry(address).or_default() += 1;
            self.touched.insert(address);
        }
    }

    /// Counts a frontend out.
    pub(super) fn remove_frontend(&mut self, frontend: &Frontend) {
        if let Some(address) = external_address(frontend)
            && let Some(count) = self.external.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                self.external.remove(&address);
                self.touched.insert(address);
            }
        }
    }

    /// The flags of an address's entry; 0 when it shall have none.
    fn flags(&self, address: &IpAddr, node: &NodeTables) -> u8 {
        if node.nodeport_addresses.contains(address) {
            FRONTEND_VALID | FRONTEND_NODE
        } else if node.addresses.contains(address) {
            0
        } else if self.cluster_ips.contains_key(address) {
            FRONTEND_VALID | FRONTEND_REFUSE | FRONTEND_ECHO
        } else if self.external.contains_key(address) {
            FRONTEND_VALID | FRONTEND_ECHO
        } else {
            0
        }
    }

    /// Notes which ClusterIPs have come and gone.
    fn take_cluster_ips(&mut self, wanted: &OrdMap<IpAddr, ObjectKey>) {
        self.touched
            .extend(self.cluster_ips.changes(wanted).map(|change| *change.key));
        self.cluster_ips = wanted.clone();
    }

    /// What to tell about addresses without room for their entry.
    pub(super) fn rejections(&self, desired: &DesiredState) -> Vec<Rejection> {
        let owner = |address: &IpAddr| {
            let frontends = |key: &crate::model::ServicePortKey, address| {
                let wanted = desired.service_ports.get(key);
                wanted.is_some_and(|wanted| {
                    wanted
                        .frontends
                        .iter()
                        .any(|frontend| frontend.address == Some(address))
                })
            };
            let by_frontend = || desired.service_ports.keys().find(|key| frontends(key, *address));
            match desired.cluster_ips.get(address) {
                Some(key) => ObjectRef::namespaced(ObjectKind::Service, key),
                None => match by_frontend() {
                    Some(key) => {
                        let key = ObjectKey {
                            namespace: key.namespace.clone(),
                            name: key.name.clone(),
                        };
                        ObjectRef::namespaced(ObjectKind::Service, &key)
                    }
                    None => ObjectRef {
                        kind: ObjectKind::Node,
                        namespace: String::new(),
                        name: desired.node.name.as_ref().into(),
                    },
                },
            }
        };
        let rejection = |address: &IpAddr| Rejection {
            object: owner(address),
            field: "spec.clusterIP".into(),
            reason: format!(
                "no room in the frontend table for address {address} itself: unknown ports are not refused"
            ),
        };
        self.unplaced.iter().map(rejection).collect()
    }

    /// Bytes of heap, without what is shared with the desired state.
    pub(super) fn heap_bytes(&self) -> usize {
        let entry = 2 * size_of::<IpAddr>() + size_of::<Slot>() + size_of::<u32>();
        self.entries.len().max(self.external.len()) * entry * 3 / 2
    }
}

fn external_address(frontend: &Frontend) -> Option<IpAddr> {
    match frontend.kind {
        FrontendKind::LoadBalancerIp | FrontendKind::ExternalIp => frontend.address,
        FrontendKind::ClusterIp | FrontendKind::NodePort => None,
    }
}

impl Planner {
    /// Brings the entries of all addresses in line that may have changed; all of them on `recheck`.
    pub(super) fn publish_addresses(&mut self, desired: &DesiredState, node: &NodeTables, recheck: bool) {
        let addresses = &mut self.addresses;
        addresses.take_cluster_ips(&desired.cluster_ips);
        let mut touched = std::mem::take(&mut addresses.touched);
        touched.append(&mut addresses.unplaced);
        if recheck || self.node.nodeport_addresses != node.nodeport_addresses {
            touched.extend(addresses.entries.keys());
            touched.extend(addresses.cluster_ips.keys());
            touched.extend(addresses.external.keys());
            touched.extend(&node.nodeport_addresses);
        }
        let mut gone = Vec::new();
        for address in touched {
            let flags = self.addresses.flags(&address, node);
            let value = FrontendValue {
                protocol: 0,
                flags,
                service: 0,
            };
            match self.addresses.entries.get(&address) {
                Some(slot) if flags == 0 => gone.push((address, *slot)),
                Some(slot) => slot.revalue(&mut self.draft, Phase::Addresses, value),
                None if flags == 0 => {}
                None => self.add_address_entry(address, value),
            }
        }
        // After all that comes, so that nothing takes over a slot in the cycle that frees it.
        for (address, slot) in gone {
            self.addresses.entries.remove(&address);
            self.forward.remove(bit_of(address), self.epoch);
            slot.clear(&mut self.draft, Phase::AddressesGone);
        }
    }

    fn add_address_entry(&mut self, address: IpAddr, value: FrontendValue) {
        let key = FrontendKey::of_address(address);
        let Some(slot) = key.find(&self.draft).or_else(|| key.free(&self.draft, &[])) else {
            self.addresses.unplaced.insert(address);
            return;
        };
        self.forward.add(&mut self.draft, bit_of(address));
        if slot.is_valid(&self.draft) {
            slot.revalue(&mut self.draft, Phase::Addresses, value);
        } else {
            slot.fill(&mut self.draft, Phase::Addresses, &key, value);
        }
        self.addresses.entries.insert(address, slot);
    }
}
