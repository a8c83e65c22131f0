//! `agent`: memory and processor time of the agent at 10,000 Services × 10 endpoints, beside kube-proxy's.
//!
//! Memory is RssAnon, its peak sampled from the start of the process on, the initial list included; tables in the kernel are no part
//! of it. Processor time is the process's own, user and system, while nothing changes and under a hundred changes of endpoints a second.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use lb_tests::memory;

use crate::cluster::{Cluster, PODS, Running, SIDES};
use crate::figures::Figures;
use crate::report::{Report, Row};

const SERVICES: usize = 10_000;
const ENDPOINTS: u16 = 10;
/// After forwarding has begun, until all is at rest.
const REST: Duration = Duration::from_secs(3);
/// How long processor time is counted.
const IDLE: Duration = Duration::from_secs(5);
const BUSY: Duration = Duration::from_secs(10);
/// Between two changes.
const CHANGE: Duration = Duration::from_millis(10);

/// What is taken of one side.
#[derive(Clone, Default)]
struct Taken {
    peak: Figures,
    settled: Figures,
    peak_busy: Figures,
    idle: Figures,
    busy: Figures,
}

/// One thing of what is taken.
type Part = fn(&Taken) -> &Figures;

/// Measures, in a fifth of the rounds.
pub(crate) fn run(rounds: usize) -> Result<Report> {
    let rounds = rounds.div_ceil(5);
    let mut cluster = Cluster::new();
    cluster.fill(SERVICES, ENDPOINTS);
    let mut taken = <[Taken; 2]>::default();
    for round in 1..=rounds {
        eprintln!("agent: round {round} of {rounds}");
        for (side, taken) in SIDES.into_iter().zip(&mut taken) {
            one_round(&cluster, side, taken)?;
        }
    }
    let [ours, theirs] = &taken;
    let name = |what: &str, place: usize| format!("{what}, {}", SIDES[place]);
    let mut rows = vec![
        Row::plain(&name("memory at its peak, start included", 1), "MB", &theirs.peak),
        Row::below(&name("memory at its peak, start included", 0), "MB", &ours.peak, 60.0),
    ];
    let of: [(&str, &'static str, Part); 4] = [
        ("memory at rest", "MB", |taken| &taken.settled),
        ("memory at its peak, 100 changes/s", "MB", |taken| &taken.peak_busy),
        ("processor, nothing changes", "% of one", |taken| &taken.idle),
        ("processor, 100 changes/s", "% of one", |taken| &taken.busy),
    ];
    for (what, unit, of) in of {
        rows.push(Row::plain(&name(what, 1), unit, of(theirs)));
        rows.push(Row::plain(&name(what, 0), unit, of(ours)));
    }
    Ok(Report {
        section: "agent",
        about: "RssAnon and processor time at 10,000 Services × 10 endpoints; kube-proxy in nftables mode. A fifth of the rounds.",
        rows,
    })
}

fn one_round(cluster: &Cluster, side: &str, taken: &mut Taken) -> Result<()> {
    let running = Running::start(cluster, side)?;
    let peak = peak_while(&running, || {
        cluster.await_probe(running.node, PODS[0])?;
        thread::sleep(REST);
        Ok(())
    })?;
    taken.peak.push(peak);
    taken.settled.push(memory::anonymous(running.pid()?)? as f64 / 1e6);
    taken.idle.push(percent(&running, || {
        thread::sleep(IDLE);
        Ok(())
    })?);
    let mut busy = 0.0;
    let peak = peak_while(&running, || {
        busy = percent(&running, || {
            change_for(cluster, BUSY);
            Ok(())
        })?;
        Ok(())
    })?;
    taken.peak_busy.push(peak);
    taken.busy.push(busy);
    Ok(())
}

/// Changes one endpoint after another, each of another Service.
fn change_for(cluster: &Cluster, time: Duration) {
    let mut connection = cluster.requests.connect();
    let started = Instant::now();
    for (number, due) in (0..).map(|number| (number, CHANGE * number as u32)) {
        if due >= time {
            return;
        }
        thread::sleep(due.saturating_sub(started.elapsed()));
        connection.replace(&Cluster::changed(number % SERVICES, 1 + number / SERVICES));
    }
}

/// The most memory that a side had while something was done, in megabytes.
fn peak_while(running: &Running, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (worked, most) = memory::most_while(running.pid()?, work)?;
    worked.map(|()| most as f64 / 1e6)
}

/// How much of one processor a side used while something was done, in percent.
fn percent(running: &Running, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (before, started) = (running.processor_seconds()?, Instant::now());
    work()?;
    Ok(100.0 * (running.processor_seconds()? - before) / started.elapsed().as_secs_f64())
}
