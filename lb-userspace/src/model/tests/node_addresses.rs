//! The node's facts and where its NodePorts answer (`TestNodePorts`, section "NodePort" of kube-proxy's rules).

use std::net::IpAddr;

use super::*;

const INTERFACES: [&str; 7] = [
    "127.0.0.1",
    "::1",
    "192.0.2.7",
    "192.0.2.8",
    "203.0.113.7",
    "2001:db8::7",
    "2001:db8:1::7",
];

#[track_caller]
fn answered(world: &mut World, addresses: NodePortAddresses) -> Vec<String> {
    let interfaces: Vec<IpAddr> = INTERFACES.iter().map(|text| text.parse().unwrap()).collect();
    world.config.nodeport_addresses = addresses;
    let found = nodeport_addresses(&world.config, &world.build().node, &interfaces);
    found.iter().map(ToString::to_string).collect()
}

fn ranges(texts: &[&str]) -> NodePortAddresses {
    NodePortAddresses::Ranges(texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn two_homed() -> World {
    let mut world = World::new();
    world.node(None, &["192.0.2.7", "2001:db8::7", "192.0.2.8"]);
    world
}

#[test]
fn primary_answers_on_the_first_address_of_each_family_only() {
    assert_eq!(
        answered(&mut two_homed(), NodePortAddresses::Primary),
        ["192.0.2.7", "2001:db8::7"]
    );
}

#[test]
fn primary_skips_loopback_and_needs_a_node_object() {
    assert_eq!(
        answered(World::new().node(None, &["127.0.0.1"]), NodePortAddresses::Primary),
        [""; 0]
    );
    assert_eq!(answered(&mut World::new(), NodePortAddresses::Primary), [""; 0]);
}

#[test]
fn ranges_choose_among_the_interface_addresses() {
    let found = answered(
        &mut two_homed(),
        ranges(&["192.0.2.8/32", "203.0.113.0/24", "2001:db8:1::/64"]),
    );
    assert_eq!(found, ["192.0.2.8", "203.0.113.7", "2001:db8:1::7"]);
}

#[test]
fn family_without_a_range_matches_all_but_loopback() {
    assert_eq!(
        answered(&mut two_homed(), ranges(&["192.0.2.8/32"])),
        ["192.0.2.8", "2001:db8::7", "2001:db8:1::7"]
    );
}

#[test]
fn range_of_length_zero_matches_all_but_loopback() {
    let found = answered(&mut two_homed(), ranges(&["0.0.0.0/0", "::/0"]));
    assert_eq!(
        found,
        ["192.0.2.7", "192.0.2.8", "203.0.113.7", "2001:db8::7", "2001:db8:1::7"]
    );
}

#[test]
fn loopback_never_answers_even_when_named() {
    assert_eq!(answered(&mut two_homed(), ranges(&["127.0.0.0/8", "::1/128"])), [""; 0]);
}

#[test]
fn bind_address_takes_the_place_of_the_primary_of_its_family() {
    let mut world = two_homed();
    world.config.bind_address = Some("203.0.113.7".parse().unwrap());
    assert_eq!(
        answered(&mut world, NodePortAddresses::Primary),
        ["203.0.113.7", "2001:db8::7"]
    );
    world.config.bind_address = Some("0.0.0.0".parse().unwrap());
    assert_eq!(
        answered(&mut world, NodePortAddresses::Primary),
        ["192.0.2.7", "2001:db8::7"]
    );
}

#[test]
fn internal_addresses_come_before_external_ones() {
    let mut world = World::new();
    world.node_object(json!({ "metadata": { "name": NODE }, "status": { "addresses": [
        { "type": "Hostname", "address": "node-a" },
        { "type": "ExternalIP", "address": "203.0.113.7" },
        { "type": "InternalIP", "address": "192.0.2.7" },
        { "type": "InternalIP", "address": "x" },
        { "type": "InternalIP", "address": "192.0.2.7" },
    ] } }));
    let node = world.build().node;
    assert_eq!(
        node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.7", "203.0.113.7"]
    );
    assert_eq!(
        node.primary,
        PerFamily {
            v4: Some("192.0.2.7".parse().unwrap()),
            v6: None
        }
    );
    assert_eq!(world.rejected(), ["Node node-a: status.addresses[3].address"]);
}

#[test]
fn node_that_is_deleted_or_scaled_down_is_not_eligible() {
    let eligible = |object: Value| World::new().node_object(object).build().node.eligible;
    assert!(eligible(
        json!({ "metadata": { "name": NODE }, "spec": { "taints": [{ "key": "x", "effect": "NoSchedule" }] } })
    ));
    assert!(!eligible(
        json!({ "metadata": { "name": NODE, "deletionTimestamp": "2026-01-01T00:00:00Z" } })
    ));
    let taint = json!([{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoExecute" }]);
    assert!(!eligible(
        json!({ "metadata": { "name": NODE }, "spec": { "taints": taint } })
    ));
    assert!(!World::new().build().node.eligible);
}

#[test]
fn other_node_objects_are_ignored() {
    let mut world = World::new();
    world.node_object(json!({
        "metadata": { "name": "node-b", "labels": { "topology.kubernetes.io/zone": "zone-b" } },
    }));
    let node = world.build().node;
    assert_eq!((node.known, &*node.name, node.zone), (false, NODE, None));
}

#[test]
fn node_name_is_trimmed_and_lower_cased() {
    assert_eq!(&*ModelConfig::new(" Node-A\n").node_name, NODE);
}
