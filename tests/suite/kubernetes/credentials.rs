//! The token by which the agent asks is replaced in its file, as kubelet does for a pod, and the old one is worth nothing any more.
//!
//! A token is bound to a Secret and ends with it. The API server knows a token for ten seconds more, and goes on with what it
//! has begun to send; therefore the way to it is cut.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lb_tests::agent::Agent;
use lb_tests::assert::{OnFailure, eventually};
use lb_tests::kubernetes::ControlPlane;
use lb_tests::traffic::HeldConnections;
use lb_tests::world::World;
use serde_json::json;

use super::{PORT, Scene, at, names, web};

/// How long a token may be known, or a retry may take.
const LIMIT: Duration = Duration::from_mins(1);
const VIP: &str = "10.96.0.10";
const COUNT: usize = 20;

/// A token of the agent's ServiceAccount that ends with a new Secret of this name.
#[track_caller]
fn token(cluster: &ControlPlane, secret: &str) -> String {
    cluster.kubectl(&["create", "secret", "generic", secret, "-n", "kube-system"], "");
    let bound = ["--bound-object-kind=Secret", &format!("--bound-object-name={secret}")];
    let text = cluster.kubectl(
        &[&["create", "token", "agent", "-n", "kube-system"], &bound[..]].concat(),
        "",
    );
    text.trim().to_owned()
}

/// Replaces a file as a whole.
#[track_caller]
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).expect("a file in a temporary directory");
    fs::rename(&new, file).expect("a file in a temporary directory");
}

/// Ends a token, and waits until the API server knows.
#[track_caller]
fn end(cluster: &ControlPlane, secret: &str, token: &str) {
    cluster.kubectl(&["delete", "secret", secret, "-n", "kube-system"], "");
    eventually(LIMIT, "the old token is refused", || {
        if cluster.takes(token) {
            Err("it is taken")
        } else {
            Ok(())
        }
    });
}

/// The agent tells of no request that was refused for its token. The status's number alone may be part of a time of day.
#[track_caller]
fn assert_logs_no_refusal(scene: &Scene) {
    let log = scene.agents[0].log();
    let refused = ["Unauthorized", "code: 401"].iter().any(|words| log.contains(words));
    assert!(!refused, "{log}");
}

/// Gives the Service this pod alone, and waits until it answers.
#[track_caller]
fn moves_to(scene: &Scene, pod: &str) {
    let address = scene.world.pod(pod).ip4.to_string();
    let endpoints = json!({ "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }] });
    scene.cluster.patch("endpointslice", "web-by-hand", &endpoints);
    eventually(LIMIT, &format!("{pod} answers"), || {
        let found = scene.backends(at(VIP, PORT));
        if names(&found) == [pod] {
            Ok(())
        } else {
            Err(format!("{found:?} do"))
        }
    });
}

/// Makes the agent's ServiceAccount, with kube-proxy's rights.
#[track_caller]
fn create_account(cluster: &ControlPlane) {
    cluster.kubectl(&["create", "serviceaccount", "agent", "-n", "kube-system"], "");
    let bound = [
        "--clusterrole=system:node-proxier",
        "--serviceaccount=kube-system:agent",
    ];
    cluster.kubectl(&[&["create", "clusterrolebinding", "agent"], &bound[..]].concat(), "");
}

/// Gives the scene this agent and a Service with one pod, and connections through it.
#[track_caller]
fn serve(scene: &mut Scene, agent: Agent) -> HeldConnections {
    scene.agents.push(agent);
    scene.cluster.create(&web("web", VIP));
    scene.create_slice("web", &["pod1-2"]);
    scene.settle();
    HeldConnections::start(scene.world.pod("pod1-1"), at(VIP, PORT), COUNT)
}

#[test]
fn a_replaced_token_is_taken_up_whether_it_comes_before_or_after_the_old_ones_end() {
    let mut scene = Scene::of(&World::builder().nodes(1), &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.agents.clear();
    let cluster = &scene.cluster;
    create_account(cluster);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("token");
    let first = token(cluster, "first");
    replace(&file, &first);
    let (relay, kubeconfig) = cluster.relay(&json!({ "tokenFile": file }));
    let agent = Agent::start_on_api(scene.world.node(1), &kubeconfig, &[]);
    let mut held = serve(&mut scene, agent);

    // In time, as kubelet does it.
    let second = token(&scene.cluster, "second");
    replace(&file, &second);
    end(&scene.cluster, "first", &first);
    relay.cut();
    moves_to(&scene, "pod1-1");
    assert_logs_no_refusal(&scene);

    // Too late.
    end(&scene.cluster, "second", &second);
    relay.cut();
    eventually(LIMIT, "the agent tells that its token is refused", || {
        let status = scene.agents[0].json(&["status"]);
        let causes = status["notReady"].to_string();
        if causes.contains("401") || causes.contains("Unauthorized") {
            Ok(())
        } else {
            Err(causes)
        }
    });
    assert_eq!(names(&scene.backends(at(VIP, PORT))), ["pod1-1"]);
    replace(&file, &token(&scene.cluster, "third"));
    moves_to(&scene, "pod1-2");
    scene.settle();
    let report = held.check_all();
    assert_eq!((report.alive, report.lost.len()), (COUNT, 0), "{report:?}");
}

/// A new state of the folder that kubelet mounts: a folder of its own, and a link that is moved to it.
#[track_caller]
fn project(folder: &Path, state: &str, cluster: &ControlPlane, token: &str) {
    let data = folder.join(state);
    fs::create_dir(&data).expect("a folder in a temporary directory");
    fs::copy(cluster.certificate(), data.join("ca.crt")).expect("the API server's certificate");
    fs::write(data.join("token"), token).expect("a file in a temporary directory");
    let new = folder.join("..data_tmp");
    std::os::unix::fs::symlink(state, &new).expect("a link");
    fs::rename(&new, folder.join("..data")).expect("a link");
}

#[test]
fn an_agent_in_a_pod_asks_as_its_service_account_and_takes_a_new_token_up() {
    let mut scene = Scene::of(&World::builder().nodes(1), &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.agents.clear();
    create_account(&scene.cluster);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let first = token(&scene.cluster, "first");
    project(folder.path(), "..first", &scene.cluster, &first);
    for file in ["ca.crt", "token"] {
        std::os::unix::fs::symlink(format!("..data/{file}"), folder.path().join(file)).expect("a link");
    }
    let (relay, _) = scene.cluster.relay(&json!({}));
    let agent = Agent::start_in_pod(scene.world.node(1), folder.path(), &ControlPlane::relayed());
    let mut held = serve(&mut scene, agent);

    let second = token(&scene.cluster, "second");
    project(folder.path(), "..second", &scene.cluster, &second);
    end(&scene.cluster, "first", &first);
    relay.cut();
    moves_to(&scene, "pod1-1");
    assert_logs_no_refusal(&scene);
    held.all_alive().expect("connections of before");
}
