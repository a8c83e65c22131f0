//! What load balancers and kubelet ask: `/healthz`, `/livez`, and the health check node port of a Service; and addresses that
//! nobody has.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netns::Netns;
use lb_tests::traffic::{ConnectErrorKind, Server, tcp_request};
use lb_tests::world::World;
use serde_json::{Value, json};

use super::{PORT, SECOND, Scene, at, names, web};

/// How long a change may take.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// Status, head and body of a GET.
pub(super) fn get(from: &impl AsRef<Netns>, to: SocketAddr, path: &str) -> Result<(u16, String, String), String> {
    let text = from.as_ref().run(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, SECOND)?;
        stream.set_read_timeout(Some(SECOND))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    let text = text.map_err(|error| error.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no head")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or("no status")?;
    Ok((status, head.to_owned(), body.to_owned()))
}

#[track_caller]
fn status_becomes(from: &impl AsRef<Netns>, to: SocketAddr, path: &str, wanted: u16) -> Value {
    eventually(LIMIT, &format!("{to}{path} answers {wanted}"), || {
        let (status, head, body) = get(from, to, path)?;
        if status == wanted {
            return Ok(serde_json::from_str(&body).unwrap_or_default());
        }
        Err(format!("{head}\n{body}"))
    })
}

#[test]
fn probes_follow_the_node_and_its_local_endpoints() {
    let mut scene = Scene::of(&World::builder().nodes(2), &[]);
    let _dump = OnFailure::of(&scene.world);
    let client = scene.world.client().ns.clone();
    let node = |number: usize, port: u16| at(&scene.world.node(number).ip4.to_string(), port);
    let (healthz, other) = (node(1, 10256), node(2, 10256));
    let body = status_becomes(&client, healthz, "/healthz", 200);
    assert_eq!(
        (&body["healthy"], &body["nodeEligible"]),
        (&json!(true), &json!(true)),
        "{body}"
    );

    // Metrics answer on the node alone.
    let metrics = at("127.0.0.1", 10249);
    let (status, _, text) = get(&scene.world.node(1).ns, metrics, "/metrics").expect("metrics");
    assert_eq!(status, 200);
    for line in [
        "steerway_ready 1",
        "steerway_source_synced 1",
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(
        text.contains("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} "),
        "{text}"
    );
    let (status, _, mode) = get(&scene.world.node(1).ns, metrics, "/proxyMode").expect("the mode");
    assert_eq!((status, mode.as_str()), (200, "steerway"));
    get(&client, node(1, 10249), "/metrics").expect_err("nothing listens on the node's own address");

    // The autoscaler announces the node's end: balancers leave, the agent lives.
    let taint = json!({ "spec": { "taints": [{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }] } });
    scene.cluster.patch("node", "node1", &taint);
    let body = status_becomes(&client, healthz, "/healthz", 503);
    assert_eq!(body["nodeEligible"], false, "{body}");
    status_becomes(&client, healthz, "/livez", 200);
    status_becomes(&client, other, "/healthz", 200);
    scene
        .cluster
        .patch("node", "node1", &json!({ "spec": { "taints": null } }));
    status_becomes(&client, healthz, "/healthz", 200);

    // A health check node port answers for the endpoints of its own node.
    let (check, other) = (node(1, 32000), node(2, 32000));
    let object = web("web", "10.96.0.10")
        .load_balancer_ip("203.0.113.10")
        .external_local()
        .health_check_node_port(32000);
    scene.cluster.create(&object);
    scene.create_slice("web", &["pod1-1", "pod1-2"]);
    scene.settle();
    let body = status_becomes(&client, check, "/any", 200);
    assert_eq!(body["localEndpoints"], 2, "{body}");
    let body = status_becomes(&client, other, "/healthz", 503);
    assert_eq!(
        body,
        json!({ "service": { "namespace": "default", "name": "web" }, "localEndpoints": 0, "serviceProxyHealthy": true })
    );
    let (_, head, _) = get(&client, other, "/").expect("an answer");
    assert!(head.contains("X-Load-Balancing-Endpoint-Weight: 0"), "{head}");
    // Terminating endpoints still serve, but the node says no.
    scene.cluster.patch(
        "endpointslice",
        "web-by-hand",
        &json!({ "endpoints": [{ "addresses": [scene.world.pod("pod1-2").ip4.to_string()], "nodeName": "node1",
            "conditions": { "ready": false, "serving": true, "terminating": true } }] }),
    );
    status_becomes(&client, check, "/", 503);
    scene.cluster.patch(
        "service",
        "web",
        &json!({ "spec": { "externalTrafficPolicy": "Cluster" } }),
    );
    eventually(LIMIT, "the health check node port closes", || {
        get(&client, check, "/").map_or(Ok(()), |(status, ..)| Err(format!("it answers {status}")))
    });
}

#[test]
fn a_cluster_ip_of_nobody_is_dropped_until_somebody_has_it() {
    let mut scene = Scene::of(&World::builder().nodes(1), &[]);
    let _dump = OnFailure::of(&scene.world);
    let to = at("10.96.200.7", PORT);
    for from in [&scene.world.pod("pod1-1").ns, &scene.world.node(1).ns] {
        let started = Instant::now();
        let error = tcp_request(from, to, None, SECOND).expect_err("nobody has the address");
        assert_eq!(
            error.kind,
            ConnectErrorKind::Timeout,
            "{} after {:?}: {error}",
            from.name(),
            started.elapsed()
        );
    }
    scene.cluster.create(&web("web", "10.96.200.7"));
    scene.create_slice("web", &["pod1-2"]);
    scene.settle();
    assert_eq!(names(&scene.backends(to)), ["pod1-2"]);
    let reply = tcp_request(&scene.world.node(1).ns, to, None, SECOND).expect("an answer to the node");
    assert_eq!(reply.backend, "pod1-2");
    scene.cluster.delete("service", "web");
    scene.settle();
    let error = tcp_request(scene.world.pod("pod1-1"), to, None, SECOND).expect_err("nobody has it again");
    assert_eq!(error.kind, ConnectErrorKind::Timeout, "{error}");
}

#[test]
fn a_range_of_cluster_ips_counts_as_long_as_its_object_is_there() {
    let mut scene = Scene::of(&World::builder().nodes(1), &[]);
    let _dump = OnFailure::of(&scene.world);
    // Somebody outside has the address, as long as it is no ClusterIP.
    let to = at("10.97.0.7", PORT);
    scene.world.fabric.ip("address add 10.97.0.7/32 dev lo");
    let _server = Server::tcp(&scene.world.fabric, "outside", to);
    let sources = [scene.world.pod("pod1-1").ns.clone(), scene.world.node(1).ns.clone()];
    let reached = || -> Vec<Result<String, ConnectErrorKind>> {
        let ask = |from| tcp_request(from, to, None, SECOND);
        let answers = sources.iter().map(ask);
        answers
            .map(|answer| answer.map(|reply| reply.backend).map_err(|error| error.kind))
            .collect()
    };
    let outside = vec![Ok("outside".to_owned()); 2];
    assert_eq!(reached(), outside, "no range has it");
    let range = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": { "name": "more" }, "spec": { "cidrs": ["10.97.0.0/24"] } });
    for _ in 0..2 {
        scene.cluster.create_json(&range);
        scene.settle();
        assert_eq!(reached(), vec![Err(ConnectErrorKind::Timeout); 2], "a range has it");
        scene.cluster.delete("servicecidr", "more");
        scene.settle();
        assert_eq!(reached(), outside, "the range is gone");
    }
}
