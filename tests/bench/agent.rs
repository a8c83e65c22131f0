//! `agent`: memory and processor time of the agent at 10,000 Services × 10 endpoints, beside kube-proxy's.
//!
//! Memory is RssAnon, its peak sampled from the start of the process on, the initial list included; tables in the kernel are no part
//! of it, and those of Steerway are stated apart (kube-proxy's are rules, of which the kernel does not tell how much they take). Processor time is the process's own, user and system, while nothing changes and under a hundred changes of endpoints a second.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use lb_tests::memory;

use crate::cluster::{Cluster, Running, SIDES};
use crate::figures::Figures;
use crate::report::{Report, Row};

const SERVICES: usize = 10_000;
const ENDPOINTS: u16 = 10;
/// The most rounds: one takes most of a minute.
const ROUNDS: usize = 5;
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
    tables: Figures,
    peak_busy: Figures,
    idle: Figures,
    busy: Figures,
}

/// One thing of what is taken.
type Part = fn(&Taken) -> &Figures;

/// Measures, in five rounds at most.
pub(crate) fn run(rounds: usize) -> Result<Report> {
    let rounds = rounds.min(ROUNDS);
    let mut cluster = Cluster::new(ENDPOINTS);
    cluster.fill(SERVICES);
    let mut taken = <[Taken; 2]>::default();
    for round in 0..rounds {
        eprintln!("agent: round {} of {rounds}", round + 1);
        for (place, taken) in taken.iter_mut().enumerate() {
            // Each run finds endpoints as the one before has left them; what does not change them is no change.
            one_round(&cluster, SIDES[place], 2 * round + place, taken)?;
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
    let tables = name("tables in the kernel, flow tables included", 0);
    rows.insert(2, Row::plain(&tables, "MB", &ours.tables));
    Ok(Report {
        section: "agent",
        about: "RssAnon and processor time at 10,000 Services × 10 endpoints; kube-proxy in nftables mode. Five rounds at most.",
        rows,
    })
}

fn one_round(cluster: &Cluster, side: &str, turn: usize, taken: &mut Taken) -> Result<()> {
    let running = Running::start(cluster, side)?;
    let peak = peak_while(&running, || {
        cluster.await_probe(running.node)?;
        thread::sleep(REST);
        Ok(())
    })?;
    taken.peak.push(peak);
    taken.settled.push(memory::anonymous(running.pid()?)? as f64 / 1e6);
    taken.tables.push(running.tables()?);
    taken.idle.push(percent(&running, || {
        thread::sleep(IDLE);
        Ok(())
    })?);
    let mut busy = 0.0;
    let peak = peak_while(&running, || {
        busy = percent(&running, || {
            change_for(cluster, BUSY, turn);
            Ok(())
        })?;
        Ok(())
    })?;
    taken.peak_busy.push(peak);
    taken.busy.push(busy);
    Ok(())
}

/// Changes one endpoint after another, each of another Service; in the next turn the other way.
fn change_for(cluster: &Cluster, time: Duration, turn: usize) {
    let mut connection = cluster.requests.connect();
    let started = Instant::now();
    for (number, due) in (0..).map(|number| (number, CHANGE * number as u32)) {
        if due >= time {
            return;
        }
        thread::sleep(due.saturating_sub(started.elapsed()));
        connection.replace(&Cluster::changed(number, turn + 1));
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
