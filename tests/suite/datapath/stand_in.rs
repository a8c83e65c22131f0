//! A stand-in for the kernel object: its maps, globals and program names, and programs that only count.
//!
//! Loading, pinning and attaching do not depend on what programs do, and the verifier takes seconds for the real ones. Each
//! hook's program jumps to the first stage, which counts the packet in `reasons` at [`PASSED`]; a jump that fails is counted
//! at [`LOST`]. Both then go on to the next program. Instructions as in RFC 9669.

use std::sync::LazyLock;

use lb_common::layout::{LAYOUT_VERSION, map, stage};
use lb_tests::prog_run::xdp::XDP_PASS;
use object::write::{Object, Relocation, SectionId, Symbol, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
};
use steerway::datapath::load::{ProgramName, XDP_PROGRAM};

/// Counter of packets that went through a program and its stage.
pub(super) const PASSED: u32 = 1;
/// Counter of packets whose stage was missing.
pub(super) const LOST: u32 = 2;
/// Counter of frames that went through the program at XDP.
pub(super) const PASSED_XDP: u32 = 3;

/// The object.
pub(super) static STAND_IN: LazyLock<Vec<u8>> = LazyLock::new(build);

// Map types and the flag BPF_F_MMAPABLE.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PROGRAM_ARRAY: u32 = 3;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const MAPPED: u32 = 0x400;

/// Name, type, key and value size, entries, flags.
const MAPS: [(&str, [u32; 5]); 15] = [
    ("affinity_v4", [LRU_HASH, 24, 16, 64, 0]),
    (map::ARENA, [ARRAY, 4, 64, 8, MAPPED]),
    (map::BACKENDS, [ARRAY, 4, 32, 64, MAPPED]),
    (map::CONFIG, [ARRAY, 4, 512, 1, MAPPED]),
    (map::DEVICES, [HASH, 4, 40, 64, 0]),
    ("flows_v4", [ARRAY, 4, 256, 1024 + 32, MAPPED]),
    ("flows_v6", [ARRAY, 4, 512, 1024 + 16, MAPPED]),
    ("fragments_v4", [LRU_HASH, 40, 8, 64, 0]),
    ("fragments_v6", [LRU_HASH, 40, 8, 64, 0]),
    ("frontends_v4", [ARRAY, 4, 64, 64, MAPPED]),
    ("frontends_v6", [ARRAY, 4, 128, 64, MAPPED]),
    (map::REASONS, [PERCPU_ARRAY, 4, 8, 64, 0]),
    (map::SERVICES, [ARRAY, 4, 8, 64, MAPPED]),
    (map::STAGES, [PROGRAM_ARRAY, 4, 4, stage::PROGRAMS.len() as u32, 0]),
    (
        map::STAGES_XDP,
        [PROGRAM_ARRAY, 4, 4, stage::XDP_PROGRAMS.len() as u32, 0],
    ),
];

const GLOBALS: [&str; 4] = [map::FLOW_MASK_V4, map::FLOW_MASK_V6, map::CSUM_IPV6, map::FIB_SOURCE];

fn build() -> Vec<u8> {
    assert_eq!(LAYOUT_VERSION, 5, "the stand-in's maps are those of this layout");
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let section = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(section, b"GPL\0", 1);
    let section = object.add_section(Vec::new(), b".rodata".to_vec(), SectionKind::ReadOnlyData);
    for name in GLOBALS {
        let at = object.append_section_data(section, &[0; 4], 4);
        symbol(&mut object, section, name, at, 4, SymbolKind::Data);
    }
    let section = object.add_section(Vec::new(), b"maps".to_vec(), SectionKind::Data);
    let (mut reasons, mut stages) = (None, None);
    for (name, words) in MAPS {
        // `struct bpf_map_def`: the five words, then id and pinning.
        let bytes: Vec<u8> = words
            .iter()
            .chain(&[0; 2])
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let at = object.append_section_data(section, &bytes, 4);
        let added = symbol(&mut object, section, name, at, bytes.len(), SymbolKind::Data);
        match name {
            map::REASONS => reasons = Some(added),
            map::STAGES => stages = Some(added),
            _ => {}
        }
    }
    let (reasons, stages) = (reasons.expect("counters"), stages.expect("stages"));
    let section = object.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
    for name in ProgramName::ALL.map(ProgramName::name) {
        let code = [jump_to_stage(), count(LOST, NEXT)].concat();
        program(
            &mut object,
            section,
            name,
            &code,
            &[(JUMP_MAP, stages), (JUMP_BYTES + COUNT_MAP, reasons)],
        );
    }
    for name in stage::PROGRAMS {
        program(
            &mut object,
            section,
            name,
            &count(PASSED, NEXT),
            &[(COUNT_MAP, reasons)],
        );
    }
    let section = object.add_section(Vec::new(), b"xdp.frags".to_vec(), SectionKind::Text);
    for name in [XDP_PROGRAM].into_iter().chain(stage::XDP_PROGRAMS) {
        let code = count(PASSED_XDP, XDP_PASS);
        program(&mut object, section, name, &code, &[(COUNT_MAP, reasons)]);
    }
    object.write().expect("an ELF object")
}

fn symbol(object: &mut Object<'_>, section: SectionId, name: &str, at: u64, size: usize, kind: SymbolKind) -> SymbolId {
    object.add_symbol(Symbol {
        name: name.as_bytes().to_vec(),
        value: at,
        size: size as u64,
        kind,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    })
}

/// Adds code whose instructions at the given offsets load the address of a map.
fn program(object: &mut Object<'_>, section: SectionId, name: &str, code: &[u8], maps: &[(u64, SymbolId)]) {
    let at = object.append_section_data(section, code, 8);
    symbol(object, section, name, at, code.len(), SymbolKind::Text);
    for (offset, map) in maps {
        // R_BPF_64_64
        let relocation = Relocation {
            offset: at + offset,
            symbol: *map,
            addend: 0,
            flags: RelocationFlags::Elf { r_type: 1 },
        };
        object.add_relocation(section, relocation).expect("a relocation");
    }
}

const fn insn(code: u8, dst: u8, src: u8, offset: i16, value: u32) -> [u8; 8] {
    let (o, v) = (offset.to_le_bytes(), value.to_le_bytes());
    [code, src << 4 | dst, o[0], o[1], v[0], v[1], v[2], v[3]]
}

/// Where the two instructions that load a map's address begin.
const JUMP_MAP: u64 = 8;
const COUNT_MAP: u64 = 24;
const JUMP_BYTES: u64 = 6 * 8;

/// `bpf_tail_call(ctx, stages, 0)`; goes on if it fails.
fn jump_to_stage() -> Vec<u8> {
    [
        insn(0xbf, 6, 1, 0, 0),
        insn(0x18, 2, 0, 0, 0),
        insn(0, 0, 0, 0, 0),
        insn(0xb7, 3, 0, 0, 0),
        insn(0x85, 0, 0, 0, 12),
        insn(0xbf, 1, 6, 0, 0),
    ]
    .concat()
}

/// Return value `TCX_NEXT`.
const NEXT: u32 = u32::MAX;

/// `reasons[counter] += 1; return verdict`.
fn count(counter: u32, verdict: u32) -> Vec<u8> {
    [
        insn(0x62, 10, 0, -4, counter),
        insn(0xbf, 2, 10, 0, 0),
        insn(0x07, 2, 0, 0, (-4_i32).cast_unsigned()),
        insn(0x18, 1, 0, 0, 0),
        insn(0, 0, 0, 0, 0),
        insn(0x85, 0, 0, 0, 1),
        insn(0x15, 0, 0, 3, 0),
        insn(0x79, 1, 0, 0, 0),
        insn(0x07, 1, 0, 0, 1),
        insn(0x7b, 0, 1, 0, 0),
        insn(0xb7, 0, 0, 0, verdict),
        insn(0x95, 0, 0, 0, 0),
    ]
    .concat()
}
