//! Removes every trace of an agent that has ended: routes, programs, steer0, sysctls, maps, directories.
//!
//! Works on whatever is left; what is gone already is no error, and what cannot be removed does not keep the rest from it.
//! Refused while an agent runs. Acts on the network namespace of the calling thread, if that was the one that was served: of
//! another one the pins alone are removed.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use super::attach::{Hook, filters, remove_filter, remove_own_qdisc};
use super::netlink::Netlink;
use super::pins::{PinDir, PinError, names, remove_if_there};
use super::run_dir::RunDir;
use super::steer::{self, VipRoutes};
use super::sysctl;

/// Why nothing was removed.
#[derive(Debug, Error)]
pub enum CleanupError {
    /// An agent runs, or the directory is not ours.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// No rtnetlink socket.
    #[error("cannot open an rtnetlink socket")]
    Socket(#[source] io::Error),
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CleanupReport {
    /// What was removed or restored, for people to read.
    pub removed: Vec<String>,
    /// What is still there, and why.
    pub left: Vec<String>,
}

impl CleanupReport {
    fn removed(&mut self, what: impl Into<String>) {
        self.removed.push(what.into());
    }

    fn left(&mut self, what: impl Display, error: &dyn std::error::Error) {
        let source = error.source().map_or_else(String::new, |source| format!(": {source}"));
        self.left.push(format!("{what}: {error}{source}"));
    }
}

/// Removes everything, after waiting up to `wait` for an agent to end.
///
/// # Errors
/// An agent still runs, or the directory is somebody else's: nothing was removed. Single failures are in the report.
pub async fn cleanup(pins: &PinDir, run_dir: &RunDir, wait: Duration) -> Result<CleanupReport, CleanupError> {
    let lock = if pins.root().exists() {
        let lock = pins.lock(run_dir, wait).await?;
        pins.mark()?;
        Some(lock)
    } else {
        None
    };
    let netlink = Netlink::open().map_err(CleanupError::Socket)?;
    let mut routes = VipRoutes::new().map_err(CleanupError::Socket)?;
    let mut report = CleanupReport::default();
    remove_links(pins, &mut report);
    if run_dir.is_this_netns() {
        remove_routes(&mut routes, &mut report).await;
        remove_filters(&netlink, run_dir, &mut report).await;
        remove_device(&netlink, &mut report).await;
        restore_sysctls(run_dir, &mut report);
    } else {
        // What is here may be another agent's.
        let what = "devices of another network namespace that was served: they are gone with it, or `ip link del steer0` there";
        report.left.push(what.to_owned());
    }
    remove_pins(pins, &mut report);
    if run_dir.root().exists() {
        match fs::remove_dir_all(run_dir.root()) {
            Ok(()) => report.removed(format!("run directory {}", run_dir.root().display())),
            Err(error) => report.left(run_dir.root().display(), &error),
        }
    }
    drop(lock);
    Ok(report)
}

async fn remove_routes(routes: &mut VipRoutes, report: &mut CleanupReport) {
    match routes.remove_all().await {
        Ok(0) => {}
        Ok(count) => report.removed(format!("routes to VIPs ({count})")),
        Err(error) => report.left("routes to VIPs", &error),
    }
}

fn remove_links(pins: &PinDir, report: &mut CleanupReport) {
    match pins.link_pins() {
        Ok(links) => {
            for link in links {
                let what = format!("program of {} {}", link.ifname, link.hook.suffix());
                remove(&pins.link(&link), &what, report);
            }
        }
        Err(error) => report.left(pins.links().display(), &error),
    }
}

async fn remove_filters(netlink: &Netlink, run_dir: &RunDir, report: &mut CleanupReport) {
    let handle = netlink.handle();
    let interfaces = match netlink.interfaces().await {
        Ok(interfaces) => interfaces,
        Err(error) => return report.left("clsact filters", &error),
    };
    for (ifindex, ifname) in interfaces {
        for hook in Hook::TC {
            let found = match filters(handle, ifindex, &ifname, hook).await {
                Ok(found) => found,
                Err(error) => {
                    report.left(format!("filters of {ifname}"), &error);
                    continue;
                }
            };
            for filter in found.iter().filter(|filter| filter.is_ours()) {
                match remove_filter(&ifname, hook, filter) {
                    Ok(()) => report.removed(format!("filter of {ifname} {}", hook.suffix())),
                    Err(error) => report.left(format!("filter of {ifname}"), &error),
                }
            }
        }
        match remove_own_qdisc(handle, run_dir, ifindex, &ifname).await {
            Ok(true) => report.removed(format!("clsact qdisc of {ifname}")),
            Ok(false) => {}
            Err(error) => report.left(format!("clsact qdisc of {ifname}"), &error),
        }
    }
}

async fn remove_device(netlink: &Netlink, report: &mut CleanupReport) {
    match steer::remove(netlink.handle()).await {
        Ok(true) => report.removed(format!("interface {}", steer::STEER[0])),
        Ok(false) => {}
        Err(error) => report.left(steer::STEER[0], &error),
    }
}

fn restore_sysctls(run_dir: &RunDir, report: &mut CleanupReport) {
    let remembered = match run_dir.remembered() {
        Ok(remembered) => remembered,
        Err(error) => return report.left("sysctls", &error),
    };
    for entry in remembered.iter().rev() {
        match sysctl::ensure(&entry.key, &entry.value) {
            Ok(true) => report.removed(format!("our value of {}: it is {} again", entry.key, entry.value)),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => report.left(&entry.key, &error),
        }
    }
}

fn remove_pins(pins: &PinDir, report: &mut CleanupReport) {
    match pins.map_names() {
        Ok(maps) => {
            for name in maps {
                remove(&pins.map(&name), &format!("map {name}"), report);
            }
        }
        Err(error) => report.left(pins.maps().display(), &error),
    }
    match pins.stage_names() {
        Ok(stages) => {
            for name in stages {
                remove(&pins.stages().join(&name), &format!("program array {name}"), report);
            }
        }
        Err(error) => report.left(pins.stages().display(), &error),
    }
    for folder in [pins.maps(), pins.links(), pins.stages()] {
        remove_folder(&folder, report);
    }
    remove(&pins.mark_path(), "mark of the pin directory", report);
    remove_folder(pins.root(), report);
}

fn remove(path: &Path, what: &str, report: &mut CleanupReport) {
    match remove_if_there(path) {
        Ok(true) => report.removed(what),
        Ok(false) => {}
        Err(error) => report.left(path.display(), &error),
    }
}

/// Removes a folder; entries that are not ours keep it, and are named.
fn remove_folder(path: &Path, report: &mut CleanupReport) {
    match fs::remove_dir(path) {
        Ok(()) => report.removed(format!("directory {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            let entries = names(path).unwrap_or_default().join(", ");
            report.left(format!("{} (holds {entries})", path.display()), &error);
        }
    }
}
