//! The same thousand hot flows over few and over many Services: what grows with their number is what their packets read.
//!
//! The flows are spread evenly over the Services, to frontends that outside clients use. Few Services have more backends each, so that the
//! flows meet nearly as many of them: a way out is remembered for each, which is no matter of Services. New flows are opened in passes, each into an
//! empty table, so that frontend, service, arena and backends are read for the same flows again and again; then they are
//! opened to the end and established packets are sent. A pass is short, and before a test run at XDP the kernel waits for its readers, while other
//! users of the caches go on: new flows are told at tc alone. The scenes stand side by side and are taken in turn for each sample.

use anyhow::{Result, ensure};

use super::sample::{SAMPLES, bare_loop, by_bare_loop};
use super::scene::{OTHERS_HOSTS, Scene, client, from_others, others_frontend, to_clients, to_others};
use super::{All, Ends, Incoming, LENGTH, in_scene, lay_out, settled};
use crate::figures::Figures;
use crate::frames::{Frames, Kind};
use crate::programs::{Place, Programs, Sign};

/// Numbers of Services.
pub(crate) const NUMBERS: [usize; 3] = [10, 1_000, 10_000];
/// Flows.
pub(super) const HOT: usize = 1_000;
/// Passes of new flows.
const PASSES: usize = 32;
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
        let each = || {
            scenes.iter().map(|(services, scene)| Hot {
                services: *services,
                scene,
                v6,
            })
        };
        let mut note = |what: &str, hot: &Hot<'_>, figure| {
            all.note(format!("{what} {} {}", family(v6), hot.services), figure);
        };
        for hot in each() {
            let cost = hot.in_its_scene(programs, |programs| hot.open(programs))?;
            note("Tc hot new", &hot, cost);
        }
        for place in [Place::Xdp, Place::Tc] {
            let mut costs = vec![Figures::default(); scenes.len()];
            for _ in 0..SAMPLES {
                for (hot, costs) in each().zip(&mut costs) {
                    costs.push(hot.in_its_scene(programs, |programs| hot.established(programs, place))?);
                }
            }
            for (hot, one) in each().zip(&costs) {
                note(&format!("{place:?} hot established"), &hot, one.median());
                note(&format!("{place:?} hot ratio"), &hot, one.over(&costs[0]).median());
            }
        }
    }
    Ok(())
}

/// The hot flows over the Services of one scene.
struct Hot<'a> {
    services: usize,
    scene: &'a Scene,
    v6: bool,
}

impl Hot<'_> {
    fn in_its_scene(
        &self,
        programs: &mut Programs,
        work: impl FnOnce(&mut Programs) -> Result<f64> + Send,
    ) -> Result<f64> {
        in_scene(self.scene, |ifindex| {
            programs.on(ifindex);
            work(programs)
        })
    }

    fn ends(&self) -> Ends {
        (0..HOT)
            .map(|number| {
                let frontend = others_frontend(self.v6, service(number, self.services));
                (client(self.v6, number), frontend)
            })
            .collect()
    }

    /// A packet that goes to a backend.
    fn out(&self) -> Sign {
        Sign::between(self.scene.own_source(self.v6), to_others(self.v6))
    }

    /// Opens the flows at tc in passes, the last time to the end; what a first packet costs there with the bare loop in place of its own.
    fn open(&self, programs: &mut Programs) -> Result<f64> {
        let Self { scene, v6, .. } = *self;
        let incoming = Incoming::of(scene, v6)?;
        let out = self.out();
        let frames = Frames::new(v6, Kind::Tcp("S"), LENGTH);
        let first = frames.first();
        lay_out(programs, &frames, &self.ends());
        let nothing = programs.nothing(Place::Tc)?;
        let (mut loops, mut new) = (Figures::default(), Figures::default());
        for _ in 0..PASSES {
            loops.push(programs.packets(&nothing, &first, HOT as u64, HOT as u32, None)?);
            scene.clear();
            new.push(programs.packets(&incoming.tc, &first, HOT as u64, HOT as u32, Some(out))?);
        }
        let cost = new.median() - loops.median() + bare_loop(programs)?;

        let flows = scene.flows();
        ensure!(flows.len() == HOT, "{} of {HOT} flows stand", flows.len());
        let back: Ends = flows.iter().map(|flow| (flow.backend, flow.source)).collect();
        let frames = Frames::new(v6, Kind::Tcp("SA"), LENGTH);
        lay_out(programs, &frames, &back);
        let restored = Sign::between(from_others(v6), to_clients(v6));
        programs.packets(&incoming.tc, &frames.first(), HOT as u64, HOT as u32, Some(restored))?;
        Ok(cost)
    }

    /// One sample of the flows' packets, with the bare loop in place of their own.
    fn established(&self, programs: &mut Programs, place: Place) -> Result<f64> {
        let incoming = Incoming::of(self.scene, self.v6)?;
        let frames = Frames::new(self.v6, Kind::Tcp("A"), LENGTH);
        lay_out(programs, &frames, &self.ends());
        let first = frames.first();
        by_bare_loop(programs, place, &first, HOT, |programs| {
            settled(programs, incoming.at(place), &first, HOT, self.out())
        })
    }
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
