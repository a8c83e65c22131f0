//! What a node may lack for now, and what may be wrong with objects: told, never fatal, and over within a second.

use std::fs;
use std::time::Duration;

use lb_tests::agent::Agent;
use lb_tests::assert::{OnFailure, eventually};
use lb_tests::objects::{Folder, NodeObject, service};
use lb_tests::traffic::{Server, distribution};
use lb_tests::world::World;

use super::{TARGET, WEB, causes, failed, field, folder, web, web_slice};

/// How long the agent may take after each event.
const SOON: Duration = Duration::from_secs(1);
/// How long the kernel may take to check the programs.
const START: Duration = Duration::from_mins(1);

#[track_caller]
fn until_causes(agent: &Agent, expected: &[&str]) {
    eventually(SOON, "the causes for not being ready", || {
        let found = causes(agent);
        if found == expected {
            Ok(())
        } else {
            Err(format!("{found:?} instead of {expected:?}"))
        }
    });
}

#[test]
fn node_object_address_and_uplink_may_come_late_and_go_again() {
    let world = World::builder().no_default_route().build();
    let _dump = OnFailure::of(&world);
    let node = world.node(1);
    let folder = Folder::new();
    folder.put(&web());
    folder.put(&web_slice(&world, &["pod1-2"]));
    let mut agent = Agent::start(node, &folder, &[]);
    agent.wait_ready();
    until_causes(&agent, &["NodeMissing", "NoUplink"]);

    folder.put(&NodeObject::from(node));
    until_causes(&agent, &[]);
    assert!(field(&agent.json(&["status"])["attachments"], "interface").contains(&"eth0"));

    let address = format!("{}/24", node.ip4);
    node.ns.ok(&["ip", "address", "del", &address, "dev", "eth0"]);
    node.ns
        .ok(&["ip", "-6", "address", "del", &format!("{}/64", node.ip6), "dev", "eth0"]);
    until_causes(&agent, &["NoNodeAddress", "NoUplink"]);
    node.ns.ok(&["ip", "address", "add", &address, "dev", "eth0"]);
    until_causes(&agent, &[]);
    assert!(agent.is_running());
}

#[test]
fn a_renamed_uplink_is_followed() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let node = world.node(1);
    let folder = folder(&world, &["pod1-2"]);
    let mut agent = Agent::start(node, &folder, &[]);
    agent.wait_ready();
    node.ns.ok(&["ip", "link", "set", "eth0", "down"]);
    node.ns.ok(&["ip", "link", "set", "eth0", "name", "ens5"]);
    node.ns.ok(&["ip", "link", "set", "ens5", "up"]);
    eventually(SOON, "the new name is attached", || {
        let status = agent.json(&["status"]);
        let attached = field(&status["attachments"], "interface").contains(&"ens5");
        if attached && status["ready"] == true {
            Ok(())
        } else {
            Err(format!("{status:#}"))
        }
    });
}

#[test]
fn a_new_pod_is_served_soon_after_its_link_appears() {
    let mut world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let folder = folder(&world, &["pod1-2"]);
    let mut agent = Agent::start(world.node(1), &folder, &[]);
    agent.wait_ready();
    let server = world.pod("pod1-2");
    let _server = Server::tcp(server, "pod1-2", (server.ip4, TARGET));
    world.add_pod(1, "late");
    eventually(SOON, "the pod's link is hooked", || {
        let status = agent.json(&["status"]);
        if field(&status["attachments"], "interface").contains(&"veth-late") {
            Ok(())
        } else {
            Err(format!("{status:#}"))
        }
    });
    let address: std::net::SocketAddr = WEB.parse().expect("an address");
    assert_eq!(distribution(world.pod("late"), address, 3)["pod1-2"], 3);
}

#[test]
fn a_bad_object_and_a_bad_file_are_told_and_stop_nothing_else() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let folder = folder(&world, &["pod1-2"]);
    let mut agent = Agent::start(world.node(1), &folder, &[]);
    agent.wait_ready();
    folder.put(
        &service("default", "bad")
            .cluster_ip("10.96.0.11")
            .port("http", 80, "TCP")
            .port_field("port", 70000),
    );
    folder.write("broken.yaml", "kind: Service\nmetadata: {name: [\n");
    agent.wait_ready();
    let status = agent.json(&["status"]);
    let rejected = &status["rejections"]["items"][0];
    assert_eq!(
        (&rejected["object"]["name"], &rejected["field"]),
        (&"bad".into(), &"spec.ports[0].port".into()),
        "{status:#}"
    );
    let error = &status["fileErrors"]["items"][0];
    assert_eq!(error["file"], "broken.yaml", "{status:#}");
    assert!(error["line"].as_u64().is_some(), "{status:#}");
    assert_eq!(status["ready"], true, "{status:#}");
    let services = agent.json(&["services"]);
    assert!(field(&services, "name").contains(&"web"), "{services:#}");
}

#[test]
fn a_folder_that_is_missing_is_waited_for() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let parent = tempfile::tempdir().expect("a folder");
    let missing = parent.path().join("objects");
    let mut agent = Agent::start(world.node(1), &missing, &[]);
    eventually(START, "the agent says that it waits for its source", || {
        let output = agent.cli(&["status", "-o", "json"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let waits = text.contains("\"SourceNotSynced\"") && !text.contains("\"Starting\"");
        if waits { Ok(()) } else { Err(text) }
    });
    failed(&agent.cli(&["status", "--wait", "0"]), "not programmed after 0 s");
    let objects = folder(&world, &["pod1-2"]);
    fs::create_dir(&missing).expect("a folder");
    for file in fs::read_dir(objects.path()).expect("a folder").flatten() {
        fs::copy(file.path(), missing.join(file.file_name())).expect("a copy");
    }
    until_causes(&agent, &[]);
    agent.wait_ready();
}
