//! Loads the kernel object: maps re-used from their pins where they fit, every program verified, nothing attached yet.
//!
//! Order, so that a failure at any step leaves the former agent's pins whole: decide about each pinned map (`reuse.rs`), create
//! the new ones unpinned, have every program verified, and only then put the new maps in place of the old. Programs that are
//! still attached hold the old maps until their links are switched, so a replaced map never stops traffic; what it held
//! starts anew. A crash in between leaves a directory that the next start handles the same way.
//!
//! What becomes of damaged pins: a map of another form is replaced (a warning names it); an object that is no map is refused,
//! because removing it may detach something foreign.

mod programs;
mod reuse;
mod stages;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;

use aya::maps::{MapData, MapError, MapInfo};
use aya::pin::PinError as AyaPinError;
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use lb_common::layout::{self, map};
use serde::Serialize;
use thiserror::Error;

pub use programs::{ProgramName, Programs, XDP_PROGRAM};
pub use reuse::{Fate, Shape};
use stages::Stages;
pub(super) use stages::retire_others;

use super::pins::{Mark, PinDir, PinError, remove_if_there};
use super::probe::Features;
use crate::maps::Table;

/// The kernel object that this binary was built with; empty if it was built without.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("STEERWAY_EBPF_OBJECT"));

/// What a load depends on besides the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Sets of the IPv4 flow table, a power of two from two on.
    pub flow_sets_v4: u32,
    /// Sets of the IPv6 flow table, a power of two from two on.
    pub flow_sets_v6: u32,
    /// What the kernel can do.
    pub features: Features,
}

/// Why the object cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The pin directory cannot be used.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// A flow table's size is no power of two, or one.
    #[error("a flow table cannot have {0} sets: use a power of two from two on")]
    FlowSets(u32),
    /// The kernel lacks something that we cannot do without.
    #[error("this kernel lacks {0}, which Steerway needs")]
    Unsupported(&'static str),
    /// There are no bytes.
    #[error("this binary was built without the kernel programs (STEERWAY_NO_EBPF): build it with `cargo xtask build`")]
    NoObject,
    /// The bytes are no kernel object.
    #[error("the kernel object cannot be read")]
    Parse(#[source] aya_obj::ParseError),
    /// A pin that is no map.
    #[error(
        "{} is not a map but {found}: remove the file (this may detach what it holds), or choose another pin directory",
        path.display()
    )]
    NotAMap {
        /// The pin.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// A pin cannot be opened.
    #[error("cannot open the pin {}: remove the file if it is damaged", path.display())]
    Open {
        /// The pin.
        path: PathBuf,
        /// The cause.
        #[source]
        source: MapError,
    },
    /// Maps cannot be created, or the object does not fit the kernel.
    #[error("cannot create maps (`steerway check` shows rights and memory)")]
    Maps(#[source] EbpfError),
    /// The object lacks a program or the array of stages.
    #[error("the kernel object has no {0}")]
    MissingProgram(&'static str),
    /// The verifier refused a program.
    #[error("the kernel refuses the program {name}; the verifier's last words: {log}")]
    Verify {
        /// The program.
        name: &'static str,
        /// The end of the verifier's log.
        log: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A program cannot be loaded, for another reason.
    #[error("cannot load the program {name}")]
    Program {
        /// The program.
        name: &'static str,
        /// The cause.
        #[source]
        source: ProgramError,
    },
    /// The array of stages cannot be filled.
    #[error("cannot fill the program array")]
    Stages {
        /// The cause.
        #[source]
        source: MapError,
    },
    /// A map cannot be pinned.
    #[error("cannot pin {}", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// The cause.
        #[source]
        source: AyaPinError,
    },
}

/// What became of each map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// Went on as they were.
    pub reused: Vec<String>,
    /// Made where there were none.
    pub created: Vec<String>,
    /// Made in place of others, with the reason.
    pub replaced: Vec<(String, String)>,
}

/// Programs with their maps, ready to be filled and attached.
#[derive(Debug)]
pub struct Loaded {
    /// Verified programs.
    pub programs: Programs,
    /// What became of the maps.
    pub report: LoadReport,
}

/// Loads `object` and pins its maps in `pins`, which the caller owns ([`PinDir::lock`]).
///
/// Blocks while the verifier works: one to two seconds. Only maps with a name of `lb_common::layout::map` are pinned:
/// the others are global data and scratch memory of one build.
///
/// # Errors
/// Nothing has changed in the directory then, except that it may have been created or a new map of several pinned.
pub fn load(object: &[u8], pins: &PinDir, options: &LoadOptions) -> Result<Loaded, LoadError> {
    if object.is_empty() {
        return Err(LoadError::NoObject);
    }
    require(options.features)?;
    let sets = [options.flow_sets_v4, options.flow_sets_v6];
    if let Some(wrong) = sets.into_iter().find(|sets| *sets < 2 || !sets.is_power_of_two()) {
        return Err(LoadError::FlowSets(wrong));
    }
    let sizes = flow_sizes(sets);
    pins.create()?;
    let mark = pins.mark()?;
    let wanted = wanted_shapes(object, &sizes)?;
    let pinned = pinned_shapes(pins, &wanted)?;
    let fates = reuse::decide(&wanted, &pinned, mark == Mark::Version(layout::LAYOUT_VERSION));

    let mut loader = EbpfLoader::new();
    // Errors and statistics, not every instruction: aya loads again with a log after any failure, also after one that passes
    // (EAGAIN when a signal comes in between), and would take a log that overflows for a refusal.
    loader.verifier_log_level(VerifierLogLevel::STATS);
    for (name, values) in &sizes {
        if wanted.contains_key(name) {
            loader.map_max_entries(name, *values);
        }
    }
    let masks = sets.map(|sets| sets - 1);
    let csum_ipv6 = u32::from(options.features.csum_ipv6);
    let fib_source = u32::from(options.features.fib_source);
    loader.override_global(map::FLOW_MASK_V4, &masks[0], true);
    loader.override_global(map::FLOW_MASK_V6, &masks[1], true);
    loader.override_global(map::CSUM_IPV6, &csum_ipv6, true);
    loader.override_global(map::FIB_SOURCE, &fib_source, true);
    for (name, fate) in &fates {
        if *fate == Fate::Reuse {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut ebpf = loader.load(object).map_err(LoadError::Maps)?;
    for name in ProgramName::ALL {
        verify(&mut ebpf, name.name())?;
    }
    take_over(pins, &mark, &wanted)?;
    pins.create_folders()?;
    let stages = Stages::install(&mut ebpf, pins)?;
    let mut maps = BTreeMap::new();
    let mut report = LoadReport::default();
    for (name, fate) in fates {
        let Some(map) = ebpf.take_map(&name) else { continue };
        let path = pins.map(&name);
        if fate != Fate::Reuse {
            remove_if_there(&path).map_err(PinError::io("remove", &path))?;
            map.pin(&path).map_err(|source| LoadError::Pin { path, source })?;
        }
        maps.insert(name.clone(), map);
        match fate {
            Fate::Reuse => report.reused.push(name),
            Fate::Create => report.created.push(name),
            Fate::Replace(reason) => {
                tracing::warn!(map = %name, %reason, "map replaced; what it held starts anew");
                report.replaced.push((name, reason));
            }
        }
    }
    Ok(Loaded {
        programs: Programs::new(ebpf, maps, stages),
        report,
    })
}

/// Lines of the verifier's log that an error quotes.
const LOG_LINES: usize = 8;

fn verify(ebpf: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::MissingProgram(name))?;
    let loaded = if let Program::SchedClassifier(program) = program {
        program.load()
    } else if let Program::Xdp(program) = program {
        program.load()
    } else {
        Err(ProgramError::UnexpectedProgramType)
    };
    match loaded {
        Ok(()) => Ok(()),
        Err(ProgramError::LoadError { io_error, verifier_log }) => {
            let log = verifier_log.to_string();
            let last: Vec<&str> = log.lines().rev().take(LOG_LINES).collect();
            let log = last.into_iter().rev().collect::<Vec<_>>().join(" | ");
            Err(LoadError::Verify {
                name,
                log,
                source: io_error,
            })
        }
        Err(source) => Err(LoadError::Program { name, source }),
    }
}

/// Puts our mark on the directory. Maps of another layout go first: a stop in between must not leave them under our mark.
fn take_over(pins: &PinDir, mark: &Mark, wanted: &BTreeMap<String, Shape>) -> Result<(), PinError> {
    if *mark == Mark::Version(layout::LAYOUT_VERSION) {
        return Ok(());
    }
    for name in pins.map_names().map_err(PinError::io("list", &pins.maps()))? {
        if matches!(mark, Mark::Version(_)) || wanted.contains_key(&name) {
            let path = pins.map(&name);
            remove_if_there(&path).map_err(PinError::io("remove", &path))?;
        }
    }
    pins.write_mark(layout::LAYOUT_VERSION)
}

fn require(features: Features) -> Result<(), LoadError> {
    let needs = [
        (
            features.mappable_arrays,
            "arrays that can be mapped into memory (Linux 5.5)",
        ),
        (features.redirect_neigh, "the helper bpf_redirect_neigh (Linux 5.10)"),
    ];
    needs
        .iter()
        .find(|(there, _)| !there)
        .map_or(Ok(()), |(_, what)| Err(LoadError::Unsupported(what)))
}

/// Names of the flow tables and values of their maps, for so many sets of IPv4 and of IPv6.
pub fn flow_sizes(sets: [u32; 2]) -> [(String, u32); 2] {
    let [v4, v6] = sets;
    [(Table::FlowsV4, v4), (Table::FlowsV6, v6)].map(|(table, sets)| (table.name().to_owned(), table.values_of(sets)))
}

/// The maps that `object` wants to be pinned, with the sizes that hold for this load.
///
/// # Errors
/// The bytes are no kernel object.
pub fn wanted_shapes(object: &[u8], sizes: &[(String, u32)]) -> Result<BTreeMap<String, Shape>, LoadError> {
    let object = aya_obj::Object::parse(object).map_err(LoadError::Parse)?;
    let shape = |(name, map): (&String, &aya_obj::Map)| {
        let size = sizes.iter().find(|(sized, _)| sized == name).map(|(_, size)| *size);
        let shape = Shape {
            map_type: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: size.unwrap_or_else(|| map.max_entries()),
            flags: map.map_flags(),
        };
        (name.clone(), shape)
    };
    Ok(object
        .maps
        .iter()
        .filter(|(name, _)| reuse::is_shared(name))
        .map(shape)
        .collect())
}

fn pinned_shapes(pins: &PinDir, wanted: &BTreeMap<String, Shape>) -> Result<BTreeMap<String, Shape>, LoadError> {
    let present: BTreeSet<String> = pins
        .map_names()
        .map_err(PinError::io("list", &pins.maps()))?
        .into_iter()
        .collect();
    let mut shapes = BTreeMap::new();
    for name in wanted.keys().filter(|name| present.contains(*name)) {
        shapes.insert(name.clone(), pinned_shape(pins.map(name))?);
    }
    Ok(shapes)
}

fn pinned_shape(path: PathBuf) -> Result<Shape, LoadError> {
    if path.is_dir() {
        return Err(LoadError::NotAMap {
            path,
            found: "a directory".to_owned(),
        });
    }
    let data = match MapData::from_pin(&path) {
        Ok(data) => data,
        Err(source) => return Err(LoadError::Open { path, source }),
    };
    // The kernel answers for programs and links too, in another form: only the name of the file tells.
    let fd = data.fd().as_fd().as_raw_fd();
    let link = fs::read_link(format!("/proc/self/fd/{fd}")).map_err(PinError::io("examine", &path))?;
    let found = link.to_string_lossy().into_owned();
    if !found.ends_with("bpf-map") {
        return Err(LoadError::NotAMap { path, found });
    }
    shape_of(&data).map_err(|source| LoadError::Open { path, source })
}

fn shape_of(data: &MapData) -> Result<Shape, MapError> {
    let info: MapInfo = data.info()?;
    Ok(Shape {
        map_type: info.map_type()? as u32,
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
        flags: info.map_flags(),
    })
}
