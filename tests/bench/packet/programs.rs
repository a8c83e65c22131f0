//! What the agent's programs cost the kernel, by stage: instructions verified, bytes, and stack of the chain of calls. The suite holds
//! them to a recorded budget; here they stand beside the time.

use lb_tests::program_cost::{costs, stacks};
use steerway::datapath::load::OBJECT;

use crate::figures::Figures;
use crate::report::Row;

/// The stages by the beginning of their programs' names; the last is all the others.
const STAGES: [(&str, &str); 8] = [
    ("uplink_xdp", "first stage, XDP"),
    ("note_", "note"),
    ("begin_", "begin"),
    ("enter_", "enter"),
    ("translate_", "translate"),
    ("control_", "control"),
    ("answer_", "answer"),
    ("", "first stage, tc"),
];

/// The rows: of each stage the greatest of its programs, and the sum of all.
pub(super) fn rows() -> Vec<Row> {
    let (costs, stacks) = (costs(OBJECT), stacks(OBJECT));
    let mut rows = Vec::new();
    let mut row = |name: &str, unit, figure: u32| {
        let mut figures = Figures::default();
        figures.push(figure.into());
        rows.push(Row::plain(name, unit, &figures));
    };
    for (stage, shown) in STAGES {
        let of_stage = || costs.iter().filter(|cost| is_of(&cost.name, stage));
        let verified = of_stage().map(|cost| cost.verified).max();
        let size = of_stage().map(|cost| cost.size).max();
        let stack = stacks.iter().filter(|(name, _)| is_of(name, stage));
        let stack = stack.map(|(_, stack)| *stack).max();
        row(
            &format!("program: {shown}, verified"),
            "instructions",
            verified.unwrap_or(0),
        );
        row(&format!("program: {shown}, size"), "bytes", size.unwrap_or(0));
        row(&format!("program: {shown}, stack"), "bytes", stack.unwrap_or(0));
    }
    let verified = costs.iter().map(|cost| cost.verified).sum();
    let count = costs.len();
    row(&format!("all {count} programs, verified"), "instructions", verified);
    rows
}

/// Whether a program of this name is of the stage.
fn is_of(name: &str, stage: &str) -> bool {
    let first = STAGES.iter().find(|(prefix, _)| name.starts_with(prefix));
    first.is_some_and(|(prefix, _)| *prefix == stage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_of_one_stage() {
        for (name, stage) in [
            ("uplink_xdp", "uplink_xdp"),
            ("uplink_in", ""),
            ("note_xdp_v6", "note_"),
        ] {
            let of: Vec<_> = STAGES.iter().filter(|(prefix, _)| is_of(name, prefix)).collect();
            assert_eq!(of.len(), 1, "{name}");
            assert_eq!(of[0].0, stage);
        }
    }
}
