//! What the agent's kernel programs cost: instructions that the verifier walks through, bytes in the kernel, and stack.
//!
//! In: the object. Out: figures by program, of the running kernel but for the stack, which is read from the object as the verifier reads it:
//! the lowest place below the frame pointer that a function names, each function rounded up, summed along the deepest chain of calls.

use std::collections::BTreeMap;

use aya::EbpfLoader;
use aya::programs::{Program, ProgramInfo, SchedClassifier, Xdp};
use lb_common::layout::map;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind};
use steerway::datapath::load::flow_sizes;

/// What Linux 6.1 rounds a function's stack up to.
const ROUNDED: u32 = 32;

/// What the kernel says of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier walked through.
    pub verified: u32,
    /// Bytes of it in the kernel.
    pub size: u32,
}

/// Loads every program as on a kernel that has all, with small tables.
#[track_caller]
pub fn costs(object: &[u8]) -> Vec<Cost> {
    let (sets, has) = (1_u32 << 8, 1_u32);
    let mask = sets - 1;
    let tables = flow_sizes([sets; 2]);
    let mut loader = EbpfLoader::new();
    for (table, values) in &tables {
        loader.map_max_entries(table, *values);
    }
    for name in [map::FLOW_MASK_V4, map::FLOW_MASK_V6] {
        loader.override_global(name, &mask, true);
    }
    for name in [map::CSUM_IPV6, map::FIB_SOURCE] {
        loader.override_global(name, &has, true);
    }
    let mut ebpf = loader.load(object).expect("the agent's object");
    let programs = ebpf.programs_mut().map(|(name, program)| {
        let info = loaded(program);
        Cost {
            name: name.to_owned(),
            verified: info.verified_instruction_count().expect("a count of the verifier"),
            size: info.size_translated().expect("a size"),
        }
    });
    programs.collect()
}

/// Loads a program, and tells what the kernel made of it.
#[track_caller]
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

/// Bytes of stack of each program together with all that it calls, by name.
#[track_caller]
pub fn stacks(object: &[u8]) -> Vec<(String, u32)> {
    let functions = Functions::of(object);
    let depths = functions.programs();
    depths
        .map(|(name, place)| (name.to_owned(), functions.depth(place)))
        .collect()
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
