//! `publish`: from objects to forwarding, beside the real kube-proxy, which is fed the same objects by the same API server.
//!
//! Out: how long a first sync takes, as each side tells it and from the start of its process until a client reaches the probe;
//! and how long after the API server's answer to a change of one endpoint a client reaches the new one. The change replaces one endpoint
//! of a Service that has as many as all others; how a client sees it at once is told in [`crate::cluster`]. Each round starts both
//! sides anew, one after the other. At the large sizes rounds are fewer than elsewhere: kube-proxy takes long.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::cluster::{Cluster, Running};
use crate::figures::Figures;
use crate::report::{Bound, Report, Row};

/// Services and endpoints of each.
pub(crate) const SIZES: [(usize, u16); 4] = [(10, 10), (1_000, 10), (10_000, 10), (1_000, 250)];
/// The sides by name; what is measured of both.
pub(crate) use crate::cluster::SIDES;
pub(crate) const FIRST: &str = "first sync";
pub(crate) const CHANGE: &str = "one endpoint changed";
/// The size that goals are set for.
const HELD: (usize, u16) = (10_000, 10);
/// Changes of a round.
const CHANGES: usize = 4;
/// After the first sync, until all is at rest.
const REST: Duration = Duration::from_secs(2);
/// Before each change, longer than either side waits after one for the next: what is timed is a change by itself.
const CALM: Duration = Duration::from_millis(1100);
/// Endpoints of all Services above which a size is large, and the most rounds and the changes of each then.
const LARGE: usize = 10_000;
const LARGE_ROUNDS: usize = 5;
const LARGE_CHANGES: usize = 2;

/// What is taken of one side at one size.
#[derive(Clone, Default)]
struct Taken {
    sync: Figures,
    table_work: Figures,
    forwarding: Figures,
    change: Figures,
    written: Figures,
}

/// The name of a row.
pub(crate) fn row(what: &str, side: &str, services: usize, endpoints: u16) -> String {
    format!("{what}, {side}, {services} × {endpoints}")
}

/// Measures; the large sizes in five rounds at most.
pub(crate) fn run(all_rounds: usize) -> Result<Report> {
    let mut rows = Vec::new();
    let mut cluster: Option<Cluster> = None;
    for (services, endpoints) in SIZES {
        cluster = cluster.filter(|same| same.endpoints() == endpoints);
        let cluster = cluster.get_or_insert_with(|| Cluster::new(endpoints));
        cluster.fill(services);
        let large = services * usize::from(endpoints) > LARGE;
        let (rounds, changes) = if large {
            (all_rounds.min(LARGE_ROUNDS), LARGE_CHANGES)
        } else {
            (all_rounds, CHANGES)
        };
        let mut taken = <[Taken; 2]>::default();
        for round in 1..=rounds {
            eprintln!("publish: {services} × {endpoints}, round {round} of {rounds}");
            for (side, taken) in SIDES.into_iter().zip(&mut taken) {
                one_round(cluster, side, changes, taken)?;
            }
        }
        rows.extend(rows_of(services, endpoints, &taken));
    }
    Ok(Report {
        section: "publish",
        about: "Objects to forwarding, Services × endpoints of each, by one API server; kube-proxy in nftables mode. Changes are timed \
                by themselves, from the API server's answer to the first connection that reaches the new endpoint, one of as many as the Service has. More than \
                10,000 endpoints: five rounds at most.",
        rows,
    })
}

fn one_round(cluster: &Cluster, side: &str, changes: usize, taken: &mut Taken) -> Result<()> {
    let mut connection = cluster.requests.connect();
    let running = Running::start(cluster, side)?;
    let forwarding = (cluster.await_probe(running.node)? - running.started).as_secs_f64() * 1e3;
    taken.forwarding.push(forwarding);
    let (sync, table_work) = running.first_sync()?;
    taken.sync.push(sync);
    taken.table_work.push(table_work);
    // What a start has to do beside the tables is no part of a change.
    thread::sleep(REST);
    let (mut change, mut written) = (Figures::default(), Figures::default());
    for pod in 1..=changes {
        thread::sleep(CALM);
        let took = cluster.move_probe(&mut connection, running.node, pod)?;
        change.push(took.as_secs_f64() * 1e3);
        written.push(running.seen_to_written()?);
    }
    eprintln!(
        "publish: {side}: first sync {sync:.0} ms, start to forwarding {forwarding:.0} ms, one endpoint changed {:.1} ms, {:.2} ms of it from seen to written",
        change.median(),
        written.median()
    );
    taken.change.push(change.median());
    taken.written.push(written.median());
    Ok(())
}

fn rows_of(services: usize, endpoints: u16, taken: &[Taken; 2]) -> Vec<Row> {
    let [ours, theirs] = taken;
    let held = (services, endpoints) == HELD;
    let name = |what: &str, place: usize| row(what, SIDES[place], services, endpoints);
    let beside =
        |what: &str, ours: &Figures, theirs: &Figures| Row::beside(&name(what, 0), "ms", ours, SIDES[1], theirs);
    let table_work = name("planning and writing the tables for the first time", 0);
    let written = name("of a change, from seen to written", 0);
    let alone = |name: &str, figures: &Figures, most: f64| {
        if held {
            Row::below(name, "ms", figures, most)
        } else {
            Row::plain(name, "ms", figures)
        }
    };
    vec![
        Row::plain(&name(FIRST, 1), "ms", &theirs.sync),
        if held {
            Row::ratio(
                &name(FIRST, 0),
                "ms",
                &ours.sync,
                SIDES[1],
                &theirs.sync,
                Bound::AtMost(1.0 / 50.0),
            )
        } else {
            beside(FIRST, &ours.sync, &theirs.sync)
        },
        alone(&table_work, &ours.table_work, 100.0),
        Row::plain(&name("start to forwarding", 1), "ms", &theirs.forwarding),
        beside("start to forwarding", &ours.forwarding, &theirs.forwarding),
        Row::plain(&name(CHANGE, 1), "ms", &theirs.change),
        alone(&name(CHANGE, 0), &ours.change, 5.0),
        alone(&written, &ours.written, 1.0),
    ]
}
