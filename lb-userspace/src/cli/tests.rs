//! What commands print and how they end, to the letter.

use std::sync::Arc;

use serde_json::Value;

use super::*;
use crate::maps::{Dump, MemorySizes, MemoryStore};
use crate::model::{self, ModelConfig, ObjectKind, ObjectRef, Rejection};
use crate::plan::{NodeTables, Planner};
use crate::source::FileError;
use crate::status::report::{
    Agent, Attachment, Cause, FlowSummary, NotReady, ReconcileState, Report, ServiceFilter, ServiceItem, SourceState,
    TableFill, UnusedSetting,
};
use crate::status::{Answers, FlowItem, Server, service_items, services_of};
use crate::test_objects::{NODE, NODE_ADDRESS, node, service, slice, source_state};

/// Runs a command; gives status, output and errors.
fn steerway(arguments: &[&str]) -> (ExitCode, String, String) {
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let arguments = std::iter::once("steerway")
        .chain(arguments.iter().copied())
        .map(OsString::from);
    let status = main(arguments, &mut out, &mut errors);
    (
        status,
        String::from_utf8(out).unwrap(),
        String::from_utf8(errors).unwrap(),
    )
}

fn printed(print: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
    let mut out = Vec::new();
    print(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn unused(field: &str, wrong: bool) -> UnusedSetting {
    UnusedSetting {
        setting: format!("field {field} in c.conf"),
        value: "x".to_owned(),
        reason: "nothing here is so".to_owned(),
        wrong,
    }
}

fn report() -> Report {
    let attachment = |interface: &str, ifindex, role: &str, direction: &str| Attachment {
        interface: interface.to_owned(),
        ifindex,
        role: role.to_owned(),
        direction: direction.to_owned(),
        method: "tcx".to_owned(),
        error: None,
    };
    Report {
        agent: Some(Agent {
            version: "1.2.3".to_owned(),
            pid: 77,
            node_name: NODE.to_owned(),
            age_seconds: 7500,
            takeover: false,
        }),
        ready: false,
        not_ready: vec![NotReady {
            cause: Cause::NoUplink,
            message: "no interface has a default route".to_owned(),
        }],
        warnings: vec!["uplinks are down: eth1".to_owned()],
        unused_settings: vec![unused("mode", false), unused("colour", true)],
        source: Some(SourceState {
            kind: "folder".to_owned(),
            location: "/objects".to_owned(),
            synced: true,
            generation_seen: 5,
            generation_programmed: 4,
            change_age_seconds: Some(3),
            services: 12,
            endpoint_slices: 14,
        }),
        reconcile: Some(ReconcileState {
            cycles: 9,
            failures: 1,
            operations: 120,
            last_operations: 12,
            last_milliseconds: 3,
            success_age_seconds: Some(3),
            error: None,
        }),
        rejections: [Rejection {
            object: ObjectRef {
                kind: ObjectKind::Service,
                namespace: "a".to_owned(),
                name: "b".to_owned(),
            },
            field: "spec.ports[0].port".to_owned(),
            reason: "70000 is no port".to_owned(),
        }]
        .into_iter()
        .collect(),
        file_errors: [FileError {
            file: "x.yaml".to_owned(),
            line: Some(7),
            reason: "not YAML".to_owned(),
        }]
        .into_iter()
        .collect(),
        attachments: vec![
            attachment("eth0", 2, "uplink", "ingress"),
            attachment("steer0", 9, "steer", "egress"),
        ],
        tables: vec![
            TableFill {
                name: "services".to_owned(),
                used: 14,
                capacity: 65535,
                bytes: 524_288,
            },
            TableFill {
                name: "flows_v6".to_owned(),
                used: 0,
                capacity: 1_048_576,
                bytes: 1 << 27,
            },
        ],
        flows: vec![FlowSummary {
            family: "IPv4".to_owned(),
            classes: [("established", 40), ("closing", 0)]
                .map(|(n, c)| (n.to_owned(), c))
                .into(),
            expired: 7,
        }],
        reasons: [("forward", 1000), ("no_route", 0), ("reply", 998)]
            .map(|(n, c)| (n.to_owned(), c))
            .into(),
    }
}

#[test]
fn status_reads_like_this() {
    let expected = "\
Agent:       running, version 1.2.3, node node-a, process 77, for 125m
Ready:       no
             NoUplink: no interface has a default route
Source:      folder /objects: 12 Services, 14 EndpointSlices, changed 3s ago
Generation:  5 seen, 4 programmed
Cycles:      9 good, last 3s ago; 1 failed
Operations:  120 since start; the last cycle with any wrote 12 in 3 ms
Warning:     uplinks are down: eth1

SETTING WITHOUT EFFECT   VALUE   WHY
field colour in c.conf   x       nothing here is so

REJECTED OBJECT   FIELD                REASON
Service a/b       spec.ports[0].port   70000 is no port

FILE     LINE   ERROR
x.yaml   7      not YAML

INTERFACE   INDEX   ROLE     HOOK      METHOD   STATE
eth0        2       uplink   ingress   tcx      attached
steer0      9       steer    egress    tcx      attached

TABLE      USED   CAPACITY   FILL   MEMORY
services   14     65535      0%     512 KiB

FLOWS   CLASS         COUNT
IPv4    established   40

REASON    PACKETS
forward   1000
reply     998
";
    assert_eq!(printed(|out| status::print(out, &report(), false)), expected);
    let wide = printed(|out| status::print(out, &report(), true));
    assert!(wide.contains("\nfield mode in c.conf     x       "), "{wide}");
    assert!(
        wide.contains("flows_v6   0      1048576    0%     128 MiB\n") && wide.contains("no_route   0\n"),
        "{wide}"
    );
}

#[test]
fn status_without_an_agent_says_that_forwarding_goes_on() {
    let text = printed(|out| status::print(out, &Report::default(), false));
    assert_eq!(
        text,
        "Agent:       not running; what it programmed goes on forwarding\nReady:       no\n"
    );
}

#[test]
fn field_names_of_the_report_are_stable() {
    let value = serde_json::to_value(report()).unwrap();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(
        names(&value),
        "agent attachments fileErrors flows notReady ready reasons reconcile rejections source tables unusedSettings warnings"
    );
    assert_eq!(names(&value["agent"]), "ageSeconds nodeName pid takeover version");
    assert_eq!(names(&value["notReady"][0]), "cause message");
    assert_eq!(
        names(&value["source"]),
        "changeAgeSeconds endpointSlices generationProgrammed generationSeen kind location services synced"
    );
    assert_eq!(
        names(&value["reconcile"]),
        "cycles failures lastMilliseconds lastOperations operations successAgeSeconds"
    );
    assert_eq!(names(&value["rejections"]["items"][0]), "field object reason");
    assert_eq!(
        names(&value["attachments"][0]),
        "direction ifindex interface method role"
    );
    assert_eq!(names(&value["tables"][0]), "bytes capacity name used");
    assert_eq!(serde_json::from_value::<Report>(value).unwrap(), report());
}

/// A node port Service with a local, a remote, a draining and an unready endpoint, and one without endpoints.
fn desired() -> model::DesiredState {
    let mut web = service("web", "10.96.0.1");
    web["spec"]["type"] = "NodePort".into();
    web["spec"]["ports"][0]["nodePort"] = 30080.into();
    web["spec"]["externalTrafficPolicy"] = "Local".into();
    web["spec"]["sessionAffinity"] = "ClientIP".into();
    let mut slices = slice("web", &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
    slices["endpoints"][0]["zone"] = "zone-1".into();
    slices["endpoints"][1]["nodeName"] = "node-b".into();
    slices["endpoints"][2]["conditions"] = serde_json::json!({ "ready": false, "serving": true, "terminating": true });
    slices["endpoints"][3]["conditions"] = serde_json::json!({ "ready": false, "serving": false });
    let state = source_state(&[node(), web, slices, service("empty", "10.96.0.2")]);
    assert_eq!(state.rejections, []);
    model::build(&state.snapshot, &ModelConfig::new(NODE))
}

fn from_pins() -> Vec<ServiceItem> {
    let sizes = MemorySizes {
        frontend_sets: 64,
        services: 64,
        arena_words: 4096,
        backends: 256,
        flow_sets: 64,
    };
    let store = MemoryStore::new(sizes).unwrap();
    let address = NODE_ADDRESS.parse().unwrap();
    let node = NodeTables {
        addresses: [address].into(),
        nodeport_addresses: [address].into(),
        ..NodeTables::default()
    };
    let plan = Planner::adopt(Dump::of(&store).unwrap(), 1).plan(&desired(), &node);
    plan.apply(&store).unwrap();
    services_of(&Dump::of(&store).unwrap(), &ServiceFilter::default())
}

#[test]
fn services_read_like_this() {
    let desired = desired();
    let flows = desired
        .service_ports
        .keys()
        .take(1)
        .map(|key| (key.clone(), 7))
        .collect();
    let items = service_items(&desired, Some(&flows), &ServiceFilter::default());
    let text = printed(|out| services::print(out, &items, false));
    let expected = "\
NAMESPACE   NAME         TYPE        PROTOCOL   FRONTENDS              POLICY            ENDPOINTS
default     empty:http   ClusterIP   TCP/IPv4   10.96.0.2:80           Cluster/Cluster   0/0
default     web:http     NodePort    TCP/IPv4   10.96.0.1:80,*:30080   Cluster/Local     2/4
";
    assert_eq!(text, expected);
    let wide = printed(|out| services::print(out, &items, true));
    let tail = |endpoints: &str| {
        let found = wide.lines().find_map(|line| line.split_once(endpoints));
        found.map(|(_, tail)| tail.split_whitespace().collect::<Vec<_>>())
    };
    assert_eq!(
        tail(" 2/4 "),
        Some(vec!["ClientIP(10800s)", "<none>", "<none>", "0"]),
        "{wide}"
    );
    assert_eq!(tail(" 0/0 "), Some(vec!["<none>", "<none>", "<none>", "7"]), "{wide}");
}

#[test]
fn backends_tell_of_each_endpoint_why_it_is_used_or_not() {
    let items = service_items(&desired(), None, &ServiceFilter::default());
    let text = printed(|out| backends::print(out, &items, false));
    let expected = "\
NAMESPACE   SERVICE    PROTOCOL   ENDPOINT        NODE            STATE         USED   WHY
default     web:http   TCP/IPv4   10.0.0.1:8080   node-a (this)   Ready         yes    for ClusterIP, outside, pods and node
default     web:http   TCP/IPv4   10.0.0.2:8080   node-b          Ready         yes    for ClusterIP, pods and node
default     web:http   TCP/IPv4   10.0.0.3:8080   node-a (this)   Terminating   no     it terminates, and others are ready
default     web:http   TCP/IPv4   10.0.0.4:8080   node-a (this)   NotReady      no     it is not ready
";
    assert_eq!(text, expected);
    let wide = printed(|out| backends::print(out, &items, true));
    assert!(
        wide.lines()
            .nth(1)
            .is_some_and(|line| line.ends_with("zone-1   10.96.0.1:80,*:30080")),
        "{wide}"
    );
}

#[test]
fn pins_tell_the_same_services_without_what_only_the_agent_knows() {
    let (pinned, mut known) = (from_pins(), service_items(&desired(), None, &ServiceFilter::default()));
    assert_eq!(pinned.len(), 2);
    for item in &mut known {
        item.endpoints.retain(|e| e.used);
    }
    for (pinned, known) in pinned.iter().zip(&known) {
        assert_eq!(pinned.frontends, known.frontends);
        assert_eq!(pinned.internal_traffic_policy, known.internal_traffic_policy);
        assert_eq!(pinned.external_traffic_policy, known.external_traffic_policy);
        assert_eq!(pinned.affinity_seconds, known.affinity_seconds);
        let endpoints = |item: &ServiceItem| {
            item.endpoints
                .iter()
                .map(|e| (e.address.clone(), e.port, e.local, e.used))
                .collect::<Vec<_>>()
        };
        assert_eq!(endpoints(pinned), endpoints(known));
    }
    assert_eq!(pinned[1].endpoints[0].why, "in the cluster set and the local set");
}

#[test]
fn flows_read_like_this() {
    let flow = |client: &str, state: &str, service: &str| FlowItem {
        protocol: "TCP".to_owned(),
        client: client.parse().unwrap(),
        frontend: "10.96.0.1:80".parse().unwrap(),
        source: client.parse().unwrap(),
        backend: "10.0.0.1:8080".parse().unwrap(),
        state: state.to_owned(),
        idle_seconds: 3,
        timeout_seconds: 86_400,
        namespace: "default".to_owned(),
        service: service.to_owned(),
        port_name: "http".to_owned(),
        backend_id: 4,
    };
    let flows = [
        flow("10.0.0.9:40000", "established", "web"),
        flow("10.0.0.9:5", "unanswered", ""),
    ];
    let expected = "\
PROTOCOL   CLIENT           FRONTEND       BACKEND         STATE         IDLE   SERVICE
TCP        10.0.0.9:40000   10.96.0.1:80   10.0.0.1:8080   established   3s     default/web:http
TCP        10.0.0.9:5       10.96.0.1:80   10.0.0.1:8080   unanswered    3s     <none>
";
    assert_eq!(printed(|out| flows::print(out, &flows, false)), expected);
    let wide = printed(|out| flows::print(out, &flows, true));
    assert!(
        wide.contains("SERVICE            SOURCE           TIMEOUT   BACKEND-ID\n"),
        "{wide}"
    );
    let value = serde_json::to_value(&flows[0]).unwrap();
    let names: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(
        names,
        [
            "backend",
            "backendId",
            "client",
            "frontend",
            "idleSeconds",
            "namespace",
            "portName",
            "protocol",
            "service",
            "source",
            "state",
            "timeoutSeconds"
        ]
    );
}

/// An agent that tells [`report`] and no services, and is never done.
struct Fake;

impl Answers for Fake {
    fn report(&self) -> Report {
        report()
    }

    fn services(&self, filter: &ServiceFilter) -> Vec<ServiceItem> {
        service_items(&desired(), None, filter)
    }

    async fn programmed(&self) -> u64 {
        std::future::pending().await
    }

    fn pending(&self) -> String {
        "no uplink".to_owned()
    }
}

struct FakeAgent {
    folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl FakeAgent {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let inside = runtime.enter();
        let server = Server::bind(folder.path()).unwrap();
        runtime.spawn(server.serve(Arc::new(Fake)));
        drop(inside);
        Self {
            folder,
            _runtime: runtime,
        }
    }

    fn steerway(&self, arguments: &[&str]) -> (ExitCode, String, String) {
        let run_dir = self.folder.path().to_str().unwrap();
        steerway(&[arguments, &["--run-dir", run_dir]].concat())
    }
}

#[test]
fn a_running_agent_is_asked() {
    let agent = FakeAgent::start();
    let (status, out, errors) = agent.steerway(&["status", "-o", "json"]);
    assert_eq!((status, errors.as_str()), (ExitCode::SUCCESS, ""));
    assert_eq!(serde_json::from_str::<Report>(&out).unwrap(), report());
    let (status, out, _) = agent.steerway(&["services", "default/web", "-o", "json"]);
    let found: Vec<ServiceItem> = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (status, found.len(), found[0].name.as_str()),
        (ExitCode::SUCCESS, 1, "web")
    );
}

#[test]
fn a_service_that_is_not_there_is_a_failure() {
    let (status, out, _) = FakeAgent::start().steerway(&["services", "nothing", "-n", "default"]);
    assert_eq!((status, out.as_str()), (ExitCode::from(1), ""));
}

#[test]
fn waiting_in_vain_fails_and_says_why() {
    let (status, _, errors) = FakeAgent::start().steerway(&["status", "--wait", "0"]);
    assert_eq!(status, ExitCode::from(1));
    assert_eq!(errors, "error: not programmed after 0 s: no uplink\n");
}

#[test]
fn without_agent_and_pins_commands_fail() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    for command in ["status", "services", "backends", "flows"] {
        let (status, out, errors) = steerway(&[command, "--run-dir", path, "--pin-dir", path]);
        assert_eq!((status, out.as_str()), (ExitCode::from(1), ""));
        assert!(errors.contains("map frontends_v4 is missing"), "{errors}");
    }
    let (status, _, errors) = steerway(&["status", "--wait", "5", "--run-dir", path, "--pin-dir", path]);
    assert_eq!(status, ExitCode::from(1));
    assert!(
        errors.starts_with("error: no agent runs for this pin folder"),
        "{errors}"
    );
}

#[test]
fn wrong_usage_ends_with_two_and_help_with_zero() {
    let two = ExitCode::from(2);
    assert_eq!(steerway(&[]).0, two);
    assert_eq!(steerway(&["fly"]).0, two);
    assert_eq!(steerway(&["run", "--flow-entries", "x"]).0, two);
    let (status, _, errors) = steerway(&["run", "--detect-local-mode=Pods", "-v", "2"]);
    assert_eq!(status, two);
    assert!(
        errors.contains("--detect-local-mode: \"Pods\" is wrong: use ClusterCIDR or "),
        "{errors}"
    );
    assert_eq!(steerway(&["status", "--wait", "soon"]).0, two);
    let (status, out, _) = steerway(&["version"]);
    assert_eq!(
        (status, out),
        (ExitCode::SUCCESS, format!("steerway {}\n", env!("CARGO_PKG_VERSION")))
    );
    let (status, out, _) = steerway(&["run", "--help"]);
    assert_eq!(status, ExitCode::SUCCESS);
    for setting in crate::config::SETTINGS {
        assert!(
            out.contains(&format!("--{}", setting.flag)) && out.contains(&setting.variable()),
            "--{}",
            setting.flag
        );
    }
}

#[test]
fn the_configuration_is_written_as_kube_proxy_would_read_it_and_is_read_as_the_same() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let flags = [
        "--kubeconfig=/k",
        "--node-name=n1",
        "--bind-address=fd00::1",
        "--metrics-bind-address=[::1]:9",
        "--nodeport-addresses=10.0.0.0/8,fd00::/64",
        "--pod=cali*",
        "--external-ips=false",
        "--conntrack-udp-timeout=45s",
        "--conntrack-max-per-core=0",
        "--min-sync-period=1500ms",
        "--log-format=json",
        "--log-level=debug",
    ];
    let command = [&["run"], &flags[..], &["--write-config-to", path]].concat();
    let ended = steerway(&command);
    assert_eq!(ended, (ExitCode::SUCCESS, String::new(), String::new()));
    let text = std::fs::read_to_string(path).unwrap();
    assert!(
        text.contains("kind: KubeProxyConfiguration\n") && text.contains("interfaceNamePrefix: cali\n"),
        "{text}"
    );

    let again = tempfile::NamedTempFile::new().unwrap();
    let second = again.path().to_str().unwrap();
    let ended = steerway(&["run", "--config", path, "--write-config-to", second]);
    assert_eq!(ended.0, ExitCode::SUCCESS, "{ended:?}");
    assert_eq!(std::fs::read_to_string(second).unwrap(), text);
    let read = crate::config::gather(crate::config::Layer::new(), Some(again.path()), |_| None).unwrap();
    let read = crate::config::Config::validate(&read, None).unwrap();
    assert_eq!(read.unused, []);
    let nowhere = steerway(&["run", "--config", path, "--write-config-to", "/nonexistent/c"]);
    assert!(nowhere.2.contains("cannot write /nonexistent/c"), "{nowhere:?}");
}

#[test]
fn the_command_line_is_consistent() {
    <Cli as clap::CommandFactory>::command().debug_assert();
}
