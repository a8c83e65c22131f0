//! The programs of the kernel object that are attached to interfaces, by name.

use std::collections::BTreeMap;

use aya::Ebpf;
use aya::maps::Map;
use aya::pin::PinError as AyaPinError;
use aya::programs::{ProgramError, SchedClassifier, Xdp};

use super::LoadError;
use super::stages::Stages;
use crate::datapath::pins::PinDir;

/// A program that is attached to interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProgramName {
    /// From a pod.
    PodIn,
    /// To a pod.
    PodOut,
    /// From the outside, with an Ethernet header.
    UplinkIn,
    /// To the outside, with an Ethernet header.
    UplinkOut,
    /// From the outside, without an Ethernet header.
    L3In,
    /// To the outside, without an Ethernet header.
    L3Out,
    /// From host processes to VIPs.
    SteerOut,
    /// From host processes to addresses of the node.
    LoOut,
}

impl ProgramName {
    /// Every program.
    pub const ALL: [Self; 8] = [
        Self::PodIn,
        Self::PodOut,
        Self::UplinkIn,
        Self::UplinkOut,
        Self::L3In,
        Self::L3Out,
        Self::SteerOut,
        Self::LoOut,
    ];

    /// The name in the kernel object, and of clsact filters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PodIn => "pod_in",
            Self::PodOut => "pod_out",
            Self::UplinkIn => "uplink_in",
            Self::UplinkOut => "uplink_out",
            Self::L3In => "l3_in",
            Self::L3Out => "l3_out",
            Self::SteerOut => "steer_out",
            Self::LoOut => "lo_out",
        }
    }
}

/// The program at XDP in the kernel object.
pub const XDP_PROGRAM: &str = "uplink_xdp";

/// Verified programs; their file descriptors stay open as long as this lives. Those at XDP are verified when they are first
/// wanted.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    /// All pinned maps by name. Programs that are yet to be loaded name them by their descriptors, so these stay open.
    maps: BTreeMap<String, Map>,
    stages: Stages,
    xdp_stages: Option<Stages>,
}

impl Programs {
    /// Takes over an object whose programs are loaded.
    pub(super) fn new(ebpf: Ebpf, maps: BTreeMap<String, Map>, stages: Stages) -> Self {
        Self {
            ebpf,
            maps,
            stages,
            xdp_stages: None,
        }
    }

    /// A pinned map.
    pub fn map(&self, name: &str) -> Option<&Map> {
        self.maps.get(name)
    }

    /// Names of the pins of the program arrays that these programs use.
    pub(in crate::datapath) fn stages(&self) -> Vec<&str> {
        [&self.stages]
            .into_iter()
            .chain(&self.xdp_stages)
            .map(Stages::name)
            .collect()
    }

    /// The program at XDP, ready to be attached. The first call has it and its stages verified, which takes a while.
    ///
    /// # Errors
    /// The kernel refuses them.
    pub fn xdp(&mut self, pins: &PinDir) -> Result<&mut Xdp, LoadError> {
        let stages = if let Some(stages) = self.xdp_stages.take() {
            stages
        } else {
            super::verify(&mut self.ebpf, XDP_PROGRAM)?;
            Stages::install_xdp(&mut self.ebpf, pins)?
        };
        let stages = self.xdp_stages.insert(stages);
        stages.use_begins(pins).map_err(|source| LoadError::Pin {
            path: pins.stages().join(stages.name()),
            source,
        })?;
        let program = self
            .ebpf
            .program_mut(XDP_PROGRAM)
            .ok_or(LoadError::MissingProgram(XDP_PROGRAM))?;
        program.try_into().map_err(|source| LoadError::Program {
            name: XDP_PROGRAM,
            source,
        })
    }

    /// To be called before one of these programs is attached: makes sure that the program array stays.
    pub(in crate::datapath) fn use_begins(&self, pins: &PinDir) -> Result<(), AyaPinError> {
        self.stages.use_begins(pins)
    }

    /// A program to attach.
    pub(in crate::datapath) fn get(&mut self, name: ProgramName) -> Result<&mut SchedClassifier, ProgramError> {
        self.ebpf
            .program_mut(name.name())
            .ok_or(ProgramError::NotLoaded)?
            .try_into()
    }

    /// The kernel's id of a program.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn id(&self, name: ProgramName) -> Result<u32, ProgramError> {
        let program: &SchedClassifier = self
            .ebpf
            .program(name.name())
            .ok_or(ProgramError::NotLoaded)?
            .try_into()?;
        Ok(program.info()?.id())
    }
}
