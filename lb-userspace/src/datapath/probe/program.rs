//! Tiny programs made of single instructions, loaded to ask the kernel what it can do.
//!
//! In: instructions. Out: a loaded classifier that can be test-run. aya takes objects only, so the instructions are wrapped in
//! a minimal ELF file: one section `classifier`, the licence, one symbol. Instruction encoding: RFC 9669; ELF: elf(5).

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use aya::{EbpfError, EbpfLoader};
use thiserror::Error;

/// Why a program could not be asked.
#[derive(Debug, Error)]
pub enum TinyError {
    /// The kernel refused the program.
    #[error("the kernel refuses the program {name}")]
    Load {
        /// What it asks for.
        name: &'static str,
        /// The cause.
        #[source]
        source: ProgramError,
    },
    /// The loader refused the object.
    #[error("the object of the program {name} is not accepted")]
    Object {
        /// What it asks for.
        name: &'static str,
        /// The cause.
        #[source]
        source: EbpfError,
    },
    /// The test run failed.
    #[error("cannot run the program {name}")]
    Run {
        /// What it asks for.
        name: &'static str,
        /// The cause.
        #[source]
        source: ProgramError,
    },
}

/// One instruction, eight bytes little-endian.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Insn([u8; 8]);

impl Insn {
    const fn new(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Self {
        let [o0, o1] = offset.to_le_bytes();
        let [i0, i1, i2, i3] = immediate.to_le_bytes();
        Self([code, src << 4 | dst, o0, o1, i0, i1, i2, i3])
    }

    /// `dst = immediate`
    pub(crate) const fn set(dst: u8, immediate: i32) -> Self {
        Self::new(0xb7, dst, 0, 0, immediate)
    }

    /// `dst = src`
    pub(crate) const fn copy(dst: u8, src: u8) -> Self {
        Self::new(0xbf, dst, src, 0, 0)
    }

    /// `dst += immediate`
    pub(crate) const fn add(dst: u8, immediate: i32) -> Self {
        Self::new(0x07, dst, 0, 0, immediate)
    }

    /// `*(u64 *)(r10 + offset) = immediate`
    pub(crate) const fn stack64(offset: i16, immediate: i32) -> Self {
        Self::new(0x7a, 10, 0, offset, immediate)
    }

    /// `call helper`
    pub(crate) const fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, 0, helper)
    }

    /// `exit`
    pub(crate) const fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }
}

/// A loaded classifier of a few instructions.
#[derive(Debug)]
pub(crate) struct TinyProgram {
    name: &'static str,
    ebpf: aya::Ebpf,
}

impl TinyProgram {
    /// Loads the instructions.
    pub(crate) fn load(name: &'static str, insns: &[Insn]) -> Result<Self, TinyError> {
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .load(&object(insns))
            .map_err(|source| TinyError::Object { name, source })?;
        let result = match ebpf.program_mut(SYMBOL) {
            Some(program) => <&mut SchedClassifier>::try_from(program).and_then(SchedClassifier::load),
            None => Err(ProgramError::NotLoaded),
        };
        result.map_err(|source| TinyError::Load { name, source })?;
        Ok(Self { name, ebpf })
    }

    /// Runs the program on a packet and returns the low 32 bits of r0.
    pub(crate) fn run(&self, packet: &[u8]) -> Result<u32, TinyError> {
        let run = || {
            let program = self.ebpf.program(SYMBOL).ok_or(ProgramError::NotLoaded)?;
            let program = <&SchedClassifier>::try_from(program)?;
            let options = TestRunOptions {
                data_in: Some(packet),
                ..TestRunOptions::default()
            };
            program.test_run(options)
        };
        run()
            .map(|result| result.return_value)
            .map_err(|source| TinyError::Run {
                name: self.name,
                source,
            })
    }
}

const SYMBOL: &str = "probe";
/// Names of sections and symbol, each ended by a zero byte; the numbers below are offsets into it.
const STRINGS: &[u8] = b"\0classifier\0license\0.symtab\0.strtab\0probe\0";
const LICENCE: &[u8] = b"GPL\0";
const HEADER_BYTES: u64 = 64;
const SECTION_BYTES: u64 = 64;
const SYMBOL_BYTES: u64 = 24;

/// The ELF file: header, instructions, licence, strings, symbols, section headers; each part starts at a multiple of 8.
fn object(insns: &[Insn]) -> Vec<u8> {
    let align = |offset: u64| offset.next_multiple_of(8);
    let code_bytes = insns.len() as u64 * 8;
    let code = HEADER_BYTES;
    let licence = code + code_bytes;
    let strings = align(licence + LICENCE.len() as u64);
    let symbols = align(strings + STRINGS.len() as u64);
    let sections = symbols + 2 * SYMBOL_BYTES;

    let mut out = Elf::default();
    out.bytes(b"\x7fELF\x02\x01\x01").pad_to(16);
    // Relocatable, EM_BPF, version; no entry point, no program headers; five section headers, names in the last.
    out.u16(1).u16(247).u32(1).u64(0).u64(0).u64(sections).u32(0);
    out.u16(HEADER_BYTES as u16)
        .u16(0)
        .u16(0)
        .u16(SECTION_BYTES as u16)
        .u16(5)
        .u16(4);
    for insn in insns {
        out.bytes(&insn.0);
    }
    out.bytes(LICENCE)
        .pad_to(strings)
        .bytes(STRINGS)
        .pad_to(symbols)
        .pad_to(symbols + SYMBOL_BYTES);
    // Symbol: name, global function, section 1, value, size.
    out.u32(36).bytes(&[0x12, 0]).u16(1).u64(0).u64(code_bytes);
    out.pad_to(sections + SECTION_BYTES);
    // Section: name, type, flags, address, offset, size, link, info, alignment, entry size.
    out.section([1, 1], 6, [code, code_bytes], [0, 0], 0);
    out.section([12, 1], 3, [licence, LICENCE.len() as u64], [0, 0], 0);
    out.section([20, 2], 0, [symbols, 2 * SYMBOL_BYTES], [4, 1], SYMBOL_BYTES);
    out.section([28, 3], 0, [strings, STRINGS.len() as u64], [0, 0], 0);
    out.0
}

#[derive(Default)]
struct Elf(Vec<u8>);

impl Elf {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn pad_to(&mut self, offset: u64) -> &mut Self {
        self.0.resize(offset as usize, 0);
        self
    }

    fn section(&mut self, name_type: [u32; 2], flags: u64, place: [u64; 2], link_info: [u32; 2], entry_bytes: u64) {
        self.u32(name_type[0])
            .u32(name_type[1])
            .u64(flags)
            .u64(0)
            .u64(place[0])
            .u64(place[1]);
        self.u32(link_info[0]).u32(link_info[1]).u64(8).u64(entry_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_parsed_with_its_one_program() {
        let object = aya_obj::Object::parse(&object(&[Insn::set(0, 7), Insn::exit()])).unwrap();
        assert_eq!(object.programs.len(), 1);
        let program = &object.programs[SYMBOL];
        let function = &object.functions[&program.function_key()];
        assert_eq!(function.instructions.len(), 2);
        assert_eq!((function.instructions[0].code, function.instructions[0].imm), (0xb7, 7));
        assert_eq!(program.license.to_bytes(), b"GPL");
    }
}
