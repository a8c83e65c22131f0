//! What an agent left tells while none runs, pins above all: services, backends, counters, attachments, flows.
//!
//! Read from a [`Dump`] as packets would read it: a service port counts when its word names a block that echoes its id. What
//! only the agent knew (endpoints that nothing uses, nodes, rejections) is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use lb_common::family::{Family as _, Side, V4, V6};
use lb_common::layout::{
    BACKEND_HOST, BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BACKEND_ON_NODE, BACKEND_SERVING, BACKEND_V6, BACKEND_WORDS,
    BLOCK_EXTERNAL_LOCAL, BLOCK_INTERNAL_LOCAL, BackendControl, FRONTEND_CLUSTER, FRONTEND_NODE_PORT, FRONTEND_RANGES,
    FRONTEND_VALID, FrontendValue, SET_SLOTS, ServiceWord, block, owner_word,
};
use thiserror::Error;

use super::report::{
    Attachment, Cause, EndpointItem, FrontendItem, NotReady, Report, ServiceFilter, ServiceItem, TableFill,
};
use super::services::kind_name;
use crate::config::Places;
use crate::datapath::attach::{AttachError, Hook, Kind, method_name, own_filters};
use crate::datapath::netlink::Netlink;
use crate::datapath::pins::PinDir;
use crate::datapath::run_dir::RunDir;
use crate::flows;
use crate::maps::{BpfStore, Dump, MapError, MapStore, OpenError, Table, address_of_words, v4_address, v6_address};
use crate::model::{Family, FrontendKind, ServicePortKey};
use crate::observe::reason_counters;
use crate::plan::{Planner, parse_service_port_name};

/// Why pins tell nothing.
#[derive(Debug, Error)]
pub enum PinnedError {
    /// The maps cannot be opened.
    #[error("the maps cannot be used")]
    Open(#[from] OpenError),
    /// The maps cannot be read.
    #[error("the maps cannot be read")]
    Read(#[from] MapError),
    /// The pinned links cannot be listed.
    #[error("the pinned links cannot be listed")]
    Links(#[source] std::io::Error),
    /// The interfaces cannot be asked for filters.
    #[error("cannot open an rtnetlink socket")]
    Socket(#[source] std::io::Error),
    /// The filters cannot be listed.
    #[error(transparent)]
    Filters(#[from] Box<AttachError>),
}

/// Opens the maps pinned in `pin_dir`.
///
/// # Errors
/// There are none, or they are of another version.
pub(crate) fn open(pin_dir: &Path) -> Result<BpfStore, PinnedError> {
    Ok(BpfStore::open(&PinDir::new(pin_dir).maps())?)
}

/// The state of a pin folder without an agent. Filters are told where they are: in the network namespace that was served.
///
/// # Errors
/// The maps cannot be opened or read, or attachments cannot be listed.
pub async fn report_from_pins(places: &Places) -> Result<Report, PinnedError> {
    let store = open(&places.pin_dir)?;
    let links = PinDir::new(&places.pin_dir).link_pins().map_err(PinnedError::Links)?;
    let links = links.into_iter().map(|pin| (pin.ifindex, pin.ifname, pin.hook));
    let mut attachments: Vec<Attachment> = links.map(|place| attachment(Kind::Tcx, place)).collect();
    if RunDir::new(&places.run_dir).is_this_netns() {
        let netlink = Netlink::open().map_err(PinnedError::Socket)?;
        let filters = own_filters(&netlink).await.map_err(Box::new)?.into_iter();
        let filters = filters.map(|filter| (filter.ifindex, filter.ifname, filter.hook));
        attachments.extend(filters.map(|place| attachment(Kind::Clsact, place)));
    }
    Ok(Report {
        attachments,
        ..report(&store)?
    })
}

/// A program that an agent left.
fn attachment(kind: Kind, (ifindex, interface, hook): (u32, String, Hook)) -> Attachment {
    let role = match kind {
        Kind::Tcx => "pinned",
        Kind::Clsact => "filter",
    };
    Attachment {
        interface,
        ifindex,
        role: role.to_owned(),
        direction: hook.name().to_owned(),
        method: method_name(hook, Some(kind)).to_owned(),
        error: None,
    }
}

/// The service ports that the pins hold.
///
/// # Errors
/// The maps cannot be opened or read.
pub fn services_from_pins(pin_dir: &Path, filter: &ServiceFilter) -> Result<Vec<ServiceItem>, PinnedError> {
    let dump = Dump::of(&open(pin_dir)?)?;
    Ok(services_of(&dump, filter))
}

fn report(store: &dyn MapStore) -> Result<Report, MapError> {
    let mut tables = table_fill(&Planner::adopt(Dump::of(store)?, 0), store);
    tables.extend(flow_fill(store));
    let message = "no agent runs: what is programmed goes on forwarding, changes wait".to_owned();
    Ok(Report {
        not_ready: vec![NotReady {
            cause: Cause::AgentStopped,
            message,
        }],
        tables,
        reasons: reason_counters(store)?,
        ..Report::default()
    })
}

/// How full the published tables are.
pub(crate) fn table_fill(planner: &Planner, store: &dyn MapStore) -> Vec<TableFill> {
    let bytes = |name: &str| {
        let table = Table::ALL.into_iter().find(|table| table.name() == name);
        table.map_or(0, |table| store.words(table).len() as u64 * 8)
    };
    let fill = planner.fill().into_iter();
    fill.map(|f| TableFill {
        name: f.map.to_owned(),
        used: f.used,
        capacity: f.capacity,
        bytes: bytes(f.map),
    })
    .collect()
}

/// How full the flow tables are, by counting: a flow takes two slots.
fn flow_fill(store: &dyn MapStore) -> Vec<TableFill> {
    let mut used = [0, 0];
    for flow in flows::dump(store, 0) {
        used[usize::from(flow.client.is_ipv6())] += 2;
    }
    let fill = [Table::FlowsV4, Table::FlowsV6]
        .into_iter()
        .zip(used)
        .map(|(table, used)| {
            let words = store.words(table).len();
            TableFill {
                name: table.name().to_owned(),
                used,
                capacity: u64::from(table.sets_of(words)) * SET_SLOTS as u64,
                bytes: words as u64 * 8,
            }
        });
    fill.collect()
}

/// Decodes the service ports of a dump, by key.
pub(crate) fn services_of(dump: &Dump, filter: &ServiceFilter) -> Vec<ServiceItem> {
    let tables = Tables { dump };
    let mut found: BTreeMap<ServicePortKey, ServiceItem> = BTreeMap::new();
    let mut frontends = tables.frontends();
    let mut backends = tables.backends();
    for (&id, name) in &dump.names {
        let Some(key) = parse_service_port_name(name).filter(|key| filter.admits(&key.namespace, &key.name)) else {
            continue;
        };
        let Some(header) = tables.block(id) else { continue };
        let flags = (header[block::OWNER as usize] >> 48) as u16;
        let policy = |local: u16| if flags & local != 0 { "Local" } else { "Cluster" };
        let ranges = dump
            .ranges
            .iter()
            .filter(|range| range.service == id)
            .map(|range| range.range.to_string());
        let affinity = header[block::AFFINITY as usize] as u32;
        let item = ServiceItem {
            namespace: key.namespace.as_ref().into(),
            name: key.name.as_ref().into(),
            port_name: key.port.as_ref().into(),
            protocol: key.protocol.as_str().into(),
            family: key.family.as_str().into(),
            service_type: None,
            frontends: frontends.remove(&id).unwrap_or_default(),
            topology: None,
            internal_traffic_policy: Some(policy(BLOCK_INTERNAL_LOCAL).to_owned()),
            external_traffic_policy: Some(policy(BLOCK_EXTERNAL_LOCAL).to_owned()),
            affinity_seconds: (affinity != 0).then_some(affinity),
            source_ranges: ranges.collect(),
            flows: None,
            endpoints: backends.remove(&id).unwrap_or_default(),
        };
        found.insert(key, item);
    }
    found.into_values().collect()
}

/// A dump, word by word.
struct Tables<'a> {
    dump: &'a Dump,
}

impl Tables<'_> {
    fn words(&self, table: Table) -> &[u64] {
        &self.dump.tables[table as usize]
    }

    fn word(&self, table: Table, index: usize) -> u64 {
        self.words(table).get(index).copied().unwrap_or(0)
    }

    /// The header of a service port's block, if packets could use it.
    fn block(&self, id: u32) -> Option<[u64; 8]> {
        let word = ServiceWord::from_word(self.word(Table::Services, id as usize))?;
        let header = std::array::from_fn(|i| self.word(Table::Arena, word.offset as usize + i));
        let owner = header[block::OWNER as usize] << 16 >> 16;
        (owner == owner_word(id, word.generation, 0)).then_some(header)
    }

    /// Frontends by service port id, sorted.
    fn frontends(&self) -> BTreeMap<u32, Vec<FrontendItem>> {
        let mut found: BTreeMap<u32, BTreeSet<(FrontendKind, Option<IpAddr>, u16)>> = BTreeMap::new();
        for family in Family::BOTH {
            let v6 = family == Family::V6;
            let size = if v6 { V6::FRONTEND_WORDS } else { V4::FRONTEND_WORDS };
            for slot in self.words(Table::frontends(v6)).chunks(size) {
                let Some(value) = slot.get(size - 1).map(|word| FrontendValue::from_word(*word)) else {
                    continue;
                };
                if value.flags & FRONTEND_VALID == 0 || value.service == 0 {
                    continue;
                }
                let word = |i: usize| slot[i];
                let (address, port): (IpAddr, u16) = if v6 {
                    let Side { addr, port } = V6::side_from(word);
                    (v6_address(addr).into(), port)
                } else {
                    let Side { addr, port } = V4::side_from(word);
                    (v4_address(addr).into(), port)
                };
                let kind = match value.flags {
                    flags if flags & FRONTEND_NODE_PORT != 0 => FrontendKind::NodePort,
                    flags if flags & FRONTEND_CLUSTER != 0 => FrontendKind::ClusterIp,
                    flags if flags & FRONTEND_RANGES != 0 => FrontendKind::LoadBalancerIp,
                    _ => FrontendKind::ExternalIp,
                };
                let address = (kind != FrontendKind::NodePort).then_some(address);
                found.entry(value.service).or_default().insert((kind, address, port));
            }
        }
        let item = |(kind, address, port): (FrontendKind, Option<IpAddr>, u16)| FrontendItem {
            kind: kind_name(kind).to_owned(),
            address: address.map(|address| address.to_string()),
            port,
        };
        found
            .into_iter()
            .map(|(id, set)| (id, set.into_iter().map(item).collect()))
            .collect()
    }

    /// Backends by service port id, by address.
    fn backends(&self) -> BTreeMap<u32, Vec<EndpointItem>> {
        let mut found: BTreeMap<u32, BTreeMap<(IpAddr, u16), EndpointItem>> = BTreeMap::new();
        for record in self.words(Table::Backends).chunks(BACKEND_WORDS) {
            let &[control, first, second, last] = record else {
                continue;
            };
            let control = BackendControl::from_word(control);
            if control.service == 0 || control.state == 0 {
                continue;
            }
            let (flags, port) = ((last >> 16) as u16, last as u16);
            let address = address_of_words(flags & BACKEND_V6 != 0, [first, second]);
            let item = endpoint(address, port, control.state, flags);
            found.entry(control.service).or_default().insert((address, port), item);
        }
        found
            .into_iter()
            .map(|(id, set)| (id, set.into_values().collect()))
            .collect()
    }
}

fn endpoint(address: IpAddr, port: u16, state: u8, flags: u16) -> EndpointItem {
    let sets = [(BACKEND_IN_CLUSTER, "cluster set"), (BACKEND_IN_LOCAL, "local set")];
    let sets: Vec<&str> = sets
        .into_iter()
        .filter_map(|(bit, name)| (state & bit != 0).then_some(name))
        .collect();
    EndpointItem {
        address: address.to_string(),
        port,
        node: None,
        zone: None,
        local: flags & (BACKEND_ON_NODE | BACKEND_HOST) != 0,
        state: if state & BACKEND_SERVING != 0 {
            "Serving"
        } else {
            "NotReady"
        }
        .to_owned(),
        used: !sets.is_empty(),
        why: if sets.is_empty() {
            "in no set".to_owned()
        } else {
            format!("in the {}", sets.join(" and the "))
        },
    }
}
