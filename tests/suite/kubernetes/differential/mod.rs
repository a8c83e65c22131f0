//! Steerway's model and the real kube-proxy, both fed by one API server: the endpoint sets of every frontend are compared.
//!
//! For each frontend and each class of sources (outside, pods, this node) both answer with a set of endpoints, a refusal or silence;
//! session affinity and the sources that a load balancer's address admits are part of the answer. kube-proxy's answer is read off its
//! nftables ruleset ([`ruleset`]), ours off what the model decides ([`ours`]).
//!
//! Where Steerway differs on purpose, and what these worlds therefore leave out:
//! - Two Services that claim one address: kube-proxy serves whichever it synced last; Steerway the oldest, and says so.
//! - Of one endpoint in several slices with other conditions the first by name counts; kube-proxy's order is a map's. The worlds vary
//!   `terminating` alone, which both decide alike.
//! - SCTP: Steerway does not serve it yet; the worlds have TCP and UDP.
//! - A mirrored slice of a Service with a selector: Steerway leaves it out as a leftover; the worlds have no mirrored slices.

mod ours;
mod ruleset;
mod worlds;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use lb_tests::assert::{OnFailure, eventually};
use lb_tests::kubernetes::{ControlPlane, KubeProxy};
use lb_tests::objects::NodeObject;
use lb_tests::world::World;

use worlds::{NODE_ZONE, Worlds};

/// How many random worlds are compared.
const WORLDS: u16 = 200;
/// Where they come from; another number makes other worlds.
const SEED: u64 = 0x5eed_0001;
/// How long kube-proxy may take to have synced what the API holds.
const SYNC: Duration = Duration::from_mins(2);

/// What is asked: an address, or `None` for this node's NodePort addresses; a port; a protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Frontend {
    address: Option<IpAddr>,
    v6: bool,
    port: u16,
    protocol: &'static str,
}

/// Where packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Outside,
    Pod,
    Node,
}

const CLASSES: [Class; 3] = [Class::Outside, Class::Pod, Class::Node];

/// What becomes of a new flow.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// One of these gets it; with the seconds of session affinity.
    Endpoints(BTreeSet<SocketAddr>, Option<u64>),
    Refused,
    Dropped,
    /// No rule takes it.
    Untouched,
}

/// The sources that an address admits; `None` for all.
type Admitted = Option<BTreeSet<IpNet>>;

/// One side's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Answers {
    flows: BTreeMap<(Frontend, Class), Answer>,
    admitted: BTreeMap<Frontend, Admitted>,
}

/// The first differences, with what each side says.
fn differences(ours: &Answers, theirs: &Answers) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, answer) in &ours.flows {
        let other = theirs.flows.get(key);
        if other != Some(answer) {
            lines.push(format!("{key:?}\n  Steerway:   {answer:?}\n  kube-proxy: {other:?}"));
        }
    }
    for (frontend, admitted) in &ours.admitted {
        let other = theirs.admitted.get(frontend);
        if other != Some(admitted) {
            lines.push(format!(
                "{frontend:?} admits\n  Steerway:   {admitted:?}\n  kube-proxy: {other:?}"
            ));
        }
    }
    lines
}

#[test]
fn random_worlds_have_kube_proxys_endpoint_sets() {
    let world = World::builder().nodes(1).build();
    let _dump = OnFailure::of(&world);
    let cluster = ControlPlane::start(&world, &["--max-requests-inflight=2000"]);
    let node = world.node(1);
    cluster.create(&NodeObject::from(node).zone(NODE_ZONE));
    let proxy = KubeProxy::start(&cluster, node);
    let worlds = Worlds::new(SEED, WORLDS);
    cluster.create_all(&worlds.objects());

    let (state, rejections) = ours::state(&world, &cluster, node);
    assert_eq!(rejections, [""; 0], "the worlds hold nothing that is wrong");
    let ours = ours::answers(&state);
    let mut last = Vec::new();
    eventually(SYNC, "kube-proxy and Steerway answer alike", || {
        let rules = ruleset::Ruleset::of(proxy.tables()?)?;
        let mut theirs = Answers::default();
        for (frontend, class) in ours.flows.keys() {
            let answer = rules.answer(frontend, *class);
            theirs.flows.insert((frontend.clone(), *class), answer);
        }
        for frontend in ours.admitted.keys() {
            theirs.admitted.insert(frontend.clone(), rules.admitted(frontend));
        }
        last = differences(&ours, &theirs);
        // What kube-proxy has and we do not is a difference, too.
        let known: BTreeSet<&Frontend> = ours.flows.keys().map(|(frontend, _)| frontend).collect();
        last.extend(
            rules
                .frontends()
                .iter()
                .filter(|frontend| !known.contains(frontend))
                .map(|frontend| format!("{frontend:?} is kube-proxy's alone")),
        );
        if last.is_empty() {
            return Ok(());
        }
        let shown = last.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        Err(format!("{} differences, seed {SEED:#x}:\n{shown}", last.len()))
    });
    worlds.assert_varied(&ours);
}
