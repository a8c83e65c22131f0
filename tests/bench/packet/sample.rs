//! One row taken several times in a round, each time with its yardstick and its loops just before.
//!
//! In: what is measured, and the look-up that it is held against. Out: the medians of its samples: nanoseconds, those less the helpers that
//! mend checksums at tc, and their ratio to the yardstick. What else a machine does changes its pace for tenths of seconds or for minutes;
//! what is compared is therefore measured within one such moment, and a ratio is one sample's before it is a median.

use anyhow::Result;

use super::{All, MOST_FLOWS};
use crate::figures::Figures;
use crate::programs::{Place, Programs};

/// Flows up to which a row is taken so often in a round; those of more are taken [`LEAST`] times.
const TIMES: [(usize, usize); 2] = [(1_000, 7), (64_000, 5)];
const LEAST: usize = 2;

/// How often a row of so many flows is taken.
pub(super) fn times(flows: usize) -> usize {
    let known = TIMES.iter().find(|(most, _)| flows <= *most);
    known.map_or(LEAST, |(_, times)| *times)
}

/// Packets of one sample: each flow at least once.
pub(super) fn packets(flows: usize) -> u32 {
    const LEAST: usize = 1 << 18;
    LEAST.max(flows) as u32
}

/// The programs and frames of a row.
pub(super) struct Sampled<'a> {
    /// Its name among the figures.
    pub(super) name: String,
    /// The hook.
    pub(super) place: Place,
    /// The first frame.
    pub(super) first: &'a [u8],
    /// Flows, and keys of its look-up.
    pub(super) flows: usize,
    /// Checksums are mended, at tc by helpers.
    pub(super) mends: bool,
}

impl Sampled<'_> {
    /// Notes its figures: under its name nanoseconds with the bare loop in place of its own, under that and `less` without the helpers,
    /// under that and `ratio` those in look-ups.
    pub(super) fn measure(
        &self,
        programs: &mut Programs,
        all: &mut All,
        mut take: impl FnMut(&mut Programs) -> Result<f64>,
    ) -> Result<()> {
        let (mut net, mut less, mut ratio) = <(Figures, Figures, Figures)>::default();
        for _ in 0..times(self.flows) {
            let look_up = programs.yardstick("lru_lookup", self.flows as u64, packets(self.flows))?;
            let helpers = if self.mends && self.place == Place::Tc {
                checksums(programs)? - bare_loop(programs)?
            } else {
                0.0
            };
            let cost = by_bare_loop(programs, self.place, self.first, self.flows, &mut take)?;
            net.push(cost);
            less.push(cost - helpers);
            ratio.push((cost - helpers) / look_up);
        }
        all.note(self.name.clone(), net.median());
        all.note(format!("{} less", self.name), less.median());
        all.note(format!("{} ratio", self.name), ratio.median());
        Ok(())
    }
}

/// The yardsticks' loop without the table.
pub(super) fn bare_loop(programs: &mut Programs) -> Result<f64> {
    programs.yardstick("bare_loop", MOST_FLOWS as u64, packets(1))
}

/// That loop with the helpers that mend checksums at tc.
pub(super) fn checksums(programs: &mut Programs) -> Result<f64> {
    programs.yardstick("checksums", MOST_FLOWS as u64, packets(1))
}

/// The loop around packets of so many flows: what they cost with a target that does nothing.
pub(super) fn around(programs: &mut Programs, place: Place, first: &[u8], flows: usize) -> Result<f64> {
    let nothing = programs.nothing(place)?;
    programs.packets(&nothing, first, flows as u64, packets(flows), None)
}

/// What `take` takes in the loop around so many flows, with the bare loop in place of that one; both are measured just before.
pub(super) fn by_bare_loop(
    programs: &mut Programs,
    place: Place,
    first: &[u8],
    flows: usize,
    take: impl FnOnce(&mut Programs) -> Result<f64>,
) -> Result<f64> {
    let beyond = bare_loop(programs)? - around(programs, place, first, flows)?;
    Ok(take(programs)? + beyond)
}
