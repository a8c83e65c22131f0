//! The same settings by flags, by environment variables and by a configuration file make the same agent; and a start that shall fail
//! where an address is taken.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use lb_common::layout::config;
use lb_tests::agent::{Agent, Told};
use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netns::Netns;
use lb_tests::objects::{Folder, NodeObject};
use lb_tests::traffic::{Server, ping, tcp_request};
use lb_tests::world::World;
use serde_json::{Value, json};
use steerway::maps::{BpfStore, MapStore as _, Table};

use super::{TARGET, WEB, folder, web, web_slice};

/// None of them is the default. [`SWITCH`] is one more: the flag of a switch takes its value in one word.
const SETTINGS: [&str; 20] = [
    "--snat-ports",
    "20000-20999",
    "--answer-rate",
    "77",
    "--refuse-with",
    "icmp",
    "--host-routing",
    "bpf",
    "--select-seed",
    "4711",
    "--flow-entries",
    "65536",
    "--tcp-closed-timeout",
    "7s",
    "--udp-replied-timeout",
    "9s",
    "--xdp",
    "off",
    "--ignore",
    "nothing*,veth-pod?-2",
];

const SWITCH: (&str, &str) = ("--no-ping", "true");

/// What the packets' configuration says, apart from what every node has of its own.
fn configuration(agent: &Agent) -> Vec<u64> {
    let store = BpfStore::open(&agent.pin_dir().join("maps")).expect("pinned maps");
    let words = store.words(Table::Config);
    let own = [config::TABLE_SEED, config::STEER_IFINDEX, config::STEER_MAC];
    (0..words.len())
        .filter(|index| !own.contains(index))
        .map(|index| words.load(index))
        .collect()
}

/// What `status` tells of settings, with the number of the node taken out of names.
fn told(agent: &Agent, node: &str) -> Value {
    let status = agent.json(&["status"]);
    let hooked: Vec<String> = status["attachments"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| {
            let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
            let interface = text("interface").replace(&node.replace("node", "pod"), "pod");
            format!("{interface} {} {}", text("direction"), text("method"))
        })
        .collect();
    assert_eq!(status["agent"]["nodeName"], node, "{status:#}");
    let capacities: Vec<&Value> = status["tables"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|table| &table["capacity"])
        .collect();
    json!({ "ready": status["ready"], "attachments": hooked, "capacities": capacities })
}

#[test]
fn flags_variables_and_a_file_make_the_same_agent() {
    let world = World::builder().nodes(3).build();
    let _dump = OnFailure::of(&world);
    let folder = Folder::new();
    for node in world.nodes() {
        folder.put(&NodeObject::from(node));
    }
    folder.put(&web());
    folder.put(&web_slice(&world, &["pod1-2"]));
    let server = world.pod("pod1-2");
    let _server = Server::tcp(server, "pod1-2", (server.ip4, TARGET));
    let ways = [Told::ByFlags, Told::ByEnvironment, Told::ByFile];
    let mut agents: Vec<Agent> = world
        .nodes()
        .iter()
        .zip(ways)
        .map(|(node, way)| {
            let switch = match way {
                Told::ByFlags => vec![SWITCH.0],
                Told::ByEnvironment | Told::ByFile => vec![SWITCH.0, SWITCH.1],
            };
            let mut agent = Agent::prepare(node, &folder, &[&SETTINGS[..], &switch].concat());
            agent.tell(way);
            agent.restart();
            agent
        })
        .collect();
    agents.iter_mut().for_each(Agent::wait_ready);
    let flags = (configuration(&agents[0]), told(&agents[0], "node1"));
    assert!(flags.0.contains(&20_000), "no first port in {:?}", flags.0);
    for ((agent, node), way) in agents.iter().zip(world.nodes()).zip(ways) {
        assert_eq!((configuration(agent), told(agent, &node.name)), flags, "{way:?}");
        let pod: &Netns = &world.pod(&format!("pod{}-1", node.number)).ns;
        let web: SocketAddr = WEB.parse().expect("an address");
        let reply = tcp_request(pod, web, None, Duration::from_secs(2));
        assert_eq!(
            reply.unwrap_or_else(|error| panic!("{way:?}: {error}")).backend,
            "pod1-2"
        );
        let answer = ping(pod, web.ip(), 56, Duration::from_millis(300));
        assert!(answer.is_err(), "{way:?}: {answer:?}");
    }
}

#[test]
fn a_taken_address_ends_a_start_that_is_to_fail_hard_and_no_other() {
    const LIMIT: Duration = Duration::from_secs(30);
    let world = World::builder().nodes(1).build();
    let _dump = OnFailure::of(&world);
    let (node, folder) = (world.node(1), folder(&world, &["pod1-2"]));
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, 10249));
    let other = Server::tcp(node, "other", metrics);
    let mut agent = Agent::start(node, &folder, &["--bind-address-hard-fail"]);
    eventually(LIMIT, "the agent ends", || {
        if agent.is_running() { Err(agent.log()) } else { Ok(()) }
    });
    let (status, log) = (agent.terminate(), agent.log());
    assert_eq!(status.code(), Some(1), "{log}");
    for part in [
        "127.0.0.1:10249",
        "metricsBindAddress",
        "--metrics-bind-address",
        "bindAddressHardFail",
        "in use",
    ] {
        assert!(log.contains(part), "{part} is not in\n{log}");
    }

    // Left to itself an agent forwards without its metrics, and has them when it can.
    agent.set_arguments(&[]);
    agent.restart();
    agent.wait_ready();
    drop(other);
    eventually(LIMIT, "metrics are served", || {
        node.ns.run(|| TcpStream::connect(metrics)).map(drop)
    });
    agent.terminate();
    agent.set_arguments(&["--bind-address-hard-fail"]);
    agent.restart();
    agent.wait_ready();
    let connected = node.ns.run(|| TcpStream::connect(metrics));
    assert!(connected.is_ok(), "{connected:?}");
}
