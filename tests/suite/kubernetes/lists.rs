//! Which requests the agent makes: streaming lists, pages where those are refused, and nothing that kube-proxy may not do.

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::kubernetes::Use;
use lb_tests::world::World;
use serde_json::json;

use super::health::LIMIT;
use super::{PORT, Scene, at, names, web};

/// The resources that are read.
const RESOURCES: [&str; 4] = [
    "discovery.k8s.io/endpointslices",
    "networking.k8s.io/servicecidrs",
    "nodes",
    "services",
];

fn used(verb: &str, resource: &str, allowed: bool) -> Use {
    Use {
        verb: verb.to_owned(),
        resource: resource.to_owned(),
        allowed,
    }
}

#[test]
fn lists_are_streamed_and_nothing_else_is_asked_for() {
    let mut scene = Scene::of(&World::builder().nodes(1), &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.cluster.create(&web("web", "10.96.0.10"));
    scene.create_slice("web", &["pod1-2"]);
    scene.settle();
    assert_eq!(names(&scene.backends(at("10.96.0.10", PORT))), ["pod1-2"]);
    let log = scene.agents[0].log();
    assert_eq!(log.matches("by=Streaming").count(), 4, "{log}");
    assert!(!log.contains("by=Pages"), "{log}");
    // A streaming list is a watch: with these four, and the event of its start, an agent is content.
    let mut expected = vec![used("create", "events.k8s.io/events", true)];
    expected.extend(RESOURCES.map(|resource| used("watch", resource, true)));
    eventually(LIMIT, "what was asked for", || {
        let found: Vec<Use> = scene.cluster.uses().into_keys().collect();
        if found == expected {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
}

#[test]
fn refused_streaming_lists_become_pages() {
    let mut scene = Scene::of(&World::builder().nodes(1), &["--feature-gates=WatchList=false"]);
    let _dump = OnFailure::of(&scene.world);
    // More slices than a page has, in one call of kubectl.
    let pod = scene.world.pod("pod1-2").ip4.to_string();
    let slices: Vec<_> = (0..150)
        .map(|number| {
            json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": { "name": format!("many-{number}"), "namespace": "default",
                    "labels": { "kubernetes.io/service-name": "web" } },
                "ports": [{ "name": "http", "port": 9000 + number, "protocol": "TCP" }],
                "endpoints": [{ "addresses": [pod], "nodeName": "node1" }] })
        })
        .collect();
    scene.cluster.create(&web("web", "10.96.0.10"));
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": slices });
    scene
        .cluster
        .kubectl(&["create", "--validate=false", "-f", "-"], &list.to_string());
    scene.agents[0].kill9();
    scene.agents[0].restart();
    scene.settle();
    let log = scene.agents[0].log();
    assert!(
        !log.contains("by=Streaming") && log.matches("by=Pages").count() >= 8,
        "{log}"
    );
    let services = scene.agents[0].json(&["services"]).to_string();
    assert!(services.contains("web"), "{services}");
    let status = scene.agents[0].json(&["status"]);
    assert_eq!(
        status["source"]["endpointSlices"], 151,
        "150 and that of the API server itself: {status}"
    );
}
