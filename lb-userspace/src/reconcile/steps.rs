//! The steps of a cycle in their order: our device, tables, programs, routes. Each notes what it could not do.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::debug;

use super::cycle::{Memory, Published, Work};
use super::tell::chain;
use super::words;
use super::{Host, Reconciler};
use crate::datapath::attach::Trust;
use crate::datapath::interfaces::{Interface, InterfaceTable, Role};
use crate::datapath::steer::{RouteNeeds, SteerDevice};
use crate::flows;
use crate::model::Family;
use crate::source::SourceState;

/// How long a cycle waits for the interface table to follow what the cycle itself changed.
const TABLE_FOLLOWS: Duration = Duration::from_millis(200);

/// What a cycle could not do; it is tried again.
#[derive(Default)]
pub(super) struct Failures {
    pub(super) write: Option<String>,
    pub(super) host: Vec<String>,
}

impl Failures {
    pub(super) fn all(&self) -> Vec<String> {
        self.write.iter().chain(&self.host).cloned().collect()
    }
}

impl<H: Host> Reconciler<H> {
    /// Tells the node's addresses to those who find uplinks and makes our device; gives the table that has both.
    pub(super) async fn prepare(
        &mut self,
        source: &SourceState,
        trust: Trust,
        failures: &mut Failures,
    ) -> Arc<InterfaceTable> {
        let node = source
            .snapshot
            .node
            .as_ref()
            .filter(|node| node.name == self.fixed.model.node_name);
        let addresses: BTreeSet<IpAddr> = node.iter().flat_map(|node| node.addresses.iter().copied()).collect();
        let is_new = |i: &Interface| i.role != Role::Uplink && i.addresses.iter().any(|own| addresses.contains(own));
        let uplink_comes = self.tables.borrow().interfaces.iter().any(is_new);
        if self.host.set_node_addresses(addresses) && uplink_comes {
            // No change follows where its role is set by hand.
            let _no_change = timeout(TABLE_FOLLOWS, self.tables.changed()).await;
        }
        let table = Arc::clone(&self.tables.borrow_and_update());
        let known = self.steer.is_some_and(|(_, generation)| generation == table.generation);
        if known && trust == Trust::Known {
            return table;
        }
        match self.host.ensure_device(table.smallest_mtu()).await {
            Ok(device) => {
                let table = self.table_with(device).await;
                self.steer = Some((device, table.generation));
                table
            }
            Err(error) => {
                self.steer = None;
                failures.host.push(chain(&error));
                table
            }
        }
    }

    /// The table, once our device is in it.
    async fn table_with(&mut self, device: SteerDevice) -> Arc<InterfaceTable> {
        let has = |table: &Arc<InterfaceTable>| {
            table
                .with_role(Role::Steer)
                .any(|found| found.ifindex == device.ifindex)
        };
        let found = timeout(TABLE_FOLLOWS, self.tables.wait_for(has)).await;
        drop(found);
        Arc::clone(&self.tables.borrow_and_update())
    }

    /// Model, plan and operations, on a thread of their own.
    pub(super) async fn publish(
        &mut self,
        objects: Arc<SourceState>,
        table: Arc<InterfaceTable>,
        trust: Trust,
        failures: &mut Failures,
    ) -> Option<Published> {
        let planner = self.planner.take().filter(|_| trust == Trust::Known);
        if planner.is_none() {
            self.upkeep.forget();
        }
        let memory = self.memory.take();
        let work = Work {
            fixed: Arc::clone(&self.fixed),
            store: Arc::clone(&self.store),
            planner,
            memory: memory.unwrap_or_else(|| Memory::new(&self.fixed)),
            objects,
            table,
            steer: self.steer.map(|(device, _)| device),
        };
        match tokio::task::spawn_blocking(|| work.run()).await {
            Ok(Ok(published)) => return Some(published),
            Ok(Err(error)) => failures.write = Some(chain(&error)),
            Err(error) => failures.write = Some(chain(&error)),
        }
        self.upkeep.forget();
        None
    }

    pub(super) async fn attach(&mut self, table: &InterfaceTable, trust: Trust, failures: &mut Failures) {
        let errors = self.host.attach(table, trust).await;
        failures.host.extend(errors.iter().map(|error| chain(error)));
    }

    /// Programs, then routes; gives the VIPs that have somebody else's route.
    pub(super) async fn attach_and_route(
        &mut self,
        published: &Published,
        table: &InterfaceTable,
        trust: Trust,
        failures: &mut Failures,
    ) -> Vec<IpAddr> {
        self.attach(table, trust, failures).await;
        let Some((device, _)) = self.steer else {
            return Vec::new();
        };
        if !self
            .host
            .attached()
            .iter()
            .any(|attached| attached.ifindex == device.ifindex)
        {
            failures
                .host
                .push("no program runs on our device yet: Service addresses get no route".to_owned());
            return Vec::new();
        }
        let source = |family| words::node_source(table, &published.desired.node, &published.vips, family);
        let (source_v4, source_v6) = (source(Family::V4), source(Family::V6));
        let may_go = self
            .lingering
            .may_go(&published.routed, || flows::host_connections(self.store.as_ref()));
        let needs = RouteNeeds {
            steer_ifindex: device.ifindex,
            vips: Arc::clone(&published.routed),
            ranges: published.desired.service_cidrs.clone(),
            local: table.local_addresses.clone(),
            may_go: Some(may_go),
            source_v4: source_v4.and_then(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None }),
            source_v6: source_v6.and_then(|address| if let IpAddr::V6(v6) = address { Some(v6) } else { None }),
        };
        match self.host.route(needs, trust).await {
            Ok(report) => {
                if report.added + report.changed + report.removed > 0 {
                    debug!(
                        added = report.added,
                        changed = report.changed,
                        removed = report.removed,
                        "routes changed"
                    );
                }
                self.lingering.note(&published.routed, &report.left_over);
                report.conflicts
            }
            Err(error) => {
                failures.host.push(chain(&error));
                Vec::new()
            }
        }
    }
}
