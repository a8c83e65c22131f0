//! The same thousand hot flows over few and over many Services: what grows with their number is what their packets read.
//!
//! The flows are spread evenly over the Services, to frontends that outside clients use. Few Services have more backends each, so that the
//! flows meet nearly as many of them: a way out is remembered for each, which is no matter of Services. New flows are opened in passes, each into an
//! empty table, so that frontend, service, arena and backends are read for the same flows again and again; then they are
//! opened to the end and established packets are sent. A pass is short, and a short test run at XDP costs more to begin than it
//! measures: new flows are told at tc alone. The scenes stand side by side and are taken in turn for each row.

use anyhow::{Result, ensure};

use super::scene::{OTHERS_HOSTS, Scene, client, from_others, others_frontend, to_clients, to_others};
use super::{All, Ends, Incoming, LENGTH, beyond_loop, in_scene, lay_out, median, settled};
use crate::frames::{Frames, Kind};
use crate::programs::{Place, Programs, Sign};

/// Numbers of Services.
pub(crate) const NUMBERS: [usize; 3] = [10, 1_000, 10_000];
/// Flows.
pub(super) const HOT: usize = 1_000;
/// Passes of new flows.
const PASSES: usize = 64;
/// Most backends of a Service.
const MOST_HOSTS: u8 = 200;
/// Flows that the table is made for: it is emptied before each pass.
const TABLE: usize = 1 << 14;

/// A scene for each number.
pub(super) fn scenes() -> Result<Vec<(usize, Scene)>> {
    let scenes = NUMBERS.map(|number| Ok((number, Scene::new(u16::try_from(number)?, hosts(number), TABLE)?)));
    scenes.into_iter().collect()
}

/// Backends of each of so many Services. Of ten Services' two thousand the flows meet eight hundred, else a thousand.
fn hosts(services: usize) -> u8 {
    if services < HOT { MOST_HOSTS } else { OTHERS_HOSTS }
}

/// Every row once.
pub(super) fn measure(programs: &mut Programs, scenes: &[(usize, Scene)], all: &mut All) -> Result<()> {
    for v6 in [false, true] {
        for place in [Place::Xdp, Place::Tc] {
            for (services, scene) in scenes {
                in_scene(scene, |ifindex| {
                    programs.on(ifindex);
                    hot_flows(programs, scene, *services, place, v6, all)
                })?;
            }
        }
    }
    Ok(())
}

fn hot_flows(
    programs: &mut Programs,
    scene: &Scene,
    services: usize,
    place: Place,
    v6: bool,
    all: &mut All,
) -> Result<()> {
    let incoming = Incoming::of(scene, v6)?;
    let target = incoming.at(place);
    let mut note = |what: &str, cost| all.note(format!("{place:?} {what} {} {services}", family(v6)), cost);
    let ends: Ends = (0..HOT)
        .map(|number| (client(v6, number), others_frontend(v6, service(number, services))))
        .collect();
    let out = Sign::between(scene.own_source(v6), to_others(v6));

    let frames = Frames::new(v6, Kind::Tcp("S"), LENGTH);
    let first = frames.first();
    lay_out(programs, &frames, &ends);
    let nothing = programs.nothing(place)?;
    let (mut loops, mut new) = (0.0, 0.0);
    let passes = if matches!(place, Place::Tc) { PASSES } else { 1 };
    for _ in 0..passes {
        loops += programs.packets(&nothing, &first, HOT as u64, HOT as u32, None)?;
        scene.clear();
        new += programs.packets(&incoming.tc, &first, HOT as u64, HOT as u32, Some(out))?;
    }
    if passes == PASSES {
        note("hot passes", loops / PASSES as f64);
        note("hot new", new / PASSES as f64);
    }

    let flows = scene.flows();
    ensure!(flows.len() == HOT, "{} of {HOT} flows stand", flows.len());
    let back: Ends = flows.iter().map(|flow| (flow.backend, flow.source)).collect();
    let frames = Frames::new(v6, Kind::Tcp("SA"), LENGTH);
    lay_out(programs, &frames, &back);
    let restored = Sign::between(from_others(v6), to_clients(v6));
    programs.packets(&incoming.tc, &frames.first(), HOT as u64, HOT as u32, Some(restored))?;
    let frames = Frames::new(v6, Kind::Tcp("A"), LENGTH);
    lay_out(programs, &frames, &ends);
    let first = frames.first();
    let cost = median(programs, HOT, |programs| {
        beyond_loop(programs, place, &first, HOT, |programs| {
            settled(programs, target, &first, HOT, out)
        })
    })?;
    note("hot established", cost);
    Ok(())
}

/// The Service that a flow goes to.
fn service(flow: usize, services: usize) -> u16 {
    (flow * services / services.min(HOT) % services) as u16
}

/// A family's name in figures and rows.
pub(super) fn family(v6: bool) -> &'static str {
    if v6 { "TCP v6" } else { "TCP v4" }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn hot_flows_are_spread_evenly_over_all_services() {
        for services in NUMBERS {
            let mut flows = BTreeMap::new();
            for flow in 0..HOT {
                *flows.entry(service(flow, services)).or_insert(0) += 1;
            }
            assert_eq!(flows.len(), services.min(HOT));
            assert!(flows.values().all(|count| *count == HOT / services.min(HOT)));
            assert!(flows.keys().all(|number| usize::from(*number) < services));
        }
    }
}
