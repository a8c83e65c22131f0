//! From kube-proxy's iptables mode to Steerway and back with running connections: the real kube-proxy, in machines whose kernels have what it needs.
//!
//! Each test runs twice: here it makes the API server, the objects and the machine; there it makes the same world again, whose addresses
//! the objects name, with kube-proxy and the agent in it. A relay brings both to the API server.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use lb_tests::agent::{Agent, text};
use lb_tests::assert::{OnFailure, eventually, throughout};
use lb_tests::kubernetes::{ControlPlane, KubeProxy, Relay, SERVER, asset};
use lb_tests::objects::{NodeObject, service, slice};
use lb_tests::traffic::{HeldConnections, Server, distribution, tcp_request};
use lb_tests::world::World;

use super::machine::{self, Machine, find};
use super::{all_pass, kernel};

/// What `iptables` stands for on a node.
#[derive(Clone, Copy, Debug)]
enum Form {
    Legacy,
    Nft,
}

/// Families that have programs of their own.
const FAMILIES: [&str; 2] = ["iptables", "ip6tables"];

/// Kernel modules that kube-proxy's rules need, in either form.
const MODULES: [&str; 22] = [
    "nf_nat",
    "nf_conntrack_netlink",
    "nfnetlink_acct",
    "xt_nfacct",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_multiport",
    "xt_nat",
    "xt_recent",
    "xt_statistic",
    "xt_tcpudp",
    "xt_MASQUERADE",
    "iptable_filter",
    "iptable_mangle",
    "iptable_nat",
    "ip6table_filter",
    "ip6table_mangle",
    "ip6table_nat",
    "nft_chain_nat",
    "nft_compat",
];

/// A chain that kubelet has, and kube-proxy makes where kubelet has not.
const OF_KUBELET: &str = "KUBE-FIREWALL";

/// The machine is slow.
const LIMIT: Duration = Duration::from_mins(3);
const SECOND: Duration = Duration::from_secs(5);
const VIP: &str = "10.96.0.10";
const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const SERVER_PORT: u16 = 8080;
/// Where the API server is, here and there.
const API_PORT: u16 = 6443;
/// Connections of each client.
const COUNT: usize = 5;

impl Form {
    /// The program of a family, with an ending.
    fn program(self, family: &str, ending: &str) -> String {
        let form = match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        };
        format!("{family}-{form}{ending}")
    }
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// The programs of all forms, and kube-proxy.
fn programs() -> Vec<PathBuf> {
    let forms = [Form::Legacy, Form::Nft].into_iter();
    let names =
        forms.flat_map(|form| FAMILIES.map(|family| ["", "-save", "-restore"].map(|end| form.program(family, end))));
    names
        .flatten()
        .map(|name| find(&name))
        .chain([asset("kube-proxy")])
        .collect()
}

/// What these programs load while they run.
fn extensions() -> Vec<PathBuf> {
    let folders = fs::read_dir("/usr/lib").expect("the folder of libraries").flatten();
    let folders = folders.map(|entry| entry.path().join("xtables"));
    let found: Vec<PathBuf> = folders
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .collect();
    assert!(
        !found.is_empty(),
        "no extensions of iptables: `cargo xtask setup` installs them"
    );
    found
}

/// Makes the API server and the machine, and runs the test called `name` in it.
#[track_caller]
fn there(version: &str, name: &str) {
    let world = World::builder().nodes(1).build();
    let cluster = ControlPlane::start(&world, &[]);
    cluster.create(&NodeObject::from(world.node(1)));
    cluster.create(
        &service("default", "web")
            .cluster_ip(VIP)
            .port("http", PORT, "TCP")
            .target_port(SERVER_PORT)
            .node_port(NODE_PORT),
    );
    let endpoint = slice("default", "web-1", "web").v4().port("http", SERVER_PORT);
    let pod = world.pod("pod1-2");
    cluster.create(&endpoint.endpoint(pod.ip4).node("node1").ready(true));
    let kubeconfig = cluster.kube_proxy();
    let programs = programs();
    let assets = asset("kube-proxy").parent().expect("a folder").to_path_buf();
    let machine = Machine {
        kernel: kernel(version),
        modules: &MODULES,
        programs: &programs,
        files: &[extensions(), vec![kubeconfig.clone(), cluster.certificate()]].concat(),
        variables: &[("KUBECONFIG", &kubeconfig), ("KUBEBUILDER_ASSETS", &assets)],
        network: Some(&world.fabric),
    };
    all_pass(version, &machine, &[name]);
}

/// A pod's request to a VIP is answered.
#[track_caller]
fn forwarded(what: &str, world: &World, vip: SocketAddr, kube_proxy: &KubeProxy) {
    eventually(LIMIT, what, || {
        let answer = tcp_request(world.pod("pod1-1"), vip, None, SECOND);
        answer.map_err(|error| format!("{error}\n{}", kube_proxy.log_end()))
    });
}

/// All connections answer for a while.
#[track_caller]
fn all_go_on(what: &str, held: &mut [HeldConnections]) {
    throughout(Duration::from_secs(2), what, || {
        held.iter_mut().try_for_each(HeldConnections::all_alive)
    });
}

/// What the test does in the machine.
#[track_caller]
fn here(form: Form) {
    for family in FAMILIES {
        for ending in ["", "-save", "-restore"] {
            symlink(find(&form.program(family, ending)), format!("/bin/{family}{ending}")).expect("a link");
        }
    }
    let world = World::builder().nodes(1).build();
    let _dump = OnFailure::of(&world);
    let api = at(SERVER, API_PORT);
    let _relay = Relay::start(&world.fabric, api, None, api);
    let kubeconfig = PathBuf::from(std::env::var_os("KUBECONFIG").expect("the machine's kubeconfig"));
    let (node, pod) = (world.node(1), world.pod("pod1-2"));
    let _server = Server::tcp(pod, "pod1-2", (pod.ip4, SERVER_PORT));
    let (vip, node_port) = (at(VIP, PORT), SocketAddr::new(node.ip4.into(), NODE_PORT));
    let rules = || {
        let saved = FAMILIES
            .map(|family| node.ns.ok(&[&form.program(family, "-save")]))
            .concat();
        let lines = saved.lines().filter(|line| !line.contains(OF_KUBELET));
        lines.collect::<Vec<_>>().join("\n")
    };

    let kube_proxy = KubeProxy::start_in("iptables", &kubeconfig, node);
    forwarded("kube-proxy forwards", &world, vip, &kube_proxy);
    let clients = || {
        vec![
            HeldConnections::start(world.pod("pod1-1"), vip, COUNT),
            HeldConnections::start(node, vip, COUNT),
            HeldConnections::start(world.client(), node_port, COUNT),
        ]
    };
    let mut of_kube_proxy = clients();
    all_go_on("through kube-proxy", &mut of_kube_proxy);
    let before = rules();
    assert!(before.contains("KUBE-SVC-") && before.contains("-j DNAT"), "{before}");

    let mut agent = Agent::start_on_api(node, &kubeconfig, &["--takeover"]);
    agent.wait_ready();
    drop(kube_proxy);
    all_go_on("beside an agent", &mut of_kube_proxy);
    // Not every kubelet and kube-proxy has a rule here that keeps connections tracked.
    node.ns.ok(&[&form.program(FAMILIES[0], ""), "-F", OF_KUBELET]);

    // Its rules go, its connections stay; new ones are ours.
    let output = agent.cli(&["migrate", "--wait", "1"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let carried = format!("{} TCP connections to Services go on through netfilter", 3 * COUNT);
    assert!(said.contains(&carried), "{said}");
    let meanwhile = rules();
    assert!(
        !meanwhile.contains("-j DNAT") && !meanwhile.contains("-j KUBE-"),
        "{meanwhile}"
    );
    all_go_on("through netfilter without rules", &mut of_kube_proxy);
    let flows = |agent: &Agent| agent.json(&["status"])["reasons"]["new_flow"].as_u64().unwrap_or(0);
    let taken = flows(&agent);
    let mut ours = clients();
    assert_eq!(distribution(world.pod("pod1-1"), vip, 5)["pod1-2"], 5);
    assert!(flows(&agent) >= taken + 3 * COUNT as u64 + 5, "{taken}");
    drop(of_kube_proxy);
    let output = agent.cli(&["migrate", "--wait", "60"]);
    assert!(output.status.success(), "{}", text(&output));
    let after = rules();
    assert!(!after.contains("KUBE-"), "{after}");
    all_go_on("through Steerway", &mut ours);

    // Back: a draining agent goes on with what it knows, and kube-proxy has what is new.
    agent.terminate();
    agent.set_arguments(&["--drain"]);
    agent.restart();
    agent.wait_ready();
    let known = flows(&agent);
    let kube_proxy = KubeProxy::start_in("iptables", &kubeconfig, node);
    forwarded("kube-proxy forwards again", &world, vip, &kube_proxy);
    all_go_on("through a draining agent", &mut ours);
    let mut of_kube_proxy = clients();
    assert_eq!(flows(&agent), known, "nothing new is taken");
    drop(ours);
    agent.terminate();
    let output = agent.cli(&["cleanup"]);
    assert!(output.status.success(), "{}", text(&output));
    all_go_on("through kube-proxy again", &mut of_kube_proxy);
    drop(kube_proxy);
}

#[test]
fn a_node_goes_from_kube_proxys_legacy_iptables_to_steerway_and_back_without_losing_a_connection() {
    if machine::is_here() {
        here(Form::Legacy);
    } else {
        there(
            "6.1",
            "a_node_goes_from_kube_proxys_legacy_iptables_to_steerway_and_back",
        );
    }
}

#[test]
fn a_node_goes_from_kube_proxys_iptables_over_nftables_to_steerway_and_back_without_losing_a_connection() {
    if machine::is_here() {
        here(Form::Nft);
    } else {
        there(
            "6.12",
            "a_node_goes_from_kube_proxys_iptables_over_nftables_to_steerway_and_back",
        );
    }
}
