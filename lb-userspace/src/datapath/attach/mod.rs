//! Which program runs on which interface and direction, kept true from one interface table to the next.
//!
//! In: loaded programs and an [`InterfaceTable`]. Out: tcx and XDP links pinned in the pin directory, or clsact filters, that
//! stay when the agent goes. What an earlier agent left is adopted and its program replaced in place, so there is never a moment without
//! a program; a hook is never served by both kinds for longer than it takes to remove the other one (a packet that passes two
//! of our programs finds nothing to do in the second). One interface that cannot be hooked does not keep the others from it.
//!
//! tcx: our program is first at ingress and last at egress when it is attached; whoever attaches later may choose a place
//! before or behind it. clsact: the lowest and highest priority that is free.

mod clsact;
mod tcx;
mod xdp;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use aya::pin::PinError as AyaPinError;
use aya::programs::links::LinkError;
use aya::programs::tc::TcError;
use aya::programs::{ProgramError, TcAttachType};
use serde::Serialize;
use thiserror::Error;

pub use clsact::{FilterPlace, own_filters};
pub(super) use clsact::{filters, remove_filter, remove_own_qdisc};
pub use xdp::{Finding, Left, intent, survey};

use super::interfaces::{Interface, InterfaceTable, Role};
use super::load::{ProgramName, Programs, retire_others};
use super::netlink::Netlink;
use super::pins::PinDir;
use super::run_dir::RunDir;
use crate::config::Xdp;

/// A place of an interface where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// Packets that come in.
    Ingress,
    /// Packets that go out.
    Egress,
    /// Frames that come in, in the driver.
    Xdp,
    /// Frames that come in, behind the driver.
    XdpGeneric,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 4] = [Self::Ingress, Self::Egress, Self::Xdp, Self::XdpGeneric];
    /// The directions of tc.
    pub const TC: [Self; 2] = [Self::Ingress, Self::Egress];
    /// The modes of XDP.
    pub const XDP: [Self; 2] = [Self::Xdp, Self::XdpGeneric];

    /// The name for logs and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Xdp | Self::XdpGeneric => "xdp",
        }
    }

    /// The ending of a pin's name.
    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Self::Ingress => "in",
            Self::Egress => "out",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdpgeneric",
        }
    }

    pub(super) fn from_suffix(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.suffix() == text)
    }

    /// The direction of tc that sees the same packets.
    pub(super) const fn tc(self) -> TcAttachType {
        match self {
            Self::Ingress | Self::Xdp | Self::XdpGeneric => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// By a link to the tcx hook.
    Tcx,
    /// As a filter of the clsact qdisc.
    Clsact,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Attachment {
    /// Interface index.
    pub ifindex: u32,
    /// Interface name.
    pub ifname: String,
    /// Role of the interface.
    pub role: Role,
    /// Place.
    pub hook: Hook,
    /// How it is attached to tc; `None` at XDP.
    pub kind: Option<Kind>,
}

/// The name of a way to attach as it is printed.
pub const fn method_name(hook: Hook, kind: Option<Kind>) -> &'static str {
    match (hook, kind) {
        (Hook::Xdp, _) => "native",
        (Hook::XdpGeneric, _) => "generic",
        (_, Some(Kind::Clsact)) => "clsact",
        (_, Some(Kind::Tcx) | None) => "tcx",
    }
}

/// How far [`Attacher::apply`] trusts what it did before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Only what is new or changed in the table is touched.
    Known,
    /// Every hook is looked at again: somebody may have removed a program.
    Nothing,
}

/// Why a hook is not as it should be.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The interface's programs cannot be listed.
    #[error("cannot list the programs of {ifname} {}", hook.suffix())]
    List {
        /// Interface name.
        ifname: String,
        /// Direction.
        hook: Hook,
        /// The cause.
        #[source]
        source: ProgramError,
    },
    /// The interfaces cannot be listed.
    #[error("cannot list the interfaces")]
    ListInterfaces(#[source] rtnetlink::Error),
    /// The interface's filters cannot be listed.
    #[error("cannot list the filters of {ifname}")]
    ListFilters {
        /// Interface name.
        ifname: String,
        /// The cause.
        #[source]
        source: rtnetlink::Error,
    },
    /// A program cannot be attached or replaced.
    #[error("cannot attach {program} to {ifname} {}", hook.suffix())]
    Attach {
        /// Program name.
        program: &'static str,
        /// Interface name.
        ifname: String,
        /// Direction.
        hook: Hook,
        /// The cause.
        #[source]
        source: ProgramError,
    },
    /// A pin in the folder of links is no tcx link.
    #[error(
        "{} is no link of ours: remove the file (this may detach what it holds), or choose another pin directory",
        path.display()
    )]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// The cause.
        #[source]
        source: LinkError,
    },
    /// A link cannot be pinned.
    #[error("cannot pin {}", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// The cause.
        #[source]
        source: AyaPinError,
    },
    /// A file operation failed.
    #[error("cannot change {}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A clsact qdisc cannot be made.
    #[error("cannot add a clsact qdisc to {ifname} (an ingress qdisc is in its place?)")]
    Qdisc {
        /// Interface name.
        ifname: String,
        /// The cause.
        #[source]
        source: TcError,
    },
    /// The interface's program at XDP cannot be asked for.
    #[error("cannot ask for the XDP program of {ifname}")]
    ListXdp {
        /// Interface name.
        ifname: String,
        /// The cause.
        #[source]
        source: rtnetlink::Error,
    },
    /// The operator wants XDP on an interface that cannot have it.
    #[error("XDP on {ifname} is wanted by --xdp {}, but {left}: {}", setting.word(), left.fix())]
    Xdp {
        /// Interface name.
        ifname: String,
        /// The setting.
        setting: Xdp,
        /// Why not.
        left: Left,
    },
    /// All priorities that we may take are taken by filters of other kinds.
    #[error("{ifname} {} has no free filter priority for us", hook.suffix())]
    NoPriority {
        /// Interface name.
        ifname: String,
        /// Direction.
        hook: Hook,
    },
}

impl AttachError {
    /// False if no program of ours runs on the hook in question.
    fn may_leave_a_former_program(&self) -> bool {
        match self {
            Self::Foreign { .. } | Self::Qdisc { .. } | Self::NoPriority { .. } | Self::Xdp { .. } => false,
            Self::List { .. }
            | Self::ListInterfaces(_)
            | Self::ListFilters { .. }
            | Self::ListXdp { .. }
            | Self::Attach { .. }
            | Self::Pin { .. }
            | Self::File { .. } => true,
        }
    }
}

/// The programs of an interface.
pub fn programs_of(interface: &Interface) -> &'static [(Hook, ProgramName)] {
    use Hook::{Egress, Ingress};
    use ProgramName as P;
    match interface.role {
        Role::Uplink | Role::Tunnel if interface.ethernet => &[(Ingress, P::UplinkIn), (Egress, P::UplinkOut)],
        Role::Uplink | Role::Tunnel => &[(Ingress, P::L3In), (Egress, P::L3Out)],
        // Replies first: a request must not pass before its reply can be un-translated.
        Role::Pod => &[(Egress, P::PodOut), (Ingress, P::PodIn)],
        Role::Steer => &[(Egress, P::SteerOut)],
        Role::Lo => &[(Egress, P::LoOut)],
        Role::Unhooked => &[],
    }
}

/// One hook that must be served.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    ifindex: u32,
    ifname: String,
    role: Role,
    hook: Hook,
    program: ProgramName,
}

/// Keeps programs attached.
#[derive(Debug)]
pub struct Attacher {
    programs: Programs,
    pins: PinDir,
    run_dir: RunDir,
    netlink: Netlink,
    kind: Kind,
    xdp: Xdp,
    /// What is known to be served at tc.
    served: BTreeMap<(u32, Hook), Target>,
    /// What came of XDP on each uplink.
    uplinks: BTreeMap<u32, xdp::Uplink>,
    /// What earlier agents left has been looked for.
    settled: bool,
    /// Every hook runs these programs; nothing needs those of former loads.
    switched: bool,
}

impl Attacher {
    /// Attaches by `kind` from now on, and nothing at XDP; what is attached otherwise is moved over by the first
    /// [`Self::apply`].
    ///
    /// # Errors
    /// No rtnetlink socket.
    pub fn new(programs: Programs, pins: PinDir, run_dir: RunDir, kind: Kind) -> io::Result<Self> {
        Ok(Self {
            programs,
            pins,
            run_dir,
            netlink: Netlink::open()?,
            kind,
            xdp: Xdp::Off,
            served: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            settled: false,
            switched: false,
        })
    }

    /// As [`Self::new`] made it, but with XDP on uplinks as the setting wants.
    #[must_use]
    pub fn with_xdp(mut self, setting: Xdp) -> Self {
        self.xdp = setting;
        self
    }

    /// Hooks what the table wants hooked and unhooks the rest; returns what did not succeed, for the next call to retry.
    pub async fn apply(&mut self, table: &InterfaceTable, trust: Trust) -> Vec<AttachError> {
        if let Err(source) = self.programs.use_begins(&self.pins) {
            let path = self.pins.stages();
            return vec![AttachError::Pin { path, source }];
        }
        let wanted: Vec<Target> = table.interfaces.iter().flat_map(targets).collect();
        let thorough = trust == Trust::Nothing || !std::mem::replace(&mut self.settled, true);
        let mut errors = Vec::new();
        for target in &wanted {
            let key = (target.ifindex, target.hook);
            if trust == Trust::Known && self.served.get(&key) == Some(target) {
                continue;
            }
            self.served.remove(&key);
            let result = self.serve(target).await;
            // The kernel took a name. If that no longer names this interface, a newer table is on its way.
            if nix::net::if_::if_nametoindex(target.ifname.as_str()) != Ok(target.ifindex) {
                tracing::debug!(interface = %target.ifname, ifindex = target.ifindex, "vanished while it was hooked");
                continue;
            }
            match result {
                Ok(()) => drop(self.served.insert(key, target.clone())),
                Err(error) => errors.push(error),
            }
        }
        // After tc, which has to know XDP's marks.
        errors.extend(self.serve_xdp(table, trust).await);
        let keep = wanted
            .iter()
            .map(|target| (target.ifindex, target.hook))
            .chain(self.xdp_hooks())
            .collect();
        errors.extend(self.unhook_others(table, &keep, thorough).await);
        if !self.switched && !errors.iter().any(AttachError::may_leave_a_former_program) {
            match retire_others(&self.pins, &self.programs.stages()) {
                Ok(()) => self.switched = true,
                Err(source) => errors.push(AttachError::File {
                    path: self.pins.stages(),
                    source,
                }),
            }
        }
        errors
    }

    /// What is attached, sorted.
    pub fn attached(&self) -> Vec<Attachment> {
        let attachment = |target: &Target| Attachment {
            ifindex: target.ifindex,
            ifname: target.ifname.clone(),
            role: target.role,
            hook: target.hook,
            kind: Some(self.kind),
        };
        let mut attached: Vec<Attachment> = self.served.values().map(attachment).collect();
        attached.extend(self.attached_xdp());
        attached.sort();
        attached
    }

    /// How programs are attached.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The attached programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    async fn serve(&mut self, target: &Target) -> Result<(), AttachError> {
        match self.kind {
            Kind::Tcx => {
                tcx::serve(&mut self.programs, &self.pins, target)?;
                self.remove_filters(target.ifindex, &target.ifname, target.hook).await
            }
            Kind::Clsact => {
                clsact::serve(&mut self.programs, &self.run_dir, self.netlink.handle(), target).await?;
                tcx::unpin(&self.pins, |pin| {
                    pin.ifindex == target.ifindex && pin.hook == target.hook
                })
            }
        }
    }

    /// Unhooks whatever is not in `keep`: links by their pins, filters on the table's interfaces (all of them if `thorough`,
    /// else those that were served).
    async fn unhook_others(
        &mut self,
        table: &InterfaceTable,
        keep: &BTreeSet<(u32, Hook)>,
        thorough: bool,
    ) -> Vec<AttachError> {
        let mut errors = Vec::new();
        errors.extend(tcx::unpin(&self.pins, |pin| !keep.contains(&(pin.ifindex, pin.hook))).err());
        for interface in &table.interfaces {
            for hook in Hook::TC {
                let key = (interface.ifindex, hook);
                if !keep.contains(&key) && (thorough || self.served.contains_key(&key)) {
                    errors.extend(
                        self.remove_filters(interface.ifindex, &interface.name, hook)
                            .await
                            .err(),
                    );
                }
            }
        }
        self.served.retain(|key, _| keep.contains(key));
        let alive: BTreeSet<u32> = table.interfaces.iter().map(|interface| interface.ifindex).collect();
        for ifindex in self.run_dir.marked_qdiscs().unwrap_or_default() {
            if !alive.contains(&ifindex) {
                errors.extend(
                    self.run_dir
                        .unmark_qdisc(ifindex)
                        .map_err(clsact::mark_failed(&self.run_dir))
                        .err(),
                );
            }
        }
        errors
    }

    async fn remove_filters(&self, ifindex: u32, ifname: &str, hook: Hook) -> Result<(), AttachError> {
        let handle = self.netlink.handle();
        let mut removed = false;
        for filter in filters(handle, ifindex, ifname, hook)
            .await?
            .iter()
            .filter(|filter| filter.is_ours())
        {
            remove_filter(ifname, hook, filter)?;
            removed = true;
        }
        if removed {
            remove_own_qdisc(handle, &self.run_dir, ifindex, ifname).await?;
        }
        Ok(())
    }
}

fn targets(interface: &Interface) -> impl Iterator<Item = Target> {
    programs_of(interface).iter().map(|&(hook, program)| Target {
        ifindex: interface.ifindex,
        ifname: interface.name.clone(),
        role: interface.role,
        hook,
        program,
    })
}
