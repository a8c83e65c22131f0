//! The source against a server that behaves well, badly, or not at all.

mod server;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::*;
use crate::source::SourceHandle;
use server::{Model, NODES, RANGES, SERVICES, SLICES, Server};

const NODE: &str = "n1";
/// Longest wait; the source waits a second or two after failures.
const LIMIT: Duration = Duration::from_secs(20);

/// A source on a server.
struct Stage {
    server: Server,
    source: Source,
    _files: tempfile::TempDir,
}

impl Stage {
    /// The source begins with what `fill` leaves.
    fn new(fill: impl FnOnce(&mut Model)) -> Self {
        let mut model = Model {
            streaming: true,
            ..Model::default()
        };
        model.put(NODES, node(NODE, "192.0.2.1"));
        fill(&mut model);
        let server = Server::start(Arc::new(Mutex::new(model)), "127.0.0.1:0");
        let files = tempfile::tempdir().unwrap();
        let file = files.path().join("config");
        let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{}", server.address) } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c" } }] });
        std::fs::write(&file, config.to_string()).unwrap();
        let source = start(Access::Kubeconfig { file, server: None }, NODE);
        Self {
            server,
            source,
            _files: files,
        }
    }

    /// Waits for a state.
    async fn wait_for(&mut self, what: &str, wanted: impl Fn(&SourceState) -> bool) -> Arc<SourceState> {
        let until = async {
            loop {
                let state = self.source.state();
                if wanted(&state) {
                    return state;
                }
                self.source.changed().await.unwrap();
            }
        };
        let Ok(state) = timeout(LIMIT, until).await else {
            panic!("not in time: {what}; now {:?}", self.source.state());
        };
        state
    }

    async fn services(&mut self, names: &[&str]) -> Arc<SourceState> {
        self.wait_for(&format!("{names:?}"), |state| state.synced && names_of(state) == names)
            .await
    }
}

fn names_of(state: &SourceState) -> Vec<&str> {
    state.snapshot.services.keys().map(|key| &*key.name).collect()
}

fn node(name: &str, address: &str) -> Value {
    json!({ "metadata": { "name": name }, "status": { "addresses": [{ "type": "InternalIP", "address": address }] } })
}

fn service(name: &str, last: u8) -> Value {
    json!({ "metadata": { "name": name, "namespace": "default" },
        "spec": { "clusterIP": format!("10.96.0.{last}"), "ports": [{ "port": 80, "protocol": "TCP" }] } })
}

fn slice(name: &str, address: &str) -> Value {
    json!({ "metadata": { "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": "a" } },
        "addressType": "IPv4", "endpoints": [{ "addresses": [address] }], "ports": [{ "name": "", "port": 80 }] })
}

async fn refresh(handle: &SourceHandle) -> Arc<SourceState> {
    timeout(LIMIT, handle.refresh()).await.expect("in time").unwrap()
}

#[tokio::test]
async fn a_streaming_list_is_followed_by_its_events() {
    let mut stage = Stage::new(|model| {
        model.put(SERVICES, service("a", 1));
        model.put(SLICES, slice("a-1", "10.0.0.1"));
        model.put(
            RANGES,
            json!({ "metadata": { "name": "kubernetes" }, "spec": { "cidrs": ["10.96.0.0/16"] } }),
        );
    });
    let state = stage.services(&["a"]).await;
    assert_eq!(state.not_ready, None);
    assert_eq!(
        (state.snapshot.slices.len(), state.snapshot.service_cidrs.len()),
        (1, 1)
    );
    assert_eq!(state.snapshot.node.as_ref().map(|node| &*node.name), Some(NODE));
    stage.server.model().put(SERVICES, service("b", 2));
    stage.services(&["a", "b"]).await;
    stage.server.model().delete(SERVICES, "a");
    stage.services(&["b"]).await;
    let model = stage.server.model();
    assert_eq!(model.asked(SERVICES, "limit="), 0, "{:?}", model.requests);
    assert_eq!(
        model.asked(SERVICES, "labelSelector=%21service.kubernetes.io%2Fservice-proxy-name"),
        1
    );
    assert_eq!(model.asked(SERVICES, "fieldSelector=spec.clusterIP%21%3DNone"), 1);
    assert_eq!(
        model.asked(SLICES, "labelSelector=%21service.kubernetes.io%2Fheadless"),
        1
    );
    assert_eq!(model.asked(NODES, "fieldSelector=metadata.name%3Dn1"), 1);
}

#[tokio::test]
async fn a_watch_goes_on_from_the_last_bookmark() {
    let mut stage = Stage::new(|model| model.put(SERVICES, service("a", 1)));
    stage.services(&["a"]).await;
    let version = {
        let mut model = stage.server.model();
        (1..=40).for_each(|number| model.put(SLICES, slice("a-1", &format!("10.0.0.{number}"))));
        // What came before can be asked for no more, so that the version of the last Service would not do.
        model.compact();
        model.ended += 1;
        model.version
    };
    let goes_on = async {
        while stage
            .server
            .model()
            .asked(SERVICES, &format!("resourceVersion={version}"))
            == 0
        {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, goes_on).await.expect("a watch from the bookmark");
    stage.server.model().put(SERVICES, service("b", 2));
    stage.services(&["a", "b"]).await;
    let model = stage.server.model();
    assert_eq!(model.asked(SERVICES, "sendInitialEvents"), 1, "{:?}", model.requests);
}

/// How far apart the first requests of agents are that start at once: so few that to start them takes a slow machine no longer than they are told to wait, or
/// they all ask when it has done with that.
async fn apart() -> Duration {
    let started = Instant::now();
    let mut stages: Vec<Stage> = (0..6).map(|_| Stage::new(|_| {})).collect();
    for stage in &mut stages {
        stage.services(&[]).await;
    }
    let first = |stage: &Stage| stage.server.model().first_request.expect("a request") - started;
    let (soonest, latest) = (stages.iter().map(first).min(), stages.iter().map(first).max());
    latest.unwrap_or_default().saturating_sub(soonest.unwrap_or_default())
}

#[tokio::test]
async fn agents_that_start_together_do_not_ask_together() {
    const LEAST: Duration = Duration::from_millis(30);
    // On a machine that stands still for a moment all ask when it goes on, but not each time.
    let mut seen = Vec::new();
    while seen.len() < 5 && seen.iter().all(|apart| *apart <= LEAST) {
        seen.push(apart().await);
    }
    assert!(seen.iter().any(|apart| *apart > LEAST), "{seen:?}");
}

#[tokio::test]
async fn where_streaming_lists_are_refused_pages_are_read() {
    let mut stage = Stage::new(|model| {
        model.streaming = false;
        for number in 1..=5 {
            model.put(SERVICES, service(&format!("s{number}"), number));
        }
    });
    stage.services(&["s1", "s2", "s3", "s4", "s5"]).await;
    assert_eq!(stage.server.model().asked(SERVICES, "limit="), 3);
    // The watch goes on from the list's version.
    stage.server.model().delete(SERVICES, "s3");
    stage.services(&["s1", "s2", "s4", "s5"]).await;
}

#[tokio::test]
async fn a_streaming_list_that_breaks_off_changes_nothing_and_pages_follow() {
    let mut stage = Stage::new(|model| {
        model.put(SERVICES, service("a", 1));
        // One of each kind.
        model.cut = 4;
    });
    stage.services(&["a"]).await;
    assert!(stage.server.model().asked(SERVICES, "limit=") > 0);
}

#[tokio::test]
async fn nothing_is_synced_before_every_kind_was_listed() {
    let mut stage = Stage::new(|model| {
        model.put(SERVICES, service("a", 1));
        model.silent.insert(SLICES);
    });
    let state = stage
        .wait_for("all but the slices", |state| {
            state
                .not_ready
                .as_deref()
                .is_some_and(|reason| reason.ends_with("not read yet: EndpointSlice"))
        })
        .await;
    assert!(!state.synced && state.snapshot.services.is_empty());
}

#[tokio::test]
async fn an_outage_keeps_everything_and_what_was_deleted_meanwhile_goes_afterwards() {
    let mut stage = Stage::new(|model| {
        model.put(SERVICES, service("a", 1));
        model.put(SERVICES, service("b", 2));
    });
    stage.services(&["a", "b"]).await;
    let server = std::mem::replace(&mut stage.server, Server::start(Arc::default(), "127.0.0.1:0"));
    let (model, address) = server.stop();
    let state = stage.wait_for("the outage", |state| state.not_ready.is_some()).await;
    assert!(state.synced && names_of(&state) == ["a", "b"], "{state:?}");
    {
        let mut model = model.lock().unwrap();
        model.delete(SERVICES, "a");
        model.put(SERVICES, service("c", 3));
        model.compact();
    }
    stage.server = Server::start(model, &address);
    let state = stage.services(&["b", "c"]).await;
    stage.wait_for("all is well", |state| state.not_ready.is_none()).await;
    drop(state);
}

#[tokio::test]
async fn a_server_whose_data_is_older_than_ours_is_listed_anew() {
    let mut stage = Stage::new(|model| {
        model.version = 1000;
        model.put(SERVICES, service("a", 1));
        model.put(SERVICES, service("newer", 2));
    });
    stage.services(&["a", "newer"]).await;
    let server = std::mem::replace(&mut stage.server, Server::start(Arc::default(), "127.0.0.1:0"));
    let (_, address) = server.stop();
    let mut restored = Model {
        streaming: true,
        version: 500,
        ..Model::default()
    };
    restored.put(NODES, node(NODE, "192.0.2.1"));
    restored.put(SERVICES, service("a", 1));
    stage.server = Server::start(Arc::new(Mutex::new(restored)), &address);
    stage.services(&["a"]).await;
}

#[tokio::test]
async fn service_ranges_that_are_absent_or_forbidden_are_done_without() {
    for code in [403, 404] {
        let mut stage = Stage::new(|model| {
            model.refused.insert(RANGES, code);
        });
        let state = stage.services(&[]).await;
        assert_eq!(state.not_ready, None, "{code}");
    }
    let mut stage = Stage::new(|model| {
        model.refused.insert(SERVICES, 403);
    });
    let refused = |state: &SourceState| {
        state
            .not_ready
            .as_deref()
            .is_some_and(|reason| reason.ends_with("(Service)"))
    };
    let state = stage.wait_for("a refusal", refused).await;
    assert!(!state.synced);
    let reason = state.not_ready.clone().unwrap();
    assert!(reason.contains("as told"), "{reason}");
}

#[tokio::test]
async fn an_object_of_the_wrong_type_is_rejected_and_stays_in_its_last_good_form() {
    let mut stage = Stage::new(|model| model.put(SERVICES, service("a", 1)));
    let before = stage.services(&["a"]).await;
    let mut wrong = service("a", 1);
    wrong["spec"]["ports"] = json!("eighty");
    stage.server.model().put(SERVICES, wrong);
    stage.server.model().put(SERVICES, service("b", 2));
    let state = stage.services(&["a", "b"]).await;
    assert_eq!(state.rejections.len(), 1, "{:?}", state.rejections);
    assert_eq!(state.rejections[0].field, "spec.ports");
    assert!(state.rejections[0].reason.contains("last good form"));
    let key = ObjectKey::new("default", "a");
    let of = |state: &SourceState| state.snapshot.services.get(&key).cloned();
    assert!(of(&state).is_some() && of(&state) == of(&before));
}

#[tokio::test]
async fn whoever_asks_gets_what_the_server_held_when_asked() {
    let mut stage = Stage::new(|model| model.put(SERVICES, service("a", 1)));
    stage.services(&["a"]).await;
    let handle = stage.source.handle();
    for number in 0..20 {
        let name = format!("b{number}");
        stage.server.model().put(SERVICES, service(&name, 100 + number));
        let state = refresh(&handle).await;
        assert!(names_of(&state).contains(&name.as_str()), "{name}");
        stage.server.model().delete(SERVICES, &name);
        let state = refresh(&handle).await;
        assert!(!names_of(&state).contains(&name.as_str()), "{name} is gone");
    }
    // Nothing changed: the same generation.
    assert_eq!(refresh(&handle).await.generation, refresh(&handle).await.generation);
}

#[tokio::test]
async fn an_address_of_a_service_that_is_another_nodes_is_told() {
    let external = |name: &str, last: u8, address: &str| {
        let mut service = service(name, last);
        service["spec"]["externalIPs"] = json!([address]);
        service
    };
    let mut stage = Stage::new(|model| {
        model.put(NODES, node("n2", "192.0.2.2"));
        model.put(NODES, node("n3", "192.0.2.3"));
        model.put(SERVICES, external("a", 1, "192.0.2.2"));
        model.put(SERVICES, external("own", 2, "192.0.2.1"));
        model.put(SERVICES, external("free", 3, "198.51.100.1"));
    });
    let state = stage.services(&["a", "free", "own"]).await;
    let others = |state: &SourceState| {
        state
            .snapshot
            .other_nodes
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(others(&state), ["192.0.2.2"]);
    let lists = stage.server.model().asked(NODES, "limit=");
    stage.server.model().put(SERVICES, service("none", 4));
    let state = refresh(&stage.source.handle()).await;
    assert_eq!(others(&state), ["192.0.2.2"]);
    assert_eq!(
        stage.server.model().asked(NODES, "limit="),
        lists,
        "no new address, no list"
    );
    stage.server.model().put(SERVICES, external("new", 5, "192.0.2.3"));
    let state = refresh(&stage.source.handle()).await;
    assert_eq!(others(&state), ["192.0.2.2", "192.0.2.3"]);
    stage.server.model().put(SERVICES, external("new", 5, "198.51.100.2"));
    let state = refresh(&stage.source.handle()).await;
    assert_eq!(others(&state), ["192.0.2.2"]);
}
