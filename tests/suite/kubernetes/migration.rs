//! From kube-proxy to Steerway and back, with running connections: the real kube-proxy in its nftables mode.

use std::time::Duration;

use lb_tests::agent::{Agent, text};
use lb_tests::assert::{OnFailure, eventually, throughout};
use lb_tests::kubernetes::KubeProxy;
use lb_tests::netns::Netns;
use lb_tests::traffic::{HeldConnections, tcp_request};
use lb_tests::world::World;

use super::health::{LIMIT, get};
use super::{PORT, SECOND, Scene, at, names, web};

/// Connections of each client.
const COUNT: usize = 20;
const VIP: &str = "10.96.0.10";
const NODE_PORT: u16 = 30080;

/// nftables tables of kube-proxy in a namespace.
fn tables(netns: &Netns) -> Vec<String> {
    let listed = netns.ok(&["nft", "list", "tables"]);
    let of_kube_proxy = listed.lines().filter(|line| line.ends_with(" kube-proxy"));
    of_kube_proxy.map(str::to_owned).collect()
}

/// Waits until the one with this mode has both ports: its page of metrics counts the probes.
#[track_caller]
fn ports_become(netns: &Netns, wanted: &str) {
    let metrics = at("127.0.0.1", 10249);
    let probes = || {
        let (_, _, page) = get(netns, metrics, "/metrics")?;
        let count = page
            .lines()
            .find(|line| line.starts_with("kubeproxy_proxy_livez_total{code=\"200\"} "));
        Ok::<_, String>(count.map(str::to_owned))
    };
    eventually(LIMIT, &format!("the ports are those of {wanted}"), || {
        let (_, _, mode) = get(netns, metrics, "/proxyMode")?;
        let before = probes()?;
        let (status, ..) = get(netns, at("127.0.0.1", 10256), "/livez")?;
        let after = probes()?;
        if mode == wanted && status == 200 && before != after {
            Ok(())
        } else {
            Err(format!("{mode} answers, {status}, {before:?} then {after:?}"))
        }
    });
}

/// All connections answer for a while.
#[track_caller]
fn all_go_on(what: &str, held: &mut [HeldConnections]) {
    throughout(Duration::from_millis(1500), what, || {
        held.iter_mut().try_for_each(HeldConnections::all_alive)
    });
}

#[test]
fn a_node_goes_from_kube_proxy_to_steerway_and_back_without_losing_a_connection() {
    let mut scene = Scene::of(&World::builder().nodes(1), &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.agents.clear();
    let node = scene.world.node(1).ns.clone();
    let node_port = at(&scene.world.node(1).ip4.to_string(), NODE_PORT);
    scene.cluster.create(&web("web", VIP).node_port(NODE_PORT));
    scene.create_slice("web", &["pod1-2"]);

    // kube-proxy alone, with connections of a pod, of the node and from outside.
    let kube_proxy = KubeProxy::start_with_its_ports(&scene.cluster, scene.world.node(1));
    eventually(LIMIT, "kube-proxy forwards", || {
        let listed = node.ok(&["nft", "list", "ruleset"]);
        if listed.contains(&NODE_PORT.to_string()) {
            Ok(())
        } else {
            Err(listed)
        }
    });
    let clients = |scene: &Scene| {
        vec![
            HeldConnections::start(scene.world.pod("pod1-1"), at(VIP, PORT), COUNT),
            HeldConnections::start(&node, at(VIP, PORT), COUNT),
            HeldConnections::start(scene.world.client(), node_port, COUNT),
        ]
    };
    let mut of_kube_proxy = clients(&scene);
    all_go_on("through kube-proxy", &mut of_kube_proxy);

    // An agent beside it takes nothing over that it does not know; what is missing is said.
    let api = scene.cluster.kube_proxy();
    scene.agents.push(Agent::start_on_api(scene.world.node(1), &api, &[]));
    scene.settle();
    // Its ports are had by kube-proxy, which the agent waits for.
    ports_become(&node, "nftables");
    let log = scene.agents[0].log();
    for port in [10256, 10249] {
        let told = log.lines().filter(|line| line.contains(&format!(":{port}")));
        assert_eq!(told.count(), 1, "{log}");
    }
    let refused = text(&scene.agents[0].cli(&["migrate"]));
    assert!(refused.contains("--takeover"), "{refused}");
    scene.agents[0].terminate();
    scene.agents[0].set_arguments(&["--takeover"]);
    scene.agents[0].restart();
    scene.settle();
    let refused = text(&scene.agents[0].cli(&["migrate"]));
    assert!(refused.contains("kube-proxy still runs here as process"), "{refused}");
    drop(kube_proxy);
    ports_become(&node, "steerway");
    assert_eq!(tables(&node).len(), 2);
    all_go_on("beside an agent", &mut of_kube_proxy);

    // Its rules go, its connections stay; new ones are ours.
    let output = scene.agents[0].cli(&["migrate", "--wait", "1"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("60 TCP connections to Services go on through netfilter"),
        "{said}"
    );
    assert!(!node.ok(&["nft", "list", "ruleset"]).contains("dnat to"));
    all_go_on("through netfilter without rules", &mut of_kube_proxy);
    let mut ours = clients(&scene);
    assert_eq!(names(&scene.backends(at(VIP, PORT))), ["pod1-2"]);
    drop(of_kube_proxy);
    let output = scene.agents[0].cli(&["migrate", "--wait", "60"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(tables(&node), Vec::<String>::new());
    all_go_on("through Steerway", &mut ours);

    // Back: a draining agent goes on with what it knows and takes nothing new.
    scene.agents[0].terminate();
    scene.agents[0].set_arguments(&["--drain"]);
    scene.agents[0].restart();
    scene.settle();
    let kube_proxy = KubeProxy::start_with_its_ports(&scene.cluster, scene.world.node(1));
    let before = scene.agents[0].json(&["status"]);
    eventually(LIMIT, "kube-proxy forwards again", || {
        tcp_request(scene.world.pod("pod1-1"), at(VIP, PORT), None, SECOND).map(drop)
    });
    all_go_on("through a draining agent", &mut ours);
    let mut of_kube_proxy = clients(&scene);
    let after = scene.agents[0].json(&["status"]);
    assert_eq!(
        before["reasons"]["new_flow"], after["reasons"]["new_flow"],
        "nothing new is taken"
    );
    assert!(after["warnings"].to_string().contains("draining"), "{after}");
    drop(ours);
    scene.agents[0].terminate();
    let output = scene.agents[0].cli(&["cleanup"]);
    assert!(output.status.success(), "{}", text(&output));
    all_go_on("through kube-proxy again", &mut of_kube_proxy);
    ports_become(&node, "nftables");
    drop(kube_proxy);
}
