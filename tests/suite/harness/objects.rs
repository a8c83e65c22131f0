//! Objects read as Kubernetes writes them, and folders change in single steps.

use std::fs;

use lb_tests::objects::{ConfigMapFolder, Folder, Manifest as _, NodeObject, documents, endpoints, service, slice};
use lb_tests::world::World;
use serde_json::{Value, json};

#[test]
fn a_service_carries_what_was_said_and_no_more() {
    let object = service("default", "web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:10:96::10")
        .port("http", 80, "TCP")
        .target_port("web")
        .node_port(30080)
        .port("dns", 53, "UDP")
        .affinity(60)
        .external_local()
        .load_balancer_ip("198.51.100.1")
        .source_range("192.0.2.0/24");
    let expected = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": "default", "name": "web" },
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00:10:96::10"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [
                { "name": "http", "port": 80, "protocol": "TCP", "targetPort": "web", "nodePort": 30080 },
                { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53 },
            ],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } },
            "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["192.0.2.0/24"],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "198.51.100.1" }] } },
    });
    assert_eq!(object.to_json(), expected);
    let read: Value = serde_saphyr::from_str(&object.to_yaml()).expect("YAML");
    assert_eq!(read, expected, "{}", object.to_yaml());
}

#[test]
fn a_slice_keeps_conditions_by_endpoint() {
    let object = slice("default", "web-1", "web")
        .port("http", 8080)
        .endpoint("10.244.1.10")
        .node("node1")
        .ready(true)
        .zone("a")
        .hint_zone("a")
        .endpoint("10.244.2.10")
        .ready(false)
        .serving(true)
        .terminating(true);
    let expected = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "namespace": "default", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["10.244.1.10"],
                "nodeName": "node1",
                "conditions": { "ready": true },
                "zone": "a",
                "hints": { "forZones": [{ "name": "a" }] },
            },
            {
                "addresses": ["10.244.2.10"],
                "conditions": { "ready": false, "serving": true, "terminating": true },
            },
        ],
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    });
    assert_eq!(object.to_json(), expected);
}

#[test]
fn a_node_object_has_the_addresses_of_its_node() {
    let world = World::builder().nodes(1).pods_per_node(0).clients(0).build();
    let object = NodeObject::from(world.node(1)).zone("a").to_json();
    assert_eq!(object["metadata"]["name"], "node1");
    assert_eq!(
        object["spec"]["podCIDRs"],
        json!(["10.244.1.0/24", "fd00:10:244:1::/64"])
    );
    assert_eq!(
        object["status"]["addresses"][0],
        json!({ "type": "InternalIP", "address": "172.31.0.11" })
    );
    assert_eq!(object["status"]["addresses"][1]["address"], "fd00:31::11");
}

#[test]
fn several_objects_make_one_file_of_documents() {
    let (one, two) = (
        service("a", "x"),
        endpoints("a", "x").address("10.0.0.1").port("", 80, "TCP"),
    );
    let text = documents(&[&one, &two]);
    let read: Vec<Value> = serde_saphyr::from_multiple(&text).expect("documents");
    assert_eq!(read, [one.to_json(), two.to_json()], "{text}");
}

#[test]
fn files_of_a_folder_are_replaced_whole() {
    let folder = Folder::new();
    let object = service("default", "web");
    folder.put(&object);
    let file = folder.path().join("service-default-web.yaml");
    let before = fs::File::open(&file).expect("the file");
    folder.put(&object.cluster_ip("10.96.0.10"));
    assert!(fs::read_to_string(&file).expect("the file").contains("10.96.0.10"));
    let old = std::io::read_to_string(before).expect("the old file");
    assert!(
        !old.contains("10.96.0.10"),
        "a reader of the old file keeps the old file"
    );
    folder.delete(&service("default", "web"));
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0);
}

#[test]
fn a_config_map_changes_by_one_swap() {
    let mut folder = ConfigMapFolder::new(&[("a.yaml", "1"), ("b.yaml", "2")]);
    let read = |folder: &ConfigMapFolder, name: &str| fs::read_to_string(folder.path().join(name)).ok();
    assert_eq!(
        (read(&folder, "a.yaml"), read(&folder, "b.yaml")),
        (Some("1".into()), Some("2".into()))
    );
    folder.update(&[("a.yaml", "3"), ("c.yaml", "4")]);
    assert_eq!(
        (read(&folder, "a.yaml"), read(&folder, "b.yaml")),
        (Some("3".into()), None)
    );
    assert_eq!(read(&folder, "c.yaml"), Some("4".into()));
    assert!(folder.path().join("..data").is_symlink() && folder.path().join("a.yaml").is_symlink());
}
