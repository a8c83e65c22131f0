//! XDP on uplinks: where it is wanted, whether the interface takes it, and why not where it does not.
//!
//! In: an uplink and the setting. Out: a link pinned in the pin directory, or a reason ([`Left`]). The driver is asked by
//! attaching, which some drivers answer by a reset of their queues: so an interface that has said no is asked again only when it
//! has changed, when the programs are loaded anew, or when somebody else's program was in the way. That one is left alone.
//! Where the operator insists (`native`, `generic`), no is an error that names the interface, the setting and the fix.
//!
//! Links: kernel/bpf/net/core/dev.c (`dev_xdp_attach`): EBUSY and EEXIST for somebody else's program, EOPNOTSUPP without
//! support in the driver, other errors as the driver gives them.

use std::fmt;
use std::time::Duration;

use aya::programs::links::{FdLink, LinkError, LinkType, PinnedLink};
use aya::programs::xdp::{XdpError, XdpLink};
use aya::programs::{ProgramError, Xdp as XdpProgram, XdpMode};
use aya::sys::SyscallError;
use futures_util::TryStreamExt as _;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{LinkAttribute, LinkXdp, XdpAttached};

use super::{AttachError, Attacher, Attachment, Hook, Trust, tcx};
use crate::config::Xdp;
use crate::datapath::interfaces::{Interface, InterfaceTable, Role};
use crate::datapath::load::XDP_PROGRAM;
use crate::datapath::netlink::Netlink;
use crate::datapath::pins::{LinkPin, PinDir, remove_if_there};

/// How often, and how long each time, the end of a link is waited for.
const FREE_TRIES: u32 = 50;
const FREE_TRY: Duration = Duration::from_millis(20);

/// Why tc alone serves an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// The operator says so.
    Off,
    /// Frames have no Ethernet header.
    NoEthernet,
    /// Devices of VLANs are above it.
    CarriesVlans,
    /// One end of a pair, which `auto` leaves out.
    Veth,
    /// Somebody else's program runs there.
    Taken,
    /// The driver cannot do it.
    NoDriver,
    /// The driver refuses, as it says.
    Refused(String),
    /// The kernel refuses the programs.
    NoPrograms(String),
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("switched off"),
            Self::NoEthernet => f.write_str("its packets have no Ethernet header"),
            Self::CarriesVlans => f.write_str("it carries devices of VLANs, whose tags XDP may not see"),
            Self::Veth => f.write_str("it is a veth, whose other end takes no frames from XDP unless XDP runs there"),
            Self::Taken => f.write_str("somebody else's XDP program runs there, and is left alone"),
            Self::NoDriver => f.write_str("its driver has no native XDP"),
            Self::Refused(why) => write!(f, "its driver refuses XDP ({why})"),
            Self::NoPrograms(why) => write!(f, "the kernel refuses the programs ({why})"),
        }
    }
}

impl Left {
    /// What helps in any case.
    pub const RELAX: &str = "use --xdp auto or --xdp off";

    /// What the operator can do about it.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Off | Self::NoEthernet | Self::CarriesVlans | Self::Veth | Self::NoDriver | Self::NoPrograms(_) => {
                Self::RELAX
            }
            Self::Taken => "remove that program (`ip link set dev <interface> xdp off`), or use --xdp auto",
            Self::Refused(_) => "look at the kernel's log (MTU, queues, offloads), or use --xdp auto",
        }
    }
}

/// Where a setting wants XDP on an uplink, or why not.
///
/// # Errors
/// It is not wanted there, or cannot be right there.
pub fn intent(interface: &Interface, setting: Xdp) -> Result<Hook, Left> {
    match setting {
        Xdp::Off => Err(Left::Off),
        _ if !interface.ethernet => Err(Left::NoEthernet),
        _ if interface.carries_vlans => Err(Left::CarriesVlans),
        Xdp::Auto if interface.veth => Err(Left::Veth),
        Xdp::Auto | Xdp::Native => Ok(Hook::Xdp),
        Xdp::Generic => Ok(Hook::XdpGeneric),
    }
}

/// What stands at XDP of an uplink, and what a setting makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Our program runs.
    Runs(Hook),
    /// Somebody else's program runs.
    Taken,
    /// Nothing runs; an agent would ask for it there.
    Wanted(Hook),
    /// Nothing runs, nor would it.
    Left(Left),
    /// Nothing runs, though it is wanted: the running agent says why.
    Told(String),
}

/// Looks at every uplink, without changing anything; gives what it finds by name.
///
/// # Errors
/// The kernel does not answer.
pub async fn survey(
    table: &InterfaceTable,
    setting: Xdp,
    pins: &PinDir,
) -> Result<Vec<(String, Finding)>, rtnetlink::Error> {
    let netlink = Netlink::open().map_err(|_| rtnetlink::Error::RequestFailed)?;
    let ours = pins.link_pins().unwrap_or_default();
    let mut findings = Vec::new();
    for interface in table.with_role(Role::Uplink) {
        let found = running(netlink.handle(), interface.ifindex).await?;
        let is_ours = |hook| {
            ours.iter()
                .any(|pin| (pin.ifindex, pin.hook) == (interface.ifindex, hook))
        };
        let finding = match (found, intent(interface, setting)) {
            (Some(Running { hook, .. }), _) if is_ours(hook) => Finding::Runs(hook),
            (Some(_), Ok(_)) => Finding::Taken,
            (None, Ok(hook)) => Finding::Wanted(hook),
            (_, Err(left)) => Finding::Left(left),
        };
        findings.push((interface.name.clone(), finding));
    }
    Ok(findings)
}

/// What came of XDP on an uplink.
#[derive(Clone, Debug)]
pub(super) struct Uplink {
    /// As it was when it was asked.
    interface: Interface,
    outcome: Result<Hook, Left>,
}

/// A program at XDP of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Running {
    /// How it runs.
    hook: Hook,
    /// The kernel's id of it.
    program_id: u32,
}

/// The program at XDP of an interface of this network namespace.
async fn running(handle: &Handle, ifindex: u32) -> Result<Option<Running>, rtnetlink::Error> {
    let mut links = handle.link().get().match_index(ifindex).execute();
    let mut found = None;
    while let Some(link) = links.try_next().await? {
        for attribute in link.attributes {
            let LinkAttribute::Xdp(parts) = attribute else { continue };
            let generic = parts.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
            let hook = if generic { Hook::XdpGeneric } else { Hook::Xdp };
            for part in parts {
                if let LinkXdp::ProgId(program_id) = part {
                    found = Some(Running { hook, program_id });
                }
            }
        }
    }
    Ok(found)
}

impl Attacher {
    /// The hooks at XDP that are served.
    pub(super) fn xdp_hooks(&self) -> impl Iterator<Item = (u32, Hook)> {
        self.uplinks
            .iter()
            .filter_map(|(ifindex, uplink)| Some((*ifindex, uplink.outcome.clone().ok()?)))
    }

    /// What is attached at XDP.
    pub(super) fn attached_xdp(&self) -> impl Iterator<Item = Attachment> {
        self.xdp_hooks().map(|(ifindex, hook)| Attachment {
            ifindex,
            ifname: self.uplinks[&ifindex].interface.name.clone(),
            role: Role::Uplink,
            hook,
            kind: None,
        })
    }

    /// Uplinks that tc alone serves, and why.
    pub fn without_xdp(&self) -> impl Iterator<Item = (&Interface, &Left)> {
        self.uplinks
            .values()
            .filter_map(|uplink| Some((&uplink.interface, uplink.outcome.as_ref().err()?)))
    }

    /// Brings every uplink to what the setting wants; the errors are those of a setting that insists.
    pub(super) async fn serve_xdp(&mut self, table: &InterfaceTable, trust: Trust) -> Vec<AttachError> {
        let mut before = std::mem::take(&mut self.uplinks);
        let mut errors = Vec::new();
        for interface in table.with_role(Role::Uplink) {
            let known = before.remove(&interface.ifindex).filter(|uplink| {
                let unchanged = same_device(&uplink.interface, interface);
                let may_change = trust == Trust::Nothing && matches!(uplink.outcome, Ok(_) | Err(Left::Taken));
                unchanged && !may_change
            });
            let outcome = match known {
                Some(uplink) => uplink.outcome,
                None => match self.ask(interface).await {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        errors.push(error);
                        continue;
                    }
                },
            };
            if let Err(left) = &outcome
                && self.xdp.insists()
            {
                errors.push(AttachError::Xdp {
                    ifname: interface.name.clone(),
                    setting: self.xdp,
                    left: left.clone(),
                });
            }
            let uplink = Uplink {
                interface: interface.clone(),
                outcome,
            };
            self.uplinks.insert(interface.ifindex, uplink);
        }
        errors
    }

    /// Attaches where the setting wants it.
    async fn ask(&mut self, interface: &Interface) -> Result<Result<Hook, Left>, AttachError> {
        let hook = match intent(interface, self.xdp) {
            Ok(hook) => hook,
            Err(left) => return Ok(Err(left)),
        };
        let (ifname, handle) = (&interface.name, self.netlink.handle());
        let program = match self.programs.xdp(&self.pins) {
            Ok(program) => program,
            Err(error) => return Ok(Err(Left::NoPrograms(with_causes(&error)))),
        };
        let failed = |source| AttachError::Attach {
            program: XDP_PROGRAM,
            ifname: ifname.clone(),
            hook,
            source,
        };
        let program_id = program.info().map_err(failed)?.id();
        let wanted = LinkPin {
            ifindex: interface.ifindex,
            hook,
            ifname: ifname.clone(),
        };
        let of_uplink = |pin: &LinkPin| pin.ifindex == interface.ifindex && Hook::XDP.contains(&pin.hook);
        let mut adopted = false;
        for pin in tcx::listed(&self.pins)?.into_iter().filter(of_uplink) {
            let path = self.pins.link(&pin);
            // A live link may belong to an interface of another network namespace.
            if !adopted && pin.hook == hook && adopt(program, &path, failed)? {
                adopted = runs_on(handle, interface).await? == Some(Running { hook, program_id });
            }
            if !adopted || pin.hook != hook {
                remove_if_there(&path).map_err(|source| AttachError::File { path, source })?;
                wait_for_nothing(handle, interface).await?;
            } else if pin != wanted {
                let new = self.pins.link(&wanted);
                std::fs::rename(&path, &new).map_err(|source| AttachError::File { path: new, source })?;
            }
        }
        if adopted {
            return Ok(Ok(hook));
        }
        let mode = if hook == Hook::XdpGeneric {
            XdpMode::Skb
        } else {
            XdpMode::Driver
        };
        let id = match program.attach_to_if_index(interface.ifindex, mode) {
            Ok(id) => id,
            Err(error) => return Ok(Err(refusal(&error))),
        };
        let link = program.take_link(id).map_err(failed)?;
        let path = self.pins.link(&wanted);
        // Without a link the kernel attached for the life of this process, which ends here.
        let Ok(link) = FdLink::try_from(link) else {
            return Ok(Err(Left::Refused("no link".to_owned())));
        };
        link.pin(&path)
            .map(drop)
            .map_err(|source| AttachError::Pin { path, source })?;
        Ok(Ok(hook))
    }
}

async fn runs_on(handle: &Handle, interface: &Interface) -> Result<Option<Running>, AttachError> {
    running(handle, interface.ifindex)
        .await
        .map_err(|source| AttachError::ListXdp {
            ifname: interface.name.clone(),
            source,
        })
}

/// The kernel frees a link some time after its pin has gone, and takes no other program before.
async fn wait_for_nothing(handle: &Handle, interface: &Interface) -> Result<(), AttachError> {
    for _ in 0..FREE_TRIES {
        if runs_on(handle, interface).await?.is_none() {
            break;
        }
        tokio::time::sleep(FREE_TRY).await;
    }
    Ok(())
}

/// Whether two states of an interface are the same to a driver that said no.
fn same_device(one: &Interface, other: &Interface) -> bool {
    let key = |interface: &Interface| {
        (
            interface.name.clone(),
            interface.mtu,
            interface.ethernet,
            interface.veth,
            interface.carries_vlans,
        )
    };
    key(one) == key(other)
}

/// Puts the program into a pinned link; false if the link is dead.
fn adopt(
    program: &mut XdpProgram,
    path: &std::path::Path,
    failed: impl Fn(ProgramError) -> AttachError,
) -> Result<bool, AttachError> {
    let foreign = |source| AttachError::Foreign {
        path: path.to_path_buf(),
        source,
    };
    let link = FdLink::from(PinnedLink::from_pin(path).map_err(foreign)?);
    if link.info().and_then(|info| info.link_type()).map_err(foreign)? != LinkType::Xdp {
        return Err(foreign(LinkError::InvalidLink));
    }
    let link = XdpLink::try_from(link).map_err(foreign)?;
    // Dropped: the pin keeps it.
    match program
        .attach_to_link(link)
        .and_then(|id| program.take_link(id).map(drop))
    {
        Ok(()) => Ok(true),
        Err(error) if errno(&error) == Some(libc::ENOLINK) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// What an error of attaching says.
fn refusal(error: &ProgramError) -> Left {
    match errno(error) {
        Some(libc::EBUSY | libc::EEXIST) => Left::Taken,
        Some(libc::EOPNOTSUPP) => Left::NoDriver,
        _ => Left::Refused(with_causes(error)),
    }
}

fn errno(error: &ProgramError) -> Option<i32> {
    if let ProgramError::SyscallError(SyscallError { io_error, .. }) = error {
        io_error.raw_os_error()
    } else if let ProgramError::XdpError(XdpError::NetlinkError(error)) = error {
        error.raw_os_error()
    } else {
        None
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink() -> Interface {
        Interface {
            ifindex: 2,
            name: "eth0".to_owned(),
            role: Role::Uplink,
            up: true,
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, 1]),
            ethernet: true,
            metadata: false,
            veth: false,
            peer_elsewhere: false,
            carries_vlans: false,
            addresses: Vec::new(),
            bridge: None,
        }
    }

    #[test]
    fn only_auto_leaves_out_what_an_operator_may_know_better() {
        let veth = Interface { veth: true, ..uplink() };
        assert_eq!(intent(&uplink(), Xdp::Auto), Ok(Hook::Xdp));
        assert_eq!(intent(&veth, Xdp::Auto), Err(Left::Veth));
        assert_eq!(intent(&veth, Xdp::Native), Ok(Hook::Xdp));
        assert_eq!(intent(&veth, Xdp::Generic), Ok(Hook::XdpGeneric));
        assert_eq!(intent(&uplink(), Xdp::Off), Err(Left::Off));
    }

    #[test]
    fn where_xdp_would_see_less_than_tc_no_setting_brings_it() {
        let vlans = Interface {
            carries_vlans: true,
            ..uplink()
        };
        let bare = Interface {
            ethernet: false,
            ..uplink()
        };
        for setting in [Xdp::Auto, Xdp::Native, Xdp::Generic] {
            assert_eq!(intent(&vlans, setting), Err(Left::CarriesVlans));
            assert_eq!(intent(&bare, setting), Err(Left::NoEthernet));
        }
    }

    #[test]
    fn a_refusal_names_interface_setting_reason_and_fix() {
        let error = AttachError::Xdp {
            ifname: "eth0".to_owned(),
            setting: Xdp::Native,
            left: Left::NoDriver,
        };
        assert_eq!(
            error.to_string(),
            "XDP on eth0 is wanted by --xdp native, but its driver has no native XDP: use --xdp auto or --xdp off"
        );
    }
}
