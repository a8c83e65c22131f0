//! The agent as its operator meets it: start, status, kill, restart, what the pins tell, cleanup, and what a node may lack.

mod late;
mod life;
mod settings;

use std::path::Path;
use std::process::Output;

use lb_tests::agent::Agent;
use lb_tests::objects::{Folder, NodeObject, ServiceObject, SliceObject, service, slice};
use lb_tests::world::World;
use serde_json::Value;
use steerway::maps::{BpfStore, Dump};

/// The ClusterIP of `default/web`, and its address with the port.
const VIP: &str = "10.96.0.10";
const WEB: &str = "10.96.0.10:80";
/// The port that its endpoints listen on.
const TARGET: u16 = 8080;

fn web() -> ServiceObject {
    service("default", "web").cluster_ip(VIP).port("http", 80, "TCP")
}

/// The slice of `web` with these pods.
fn web_slice(world: &World, pods: &[&str]) -> SliceObject {
    let slice = slice("default", "web-1", "web").port("http", TARGET);
    pods.iter().fold(slice, |slice, name| {
        let pod = world.pod(name);
        let node = world
            .nodes()
            .iter()
            .find(|node| node.pods.iter().any(|of_node| of_node.name == pod.name));
        slice
            .endpoint(pod.ip4)
            .node(&node.expect("a pod's node").name)
            .ready(true)
    })
}

/// A folder with node 1, `web` and these endpoints.
fn folder(world: &World, pods: &[&str]) -> Folder {
    let folder = Folder::new();
    folder.put(&NodeObject::from(world.node(1)));
    folder.put(&web());
    folder.put(&web_slice(world, pods));
    folder
}

/// What is published, word for word.
#[track_caller]
fn published(pin_dir: &Path) -> Dump {
    let store = BpfStore::open(&pin_dir.join("maps")).expect("pinned maps");
    Dump::of(&store).expect("a dump")
}

/// Texts of one field of each element.
fn field<'a>(list: &'a Value, name: &str) -> Vec<&'a str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|element| element[name].as_str())
        .collect()
}

/// The causes for not being ready.
fn causes(agent: &Agent) -> Vec<String> {
    field(&agent.json(&["status"])["notReady"], "cause")
        .into_iter()
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

#[track_caller]
fn failed(output: &Output, message: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(message), "{errors}");
}
