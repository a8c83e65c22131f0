//! What a node may lack for now, and what may be wrong with objects: told, never fatal, and over within a second.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::agent::Agent;
use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netns::Netns;
use lb_tests::objects::{Folder, NodeObject, node, service, slice};
use lb_tests::traffic::{HeldConnections, Server, distribution, tcp_request};
use lb_tests::world::{PodRouting, World};

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
    let (node, client) = (world.node(1), &world.client().ns);
    let folder = folder(&world, &["pod1-2"]);
    world.route_to_node(&format!("{VIP}/32"), 1);
    let server = world.pod("pod1-2");
    let _server = Server::tcp(server, "pod1-2", (server.ip4, TARGET));
    let mut agent = Agent::start(node, &folder, &[]);
    agent.wait_ready();
    let web: SocketAddr = WEB.parse().expect("an address");
    let mut held = HeldConnections::start(client, web, 4);
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
    // The route went when the link was down.
    node.ns.ip("route replace default via 172.31.0.1");
    until_answered("the client", client, web, None);
    held.all_alive().expect("connections from before");
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

/// Writes a Service of both families with one endpoint on a node.
fn put_dual(folder: &Folder, name: &str, vips: [&str; 2], node_port: u16, endpoint: [IpAddr; 2], node: &str) {
    let mut dual = service("default", name);
    for (vip, address) in vips.into_iter().zip(endpoint) {
        dual = dual.cluster_ip(vip);
        let family = if address.is_ipv6() { "v6" } else { "v4" };
        let object = slice("default", &format!("{name}-{family}"), name).port("http", TARGET);
        let object = if address.is_ipv6() { object.v6() } else { object };
        folder.put(&object.endpoint(address).node(node).ready(true));
    }
    folder.put(&dual.port("http", 80, "TCP").node_port(node_port));
}

#[test]
fn a_node_that_begins_with_nothing_serves_as_soon_as_each_part_of_its_network_is_there() {
    const FAR_VIPS: [&str; 2] = ["10.96.0.11", "fd00:10:96::11"];
    const LATE_VIPS: [&str; 2] = ["10.96.0.12", "fd00:10:96::12"];
    const PORTS: [u16; 3] = [NODE_PORT, 30_081, 30_082];
    let mut world = World::builder().routing(PodRouting::Vxlan).pods_per_node(0).build();
    let far = world.add_pod(2, "far");
    let _dump = OnFailure::of(&world);
    let (place, client) = (world.node(1).ns.clone(), world.client().ns.clone());
    let own: [IpAddr; 2] = [world.node(1).ip4.into(), world.node(1).ip6.into()];
    let neighbour: [IpAddr; 2] = [world.node(2).ip4.into(), world.node(2).ip6.into()];
    let far_addresses: [IpAddr; 2] = [far.ip4.into(), far.ip6.into()];
    let _near = neighbour.map(|address| Server::tcp(world.node(2), "near", (address, TARGET)));
    let _far = far_addresses.map(|address| Server::tcp(&far, "far", (address, TARGET)));
    let folder = Folder::new();
    for node in world.nodes() {
        folder.put(&NodeObject::from(node));
    }
    put_dual(&folder, "near", VIPS, PORTS[0], neighbour, "node2");
    put_dual(&folder, "far", FAR_VIPS, PORTS[1], far_addresses, "node2");
    let on_port_80 = |vips: [&str; 2]| vips.map(|vip| SocketAddr::new(vip.parse().expect("an address"), 80));
    let node_ports = |port| own.map(|address| SocketAddr::new(address, port));
    let answered = |who: &str, from: &Netns, frontends: [SocketAddr; 2]| {
        for to in frontends {
            until_answered(who, from, to, None);
        }
    };

    world.unplug(1);
    let mut agent = Agent::start(world.node(1), &folder, &[]);
    agent.wait_ready();
    until_causes(&agent, &["NoNodeAddress", "NoUplink"]);
    world.plug(1);
    place.ip_batch(&format!(
        "address add {}/24 dev eth0\naddress add {}/64 dev eth0 nodad\n",
        own[0], own[1]
    ));
    answered("the node", &place, on_port_80(VIPS));
    until_causes(&agent, &[]);

    place.ip_batch("route add default via 172.31.0.1\nroute add default via fd00:31::1\n");
    answered("the client", &client, node_ports(PORTS[0]));

    world.node(1).add_overlay(2, 1500);
    answered("the node", &place, on_port_80(FAR_VIPS));
    answered("the client", &client, node_ports(PORTS[1]));

    let late = world.add_pod(1, "late");
    answered("the pod", &late.ns, on_port_80(FAR_VIPS));
    let late_addresses: [IpAddr; 2] = [late.ip4.into(), late.ip6.into()];
    let _late = late_addresses.map(|address| Server::tcp(&late, "late", (address, TARGET)));
    put_dual(&folder, "late", LATE_VIPS, PORTS[2], late_addresses, "node1");
    answered("the client", &client, node_ports(PORTS[2]));
    answered("the node", &place, on_port_80(LATE_VIPS));
}

#[test]
fn a_second_family_and_a_new_address_in_place_of_an_old_one_carry_traffic_at_once() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let (place, pod, client) = (world.node(1), world.pod("pod1-1"), world.client());
    let backend = world.pod("pod2-1");
    let folder = Folder::new();
    put_dual(
        &folder,
        "web",
        VIPS,
        NODE_PORT,
        [backend.ip4.into(), backend.ip6.into()],
        "node2",
    );
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
