//! The programs of the kernel object that are attached to interfaces, by name.

use aya::Ebpf;
use aya::pin::PinError as AyaPinError;
use aya::programs::{ProgramError, SchedClassifier};

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

/// Verified programs; their file descriptors stay open as long as this lives.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    stages: Stages,
}

impl Programs {
    /// Takes over an object whose programs are loaded.
    pub(super) fn new(ebpf: Ebpf, stages: Stages) -> Self {
        Self { ebpf, stages }
    }

    /// Name of the pin of the program array that these programs use.
    pub(in crate::datapath) fn stages(&self) -> &str {
        self.stages.name()
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
