//! Flows for people, decoded from the pinned tables: the same with and without a running agent.
//!
//! Reading stops nobody and is no snapshot: a flow that changes meanwhile may be missing or come twice.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use lb_common::layout::config;
use lb_common::wire::{TCP, UDP};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::pinned::{PinnedError, open};
use crate::datapath::clock::{Clock, ClockError};
use crate::flows::{self, Flow};
use crate::maps::{MapError, MapStore, Table};
use crate::model::ServicePortKey;
use crate::plan::parse_service_port_name;

/// Why flows cannot be told.
#[derive(Debug, Error)]
pub enum FlowError {
    /// The pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinnedError),
    /// The kernel's clock cannot be read, and without it no age can be told.
    #[error("the kernel's clock cannot be read")]
    Clock(#[from] ClockError),
}

/// Which flows to list; what is absent admits all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// `TCP` or `UDP`.
    pub protocol: Option<String>,
    /// Name of the state.
    pub state: Option<String>,
    /// Namespace of the Service.
    pub namespace: Option<String>,
    /// Name of the Service.
    pub service: Option<String>,
    /// Address, and port where one is given, of the client.
    pub client: Option<Endpoint>,
    /// The same of the frontend.
    pub frontend: Option<Endpoint>,
    /// The same of the backend.
    pub backend: Option<Endpoint>,
}

/// An address with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Any port.
    Address(IpAddr),
    /// This one.
    Socket(SocketAddr),
}

impl Endpoint {
    fn admits(self, socket: SocketAddr) -> bool {
        match self {
            Self::Address(address) => address == socket.ip(),
            Self::Socket(wanted) => wanted == socket,
        }
    }
}

impl std::str::FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.parse().map(Self::Address);
        address
            .or_else(|_| text.parse().map(Self::Socket))
            .map_err(|_| "use an address, or an address with a port such as 10.0.0.1:80 or [fd00::1]:80")
    }
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowItem {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Who sends.
    pub client: SocketAddr,
    /// Where to.
    pub frontend: SocketAddr,
    /// Who the backend sees: the client, or this node.
    pub source: SocketAddr,
    /// Who gets it.
    pub backend: SocketAddr,
    /// `unanswered`, `answered`, `established`, `closing` or `closed`.
    pub state: String,
    /// Seconds since the client's last packet, near enough.
    pub idle_seconds: u64,
    /// Seconds of idleness after which it ends.
    pub timeout_seconds: u64,
    /// Namespace of its Service; empty when the Service is gone.
    pub namespace: String,
    /// Name of its Service; empty when the Service is gone.
    pub service: String,
    /// Name of the Service's port.
    pub port_name: String,
    /// Id of the backend in the tables.
    pub backend_id: u32,
}

/// The flows in the tables pinned in `pin_dir`, in no order. Loads a program of two instructions to read the clock.
///
/// # Errors
/// There are no tables, or the kernel refuses.
pub fn flows_from_pins(pin_dir: &Path, filter: &FlowFilter) -> Result<Vec<FlowItem>, FlowError> {
    let store = open(pin_dir)?;
    let now = Clock::open()?.jiffies()?;
    Ok(flows(&store, now, filter).map_err(PinnedError::Read)?)
}

/// The flows of a store at `now` (jiffies).
pub(crate) fn flows(store: &dyn MapStore, now: u32, filter: &FlowFilter) -> Result<Vec<FlowItem>, MapError> {
    let hz = store.words(Table::Config).load(config::HZ).max(1);
    let names = store.names()?;
    let keys: BTreeMap<u32, ServicePortKey> = names
        .into_iter()
        .filter_map(|(id, name)| Some((id, parse_service_port_name(&name)?)))
        .collect();
    let item = |flow: Flow| item(&flow, keys.get(&flow.service), hz);
    Ok(flows::dump(store, now)
        .filter(|flow| addresses_admit(filter, flow))
        .map(item)
        .filter(|i| admits(filter, i))
        .collect())
}

fn addresses_admit(filter: &FlowFilter, flow: &Flow) -> bool {
    let pairs = [
        (filter.client, flow.client),
        (filter.frontend, flow.frontend),
        (filter.backend, flow.backend),
    ];
    pairs
        .into_iter()
        .all(|(wanted, found)| wanted.is_none_or(|wanted| wanted.admits(found)))
}

fn admits(filter: &FlowFilter, item: &FlowItem) -> bool {
    let pairs = [
        (&filter.protocol, &item.protocol),
        (&filter.state, &item.state),
        (&filter.namespace, &item.namespace),
        (&filter.service, &item.service),
    ];
    pairs
        .into_iter()
        .all(|(wanted, found)| wanted.as_ref().is_none_or(|wanted| wanted == found))
}

fn item(flow: &Flow, key: Option<&ServicePortKey>, hz: u64) -> FlowItem {
    let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
    FlowItem {
        protocol: match flow.protocol {
            TCP => "TCP".to_owned(),
            UDP => "UDP".to_owned(),
            other => other.to_string(),
        },
        client: flow.client,
        frontend: flow.frontend,
        source: flow.source,
        backend: flow.backend,
        state: flow.state.name().to_owned(),
        idle_seconds: u64::from(flow.idle) / hz,
        timeout_seconds: flow.timeout / hz,
        namespace: text(key.map(|key| key.namespace.as_ref())),
        service: text(key.map(|key| key.name.as_ref())),
        port_name: text(key.map(|key| key.port.as_ref())),
        backend_id: flow.backend_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> FlowItem {
        let flow = Flow {
            protocol: TCP,
            client: "10.0.0.9:40000".parse().unwrap(),
            frontend: "10.96.0.1:80".parse().unwrap(),
            source: "192.0.2.1:20000".parse().unwrap(),
            backend: "10.0.0.1:8080".parse().unwrap(),
            state: flows::FlowState::Established,
            service: 3,
            backend_id: 4,
            generation: 1,
            idle: 750,
            timeout: 86_400 * 250,
        };
        let admitted = |filter: &FlowFilter| addresses_admit(filter, &flow);
        let endpoint = |text: &str| Some(text.parse::<Endpoint>().unwrap());
        assert!(admitted(&FlowFilter {
            client: endpoint("10.0.0.9"),
            ..FlowFilter::default()
        }));
        assert!(admitted(&FlowFilter {
            backend: endpoint("10.0.0.1:8080"),
            ..FlowFilter::default()
        }));
        assert!(!admitted(&FlowFilter {
            frontend: endpoint("10.96.0.1:81"),
            ..FlowFilter::default()
        }));
        item(
            &flow,
            parse_service_port_name("default/web:http/TCP/IPv4").as_ref(),
            250,
        )
    }

    #[test]
    fn ages_are_seconds_and_services_have_their_names() {
        let item = flow();
        assert_eq!((item.idle_seconds, item.timeout_seconds), (3, 86_400));
        assert_eq!(
            (item.namespace.as_str(), item.service.as_str(), item.port_name.as_str()),
            ("default", "web", "http")
        );
    }

    #[test]
    fn filters_join_by_and() {
        let text = |text: &str| Some(text.to_owned());
        let filter = FlowFilter {
            protocol: text("TCP"),
            service: text("web"),
            ..FlowFilter::default()
        };
        assert!(admits(&filter, &flow()));
        assert!(!admits(
            &FlowFilter {
                namespace: text("kube-system"),
                ..filter.clone()
            },
            &flow()
        ));
        assert!(!admits(
            &FlowFilter {
                state: text("closed"),
                ..filter
            },
            &flow()
        ));
    }

    #[test]
    fn an_endpoint_is_an_address_with_or_without_a_port() {
        assert_eq!("fd00::1".parse(), Ok(Endpoint::Address("fd00::1".parse().unwrap())));
        assert_eq!(
            "[fd00::1]:80".parse(),
            Ok(Endpoint::Socket("[fd00::1]:80".parse().unwrap()))
        );
        assert!("web:80".parse::<Endpoint>().is_err());
    }
}
