//! Attaching by links to the tcx hooks of Linux 6.6 and newer (kernel/bpf/tcx.c).
//!
//! A pinned link survives the process. `BPF_LINK_UPDATE` swaps its program between two packets; it fails with ENOLINK when the
//! interface is gone, which tells live pins from dead ones.

use aya::programs::links::{FdLink, LinkError, LinkType, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier};
use aya::sys::SyscallError;

use super::{AttachError, Hook, Target};
use crate::datapath::load::Programs;
use crate::datapath::pins::{LinkPin, PinDir, remove_if_there};

/// Makes sure that exactly one pinned link serves the target with its program.
pub(super) fn serve(programs: &mut Programs, pins: &PinDir, target: &Target) -> Result<(), AttachError> {
    let wanted = LinkPin {
        ifindex: target.ifindex,
        hook: target.hook,
        ifname: target.ifname.clone(),
    };
    let failed = |source| AttachError::Attach {
        program: target.program.name(),
        ifname: target.ifname.clone(),
        hook: target.hook,
        source,
    };
    let program_id = programs.id(target.program).map_err(failed)?;
    let mut adopted = false;
    for pin in listed(pins)?
        .into_iter()
        .filter(|pin| (pin.ifindex, pin.hook) == (target.ifindex, target.hook))
    {
        let path = pins.link(&pin);
        if !adopted && adopt(programs, target, &path)? && runs(target, program_id)? {
            adopted = true;
            if pin != wanted {
                let new = pins.link(&wanted);
                std::fs::rename(&path, &new).map_err(|source| AttachError::File { path: new, source })?;
            }
        } else {
            remove_if_there(&path).map_err(|source| AttachError::File { path, source })?;
        }
    }
    if adopted {
        return Ok(());
    }
    let order = if target.hook == Hook::Egress {
        LinkOrder::last()
    } else {
        LinkOrder::first()
    };
    let program = programs.get(target.program).map_err(failed)?;
    let id = program
        .attach_with_options(&target.ifname, target.hook.tc(), TcAttachOptions::TcxOrder(order))
        .map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    let path = pins.link(&wanted);
    let link = FdLink::try_from(link).map_err(|source| AttachError::Foreign {
        path: path.clone(),
        source,
    })?;
    link.pin(&path)
        .map(drop)
        .map_err(|source| AttachError::Pin { path, source })
}

/// Puts the target's program into a pinned link; false if the link is dead.
fn adopt(programs: &mut Programs, target: &Target, path: &std::path::Path) -> Result<bool, AttachError> {
    let foreign = |source| AttachError::Foreign {
        path: path.to_path_buf(),
        source,
    };
    let link = FdLink::from(PinnedLink::from_pin(path).map_err(foreign)?);
    if link.info().and_then(|info| info.link_type()).map_err(foreign)? != LinkType::Tcx {
        return Err(foreign(LinkError::InvalidLink));
    }
    let link = SchedClassifierLink::try_from(link).map_err(foreign)?;
    let replace = |program: &mut SchedClassifier| {
        let id = program.attach_to_link(link)?;
        // Dropped: the pin keeps it.
        program.take_link(id).map(drop)
    };
    match programs.get(target.program).and_then(replace) {
        Ok(()) => Ok(true),
        Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
            if io_error.raw_os_error() == Some(libc::ENOLINK) =>
        {
            Ok(false)
        }
        Err(source) => Err(AttachError::Attach {
            program: target.program.name(),
            ifname: target.ifname.clone(),
            hook: target.hook,
            source,
        }),
    }
}

/// True if the program runs at the target: a live link may belong to an interface of another network namespace.
fn runs(target: &Target, program_id: u32) -> Result<bool, AttachError> {
    let (_, programs) =
        SchedClassifier::query_tcx(&target.ifname, target.hook.tc()).map_err(|source| AttachError::List {
            ifname: target.ifname.clone(),
            hook: target.hook,
            source,
        })?;
    Ok(programs.iter().any(|program| program.id() == program_id))
}

/// Removes the pins that `gone` names; a link without a pin and an open file is detached.
pub(super) fn unpin(pins: &PinDir, gone: impl Fn(&LinkPin) -> bool) -> Result<(), AttachError> {
    for pin in listed(pins)?.iter().filter(|pin| gone(pin)) {
        let path = pins.link(pin);
        remove_if_there(&path).map_err(|source| AttachError::File { path, source })?;
    }
    Ok(())
}

/// The pinned links.
pub(super) fn listed(pins: &PinDir) -> Result<Vec<LinkPin>, AttachError> {
    pins.link_pins().map_err(|source| AttachError::File {
        path: pins.links(),
        source,
    })
}
