//! What `deploy/` holds, on a real API server: it takes every object, the agent works under its ServiceAccount, and uses each right of
//! its role and none that it lacks; the chart renders the same objects as kustomize.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use lb_tests::agent::Agent;
use lb_tests::assert::{OnFailure, eventually};
use lb_tests::kubernetes::{ControlPlane, Use};
use lb_tests::netfilter::set_rules;
use lb_tests::objects::NodeObject;
use lb_tests::world::World;
use serde_json::{Value, json};

use super::events::events as events_of;
use super::health::LIMIT;
use super::{PORT, web};

/// Who the agent is.
const ACCOUNT: &str = "system:serviceaccount:kube-system:steerway";

/// As every cluster with a Service proxy in a DaemonSet has it.
const PRIVILEGED: &str = "--allow-privileged";

fn deploy(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(folder)
}

/// An administrator's kubectl on manifests of kustomize.
#[track_caller]
fn kustomize(cluster: &ControlPlane, arguments: &[&str]) -> String {
    let folder = deploy("kustomize/agent").display().to_string();
    cluster.kubectl(&[arguments, &["-k", &folder]].concat(), "")
}

/// What a role allows.
fn rights(role: &Value) -> BTreeSet<(String, String)> {
    let texts = |value: &Value| -> Vec<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                let full = if group.is_empty() {
                    resource
                } else {
                    format!("{group}/{resource}")
                };
                rights.extend(texts(&rule["verbs"]).into_iter().map(|verb| (verb, full.clone())));
            }
        }
    }
    rights
}

#[test]
fn the_agent_uses_every_right_of_its_role_and_asks_for_no_other() {
    let world = World::builder().nodes(1).build();
    let _dump = OnFailure::of(&world);
    let mut cluster = ControlPlane::start(&world, &[PRIVILEGED]);
    kustomize(&cluster, &["apply", "--dry-run=server"]);
    kustomize(&cluster, &["apply"]);
    let set = cluster.kubectl(&["get", "daemonset/steerway", "-n", "kube-system", "-o", "json"], "");
    let set: Value = serde_json::from_str(&set).expect("JSON of kubectl");
    let account = set.pointer("/spec/template/spec/serviceAccountName");
    assert_eq!(account, Some(&json!("steerway")), "{set}");

    cluster.create(&NodeObject::from(world.node(1)));
    // A load balancer's address is compared with the addresses of all nodes.
    cluster.create(&web("web", "10.96.0.10").load_balancer_ip("203.0.113.10"));
    let kubeconfig = cluster.service_account("kube-system", "steerway");
    let mut agent = Agent::start_on_api(world.node(1), &kubeconfig, &[]);
    agent.wait_ready();
    provoke_events(&cluster);
    // Without streaming lists the same agent reads pages.
    agent.kill9();
    cluster.kill_server();
    cluster.set_flags(&[PRIVILEGED, "--feature-gates=WatchList=false"]);
    cluster.start_server();
    agent.restart();
    agent.wait_ready();

    let services = agent.json(&["services", "web"]).to_string();
    assert!(services.contains("203.0.113.10"), "{services} (port {PORT})");
    let role = cluster.kubectl(&["get", "clusterrole/steerway", "-o", "json"], "");
    let granted = rights(&serde_json::from_str(&role).expect("JSON of kubectl"));
    let uses = cluster.uses_of(ACCOUNT);
    // A streaming list that the server does not have is refused as a request, not for want of rights; a refusal is no use.
    let used = pairs(uses.keys().filter(|one| one.allowed));
    assert_eq!(used, granted, "used and granted");
    let asked = pairs(uses.keys());
    assert!(asked.is_subset(&granted), "asked {asked:?}, granted {granted:?}");
}

/// Verb and resource of what was asked.
fn pairs<'a>(uses: impl Iterator<Item = &'a Use>) -> BTreeSet<(String, String)> {
    uses.map(|one| (one.verb.clone(), one.resource.clone())).collect()
}

/// Has a Service refused, taken, and refused for the same reason once more, which is one more in the series of the first event.
#[track_caller]
fn provoke_events(cluster: &ControlPlane) {
    let becomes = |protocol: &str, done: &str, is_done: &dyn Fn() -> bool| {
        let ports = json!([{ "name": "odd", "port": PORT, "protocol": protocol }]);
        cluster.patch("service", "odd", &json!({ "spec": { "ports": ports } }));
        eventually(LIMIT, done, || if is_done() { Ok(()) } else { Err("not yet") });
    };
    let told = |count: usize| move || events_of(cluster, "Service", "odd").len() == count;
    cluster.create(&web("odd", "10.96.0.20"));
    becomes("SCTP", "an event says that the Service is refused", &told(1));
    becomes("TCP", "an event says that it is taken", &told(2));
    becomes("SCTP", "the first event is one of a series", &|| {
        let uses = cluster.uses_of(ACCOUNT);
        uses.keys().any(|one| one.allowed && one.verb == "patch")
    });
    assert_eq!(events_of(cluster, "Service", "odd").len(), 2);
}

#[test]
fn the_unprivileged_agent_has_the_capabilities_that_it_needs_and_names_one_that_it_lacks() {
    let world = World::builder().nodes(1).build();
    let _dump = OnFailure::of(&world);
    let cluster = ControlPlane::start(&world, &[PRIVILEGED]);
    let folder = deploy("kustomize/unprivileged").display().to_string();
    cluster.kubectl(&["apply", "-k", &folder], "");
    let path = "jsonpath={.spec.template.spec.containers[0].securityContext.capabilities.add}";
    let given = cluster.kubectl(&["get", "daemonset/steerway", "-n", "kube-system", "-o", path], "");
    let given: Vec<String> = serde_json::from_str(&given).expect("a list of capabilities");
    assert!(!given.is_empty());

    let node = world.node(1);
    // The number of tracked connections belongs to the first network namespace.
    let mut agent = Agent::prepare(node, deploy("examples"), &["--conntrack-max-per-core", "0"]);
    let binary = agent.binary().to_owned();
    let limited = |names: &[String]| {
        let list = format!("-all,+{}", names.join(",+").to_lowercase());
        let script = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
        let text = format!(
            "#!/bin/sh\nexec setpriv --bounding-set={list} --inh-caps=-all --no-new-privs {} \"$@\"\n",
            binary.display()
        );
        fs::write(&script, text).expect("a script");
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a script");
        script
    };
    for lacking in &given {
        let rest: Vec<String> = given.iter().filter(|name| *name != lacking).cloned().collect();
        let script = limited(&rest);
        agent.set_binary(&*script);
        let before = agent.log().len();
        agent.restart();
        assert_eq!(agent.wait_end().code(), Some(1), "without {lacking}");
        let log = agent.log();
        let named = given
            .iter()
            .filter(|name| log[before..].contains(&format!("CAP_{name}")));
        assert_eq!(named.collect::<Vec<_>>(), [lacking], "without {lacking}: {log}");
        let check = agent.cli(&["check"]);
        let said = String::from_utf8_lossy(&check.stdout);
        assert!(!check.status.success(), "without {lacking}: {said}");
        assert!(
            said.contains(&format!("missing: CAP_{lacking} ")),
            "without {lacking}: {said}"
        );
    }

    // The init container has the same settings, and makes those that the agent could not.
    let args = |container: &str| -> Vec<String> {
        let path = format!("jsonpath={{.spec.template.spec.{container}.args}}");
        let args = cluster.kubectl(&["get", "daemonset/steerway", "-n", "kube-system", "-o", &path], "");
        serde_json::from_str(&args).expect("a list of arguments")
    };
    let prepare = args("initContainers[0]");
    assert_eq!(prepare[0], "prepare");
    assert!(args("containers[0]").contains(&prepare[1]), "{prepare:?}");
    set_rules(
        node,
        "inet plugin",
        "filter hook forward priority 0",
        "ct state new counter name hits",
    );
    let file = tempfile::NamedTempFile::new().expect("a file");
    let settings = "apiVersion: steerway.dev/v1alpha1\nkind: SteerwayConfiguration\nsource: kubernetes\napiServer: https://192.0.2.1:6443\nconntrackMaxPerCore: 0\nconntrackUdpTimeoutStream: 90s\n";
    fs::write(file.path(), settings).expect("the file");
    agent.set_binary(binary.clone());
    let prepared = agent.cli(&["prepare", "--config", file.path().to_str().expect("a path")]);
    assert!(
        prepared.status.success(),
        "{}",
        String::from_utf8_lossy(&prepared.stderr)
    );
    for (name, wanted) in [
        ("nf_conntrack_udp_timeout_stream", "90"),
        ("nf_conntrack_tcp_timeout_close_wait", "3600"),
        ("nf_conntrack_tcp_timeout_established", "86400"),
    ] {
        let path = format!("/proc/sys/net/netfilter/{name}");
        let found = node
            .ns
            .run(|| fs::read_to_string(&path))
            .expect("a setting of netfilter");
        assert_eq!(found.trim(), wanted, "{name}");
    }
    let script = limited(&given);
    agent.set_binary(&*script);
    agent.restart();
    agent.wait_ready();
    let log = agent.log();
    assert!(!log.contains("netfilter's setting"), "{log}");
    // What ends it and cleans up has all rights again.
    agent.set_binary(binary.clone());
}

#[test]
fn the_memory_request_is_the_agent_and_its_tables_as_check_states_them() {
    /// What ARCHITECTURE.md and the bench hold the agent to.
    const AGENT: u64 = 60_000_000;
    let world = World::builder().nodes(1).build();
    let agent = Agent::prepare(world.node(1), deploy("examples"), &[]);
    let checks = agent.json(&["check"]);
    let memory = checks
        .as_array()
        .into_iter()
        .flatten()
        .find(|check| check["name"] == "memory");
    let detail = memory
        .and_then(|check| check["detail"].as_str())
        .expect("the check of memory");
    let tables = detail
        .strip_prefix("tables take ")
        .and_then(|rest| rest.split_once(" MiB"));
    let tables: u64 = tables.expect("a number of MiB").0.parse().expect("a number");
    let set: Value =
        serde_saphyr::from_str(&fs::read_to_string(deploy("kustomize/agent/daemon-set.yaml")).expect("the manifest"))
            .expect("YAML");
    let path = "/spec/template/spec/containers/0/resources";
    let resources = set.pointer(path).expect("resources");
    assert_eq!(resources.get("limits"), None);
    let request = resources["requests"]["memory"]
        .as_str()
        .and_then(|text| text.strip_suffix("Mi"));
    let request: u64 = request.expect("a request in Mi").parse().expect("a number");
    let needed = tables + AGENT.div_ceil(1 << 20);
    assert!((needed..needed + 32).contains(&request), "{request} Mi for {needed}");
}

/// A template of the chart with the chart's default values, but `unprivileged`. Each expression that the chart uses stands here with
/// what it becomes; another one is an error.
#[track_caller]
fn rendered(template: &str, unprivileged: bool) -> String {
    const BECOME: [(&str, &str); 5] = [
        ("{{ .Release.Namespace }}", "kube-system"),
        (r#"{{ .Values.apiServer | default "null" }}"#, "null"),
        (
            r#""{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}""#,
            "steerway:0.1.0",
        ),
        ("{{ .Values.image.pullPolicy }}", "IfNotPresent"),
        (
            "          {{- toYaml .Values.resources | nindent 10 }}",
            "          requests: { cpu: 100m, memory: 300Mi }",
        ),
    ];
    let mut text = template.to_owned();
    for (expression, value) in BECOME {
        text = text.replace(expression, value);
    }
    // Whether what stands in each open block is rendered.
    let mut blocks = Vec::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        let word = line.trim();
        if word == "{{- if .Values.unprivileged }}" {
            blocks.push(unprivileged);
        } else if word.starts_with("{{- with .Values.") {
            // By default all of these values are empty.
            blocks.push(false);
        } else if word == "{{- else }}" {
            let block = blocks.last_mut().expect("an open block");
            *block = !*block;
        } else if word == "{{- end }}" {
            blocks.pop();
        } else if blocks.iter().all(|rendered| *rendered) {
            assert!(
                !line.contains("{{"),
                "an expression that this test does not know: {line}"
            );
            lines.push(line);
        }
    }
    lines.join("\n")
}

#[test]
fn the_chart_renders_what_kustomize_does() {
    let world = World::builder().nodes(1).build();
    let cluster = ControlPlane::start(&world, &[PRIVILEGED]);
    let objects = |text: &str| -> BTreeSet<String> {
        let list = cluster.kubectl(&["create", "--dry-run=server", "-o", "json", "-f", "-"], text);
        let items = serde_json::Deserializer::from_str(&list).into_iter::<Value>();
        items.map(|item| comparable(item.expect("JSON of kubectl"))).collect()
    };
    for (unprivileged, overlay) in [(false, "kustomize/agent"), (true, "kustomize/unprivileged")] {
        let templates = fs::read_dir(deploy("helm/steerway/templates")).expect("the chart's templates");
        let chart: Vec<String> = templates
            .map(|entry| fs::read_to_string(entry.expect("a template").path()).expect("text"))
            .map(|text| rendered(&text, unprivileged))
            .collect();
        let folder = deploy(overlay).display().to_string();
        let plain = cluster.kubectl(&["kustomize", &folder], "");
        assert!(plain.contains("kubernetes.io/os: linux"), "{plain}");
        assert_eq!(objects(&chart.join("\n---\n")), objects(&plain), "{overlay}");
    }
    let values: Value =
        serde_saphyr::from_str(&fs::read_to_string(deploy("helm/steerway/values.yaml")).expect("values"))
            .expect("YAML");
    assert_eq!(
        (
            &values["apiServer"],
            &values["image"]["repository"],
            &values["resources"]["requests"],
            &values["unprivileged"]
        ),
        (
            &Value::Null,
            &json!("steerway"),
            &json!({ "cpu": "100m", "memory": "300Mi" }),
            &json!(false)
        )
    );
}

/// An object without what the server adds anew each time.
fn comparable(mut object: Value) -> String {
    for field in ["uid", "creationTimestamp", "managedFields"] {
        object["metadata"]
            .as_object_mut()
            .and_then(|metadata| metadata.remove(field));
    }
    object.to_string()
}
