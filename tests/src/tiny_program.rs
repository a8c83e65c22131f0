//! Small tc and XDP programs written as instructions: neighbours of ours on a device, and probes of the kernel.
//!
//! The instructions are wrapped into an ELF object in memory, so that aya loads them as it loads any other. Encoding as
//! in RFC 9669.

use std::thread;
use std::time::Duration;

use aya::programs::{Program, SchedClassifier, TcAttachType, Xdp, XdpMode, loaded_programs, tc};
use aya::{Ebpf, EbpfLoader};
use object::write::{Object, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

use crate::assert::eventually;
use crate::netns::Netns;

const NAME: &str = "tiny";
/// How long a program may stand after its last user has let it go.
const LET_GO: Duration = Duration::from_secs(10);

/// One instruction of eight bytes.
#[derive(Clone, Copy, Debug)]
pub struct Instruction([u8; 8]);

impl Instruction {
    /// `r<register> = value`.
    pub const fn set(register: u8, value: i32) -> Self {
        Self::new(0xb7, register, 0, value)
    }

    /// `r<to> = r<from>`.
    pub const fn copy(to: u8, from: u8) -> Self {
        Self::new(0xbf, to | from << 4, 0, 0)
    }

    /// `r<register> += value`.
    pub const fn add(register: u8, value: i32) -> Self {
        Self::new(0x07, register, 0, value)
    }

    /// `*(u32 *)(r<base> + offset) = r<from>`.
    pub const fn store_word(base: u8, offset: i16, from: u8) -> Self {
        Self::new(0x63, base | from << 4, offset, 0)
    }

    /// Calls a helper by its number.
    pub const fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, helper)
    }

    /// Returns `r0`.
    pub const fn exit() -> Self {
        Self::new(0x95, 0, 0, 0)
    }

    const fn new(code: u8, registers: u8, offset: i16, value: i32) -> Self {
        let (offset, value) = (offset.to_le_bytes(), value.to_le_bytes());
        Self([
            code, registers, offset[0], offset[1], value[0], value[1], value[2], value[3],
        ])
    }
}

/// A loaded tc program. Dropping it unloads and detaches it.
#[derive(Debug)]
pub struct TinyProgram {
    ebpf: Option<Ebpf>,
    /// Where it is attached: a filter is detached by the index of its interface, which means another one elsewhere.
    place: Option<Netns>,
}

impl TinyProgram {
    /// Loads a program; the verifier must accept it.
    #[track_caller]
    pub fn load(instructions: &[Instruction]) -> Self {
        let ebpf = EbpfLoader::new()
            .btf(None)
            .load(&elf("classifier", instructions))
            .expect("an object that aya can read");
        let mut ebpf = Some(ebpf);
        let program: &mut SchedClassifier = program_mut(&mut ebpf);
        program.load().expect("a program that the verifier accepts");
        Self { ebpf, place: None }
    }

    /// A program that sets the packet's mark and returns `verdict`: seen to run by a netfilter rule on the mark.
    #[track_caller]
    pub fn marking(mark: i32, verdict: i32) -> Self {
        use Instruction as I;
        // mark is at offset 8 of __sk_buff.
        Self::load(&[I::set(2, mark), I::store_word(1, 8, 2), I::set(0, verdict), I::exit()])
    }

    /// The program, for a test run.
    #[track_caller]
    pub fn program(&self) -> &SchedClassifier {
        self.ebpf
            .as_ref()
            .and_then(|ebpf| ebpf.program(NAME))
            .and_then(|program| program.try_into().ok())
            .expect("a classifier")
    }

    /// Attaches it by tcx, behind what is there, for as long as this value lives.
    #[track_caller]
    pub fn attach_tcx(&mut self, place: &impl AsRef<Netns>, interface: &str, direction: TcAttachType) {
        self.place = Some(place.as_ref().clone());
        let program: &mut SchedClassifier = program_mut(&mut self.ebpf);
        place
            .as_ref()
            .run(|| program.attach(interface, direction).expect("attach by tcx"));
    }

    /// Attaches it to the clsact qdisc (made if it is not there) at a priority, for as long as this value lives.
    #[track_caller]
    pub fn attach_clsact(
        &mut self,
        place: &impl AsRef<Netns>,
        interface: &str,
        direction: TcAttachType,
        priority: u16,
    ) {
        use aya::programs::tc::{NlOptions, TcAttachOptions};
        self.place = Some(place.as_ref().clone());
        let program: &mut SchedClassifier = program_mut(&mut self.ebpf);
        let options = TcAttachOptions::Netlink(NlOptions {
            priority,
            ..NlOptions::default()
        });
        place.as_ref().run(|| {
            // It fails where there is one already, which is what is wanted.
            tc::qdisc_add_clsact(interface).ok();
            program
                .attach_with_options(interface, direction, options)
                .expect("attach to clsact");
        });
    }
}

impl Drop for TinyProgram {
    fn drop(&mut self) {
        let_go(self.ebpf.take(), self.place.as_ref());
    }
}

/// The program of a loaded object, as the kind that it is.
#[track_caller]
fn program_mut<'a, P>(ebpf: &'a mut Option<Ebpf>) -> &'a mut P
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    ebpf.as_mut()
        .and_then(|ebpf| ebpf.program_mut(NAME))
        .and_then(|program| program.try_into().ok())
        .expect("a program of this kind")
}

/// Unloads a program, in the namespace that it is attached in, and waits until it is gone. A child that another test has just begun holds
/// copies of all open files, links too, until it runs a program of its own.
#[track_caller]
fn let_go(ebpf: Option<Ebpf>, place: Option<&Netns>) {
    let program = ebpf.as_ref().and_then(|ebpf| ebpf.program(NAME));
    let id = program.and_then(|program| program.info().ok()).map(|info| info.id());
    match place {
        Some(place) => place.run(|| drop(ebpf)),
        None => drop(ebpf),
    }
    if let Some(id) = id.filter(|_| !thread::panicking()) {
        eventually(LET_GO, &format!("program {id} is unloaded"), || {
            let stands = loaded_programs().filter_map(Result::ok).any(|one| one.id() == id);
            if stands { Err("it is still there") } else { Ok(()) }
        });
    }
}

/// A loaded XDP program. Dropping it unloads and detaches it.
#[derive(Debug)]
pub struct TinyXdp {
    ebpf: Option<Ebpf>,
}

impl TinyXdp {
    /// Loads a program that returns `verdict` for every frame.
    #[track_caller]
    pub fn returning(verdict: u32) -> Self {
        let instructions = [Instruction::set(0, verdict.cast_signed()), Instruction::exit()];
        let ebpf = EbpfLoader::new()
            .btf(None)
            .load(&elf("xdp", &instructions))
            .expect("an object that aya can read");
        let mut ebpf = Some(ebpf);
        let program: &mut Xdp = program_mut(&mut ebpf);
        program.load().expect("a program that the verifier accepts");
        Self { ebpf }
    }

    /// Attaches it for as long as this value lives.
    #[track_caller]
    pub fn attach(&mut self, place: &impl AsRef<Netns>, interface: &str, mode: XdpMode) {
        let program: &mut Xdp = program_mut(&mut self.ebpf);
        place
            .as_ref()
            .run(|| program.attach(interface, mode).map(drop))
            .expect("attach to XDP");
    }
}

impl Drop for TinyXdp {
    fn drop(&mut self) {
        let_go(self.ebpf.take(), None);
    }
}

fn elf(section: &str, instructions: &[Instruction]) -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let code: Vec<u8> = instructions.iter().flat_map(|instruction| instruction.0).collect();
    let section = object.add_section(Vec::new(), section.as_bytes().to_vec(), SectionKind::Text);
    object.append_section_data(section, &code, 8);
    object.add_symbol(Symbol {
        name: NAME.as_bytes().to_vec(),
        value: 0,
        size: code.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, b"GPL\0", 1);
    object.write().expect("an ELF object")
}
