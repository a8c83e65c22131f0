//! What a node may lack for now, and what may be wrong with objects: told, never fatal, and over within a second.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::agent::Agent;
use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netns::Netns;
use lb_tests::objects::{Folder, NodeObject, node, service, slice};
use lb_tests::traffic::{Server, distribution, tcp_request};
use lb_tests::world::World;

use super::{TARGET, VIP, WEB, causes, failed, field, folder, web, web_slice};

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
    let address: SocketAddr = WEB.parse().expect("an address");
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

/// The ClusterIPs and the node port of a Service in both families.
const VIPS: [&str; 2] = [VIP, "fd00:10:96::10"];
const NODE_PORT: u16 = 30_080;

/// How long traffic may take after each event: a second for the agent, and room for a machine that is busy.
const TRAFFIC: Duration = Duration::from_secs(3);

/// Waits until a request to `to` is answered, from an address of this node where one is named.
#[track_caller]
fn until_answered(who: &str, from: &Netns, to: SocketAddr, seen: Option<IpAddr>) {
    eventually(TRAFFIC, &format!("{who} gets an answer of {to}"), || {
        let reply = tcp_request(from, to, None, Duration::from_millis(200)).map_err(|error| error.to_string())?;
        match seen {
            Some(seen) if reply.client_seen.ip() != seen => Err(format!("the backend saw {}", reply.client_seen)),
            _ => Ok(()),
        }
    });
}

#[test]
fn a_second_family_and_a_new_address_in_place_of_an_old_one_carry_traffic_at_once() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let (place, pod, client) = (world.node(1), world.pod("pod1-1"), world.client());
    let backend = world.pod("pod2-1");
    let folder = Folder::new();
    let mut dual = service("default", "web");
    for (vip, v6) in VIPS.iter().zip([false, true]) {
        dual = dual.cluster_ip(vip);
        let object = slice("default", &format!("web-{v6}"), "web").port("http", TARGET);
        let object = if v6 {
            object.v6().endpoint(backend.ip6)
        } else {
            object.endpoint(backend.ip4)
        };
        folder.put(&object.node("node2").ready(true));
    }
    folder.put(&dual.port("http", 80, "TCP").node_port(NODE_PORT));
    let named = |addresses: &[IpAddr]| {
        let object = node(&place.name)
            .pod_cidr(&place.pod_cidrs()[0])
            .pod_cidr(&place.pod_cidrs()[1]);
        folder.put(
            &addresses
                .iter()
                .fold(object, |object, address| object.internal_ip(*address)),
        );
    };
    let _servers = [IpAddr::from(backend.ip4), backend.ip6.into()]
        .map(|address| Server::tcp(backend, &backend.name, (address, TARGET)));
    let old: IpAddr = place.ip4.into();
    let second: IpAddr = place.ip6.into();
    place.ns.ip(&format!("address del {second}/64 dev eth0"));
    named(&[old]);
    let mut agent = Agent::start(place, &folder, &[]);
    agent.wait_ready();
    let [v4, v6] = VIPS.map(|vip| SocketAddr::new(vip.parse().expect("an address"), 80));
    until_answered("the client", &client.ns, SocketAddr::new(old, NODE_PORT), Some(old));

    // The first address of the second family; its routes came back with it.
    let routes = format!(
        "route replace default via fd00:31::1\nroute replace {} via {}\n",
        world.node(2).pod_cidrs()[1],
        world.node(2).ip6
    );
    place
        .ns
        .ip_batch(&format!("address add {second}/64 dev eth0 nodad\n{routes}"));
    named(&[old, second]);
    until_answered(
        "the client",
        &client.ns,
        SocketAddr::new(second, NODE_PORT),
        Some(second),
    );
    until_answered("the node", &place.ns, v6, Some(second));
    until_answered("a pod", &pod.ns, v6, None);
    until_answered("a pod", &pod.ns, SocketAddr::new(second, NODE_PORT), None);

    let new: IpAddr = [172, 31, 0, 51].into();
    let routes = format!(
        "route add default via 172.31.0.1\nroute add {} via {}\n",
        world.node(2).pod_cidrs()[0],
        world.node(2).ip4
    );
    place.ns.ip_batch(&format!(
        "address del {old}/24 dev eth0\naddress add {new}/24 dev eth0\n{routes}"
    ));
    named(&[new, second]);
    until_answered("the client", &client.ns, SocketAddr::new(new, NODE_PORT), Some(new));
    until_answered("the node", &place.ns, v4, Some(new));
    until_answered("the node", &place.ns, SocketAddr::new(new, NODE_PORT), Some(new));
    until_answered("a pod", &pod.ns, SocketAddr::new(new, NODE_PORT), None);
    until_answered("a pod", &pod.ns, v4, None);
    until_answered("the node", &place.ns, v6, Some(second));
    until_causes(&agent, &[]);
}
