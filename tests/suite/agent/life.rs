//! Start, status, kill -9, restart that writes nothing, what the pins tell, SIGTERM, cleanup.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use lb_tests::agent::Agent;
use lb_tests::assert::{OnFailure, eventually, throughout};
use lb_tests::traffic::{Server, distribution};
use lb_tests::world::World;
use serde_json::Value;

use super::{TARGET, WEB, failed, field, folder, published, succeeded};

fn web_address() -> SocketAddr {
    WEB.parse().expect("an address")
}

#[test]
fn a_started_agent_forwards_and_tells_what_it_does() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let folder = folder(&world, &["pod1-2", "pod2-1"]);
    let servers = ["pod1-2", "pod2-1"].map(|name| Server::tcp(world.pod(name), name, (world.pod(name).ip4, TARGET)));
    let mut agent = Agent::start(world.node(1), &folder, &[]);
    agent.wait_ready();
    let status = agent.json(&["status"]);
    assert_eq!(status["ready"], true, "{status:#}");
    assert_eq!(status["agent"]["pid"], agent.pid().expect("a process"), "{status:#}");
    assert_eq!(status["source"]["services"], 1);
    let mut hooked = field(&status["attachments"], "interface");
    hooked.dedup();
    for interface in ["lo", "eth0", "veth-pod1-1", "veth-pod1-2", "steer0"] {
        assert!(hooked.contains(&interface), "{interface} of {hooked:?}");
    }

    let reached = distribution(world.pod("pod1-1"), web_address(), 40);
    assert_eq!(reached.values().sum::<usize>(), 40, "{reached:?}");
    assert_eq!(reached.len(), servers.len(), "{reached:?}");
    let status = agent.json(&["status"]);
    assert!(
        status["reasons"]["new_flow"].as_u64() >= Some(40),
        "{:#}",
        status["reasons"]
    );

    let services = agent.json(&["services", "default/web"]);
    let endpoints = &services[0]["endpoints"];
    assert_eq!(field(endpoints, "state"), ["Ready", "Ready"]);
    assert_eq!(field(endpoints, "node"), ["node1", "node2"]);
    let flows = agent.json(&[
        "flows",
        "--service",
        "web",
        "--client",
        &world.pod("pod1-1").ip4.to_string(),
    ]);
    assert_eq!(flows.as_array().map(Vec::len), Some(40), "{flows:#}");
    assert!(
        flows
            .as_array()
            .into_iter()
            .flatten()
            .all(|flow| flow["frontend"] == WEB),
        "{flows:#}"
    );
}

#[test]
fn killed_and_started_again_it_writes_nothing_and_the_pins_tell_the_state_meanwhile() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let folder = folder(&world, &["pod1-2"]);
    let pod = world.pod("pod1-2");
    let _server = Server::tcp(pod, "pod1-2", (pod.ip4, TARGET));
    let mut agent = Agent::start(world.node(1), &folder, &[]);
    agent.wait_ready();
    assert_eq!(distribution(world.pod("pod1-1"), web_address(), 5)["pod1-2"], 5);
    let (known, served) = (agent.json(&["services"]), attachments(&agent));
    let before = published(agent.pin_dir());

    agent.kill9();
    assert_eq!(distribution(world.pod("pod1-1"), web_address(), 5)["pod1-2"], 5);
    let status = agent.json(&["status"]);
    assert_eq!(
        (&status["agent"], &status["ready"]),
        (&Value::Null, &Value::Bool(false)),
        "{status:#}"
    );
    assert_eq!(field(&status["notReady"], "cause"), ["AgentStopped"]);
    assert_eq!(attachments(&agent), served);
    assert!(
        status["reasons"]["new_flow"].as_u64() >= Some(10),
        "{:#}",
        status["reasons"]
    );
    let pinned = agent.json(&["services"]);
    for field in [
        "namespace",
        "name",
        "portName",
        "frontends",
        "internalTrafficPolicy",
        "externalTrafficPolicy",
    ] {
        assert_eq!(pinned[0][field], known[0][field], "{field}");
    }
    assert_eq!(
        field(&pinned[0]["endpoints"], "address"),
        field(&known[0]["endpoints"], "address")
    );
    assert_eq!(agent.json(&["flows"]).as_array().map(Vec::len), Some(10));
    failed(
        &agent.cli(&["status", "--wait", "1"]),
        "no agent runs for this pin folder",
    );

    agent.restart();
    agent.wait_ready();
    let status = agent.json(&["status"]);
    assert_eq!(
        status["reconcile"]["operations"],
        0,
        "{:#}\n{}",
        status["reconcile"],
        agent.log()
    );
    assert_eq!(published(agent.pin_dir()), before);
    assert_eq!(distribution(world.pod("pod1-1"), web_address(), 5)["pod1-2"], 5);
}

#[test]
fn sigterm_ends_it_and_leaves_forwarding() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let folder = folder(&world, &["pod1-2"]);
    let pod = world.pod("pod1-2");
    let _server = Server::tcp(pod, "pod1-2", (pod.ip4, TARGET));
    let mut agent = Agent::start(world.node(1), &folder, &[]);
    agent.wait_ready();
    assert!(agent.terminate().success());
    assert_eq!(distribution(world.pod("pod1-1"), web_address(), 5)["pod1-2"], 5);
}

#[test]
fn cleanup_is_refused_while_it_runs_and_leaves_no_trace_afterwards() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let folder = folder(&world, &["pod1-2"]);
    let node = world.node(1);
    let state = || {
        let commands = [
            "ip -br link show",
            "ip -4 route show table all",
            "ip -6 route show table all",
            "bpftool net show",
        ];
        let run = |command: &str| node.ns.ok(&command.split_whitespace().collect::<Vec<_>>());
        let mut told: Vec<String> = commands.map(run).to_vec();
        told.extend(
            node.ns
                .all_sysctls()
                .into_iter()
                .map(|(key, value)| format!("{key} = {value}")),
        );
        told
    };
    // So that a sysctl which the agent has to change is one that it has to put back.
    node.ns.sysctl("net.ipv4.conf.lo.rp_filter", "1");
    let before = state();
    let mut agent = Agent::start(node, &folder, &[]);
    agent.wait_ready();
    assert_ne!(state(), before);
    failed(&agent.cli(&["cleanup", "--wait", "0"]), "belongs to another agent");
    agent.terminate();
    succeeded(&agent.cli(&["cleanup"]));
    assert_eq!(state(), before);
    assert!(!agent.pin_dir().exists());
    failed(&agent.cli(&["status"]), "no agent runs");
    let again = agent.cli(&["cleanup"]);
    succeeded(&again);
    assert_eq!(String::from_utf8_lossy(&again.stdout), "nothing to remove\n");
}

#[test]
fn sigterm_while_it_starts_ends_it_too() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let folder = folder(&world, &["pod1-2"]);
    let mut agent = Agent::start(world.node(1), &folder, &[]);
    eventually(Duration::from_mins(1), "the agent answers", || {
        let output = agent.cli(&["status"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.starts_with("Agent:       running") {
            Ok(())
        } else {
            Err(text)
        }
    });
    assert!(agent.terminate().success(), "{}", agent.log());
    agent.restart();
    agent.wait_ready();
}

#[test]
fn a_second_agent_on_the_same_pins_waits_for_the_first_to_go_and_has_nothing_to_write() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let folder = folder(&world, &["pod1-2"]);
    let pod = world.pod("pod1-2");
    let _server = Server::tcp(pod, "pod1-2", (pod.ip4, TARGET));
    let mut first = Agent::start(world.node(1), &folder, &[]);
    first.wait_ready();
    let before = published(first.pin_dir());
    let mut second = first.second();
    second.restart();
    eventually(Duration::from_secs(5), "the second says for whom it waits", || {
        let log = second.log();
        let said = format!("owner={}", first.pid().expect("a process"));
        let waits = log.contains("waiting for another agent to end") && log.contains(&said);
        if waits { Ok(()) } else { Err(log) }
    });
    throughout(Duration::from_millis(500), "the first is the agent", || {
        let told = &first.json(&["status"])["agent"]["pid"];
        let alone = *told == first.pid().expect("a process") && second.is_running();
        if alone { Ok(()) } else { Err(second.log()) }
    });
    assert!(first.terminate().success());
    second.wait_ready();
    let status = second.json(&["status"]);
    assert_eq!(status["agent"]["pid"], second.pid().expect("a process"), "{status:#}");
    assert_eq!(status["reconcile"]["operations"], 0, "{:#}", status["reconcile"]);
    assert_eq!(published(second.pin_dir()), before);
    assert_eq!(distribution(world.pod("pod1-1"), web_address(), 5)["pod1-2"], 5);
}

#[test]
fn check_and_cleanup_tell_programs_what_they_tell_people() {
    let world = World::builder().rp_filter(1).build();
    let _dump = OnFailure::of(&world);
    let folder = folder(&world, &["pod1-2"]);
    let node = world.node(1);
    node.ns
        .ip_batch("link add far0 type vxlan external dstport 4790\nlink set far0 up\n");
    let mut agent = Agent::start(node, &folder, &[]);
    agent.wait_ready();
    let checks = agent.json(&["check"]);
    let row = |name: &str| {
        let mut rows = checks.as_array().into_iter().flatten();
        let found = rows.find(|row| row["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {checks:#}"))
    };
    for (name, verdict, parts) in [
        ("rights", "ok", &["may be loaded"][..]),
        ("uplinks", "ok", &["eth0"]),
        ("rp_filter", "ok", &["all=1", "strict on", "eth0", "which works"]),
        (
            "tunnels",
            "warn",
            &["far0 take their far end from each packet's metadata"],
        ),
    ] {
        let (found, detail) = (row(name), row(name)["detail"].as_str().unwrap_or_default());
        assert_eq!(found["verdict"], verdict, "{found:#}");
        assert!(parts.iter().all(|part| detail.contains(part)), "{found:#}");
        let remedy = found["remedy"].as_str().unwrap_or_default();
        assert_eq!(remedy.is_empty(), verdict == "ok", "{found:#}");
    }
    let people = agent.cli(&["check"]);
    succeeded(&people);
    let people = String::from_utf8_lossy(&people.stdout).into_owned();
    for row in checks.as_array().into_iter().flatten() {
        let name = row["name"].as_str().unwrap_or_default();
        assert!(people.contains(name), "{name} is not in\n{people}");
    }

    agent.terminate();
    let report = agent.json(&["cleanup"]);
    let removed = report["removed"].as_array().map(Vec::len);
    assert!(
        removed > Some(0) && report["left"] == Value::Array(Vec::new()),
        "{report:#}"
    );
    let again = agent.json(&["cleanup"]);
    assert_eq!(again, serde_json::json!({ "removed": [], "left": [] }));
}

/// Interface, direction and method of every attached program that `status` tells of.
fn attachments(agent: &Agent) -> BTreeSet<[String; 3]> {
    let status = agent.json(&["status"]);
    let told = status["attachments"].as_array().into_iter().flatten();
    let told: BTreeSet<[String; 3]> = told
        .filter(|attachment| attachment["error"].is_null())
        .map(|attachment| {
            ["interface", "direction", "method"].map(|field| attachment[field].as_str().unwrap_or_default().to_owned())
        })
        .collect();
    assert!(!told.is_empty(), "{status:#}");
    told
}

#[test]
fn with_clsact_filters_it_restarts_as_silently() {
    let world = World::builder().build();
    let _dump = OnFailure::of(&world);
    let folder = folder(&world, &["pod1-2"]);
    let pod = world.pod("pod1-2");
    let _server = Server::tcp(pod, "pod1-2", (pod.ip4, TARGET));
    let mut agent = Agent::start(world.node(1), &folder, &["--attach", "clsact"]);
    agent.wait_ready();
    assert_eq!(distribution(world.pod("pod1-1"), web_address(), 5)["pod1-2"], 5);
    let before = published(agent.pin_dir());
    let served = attachments(&agent);
    agent.kill9();
    assert_eq!(distribution(world.pod("pod1-1"), web_address(), 5)["pod1-2"], 5);
    assert_eq!(attachments(&agent), served, "without an agent, all filters are told");
    agent.restart();
    agent.wait_ready();
    let status = agent.json(&["status"]);
    assert_eq!(
        status["reconcile"]["operations"],
        0,
        "{:#}\n{}",
        status["reconcile"],
        agent.log()
    );
    assert!(
        attachments(&agent).iter().all(|[_, _, method]| method == "clsact"),
        "{status:#}"
    );
    assert_eq!(published(agent.pin_dir()), before);
    agent.terminate();
    succeeded(&agent.cli(&["cleanup"]));
    assert_eq!(
        world
            .node(1)
            .ns
            .ok(&["tc", "filter", "show", "dev", "veth-pod1-1", "ingress"]),
        ""
    );
}
