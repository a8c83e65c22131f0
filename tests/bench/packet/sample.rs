//! Samples of rows, several a round, each with its yardstick and its loops just before.
//!
//! In: what is measured, and the look-up that it is held against. Out: the medians of a row's samples: nanoseconds, those less the helpers that
//! mend checksums at tc, and their ratio to the yardstick. What else a machine does changes the pace of its memory for tenths of seconds, or for
//! tens of them; what is compared is therefore measured within one such moment, a ratio is one sample's before it is a median, and the samples of
//! a row lie as far apart as those of all others.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{All, MOST_FLOWS};
use crate::figures::Figures;
use crate::programs::{Place, Programs};

/// How often a row is taken in a round.
pub(super) const SAMPLES: usize = 5;

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
    /// Takes one sample.
    pub(super) fn sample(
        &self,
        programs: &mut Programs,
        samples: &mut Samples,
        take: impl FnOnce(&mut Programs) -> Result<f64>,
    ) -> Result<()> {
        let look_up = programs.yardstick("lru_lookup", self.flows as u64, packets(self.flows))?;
        let helpers = if self.mends && self.place == Place::Tc {
            checksums(programs)? - bare_loop(programs)?
        } else {
            0.0
        };
        let cost = by_bare_loop(programs, self.place, self.first, self.flows, take)?;
        let figures = [
            ("", cost),
            (" less", cost - helpers),
            (" ratio", (cost - helpers) / look_up),
        ];
        for (what, figure) in figures {
            samples
                .0
                .entry(format!("{}{what}", self.name))
                .or_default()
                .push(figure);
        }
        Ok(())
    }
}

/// A round's samples: under a row's name nanoseconds with the bare loop in place of its own, under that and `less` without the helpers, under
/// that and `ratio` those in look-ups.
#[derive(Default)]
pub(super) struct Samples(BTreeMap<String, Figures>);

impl Samples {
    /// Notes the medians.
    pub(super) fn note(self, all: &mut All) {
        for (name, figures) in self.0 {
            all.note(name, figures.median());
        }
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
