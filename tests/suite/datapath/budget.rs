//! What the programs may cost the kernel that takes them: instructions that the verifier walks through, their size, and their stack.
//!
//! Recorded on Linux 6.18 with a margin of a fifth or so for a change that is meant: who exceeds it looks why first, and then records the new
//! figure here. What a compiler inlines counts: with aya at level 1 of its optimizations the verifier walks a twentieth more. The verifier
//! gives up at a million instructions. A program has 512 bytes of stack together with all that it calls, each function rounded up to 32 (to
//! 16 on newer kernels, which is less); stack is read from the object, as the verifier reads it: the lowest place below the frame pointer that a
//! function names. Its margin is one such step, up to the 512.

use lb_tests::program_cost::{costs, stacks};
use steerway::datapath::load::OBJECT;

/// A program, by the beginning of its name, and the most that it may cost.
struct Budget {
    begins: &'static str,
    /// Instructions verified.
    verified: u32,
    /// Bytes of the program in the kernel.
    size: u32,
    /// Bytes of stack together with all that it calls, for IPv4 and for IPv6.
    stack: [u32; 2],
}

const fn budget(begins: &'static str, verified: u32, size: u32, stack: [u32; 2]) -> Budget {
    Budget {
        begins,
        verified,
        size,
        stack,
    }
}

const BUDGETS: [Budget; 9] = [
    budget("uplink_xdp", 29_500, 35_500, [352; 2]),
    budget("note_", 10_500, 31_500, [480, 512]),
    budget("begin_", 33_500, 41_000, [416, 448]),
    budget("enter_", 37_000, 55_000, [480, 512]),
    budget("translate_", 14_000, 17_500, [224, 256]),
    budget("control_", 14_500, 37_500, [416, 480]),
    budget("answer_", 6_400, 25_500, [192, 224]),
    // The first stage at the hooks of tc: that of pods, which knows one way more, and the others.
    budget("pod_in", 60_000, 58_500, [480; 2]),
    budget("", 45_000, 54_000, [480; 2]),
];
/// Bytes of stack of a chain of calls.
const STACK: u32 = 512;

#[test]
fn every_program_is_within_its_budget_of_instructions_and_size() {
    let mut exceeded = Vec::new();
    for cost in costs(OBJECT) {
        let (name, verified, size) = (&cost.name, cost.verified, cost.size);
        println!("{name}: {verified} instructions verified, {size} bytes");
        let most = budget_of(name);
        if verified > most.verified || size > most.size {
            exceeded.push(format!(
                "{name}: {verified} instructions verified of {}, {size} bytes of {}",
                most.verified, most.size
            ));
        }
    }
    assert!(exceeded.is_empty(), "{exceeded:#?}");
}

fn budget_of(name: &str) -> &'static Budget {
    let found = BUDGETS.iter().find(|budget| name.starts_with(budget.begins));
    found.expect("a budget for every name")
}

#[test]
fn every_chain_of_calls_is_within_its_budget_of_stack() {
    assert!(
        BUDGETS
            .iter()
            .all(|budget| budget.stack.iter().all(|most| *most <= STACK))
    );
    let stacks = stacks(OBJECT);
    let deep: Vec<String> = stacks
        .iter()
        .inspect(|(name, depth)| println!("{name}: {depth} bytes of stack"))
        .map(|(name, depth)| (name, *depth, budget_of(name).stack[usize::from(name.ends_with("_v6"))]))
        .filter(|(_, depth, most)| depth > most)
        .map(|(name, depth, most)| format!("{name}: {depth} bytes of {most}"))
        .collect();
    assert!(deep.is_empty(), "{deep:#?}");
    // A reading that finds nothing holds for nothing.
    let deepest = stacks.iter().map(|(_, depth)| *depth).max();
    assert!(deepest > Some(256), "{deepest:?}");
}
