//! Attaching as filters of the clsact qdisc, where the kernel has no tcx (net/sched/cls_bpf.c).
//!
//! Filters need no pin: they live as long as their interface. Ours are known by handle and program name. A filter with the
//! same priority and handle is replaced between two packets. aya detaches filters when its link value is dropped, so these
//! values are forgotten on purpose; they hold no resources.

use aya::programs::SchedClassifier;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact};
use aya::programs::{Link as _, ProgramError};
use futures_util::TryStreamExt as _;
use rtnetlink::Handle;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};

use super::{AttachError, Hook, Target};
use crate::datapath::load::{ProgramName, Programs};
use crate::datapath::netlink::{Netlink, errno};
use crate::datapath::run_dir::RunDir;

/// The handle of all our filters.
const HANDLE: u32 = 0x5754;
/// How many priorities from the best one on we try.
const PRIORITIES: u16 = 16;

/// A filter of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::datapath) struct Filter {
    /// Lower is earlier.
    pub(in crate::datapath) priority: u16,
    handle: u32,
    name: Option<String>,
    program_id: Option<u32>,
}

impl Filter {
    /// True if we made it.
    pub(in crate::datapath) fn is_ours(&self) -> bool {
        let known = |name: &str| ProgramName::ALL.iter().any(|program| program.name() == name);
        self.handle == HANDLE && self.name.as_deref().is_some_and(known)
    }
}

/// Where a filter of ours is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterPlace {
    /// Interface index.
    pub ifindex: u32,
    /// Interface name.
    pub ifname: String,
    /// Direction.
    pub hook: Hook,
}

/// Where filters of ours are in this network namespace: nothing else remembers them while no agent runs.
///
/// # Errors
/// The kernel refuses to list them.
pub async fn own_filters(netlink: &Netlink) -> Result<Vec<FilterPlace>, AttachError> {
    let mut places = Vec::new();
    for (ifindex, ifname) in netlink.interfaces().await.map_err(AttachError::ListInterfaces)? {
        for hook in Hook::TC {
            let found = filters(netlink.handle(), ifindex, &ifname, hook).await?;
            places.extend(found.iter().filter(|filter| filter.is_ours()).map(|_| FilterPlace {
                ifindex,
                ifname: ifname.clone(),
                hook,
            }));
        }
    }
    Ok(places)
}

/// Makes sure that exactly one filter serves the target with its program.
pub(super) async fn serve(
    programs: &mut Programs,
    run_dir: &RunDir,
    handle: &Handle,
    target: &Target,
) -> Result<(), AttachError> {
    let failed = |source| AttachError::Attach {
        program: target.program.name(),
        ifname: target.ifname.clone(),
        hook: target.hook,
        source,
    };
    let program_id = programs.id(target.program).map_err(failed)?;
    let present = filters(handle, target.ifindex, &target.ifname, target.hook).await?;
    let mut ours = present.iter().filter(|filter| filter.is_ours());
    let Some(kept) = ours.next() else {
        ensure_qdisc(run_dir, target)?;
        return add(programs.get(target.program).map_err(failed)?, target);
    };
    if kept.program_id != Some(program_id) {
        let program = programs.get(target.program).map_err(failed)?;
        // Last, because the value detaches the filter if it is dropped.
        let link = link_to(&target.ifname, target.hook, kept).map_err(failed)?;
        let id = program.attach_to_link(link).map_err(failed)?;
        std::mem::forget(program.take_link(id).map_err(failed)?);
    }
    for other in ours {
        remove_filter(&target.ifname, target.hook, other)?;
    }
    Ok(())
}

/// The filters of one direction; none where there is no qdisc for them.
pub(in crate::datapath) async fn filters(
    handle: &Handle,
    ifindex: u32,
    ifname: &str,
    hook: Hook,
) -> Result<Vec<Filter>, AttachError> {
    let request = handle.traffic_filter(ifindex.cast_signed()).get();
    let request = if hook == Hook::Egress {
        request.egress()
    } else {
        request.ingress()
    };
    let mut found = Vec::new();
    let mut answers = request.execute();
    loop {
        match answers.try_next().await {
            Ok(Some(message)) => found.push(filter_of(&message)),
            Ok(None) => break,
            // No such qdisc, or no such interface any more.
            Err(error) if matches!(errno(&error), Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)) => break,
            Err(source) => {
                return Err(AttachError::ListFilters {
                    ifname: ifname.to_owned(),
                    source,
                });
            }
        }
    }
    // The head of a priority is listed too, as a filter without a handle.
    found.retain(|filter| filter.handle != 0);
    found.sort_by_key(|filter| filter.priority);
    Ok(found)
}

fn filter_of(message: &TcMessage) -> Filter {
    let mut filter = Filter {
        priority: (message.header.info >> 16) as u16,
        handle: message.header.handle.into(),
        name: None,
        program_id: None,
    };
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else {
            continue;
        };
        for option in options {
            if let TcOption::Bpf(TcFilterBpfOption::ProgName(name)) = option {
                filter.name = Some(name.clone());
            } else if let TcOption::Bpf(TcFilterBpfOption::ProgId(id)) = option {
                filter.program_id = Some(*id);
            }
        }
    }
    filter
}

/// Removes a filter; one that is gone already is a success.
pub(in crate::datapath) fn remove_filter(ifname: &str, hook: Hook, filter: &Filter) -> Result<(), AttachError> {
    let result = link_to(ifname, hook, filter).and_then(SchedClassifierLink::detach);
    match result {
        Ok(()) => Ok(()),
        Err(error) if matches!(netlink_errno(&error), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        Err(source) => Err(AttachError::Attach {
            program: "no program",
            ifname: ifname.to_owned(),
            hook,
            source,
        }),
    }
}

/// Removes the clsact qdisc if we made it and nobody's filter is left in it; true if it is gone now.
pub(in crate::datapath) async fn remove_own_qdisc(
    handle: &Handle,
    run_dir: &RunDir,
    ifindex: u32,
    ifname: &str,
) -> Result<bool, AttachError> {
    if !run_dir.has_qdisc(ifindex) {
        return Ok(false);
    }
    for hook in Hook::TC {
        if !filters(handle, ifindex, ifname, hook).await?.is_empty() {
            return Ok(false);
        }
    }
    let mut request = handle.qdisc().del(ifindex.cast_signed());
    let message = request.message_mut();
    message.header.parent = rtnetlink::packet_route::tc::TcHandle::CLSACT;
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    match request.execute().await {
        Ok(()) => {}
        Err(error) if matches!(errno(&error), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {}
        Err(source) => {
            return Err(AttachError::ListFilters {
                ifname: ifname.to_owned(),
                source,
            });
        }
    }
    run_dir.unmark_qdisc(ifindex).map_err(mark_failed(run_dir))?;
    Ok(true)
}

/// For `map_err`: a failed note about a qdisc.
pub(super) fn mark_failed(run_dir: &RunDir) -> impl FnOnce(std::io::Error) -> AttachError {
    let path = run_dir.root().to_path_buf();
    move |source| AttachError::File { path, source }
}

fn ensure_qdisc(run_dir: &RunDir, target: &Target) -> Result<(), AttachError> {
    // Noted first: a stop in between may leave a note without a qdisc, never a qdisc without a note.
    let noted = run_dir.has_qdisc(target.ifindex);
    run_dir.mark_qdisc(target.ifindex).map_err(mark_failed(run_dir))?;
    match qdisc_add_clsact(&target.ifname) {
        Ok(()) => Ok(()),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
            if noted {
                Ok(())
            } else {
                run_dir.unmark_qdisc(target.ifindex).map_err(mark_failed(run_dir))
            }
        }
        Err(source) => Err(AttachError::Qdisc {
            ifname: target.ifname.clone(),
            source,
        }),
    }
}

/// Adds the filter at the first priority that is not taken by another kind of filter: from 1 up at ingress, from 65535 down
/// at egress.
fn add(program: &mut SchedClassifier, target: &Target) -> Result<(), AttachError> {
    for step in 0..PRIORITIES {
        let priority = if target.hook == Hook::Egress {
            u16::MAX - step
        } else {
            1 + step
        };
        let options = NlOptions {
            priority,
            handle: TcHandle::from(HANDLE),
            classid: None,
        };
        match program.attach_with_options(&target.ifname, target.hook.tc(), TcAttachOptions::Netlink(options)) {
            Ok(id) => {
                let taken = program.take_link(id);
                return taken.map(std::mem::forget).map_err(|source| AttachError::Attach {
                    program: target.program.name(),
                    ifname: target.ifname.clone(),
                    hook: target.hook,
                    source,
                });
            }
            Err(error) if matches!(netlink_errno(&error), Some(libc::EINVAL | libc::EEXIST)) => {}
            Err(source) => {
                return Err(AttachError::Attach {
                    program: target.program.name(),
                    ifname: target.ifname.clone(),
                    hook: target.hook,
                    source,
                });
            }
        }
    }
    Err(AttachError::NoPriority {
        ifname: target.ifname.clone(),
        hook: target.hook,
    })
}

fn link_to(ifname: &str, hook: Hook, filter: &Filter) -> Result<SchedClassifierLink, ProgramError> {
    SchedClassifierLink::attached(ifname, hook.tc(), filter.priority, TcHandle::from(filter.handle), None)
        .map_err(|error| ProgramError::TcError(TcError::IoError(error)))
}

fn netlink_errno(error: &ProgramError) -> Option<i32> {
    if let ProgramError::NetlinkError(error) | ProgramError::TcError(TcError::NetlinkError(error)) = error {
        error.raw_os_error()
    } else if let ProgramError::TcError(TcError::IoError(error)) = error {
        error.raw_os_error()
    } else {
        None
    }
}
