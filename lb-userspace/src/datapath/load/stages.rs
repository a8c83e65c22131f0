//! The program arrays through which the attached programs reach their later stages by tail calls: one of the programs at tc,
//! and one of those at XDP once they are wanted.
//!
//! Each load makes its own arrays and pins each as `<pin-dir>/stages/new-<map id>`, and without the `new-` from the moment when
//! the first hook may use it. Programs of two loads never share one, so the stages that a packet passes are of one build.
//! An array that still is new when another agent loads was never used and goes at once, however often agents die there.
//!
//! Pin and file descriptor keep the array alive, not the programs: the kernel empties a program array when the last of both
//! is gone (`bpf_fd_array_map_clear`, kernel/bpf/arraymap.c), and then every packet that needs a later stage is dropped.
//! Arrays of former loads are therefore removed only after every hook has been switched, and a while later, when no packet
//! can still be on its way through them; and an agent puts back a pin that somebody removed.

use std::fs;
use std::io;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};
use aya::pin::PinError as AyaPinError;
use lb_common::layout::{map, stage};

use super::LoadError;
use crate::datapath::pins::{PinDir, PinError, remove_if_there};

const NEW: &str = "new-";

/// A program runs for microseconds; this is for a machine that pauses.
const DRAIN: Duration = Duration::from_secs(1);

/// One array of one load.
#[derive(Debug)]
pub(in crate::datapath) struct Stages {
    /// Its id, the name of its pin.
    name: String,
    map: MapData,
}

impl Stages {
    /// Loads the stages at tc, fills their array and pins it as new.
    ///
    /// The caller owns the pin directory: other new arrays in it are of agents that have ended.
    pub(super) fn install(ebpf: &mut Ebpf, pins: &PinDir) -> Result<Self, LoadError> {
        verify_all(ebpf, &stage::PROGRAMS)?;
        for name in pins.stage_names().map_err(PinError::io("list", &pins.stages()))? {
            if name.starts_with(NEW) {
                let path = pins.stages().join(name);
                remove_if_there(&path).map_err(PinError::io("remove", &path))?;
            }
        }
        Self::fill(ebpf, pins, map::STAGES, &stage::PROGRAMS)
    }

    /// As [`Self::install`], for the stages at XDP; other arrays stay.
    pub(super) fn install_xdp(ebpf: &mut Ebpf, pins: &PinDir) -> Result<Self, LoadError> {
        verify_all(ebpf, &stage::XDP_PROGRAMS)?;
        Self::fill(ebpf, pins, map::STAGES_XDP, &stage::XDP_PROGRAMS)
    }

    fn fill(ebpf: &mut Ebpf, pins: &PinDir, array: &'static str, stages: &[&'static str]) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Stages { source };
        let map = ebpf.take_map(array).ok_or(LoadError::MissingProgram(array))?;
        let mut array = ProgramArray::try_from(map).map_err(failed)?;
        for (index, &name) in (0..).zip(stages) {
            let program = ebpf.program(name).ok_or(LoadError::MissingProgram(name))?;
            let program = program.fd().map_err(|source| LoadError::Program { name, source })?;
            array.set(index, program, 0).map_err(failed)?;
        }
        let path = pins.stages().join(format!("{NEW}filled"));
        array.pin(&path).map_err(|source| LoadError::Pin {
            path: path.clone(),
            source,
        })?;
        let map = MapData::from_pin(&path).map_err(failed)?;
        let name = map.info().map_err(failed)?.id().to_string();
        let named = pins.stages().join(format!("{NEW}{name}"));
        fs::rename(&path, &named).map_err(PinError::io("rename", &path))?;
        Ok(Self { name, map })
    }

    /// Name of the pin once it is in use.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Notes that hooks may use the array from now on; puts back a pin that is gone.
    pub(super) fn use_begins(&self, pins: &PinDir) -> Result<(), AyaPinError> {
        let (new, used) = (
            pins.stages().join(format!("{NEW}{}", self.name)),
            pins.stages().join(&self.name),
        );
        if used.exists() || fs::rename(new, &used).is_ok() {
            Ok(())
        } else {
            self.map.pin(used)
        }
    }
}

/// Has every stage verified.
fn verify_all(ebpf: &mut Ebpf, names: &[&'static str]) -> Result<(), LoadError> {
    names.iter().try_for_each(|name| super::verify(ebpf, name))
}

/// Removes all arrays but `current` from the pin directory, after a while. Call when every hook runs programs of
/// `current`. What a stop in between leaves is removed by the next agent.
pub(in crate::datapath) fn retire_others(pins: &PinDir, current: &[&str]) -> io::Result<()> {
    let old: Vec<_> = pins
        .stage_names()?
        .into_iter()
        .filter(|name| !current.contains(&name.as_str()))
        .collect();
    if old.is_empty() {
        return Ok(());
    }
    let folder = pins.stages();
    tokio::spawn(async move {
        tokio::time::sleep(DRAIN).await;
        for name in old {
            let path = folder.join(name);
            if let Err(error) = remove_if_there(&path) {
                tracing::warn!(path = %path.display(), %error, "stages of a former load cannot be removed");
            }
        }
    });
    Ok(())
}
