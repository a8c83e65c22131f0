//! Services of every type come, change and go by kubectl, and traffic follows.

use std::time::Duration;

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::objects::endpoints;
use lb_tests::traffic::{ConnectErrorKind, HeldConnections, Server, distribution, tcp_request};
use lb_tests::world::World;
use serde_json::{Value, json};

use super::{PORT, SECOND, SERVER_PORT, Scene, at, names, pod_object, selecting, web};

#[test]
fn services_of_every_type_forward_and_end_with_their_object() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let (cluster_ip, external, balancer) = ("10.96.0.10", "198.51.100.7", "203.0.113.10");
    let object = web("web", cluster_ip)
        .node_port(30080)
        .external_ip(external)
        .load_balancer_ip(balancer);
    scene.cluster.create(&object);
    scene.create_slice("web", &["pod1-2", "pod2-1"]);
    scene.settle();
    let node = scene.world.node(1).ip4.to_string();
    let frontends = [
        at(cluster_ip, PORT),
        at(external, PORT),
        at(balancer, PORT),
        at(&node, 30080),
    ];
    for to in frontends {
        assert_eq!(names(&scene.backends(to)), ["pod1-2", "pod2-1"], "{to}");
    }
    for address in [external, balancer] {
        scene.world.route_to_node(&format!("{address}/32"), 1);
    }
    for to in &frontends[1..] {
        let seen = distribution(scene.world.client(), *to, 20);
        assert!(!seen.is_empty(), "{to} from outside");
    }

    // An ExternalName is no work of ours, whatever address it had.
    scene.cluster.patch(
        "service",
        "web",
        &json!({ "spec": { "type": "ExternalName", "externalName": "example.org", "externalIPs": null, "clusterIP": null,
            "clusterIPs": null, "ipFamilies": null, "ipFamilyPolicy": null, "ports": null } }),
    );
    scene.settle();
    for to in frontends {
        assert!(
            tcp_request(scene.world.pod("pod1-1"), to, None, SECOND).is_err(),
            "{to}"
        );
    }
    scene.cluster.delete("service", "web");
    scene.cluster.create(&object);
    scene.settle();
    assert_eq!(names(&scene.backends(at(cluster_ip, PORT))), ["pod1-2", "pod2-1"]);
}

#[test]
fn live_patches_take_effect_and_open_connections_stay() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let to = at("10.96.0.10", PORT);
    scene.cluster.create(&web("web", "10.96.0.10"));
    scene.create_slice("web", &["pod1-2", "pod2-1", "pod2-2"]);
    scene.settle();
    let mut held = HeldConnections::start(scene.world.pod("pod1-1"), to, 100);
    assert_eq!(scene.backends(to).len(), 3);

    scene
        .cluster
        .patch("service", "web", &json!({ "spec": { "sessionAffinity": "ClientIP" } }));
    scene.settle();
    assert_eq!(scene.backends(to).len(), 1, "affinity");
    scene.cluster.patch(
        "service",
        "web",
        &json!({ "spec": { "sessionAffinity": "None", "sessionAffinityConfig": null } }),
    );
    scene.settle();
    assert_eq!(scene.backends(to).len(), 3, "no affinity");

    // ClusterIP, NodePort, another node port, and back.
    let node = scene.world.node(2).ip4.to_string();
    let port = |number: u16| json!([{ "name": "http", "port": PORT, "targetPort": SERVER_PORT, "nodePort": number }]);
    scene.cluster.patch(
        "service",
        "web",
        &json!({ "spec": { "type": "NodePort", "ports": port(30080) } }),
    );
    scene.settle();
    assert_eq!(scene.backends(at(&node, 30080)).len(), 3);
    scene
        .cluster
        .patch("service", "web", &json!({ "spec": { "ports": port(30081) } }));
    scene.settle();
    assert_eq!(scene.backends(at(&node, 30081)).len(), 3);
    assert_eq!(scene.failure(at(&node, 30080)), ConnectErrorKind::Refused);
    scene.cluster.patch(
        "service",
        "web",
        &json!({ "spec": { "type": "ClusterIP", "ports": [{ "name": "http", "port": 8888, "targetPort": SERVER_PORT }] } }),
    );
    scene.settle();
    assert_eq!(scene.failure(at(&node, 30081)), ConnectErrorKind::Refused);
    assert_eq!(scene.failure(to), ConnectErrorKind::Refused, "the old port");
    assert_eq!(scene.backends(at("10.96.0.10", 8888)).len(), 3, "the new port");

    // Another proxy's from now on, then ours again.
    let label = "service.kubernetes.io/service-proxy-name";
    scene.cluster.patch(
        "service",
        "web",
        &json!({ "metadata": { "labels": { label: "other" } } }),
    );
    scene.settle();
    assert!(tcp_request(scene.world.pod("pod1-1"), at("10.96.0.10", 8888), None, SECOND).is_err());
    scene
        .cluster
        .patch("service", "web", &json!({ "metadata": { "labels": { label: null } } }));
    scene.settle();
    assert_eq!(scene.backends(at("10.96.0.10", 8888)).len(), 3);

    let report = held.check_all();
    assert!(report.lost.is_empty(), "{report:?}");
}

/// Port of a second server on the pod.
const OTHER_PORT: u16 = 8081;

#[test]
fn ports_are_added_renamed_renumbered_and_removed_under_traffic() {
    let mut scene = Scene::of(&World::builder().nodes(1), &[]);
    let _dump = OnFailure::of(&scene.world);
    let pod = scene.world.pod("pod1-2");
    let _other = Server::tcp(pod, "other", (pod.ip4, OTHER_PORT));
    scene.cluster.create(&web("web", "10.96.0.10"));
    scene.create_slice("web", &["pod1-2"]);
    scene.settle();
    let connections = HeldConnections::start(scene.world.pod("pod1-1"), at("10.96.0.10", PORT), 20);
    let talking = connections.keep_talking(Duration::from_millis(50));

    // Ports of the Service, ports of its slice, and what answers at them.
    let steps = [
        (
            "another port",
            &[("http", 80), ("more", 81)][..],
            &[("http", SERVER_PORT), ("more", OTHER_PORT)][..],
            &[(80, Some("pod1-2")), (81, Some("other"))][..],
        ),
        (
            "a name that the slice has not",
            &[("renamed", 80), ("more", 81)],
            &[("http", SERVER_PORT), ("more", OTHER_PORT)],
            &[(80, None), (81, Some("other"))],
        ),
        (
            "the same name in both",
            &[("renamed", 80), ("more", 81)],
            &[("renamed", SERVER_PORT), ("more", OTHER_PORT)],
            &[(80, Some("pod1-2")), (81, Some("other"))],
        ),
        (
            "the names exchanged",
            &[("more", 80), ("renamed", 81)],
            &[("renamed", SERVER_PORT), ("more", OTHER_PORT)],
            &[(80, Some("other")), (81, Some("pod1-2"))],
        ),
        (
            "other numbers in the slice",
            &[("more", 80), ("renamed", 81)],
            &[("renamed", OTHER_PORT), ("more", SERVER_PORT)],
            &[(80, Some("pod1-2")), (81, Some("other"))],
        ),
        (
            "another number of the Service",
            &[("more", 80), ("renamed", 82)],
            &[("renamed", OTHER_PORT), ("more", SERVER_PORT)],
            &[(80, Some("pod1-2")), (81, None), (82, Some("other"))],
        ),
        (
            "one port, and no name",
            &[("", 80)],
            &[("", SERVER_PORT)],
            &[(80, Some("pod1-2")), (82, None)],
        ),
    ];
    for (what, service, slice, answers) in steps {
        let named = |ports: &[(&str, u16)]| -> Vec<Value> {
            let ports = ports.iter();
            ports
                .map(|(name, port)| json!({ "name": name, "port": port }))
                .collect()
        };
        let patch = json!({ "spec": { "ports": named(service) } });
        scene.cluster.patch("service", "web", &patch);
        scene
            .cluster
            .patch("endpointslice", "web-by-hand", &json!({ "ports": named(slice) }));
        scene.settle();
        for (port, wanted) in answers {
            let to = at("10.96.0.10", *port);
            match wanted {
                Some(backend) => assert_eq!(names(&scene.backends(to)), [*backend], "{what}: {port}"),
                None => assert_eq!(scene.failure(to), ConnectErrorKind::Refused, "{what}: {port}"),
            }
        }
    }
    assert!(talking.rounds() > 0);
    talking.stop().all_alive().expect("connections of before");
}

#[test]
fn slices_of_the_controllers_are_followed() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let to = at("10.96.0.10", PORT);

    // A selector: the EndpointSlice controller makes slices of Pods.
    for pod in ["pod1-2", "pod2-1"] {
        scene.create_pod(pod, "web");
    }
    scene.cluster.create_json(&selecting(&web("web", "10.96.0.10"), "web"));
    let address = |name: &str| scene.world.pod(name).ip4.to_string();
    scene
        .cluster
        .await_slices("web", &[address("pod1-2"), address("pod2-1")]);
    let addresses = [address("pod2-1")];
    scene.settle();
    assert_eq!(names(&scene.backends(to)), ["pod1-2", "pod2-1"]);
    let unready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    scene
        .cluster
        .patch_status(&pod_object(scene.world.pod("pod1-2"), "web"), &unready);
    eventually(
        Duration::from_secs(30),
        "the pod that is not ready gets nothing",
        || {
            let found = scene.backends(to);
            if names(&found) == ["pod2-1"] {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        },
    );
    scene
        .cluster
        .kubectl(&["delete", "pod", "pod1-2", "--force", "--grace-period=0"], "");
    scene.cluster.await_slices("web", &addresses);

    // No selector: Endpoints written by hand become slices by the mirroring controller.
    let to = at("10.96.0.11", PORT);
    scene.cluster.create(&web("hand", "10.96.0.11"));
    scene.settle();
    assert_eq!(scene.failure(to), ConnectErrorKind::Refused, "no endpoints yet");
    let address = scene.world.pod("pod2-2").ip4;
    scene.cluster.create(
        &endpoints("default", "hand")
            .address(address)
            .port("http", SERVER_PORT, "TCP"),
    );
    scene.cluster.await_slices("hand", &[address.to_string()]);
    scene.settle();
    assert_eq!(names(&scene.backends(to)), ["pod2-2"]);
    scene.cluster.delete("endpoints", "hand");
    scene.cluster.await_slices("hand", &[]);
    scene.settle();
    assert_eq!(scene.failure(to), ConnectErrorKind::Refused, "no endpoints any more");
}
