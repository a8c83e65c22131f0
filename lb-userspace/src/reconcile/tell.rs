//! What a cycle tells: to the status socket, and to the log.

use std::net::IpAddr;
use std::sync::Arc;

use tracing::{error, info};

use super::cycle::Published;
use super::readiness;
use super::steps::Failures;
use super::upkeep::Swept;
use super::{Host, Reconciler, Starved};
use crate::clock::{Instant, now, wall};
use crate::datapath::attach::{Attachment, Hook, Left, method_name};
use crate::datapath::interfaces::{Interface, InterfaceTable};
use crate::source::SourceState;
use crate::status::report::{self, Cause, NotReady};
use crate::status::table_fill;

impl<H: Host> Reconciler<H> {
    /// Tells the outcome of a cycle, and keeps the planner.
    pub(super) fn tell(
        &mut self,
        source: &SourceState,
        table: &InterfaceTable,
        published: Option<Published>,
        conflicts: &[IpAddr],
        failures: &Failures,
        began: Instant,
    ) {
        let took = now() - began;
        let attached = self.host.attached();
        let without_xdp = self.host.without_xdp();
        let attachments = attached.iter().map(attachment).chain(without_xdp.iter().map(no_xdp));
        let attachments: Vec<report::Attachment> = attachments.collect();
        let errors = failures.all();
        let mut not_ready: Vec<NotReady> = Vec::new();
        if let Some(message) = failures.write.clone() {
            not_ready.push(NotReady {
                cause: Cause::WriteFailed,
                message,
            });
        }
        let host = failures.host.iter().map(|m| NotReady {
            cause: Cause::AttachFailed,
            message: m.clone(),
        });
        not_ready.extend(host);
        let changes = &mut self.changes;
        self.state.send_modify(|state| {
            state.attachments = attachments;
            state.error = (!errors.is_empty()).then(|| errors.join("; "));
            if errors.is_empty() {
                state.cycles += 1;
                state.success_at = Some(now());
                state.figures.cycles.add(took);
            } else {
                state.failures += 1;
            }
            if let Some(published) = &published {
                not_ready.extend(readiness::missing(&published.desired.node, table));
                let (left_out, starved) = (published.devices_left_out, published.starved);
                state.warnings = readiness::warnings(table, conflicts, left_out, starved);
                if self.fixed.config.drain {
                    state.warnings.push(readiness::draining());
                }
                state.programmed = source.generation;
                let at = wall();
                state.programmed_at = Some(at);
                let figures = &mut state.figures;
                changes.programmed(source.generation, at, figures);
                figures.no_local_endpoints = published.no_local_endpoints;
                if published.adopted {
                    figures.full_cycles.add(took);
                } else {
                    figures.partial_cycles.add(took);
                }
                state.pending_since = state.seen_at.filter(|_| state.seen > state.programmed);
                state.nodeport_addresses.clone_from(&published.nodeport_addresses);
                state.rejections = published.rejections.clone().into();
                state.tables = table_fill(&published.planner, self.store.as_ref());
                state.desired = Some(Arc::clone(&published.desired));
                if published.operations > 0 {
                    state.last_operations = published.operations as u64;
                    state.last_milliseconds = took.as_millis() as u64;
                }
            }
            state.not_ready = not_ready;
        });
        if let Some(published) = published {
            self.starved = match (published.starved, published.operations) {
                (false, _) => Starved::No,
                (true, 0) => Starved::Yes,
                (true, _) => Starved::GaveUp,
            };
            if published.operations > 0 || !self.filled {
                info!(
                    ops = published.operations,
                    ms = took.as_millis() as u64,
                    adopt_ms = published.times.adopt,
                    model_ms = published.times.model,
                    plan_ms = published.times.plan,
                    write_ms = published.times.write,
                    generation = source.generation,
                    services = published.desired.service_ports.len(),
                    rejections = published.rejections.len(),
                    adopted = published.adopted,
                    "published"
                );
            }
            self.filled = true;
            self.planner = Some(published.planner);
            self.memory = Some(published.memory);
        }
    }

    /// Tells what a sweep found.
    pub(super) fn tell_swept(&self, swept: Swept) {
        self.state.send_modify(|state| {
            let mut flows = swept.flows;
            for summary in &mut flows {
                let before = state.flows.iter().find(|before| before.family == summary.family);
                summary.expired += before.map_or(0, |before| before.expired);
            }
            state.flows = flows;
            state.flow_tables = swept.fill;
            state.service_flows = Some(swept.services.into());
        });
    }

    /// Logs errors that were not there after the last cycle.
    pub(super) fn log(&mut self, errors: Vec<String>) {
        for error in errors.iter().filter(|error| !self.logged.contains(error)) {
            error!(error, "not forwarding as desired; tried again");
        }
        if errors.is_empty() && !self.logged.is_empty() {
            info!("forwarding as desired again");
        }
        self.logged = errors;
    }
}

fn attachment(attached: &Attachment) -> report::Attachment {
    report::Attachment {
        interface: attached.ifname.clone(),
        ifindex: attached.ifindex,
        role: attached.role.name().to_owned(),
        direction: attached.hook.name().to_owned(),
        method: method_name(attached.hook, attached.kind).to_owned(),
        error: None,
    }
}

/// An uplink that tc alone serves.
fn no_xdp((uplink, left): &(Interface, Left)) -> report::Attachment {
    report::Attachment {
        interface: uplink.name.clone(),
        ifindex: uplink.ifindex,
        role: uplink.role.name().to_owned(),
        direction: Hook::Xdp.name().to_owned(),
        method: "off".to_owned(),
        error: Some(left.to_string()),
    }
}

/// An error with its causes, for logs and status.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
