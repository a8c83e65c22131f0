//! An agent that has kube-proxy's configuration: the file of kubeadm's ConfigMap, kube-proxy's flags, and the settings of netfilter
//! that kube-proxy makes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use lb_tests::agent::Agent;
use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netfilter::set_rules;
use lb_tests::world::{CLUSTER_CIDR, NODE_CIDR, World};
use serde_json::{Value, json};

use super::health::{LIMIT, get};
use super::{PORT, Scene, at, names, web};

const SETTINGS: [(&str, &str); 3] = [
    ("nf_conntrack_tcp_timeout_established", "7200"),
    ("nf_conntrack_tcp_timeout_close_wait", "3600"),
    ("nf_conntrack_udp_timeout_stream", "90"),
];

/// A setting of netfilter in the namespace of node 1.
fn setting(scene: &Scene, name: &str) -> String {
    let path = format!("/proc/sys/net/netfilter/{name}");
    let text = scene.world.node(1).ns.run(|| fs::read_to_string(&path));
    text.unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

/// Puts a file into a folder as the kubelet puts a ConfigMap's: new content comes by a swap of links.
fn mount(folder: &Path, version: &str, text: &str) {
    let at = |name: &str| folder.join(name);
    fs::create_dir(at(version)).expect("a folder of this version");
    fs::write(at(version).join("config.conf"), text).expect("the file");
    symlink(version, at("..data_tmp")).expect("a link");
    fs::rename(at("..data_tmp"), at("..data")).expect("the swap");
    if !at("config.conf").exists() {
        symlink("..data/config.conf", at("config.conf")).expect("a link");
    }
}

#[test]
fn a_changed_file_ends_the_agent_forwarding_goes_on_and_the_next_start_has_the_new_values() {
    let mut scene = Scene::of(&World::builder().nodes(1), &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.agents.clear();
    let text = |established: &str| {
        let config = json!({ "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "clientConnection": { "kubeconfig": scene.cluster.kube_proxy() }, "hostnameOverride": "node1",
            "conntrack": { "tcpEstablishedTimeout": established } });
        config.to_string()
    };
    let folder = tempfile::tempdir().expect("a folder");
    mount(folder.path(), "..1", &text("1h0m0s"));
    let file = folder.path().join("config.conf");
    let mut agent = Agent::start_on_config(scene.world.node(1), &file, &[]);
    scene.cluster.create(&web("web", "10.96.0.10"));
    scene.create_slice("web", &["pod1-2"]);
    agent.wait_ready();
    let metrics = at("127.0.0.1", 10249);
    let established = || {
        let (_, _, body) = get(&scene.world.node(1).ns, metrics, "/configz").expect("an answer");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        body["kubeproxy.config.k8s.io"]["conntrack"]["tcpEstablishedTimeout"].clone()
    };
    assert_eq!(established(), json!("1h0m0s"));
    for (change, wanted) in [("swapped", "2h0m0s"), ("written", "3h0m0s")] {
        if change == "swapped" {
            mount(folder.path(), "..2", &text(wanted));
        } else {
            fs::write(&file, text(wanted)).expect("the file");
        }
        assert_eq!(agent.wait_end().code(), Some(1), "{change}");
        let log = agent.log();
        let told = format!("the content of the configuration file {} has changed", file.display());
        assert!(log.contains(&told), "{change}:\n{log}");
        assert_eq!(names(&scene.backends(at("10.96.0.10", PORT))), ["pod1-2"], "{change}");
        agent.restart();
        agent.wait_ready();
        assert_eq!(established(), json!(wanted), "{change}");
    }
}

#[test]
fn kube_proxys_file_and_flags_are_enough() {
    let mut scene = Scene::of(&World::builder().nodes(1), &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.agents.clear();
    // A rule that needs connections tracked loads the module, as a network plugin's does.
    set_rules(
        scene.world.node(1),
        "inet plugin",
        "filter hook forward priority 0",
        "ct state new counter name hits",
    );
    let before: Vec<String> = SETTINGS.iter().map(|(name, _)| setting(&scene, name)).collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    let config = json!({ "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "bindAddress": "0.0.0.0", "bindAddressHardFail": true, "clientConnection": { "kubeconfig": scene.cluster.kube_proxy(), "qps": 0 },
        "clusterCIDR": CLUSTER_CIDR, "hostnameOverride": "another", "mode": "iptables", "nodePortAddresses": NODE_CIDR.split(',').collect::<Vec<_>>(),
        "conntrack": { "maxPerCore": 0, "tcpEstablishedTimeout": "2h0m0s", "udpStreamTimeout": "90s" },
        "iptables": { "masqueradeAll": true, "syncPeriod": "0s" }, "oomScoreAdj": null, "clusterCIDRs": "10.0.0.0/8" });
    fs::write(file.path(), config.to_string()).expect("the file");
    let flags = ["--hostname-override=node1", "--v=2", "--oom-score-adj", "-998"];
    scene
        .agents
        .push(Agent::start_on_config(scene.world.node(1), file.path(), &flags));
    scene.cluster.create(&web("web", "10.96.0.10").node_port(30080));
    scene.create_slice("web", &["pod1-2"]);
    scene.settle();
    let node = scene.world.node(1).ip4.to_string();
    for to in [at("10.96.0.10", PORT), at(&node, 30080)] {
        assert_eq!(names(&scene.backends(to)), ["pod1-2"], "{to}");
    }

    // Each value without effect is told once, in the log and by the command line.
    let status = scene.agents[0].json(&["status"]);
    let told = status["unusedSettings"].as_array().cloned().unwrap_or_default();
    let file = file.path().display();
    let told: Vec<(&str, &Value)> = told
        .iter()
        .map(|one| (one["setting"].as_str().unwrap_or_default(), &one["wrong"]))
        .collect();
    let wanted = ["clusterCIDRs", "mode", "iptables.masqueradeAll", "clusterCIDR"]
        .map(|field| format!("field {field} in {file}"));
    assert_eq!(
        told,
        [
            (wanted[0].as_str(), &json!(true)),
            (wanted[1].as_str(), &json!(false)),
            (wanted[2].as_str(), &json!(false)),
            ("--oom-score-adj", &json!(false)),
            (wanted[3].as_str(), &json!(false)),
        ]
    );
    let log = scene.agents[0].log();
    for (setting, _) in told {
        assert_eq!(
            log.lines().filter(|line| line.contains(setting)).count(),
            1,
            "{setting} in\n{log}"
        );
    }

    let (status, _, body) = get(&scene.world.node(1).ns, at("127.0.0.1", 10249), "/configz").expect("an answer");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let shown = &body["kubeproxy.config.k8s.io"];
    assert_eq!((status, &shown["kind"]), (200, &config["kind"]), "{body}");
    for (found, wanted) in [
        (&shown["hostnameOverride"], json!("node1")),
        (&shown["bindAddressHardFail"], json!(true)),
        (&shown["conntrack"]["tcpEstablishedTimeout"], json!("2h0m0s")),
        (
            &shown["clientConnection"]["kubeconfig"],
            config["clientConnection"]["kubeconfig"].clone(),
        ),
        (&shown["nodePortAddresses"], config["nodePortAddresses"].clone()),
    ] {
        assert_eq!(*found, wanted, "{body}");
    }

    // Netfilter has its settings, until cleanup gives back what was there.
    for (name, wanted) in SETTINGS {
        eventually(LIMIT, name, || {
            let found = setting(&scene, name);
            if found == wanted { Ok(()) } else { Err(found) }
        });
    }
    scene.agents[0].terminate();
    let output = scene.agents[0].cli(&["run", "--cleanup"]);
    assert!(output.status.success(), "{output:?}");
    let after: Vec<String> = SETTINGS.iter().map(|(name, _)| setting(&scene, name)).collect();
    assert_eq!(after, before);
}
