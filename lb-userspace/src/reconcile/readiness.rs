//! Why an agent is not ready, and what works but should be looked at: pure, from what a cycle saw.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::datapath::interfaces::{InterfaceTable, Role};
use crate::model::NodeFacts;
use crate::status::report::{Cause, NotReady};

/// What is missing on this node; empty when nothing is.
pub(super) fn missing(node: &NodeFacts, table: &InterfaceTable) -> Vec<NotReady> {
    let mut causes = Vec::new();
    let mut add = |cause, message: String| causes.push(NotReady { cause, message });
    if !node.known {
        let message = format!(
            "the source holds no Node object named {}; add it, or correct --node-name",
            node.name
        );
        add(Cause::NodeMissing, message);
    } else if node.addresses.is_empty() {
        let message = format!(
            "the Node object {} has no InternalIP or ExternalIP in status.addresses yet",
            node.name
        );
        add(Cause::NoNodeAddress, message);
    } else if !node
        .addresses
        .iter()
        .any(|address| table.local_addresses.contains(address))
    {
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        let message = format!(
            "no interface carries an address of the Node object yet ({})",
            addresses.join(", ")
        );
        add(Cause::NoNodeAddress, message);
    }
    if table.with_role(Role::Uplink).next().is_none() {
        let message = "no interface has a default route or an address of the Node yet; --uplink names one by hand";
        add(Cause::NoUplink, message.to_owned());
    }
    causes
}

/// What a draining agent says of itself.
pub(super) fn draining() -> String {
    "draining: known flows go on and new ones are left to the stack; once no flow is left, end the agent and run `steerway cleanup`"
        .to_owned()
}

/// What should be looked at.
pub(super) fn warnings(
    table: &InterfaceTable,
    conflicts: &[IpAddr],
    devices_left_out: usize,
    starved: bool,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let down: BTreeSet<&str> = table
        .with_role(Role::Uplink)
        .filter(|uplink| !uplink.up)
        .map(|uplink| uplink.name.as_str())
        .collect();
    if !down.is_empty() {
        warnings.push(format!(
            "uplinks are down: {}",
            down.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
    let unsupported: Vec<&str> = table
        .with_role(Role::Tunnel)
        .filter(|tunnel| tunnel.metadata)
        .map(|tunnel| tunnel.name.as_str())
        .collect();
    if !unsupported.is_empty() {
        let names = unsupported.join(", ");
        warnings.push(format!(
            "{names}: traffic from outside cannot be forwarded into tunnels without a fixed far end"
        ));
    }
    if let Some(first) = conflicts.first() {
        let count = conflicts.len();
        warnings.push(format!(
            "{count} Service addresses, among them {first}, have another route: host processes go that way"
        ));
    }
    if devices_left_out > 0 {
        warnings.push(format!(
            "{devices_left_out} interfaces found no room in the table of devices"
        ));
    }
    if starved {
        warnings.push("a Service waits for room that flows of removed endpoints still take".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::interfaces::Interface;

    fn node(known: bool, addresses: &[&str]) -> NodeFacts {
        NodeFacts {
            name: "n1".into(),
            known,
            zone: None,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            primary: crate::model::PerFamily::default(),
            eligible: known,
        }
    }

    fn table(role: Role, up: bool, metadata: bool, address: &str) -> InterfaceTable {
        let address: IpAddr = address.parse().unwrap();
        let interface = Interface {
            ifindex: 2,
            name: "eth0".to_owned(),
            role,
            up,
            mtu: 1500,
            mac: None,
            ethernet: true,
            metadata,
            veth: false,
            peer_elsewhere: false,
            carries_vlans: false,
            addresses: vec![address],
            bridge: None,
        };
        InterfaceTable {
            interfaces: vec![interface],
            local_addresses: BTreeSet::from([address]),
            generation: 1,
        }
    }

    #[track_caller]
    fn check(node: &NodeFacts, table: &InterfaceTable, expected: &[Cause]) {
        let causes: Vec<Cause> = missing(node, table).iter().map(|c| c.cause).collect();
        assert_eq!(causes, expected);
    }

    #[test]
    fn every_missing_thing_is_told() {
        let uplink = table(Role::Uplink, true, false, "192.0.2.1");
        check(&node(true, &["192.0.2.1"]), &uplink, &[]);
        check(&node(false, &[]), &uplink, &[Cause::NodeMissing]);
        check(&node(true, &[]), &uplink, &[Cause::NoNodeAddress]);
        check(&node(true, &["192.0.2.9"]), &uplink, &[Cause::NoNodeAddress]);
        check(
            &node(false, &[]),
            &InterfaceTable::default(),
            &[Cause::NodeMissing, Cause::NoUplink],
        );
    }

    #[test]
    fn warnings_name_what_to_look_at() {
        assert!(warnings(&table(Role::Uplink, true, false, "192.0.2.1"), &[], 0, false).is_empty());
        let down = warnings(
            &table(Role::Uplink, false, false, "192.0.2.1"),
            &["10.0.0.1".parse().unwrap()],
            2,
            true,
        );
        assert_eq!(down.len(), 4);
        assert_eq!(down[0], "uplinks are down: eth0");
        assert!(down[1].contains("10.0.0.1"), "{down:?}");
        assert!(warnings(&table(Role::Tunnel, true, true, "10.0.0.1"), &[], 0, false)[0].starts_with("eth0: "));
    }
}
