//! What the programs may cost the kernel that takes them: instructions that the verifier walks through, their size, and their stack.
//!
//! Recorded on Linux 6.18 with a margin of a fifth or so for a change that is meant: who exceeds it looks why first, and then records the new
//! figure here. What a compiler inlines counts: with aya at level 1 of its optimizations the verifier walks a twentieth more. The verifier
//! gives up at a million instructions. A program has 512 bytes of stack together with all that it calls, each function rounded up to 32 (to
//! 16 on newer kernels, which is less); stack is read from the object, as the verifier reads it: the lowest place below the frame pointer that a
//! function names. Its margin is one such step, up to the 512.

use std::collections::BTreeMap;

use aya::EbpfLoader;
use aya::programs::{Program, ProgramInfo, SchedClassifier, Xdp};
use lb_common::layout::map;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind};
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

const BUDGETS: [Budget; 8] = [
    budget("uplink_xdp", 24_500, 35_500, [352; 2]),
    budget("note_", 8_200, 26_000, [448, 448]),
    budget("begin_", 31_000, 32_000, [384, 512]),
    budget("enter_", 55_500, 38_500, [512, 512]),
    budget("translate_", 6_500, 16_500, [224, 256]),
    budget("control_", 33_000, 33_500, [384, 480]),
    budget("answer_", 6_400, 25_500, [192, 224]),
    // The first stage at every hook of tc.
    budget("", 36_000, 54_000, [448; 2]),
];
/// Bytes of stack of a chain of calls.
const STACK: u32 = 512;
/// What Linux 6.1 rounds a function's stack up to.
const ROUNDED: u32 = 32;

#[test]
fn every_program_is_within_its_budget_of_instructions_and_size() {
    // As on a kernel that has all, with small tables.
    let (sets, mask, has) = (1 << 8, (1_u32 << 8) - 1, 1_u32);
    let tables = ["_v4", "_v6"].map(|family| format!("{}{family}", map::FLOWS));
    let mut loader = EbpfLoader::new();
    for table in &tables {
        loader.map_max_entries(table, sets);
    }
    for name in [map::FLOW_MASK_V4, map::FLOW_MASK_V6] {
        loader.override_global(name, &mask, true);
    }
    for name in [map::CSUM_IPV6, map::FIB_SOURCE] {
        loader.override_global(name, &has, true);
    }
    let mut ebpf = loader.load(OBJECT).expect("the agent's object");
    let mut exceeded = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        let info = loaded(program);
        let (verified, size) = (
            info.verified_instruction_count().expect("a count of the verifier"),
            info.size_translated().expect("a size"),
        );
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

/// Loads a program, and tells what the kernel made of it.
fn loaded(program: &mut Program) -> ProgramInfo {
    if let Program::Xdp(program) = program {
        let program: &mut Xdp = program;
        program.load().expect("a program that the verifier accepts");
        program.info().expect("a loaded program")
    } else {
        let program: &mut SchedClassifier = program.try_into().expect("a program of tc");
        program.load().expect("a program that the verifier accepts");
        program.info().expect("a loaded program")
    }
}

#[test]
fn every_chain_of_calls_is_within_its_budget_of_stack() {
    assert!(
        BUDGETS
            .iter()
            .all(|budget| budget.stack.iter().all(|most| *most <= STACK))
    );
    let functions = Functions::of(OBJECT);
    let deep: Vec<String> = functions
        .programs()
        .map(|(name, place)| (name, functions.depth(place)))
        .inspect(|(name, depth)| println!("{name}: {depth} bytes of stack"))
        .map(|(name, depth)| (name, depth, budget_of(name).stack[usize::from(name.ends_with("_v6"))]))
        .filter(|(_, depth, most)| depth > most)
        .map(|(name, depth, most)| format!("{name}: {depth} bytes of {most}"))
        .collect();
    assert!(deep.is_empty(), "{deep:#?}");
    // A reading that finds nothing holds for nothing.
    let deepest = functions.programs().map(|(_, place)| functions.depth(place)).max();
    assert!(deepest > Some(256), "{deepest:?}");
}

/// Where a function begins: its section and offset.
type Place = (usize, u64);

/// The functions of an object: their names, own stack, and whom they call.
struct Functions(BTreeMap<Place, Function>);

#[derive(Default)]
struct Function {
    name: String,
    stack: u32,
    calls: Vec<Place>,
}

impl Functions {
    fn of(object: &[u8]) -> Self {
        let object = object::File::parse(object).expect("an ELF object");
        let mut functions = BTreeMap::<Place, Function>::new();
        for symbol in object.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
            let section = symbol.section_index().expect("a function's section");
            let code = object.section_by_index(section).expect("a section");
            let data = code.data().expect("its bytes");
            let relocations: BTreeMap<u64, RelocationTarget> = code
                .relocations()
                .map(|(at, relocation)| (at, relocation.target()))
                .collect();
            let first = symbol.address();
            let end = first + symbol.size();
            let mut function = Function {
                name: symbol.name().expect("its name").to_owned(),
                ..Function::default()
            };
            let mut holds_frame = false;
            for at in (first..end).step_by(8) {
                let bytes = data.get(at as usize..).and_then(|rest| rest.first_chunk::<8>());
                let [op, registers, low, high, imm @ ..] = *bytes.expect("an instruction of eight bytes");
                let (offset, imm) = (i16::from_le_bytes([low, high]), i32::from_le_bytes(imm));
                let (to, from) = (registers & 15, registers >> 4);
                let lowest = match op {
                    // Loads from, and stores to, the frame; `r = r10; r += imm`.
                    0x61 | 0x69 | 0x71 | 0x79 if from == 10 => offset.into(),
                    0x62 | 0x63 | 0x6a | 0x6b | 0x72 | 0x73 | 0x7a | 0x7b | 0xc3 | 0xdb if to == 10 => offset.into(),
                    0x07 if holds_frame => imm,
                    _ => 0,
                };
                function.stack = function.stack.max(lowest.min(0).unsigned_abs());
                holds_frame = op == 0xbf && from == 10;
                if op == 0x85 && from == 1 {
                    let next = |base: u64| base.wrapping_add_signed((i64::from(imm) + 1) * 8);
                    let callee = match relocations.get(&at) {
                        Some(RelocationTarget::Symbol(index)) => {
                            let symbol = object.symbol_by_index(*index).expect("a symbol");
                            (symbol.section_index().expect("its section").0, next(symbol.address()))
                        }
                        _ => (section.0, next(at)),
                    };
                    function.calls.push(callee);
                }
            }
            functions.insert((section.0, first), function);
        }
        Self(functions)
    }

    /// The entry points, by name.
    fn programs(&self) -> impl Iterator<Item = (&str, Place)> {
        let called: Vec<Place> = self.0.values().flat_map(|function| function.calls.clone()).collect();
        let entries = self.0.iter().filter(move |(place, _)| !called.contains(place));
        entries.map(|(place, function)| (function.name.as_str(), *place))
    }

    /// The stack of a function and of the deepest chain that it calls.
    fn depth(&self, place: Place) -> u32 {
        let function = self.0.get(&place).unwrap_or_else(|| panic!("no function at {place:?}"));
        let deepest = function.calls.iter().map(|callee| self.depth(*callee)).max();
        function.stack.max(1).next_multiple_of(ROUNDED) + deepest.unwrap_or(0)
    }
}
