//! A loop with a source, a host and tables that the test holds in its hands; time is tokio's, paused.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::config::Config;
use crate::datapath::attach::{Attachment, Hook, Kind, Left, Trust};
use crate::datapath::interfaces::{Interface, InterfaceTable, Role};
use crate::datapath::steer::{RouteNeeds, RouteReport, SteerDevice};
use crate::maps::{Dump, MapStore, Referred};
use crate::reconcile::{Host, HostError, Parts, Reconciler, Sweep, Swept};
use crate::source::{Publisher, SourceHandle, SourceState, channel};
use crate::status::State;
use crate::status::report::{Cause, ServiceFilter, ServiceItem};

/// Interface index of our device.
pub(super) const STEER: u32 = 9;

/// What the test and the host share.
#[derive(Debug, Default)]
pub(super) struct HostMemory {
    pub(super) node_addresses: BTreeSet<IpAddr>,
    pub(super) attached: Vec<Attachment>,
    pub(super) attach_calls: Vec<Trust>,
    pub(super) routes: BTreeSet<IpAddr>,
    pub(super) route_source: Option<IpAddr>,
    /// What happened, in order: `attach`, `route`.
    pub(super) order: Vec<&'static str>,
    /// How many calls fail from now on.
    pub(super) failing_attachments: usize,
    pub(super) failing_devices: usize,
}

pub(super) struct TestHost {
    memory: Arc<Mutex<HostMemory>>,
    tables: watch::Sender<Arc<InterfaceTable>>,
}

/// The table with our device in it.
fn with_steer(table: &InterfaceTable) -> InterfaceTable {
    let mut table = table.clone();
    if table.with_role(Role::Steer).next().is_none() {
        table.interfaces.push(interface(STEER, "steer0", Role::Steer, &[]));
        table.generation += 1;
    }
    table
}

impl Host for TestHost {
    fn tables(&self) -> watch::Receiver<Arc<InterfaceTable>> {
        self.tables.subscribe()
    }

    fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> bool {
        let mut memory = self.memory.lock().unwrap();
        let changed = memory.node_addresses != addresses;
        memory.node_addresses = addresses;
        changed
    }

    async fn ensure_device(&mut self, _mtu: Option<u32>) -> Result<SteerDevice, HostError> {
        let mut memory = self.memory.lock().unwrap();
        if memory.failing_devices > 0 {
            memory.failing_devices -= 1;
            return Err(HostError::Injected("no device"));
        }
        self.tables.send_if_modified(|table| {
            let whole = with_steer(table);
            let changed = whole != **table;
            *table = Arc::new(whole);
            changed
        });
        Ok(SteerDevice {
            ifindex: STEER,
            mac: [2, 0, 0, 0, 0, 9],
            mtu: 1500,
        })
    }

    async fn attach(&mut self, table: &InterfaceTable, trust: Trust) -> Vec<HostError> {
        let mut memory = self.memory.lock().unwrap();
        memory.order.push("attach");
        memory.attach_calls.push(trust);
        if memory.failing_attachments > 0 {
            memory.failing_attachments -= 1;
            return vec![HostError::Injected("cannot attach")];
        }
        let hooked = table.interfaces.iter().filter(|i| i.role != Role::Unhooked);
        let attached = hooked.map(|i| Attachment {
            ifindex: i.ifindex,
            ifname: i.name.clone(),
            role: i.role,
            hook: Hook::Egress,
            kind: Some(Kind::Tcx),
        });
        memory.attached = attached.collect();
        Vec::new()
    }

    fn attached(&self) -> Vec<Attachment> {
        self.memory.lock().unwrap().attached.clone()
    }

    fn without_xdp(&self) -> Vec<(Interface, Left)> {
        Vec::new()
    }

    async fn route(&mut self, needs: RouteNeeds, _trust: Trust) -> Result<RouteReport, HostError> {
        let mut memory = self.memory.lock().unwrap();
        memory.order.push("route");
        let may_stay = |address: &&IpAddr| needs.may_go.as_ref().is_some_and(|free| !free.contains(*address));
        let left_over: Vec<IpAddr> = memory
            .routes
            .difference(&needs.vips)
            .filter(may_stay)
            .copied()
            .collect();
        memory.routes = needs.vips.iter().chain(&left_over).copied().collect();
        memory.route_source = needs.source_v4.map(IpAddr::V4);
        Ok(RouteReport {
            left_over,
            ..RouteReport::default()
        })
    }
}

/// Finds that nothing is referred to; counts its calls.
#[derive(Debug, Default)]
pub(super) struct EmptySweep(pub(super) AtomicU64);

impl Sweep for EmptySweep {
    fn sweep(&self, store: &dyn MapStore) -> Result<Swept, String> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let backends = store.words(crate::maps::Table::Backends).len();
        Ok(Swept {
            referred: Referred::none(backends),
            fill: Vec::new(),
            flows: Vec::new(),
            services: Vec::new(),
        })
    }
}

pub(super) fn interface(ifindex: u32, name: &str, role: Role, addresses: &[&str]) -> Interface {
    Interface {
        ifindex,
        name: name.to_owned(),
        role,
        up: true,
        mtu: 1500,
        mac: Some([2, 0, 0, 0, 0, ifindex as u8]),
        ethernet: true,
        metadata: false,
        veth: false,
        peer_elsewhere: false,
        carries_vlans: false,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        bridge: None,
    }
}

/// lo and an uplink with the node's address.
pub(super) fn usual_interfaces() -> Vec<Interface> {
    vec![
        interface(1, "lo", Role::Lo, &["127.0.0.1"]),
        interface(2, "eth0", Role::Uplink, &[crate::test_objects::NODE_ADDRESS]),
    ]
}

pub(super) struct World {
    pub(super) publisher: Publisher,
    pub(super) source: SourceHandle,
    pub(super) tables: watch::Sender<Arc<InterfaceTable>>,
    pub(super) host: Arc<Mutex<HostMemory>>,
    pub(super) store: Arc<dyn MapStore>,
    pub(super) sweeps: Arc<EmptySweep>,
    pub(super) state: watch::Receiver<State>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl World {
    pub(super) fn start(store: Arc<dyn MapStore>, interfaces: Vec<Interface>) -> Self {
        Self::start_with(store, interfaces, crate::test_objects::config(&[]), |_| {})
    }

    pub(super) fn start_with(
        store: Arc<dyn MapStore>,
        interfaces: Vec<Interface>,
        config: Config,
        prepare: impl FnOnce(&mut HostMemory),
    ) -> Self {
        let (publisher, source) = channel("not read yet");
        let handle = source.handle();
        let tables = watch::Sender::new(Arc::new(table(interfaces, 1)));
        let host = Arc::new(Mutex::new(HostMemory::default()));
        prepare(&mut host.lock().unwrap());
        let sweeps = Arc::new(EmptySweep::default());
        let sender = watch::Sender::new(State::starting());
        let state = sender.subscribe();
        let reconciler = Reconciler::new(Parts {
            config,
            source,
            store: Arc::clone(&store),
            host: TestHost {
                memory: Arc::clone(&host),
                tables: tables.clone(),
            },
            sweep: Arc::<EmptySweep>::clone(&sweeps),
            hz: 250,
            state: sender,
            random: 7,
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(reconciler.run(async move {
            let _stopped_or_dropped = stopped.await;
        }));
        Self {
            publisher,
            source: handle,
            tables,
            host,
            store,
            sweeps,
            state,
            stop: Some(stop),
            task,
        }
    }

    /// Publishes objects; gives their generation.
    pub(super) fn publish(&mut self, state: SourceState) -> u64 {
        self.publisher.publish(state).generation
    }

    /// Changes the interfaces.
    pub(super) fn set_interfaces(&self, interfaces: Vec<Interface>) {
        self.tables
            .send_modify(|before| *before = Arc::new(with_steer(&table(interfaces, before.generation + 1))));
    }

    /// Waits for a state, an hour of paused time at most.
    #[track_caller]
    pub(super) fn until(
        &mut self,
        what: &'static str,
        wanted: impl FnMut(&State) -> bool,
    ) -> impl Future<Output = State> {
        let state = &mut self.state;
        async move {
            let waited = timeout(Duration::from_hours(1), state.wait_for(wanted)).await;
            let found = waited.map(|found| found.expect("the loop lives").clone());
            found.unwrap_or_else(|_| panic!("never {what}: {:#?}", state.borrow().clone()))
        }
    }

    pub(super) async fn programmed(&mut self, generation: u64) -> State {
        self.until("programmed", |state| {
            state.programmed >= generation && state.error.is_none()
        })
        .await
    }

    /// The causes for not being ready.
    pub(super) fn causes(state: &State) -> Vec<Cause> {
        state.not_ready.iter().map(|cause| cause.cause).collect()
    }

    /// The service ports as the tables have them.
    pub(super) fn services(&self) -> Vec<ServiceItem> {
        services(self.store.as_ref())
    }

    /// Ends the loop as SIGTERM would.
    pub(super) async fn stop(mut self) -> Arc<dyn MapStore> {
        drop(self.stop.take());
        self.task.await.unwrap();
        self.store
    }
}

pub(super) fn services(store: &dyn MapStore) -> Vec<ServiceItem> {
    crate::status::services_of(&Dump::of(store).unwrap(), &ServiceFilter::default())
}

fn table(interfaces: Vec<Interface>, generation: u64) -> InterfaceTable {
    let local_addresses = interfaces.iter().flat_map(|i| i.addresses.iter().copied()).collect();
    InterfaceTable {
        interfaces,
        local_addresses,
        generation,
    }
}
