//! The node whose programs are measured: a real agent on real objects, in a world of its own.
//!
//! The Service `bench` has a LoadBalancer IP and a ClusterIP in each family and backends on another node, so that what comes in by
//! the uplink is translated on both sides. `near` has a backend on this node: its packets go on by the stack. Further Services stand
//! beside them, as many as are asked for, with the same addresses of their own.

use std::hint::black_box;
use std::iter::StepBy;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_common::flow::state::{Control, ESTABLISHED, LIVE, SETTLED};
use lb_common::layout::SET_SLOTS;
use lb_tests::agent::Agent;
use lb_tests::objects::{Folder, NodeObject, ServiceObject, SliceObject, documents, service, slice};
use lb_tests::world::World;
use steerway::datapath::clock::Clock;
use steerway::flows::{Flow, Sweeper, dump};
use steerway::maps::{BpfStore, MapStore as _, Table, Words};

use crate::processors;
use crate::programs::End;

/// The Service's port.
const PORT: u16 = 80;
/// The backends' ports begin here; they differ in the last four bits.
pub(super) const BACKEND_PORT: u16 = 0x1f90;
/// Ports of a backend's address, and addresses: so many that a million flows find ports of the node in few tries.
const PORTS: u16 = 8;
const HOSTS: u8 = 200;
/// Backends of each other Service, where nothing else is asked.
pub(super) const OTHERS_HOSTS: u8 = 10;
/// Most flows at once.
pub(super) const MOST_FLOWS: usize = 1 << 20;
/// Flows that the table of [`Scene::new`] is made for: in one for just as many, some of a million that nobody has answered displace others.
pub(super) const TABLE_FLOWS: usize = 2 * MOST_FLOWS;

/// The scene. The agent goes before the world.
pub(super) struct Scene {
    agent: Agent,
    _folder: Folder,
    pub(super) world: World,
    pub(super) store: BpfStore,
}

impl Scene {
    /// A world of two nodes with an agent on the first, as many Services with so many backends each beside `bench` and `near`, and a table
    /// that is made for a number of flows.
    pub(super) fn new(others: u16, others_hosts: u8, table_flows: usize) -> Result<Self> {
        let world = World::builder().pods_per_node(1).xdp().build();
        // XDP sends to nobody whose address it does not know.
        let node2 = world.node(2);
        world.node(1).ns.ip_batch(&format!(
            "neigh replace {} lladdr 02:31:00:00:00:0c dev eth0 nud permanent\n\
             neigh replace {} lladdr 02:31:00:00:00:0c dev eth0 nud permanent\n\
             neigh replace 172.31.0.1 lladdr 02:31:00:00:00:01 dev eth0 nud permanent\n\
             neigh replace fd00:31::1 lladdr 02:31:00:00:00:01 dev eth0 nud permanent\n",
            node2.ip4, node2.ip6
        ));
        let folder = Folder::new();
        for node in world.nodes() {
            folder.put(&NodeObject::from(node));
        }
        let with_udp = |object: ServiceObject| object.port("udp", PORT, "UDP").target_port(BACKEND_PORT);
        folder.put(&with_udp(frontends(
            "bench",
            [false, true].map(|v6| (cluster(v6), balancer(v6))),
        )));
        folder.put(&frontends(
            "near",
            [false, true].map(|v6| (near_cluster(v6), near(v6).ip())),
        ));
        for v6 in [false, true] {
            for number in 0..PORTS {
                let port = BACKEND_PORT + number;
                let object = empty_slice("bench", &format!("{number}"), v6, port);
                folder.put(&(1..=HOSTS).fold(object, |object, host| object.endpoint(backend(v6, host)).node("node2")));
            }
            let pod = &world.node(1).pods[0];
            folder.put(
                &empty_slice("near", "0", v6, BACKEND_PORT)
                    .endpoint(pod.ip_like(near(v6).ip()))
                    .node("node1"),
            );
        }
        folder.write("others.yaml", &other_services(others, others_hosts));
        let flows = table_flows.to_string();
        let mut agent = Agent::start(
            world.node(1),
            &folder,
            &["--flow-entries", &flows, "--answer-rate", "1000000", "--xdp", "native"],
        );
        agent.wait_ready();
        // A file that cannot be read would leave them out.
        let read = &agent.json(&["status"])["source"]["services"];
        ensure!(
            *read == u64::from(others) + 2,
            "the agent has read {read} Services, not {others} and two"
        );
        let store = BpfStore::open(&agent.pin_dir().join("maps")).context("the agent's maps")?;
        Ok(Self {
            agent,
            _folder: folder,
            world,
            store,
        })
    }

    /// The id of a family's flow table.
    pub(super) fn table_id(&self, v6: bool) -> Result<u32> {
        let path = self.agent.pin_dir().join("maps").join(Table::flows(v6).name());
        Ok(aya::maps::MapInfo::from_pin(path)?.id())
    }

    /// What a packet has for a source that this node has translated: its own address, with a port of its choice.
    pub(super) fn own_source(&self, v6: bool) -> End {
        let address = self.world.node(1).ip_like(balancer(v6));
        End::within(address, 128, 0, 0)
    }

    /// Forgets all flows.
    pub(super) fn clear(&self) {
        for table in [Table::FlowsV4, Table::FlowsV6] {
            let words = self.store.words(table);
            (0..words.len()).for_each(|index| words.store(index, 0));
        }
    }

    /// Notes a packet on every entry, as packets do that come once in a while, and that connections have stood for a second: how often they
    /// do, and how long a row takes, is no part of it.
    pub(super) fn note_all(&self) -> Result<()> {
        let now = Clock::open()?.jiffies()?;
        for table in [Table::FlowsV4, Table::FlowsV6] {
            let words = self.store.words(table);
            for at in control_words(table, words) {
                let control = Control::from_word(words.load(at));
                if control.phase() == LIVE {
                    let settled = if control.state & ESTABLISHED == 0 { 0 } else { SETTLED };
                    let noted = Control {
                        state: control.state | settled,
                        last_seen: now,
                        ..control
                    };
                    // One that the agent's sweep has freed meanwhile stays free.
                    words.cas(at, control.word(), noted.word());
                }
            }
        }
        Ok(())
    }

    /// Sweeps both families' tables as the agent does; milliseconds.
    pub(super) fn sweep(&self) -> Result<f64> {
        let now = Clock::open()?.jiffies()?;
        let started = Instant::now();
        Sweeper::default().sweep(&self.store, now);
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }

    /// Reads the first word of every slot of both families' tables, by threads on processors of their own; milliseconds.
    pub(super) fn words(&self, threads: usize) -> Result<f64> {
        let part = |number: usize| {
            processors::pin(number..number + 1)?;
            for table in [Table::FlowsV4, Table::FlowsV6] {
                let words = self.store.words(table);
                let all = control_words(table, words);
                let own = all.len() * number / threads..all.len() * (number + 1) / threads;
                let own = all.skip(own.start).take(own.len());
                black_box(own.fold(0_u64, |sum, at| sum.wrapping_add(words.load(at))));
            }
            Ok(())
        };
        let started = Instant::now();
        thread::scope(|scope| {
            let parts: Vec<_> = (0..threads).map(|number| scope.spawn(move || part(number))).collect();
            let joined = parts
                .into_iter()
                .map(|part| part.join().map_err(|_| anyhow!("a reader has panicked"))?);
            joined.collect::<Result<()>>()
        })?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }

    /// Decodes every flow of both families' tables, one after the other; milliseconds.
    pub(super) fn dump(&self) -> f64 {
        let started = Instant::now();
        dump(&self.store, 0).for_each(|flow| {
            black_box(flow);
        });
        started.elapsed().as_secs_f64() * 1e3
    }

    /// The flows that stand.
    pub(super) fn flows(&self) -> Vec<Flow> {
        dump(&self.store, 0).collect()
    }
}

/// Where the first words of a flow table's slots are.
fn control_words(table: Table, words: &Words) -> StepBy<Range<usize>> {
    let set_words = table.value_words();
    let sets = table.sets_of(words.len()) as usize;
    (0..sets * set_words).step_by(set_words / SET_SLOTS)
}

/// A Service of these ClusterIPs and LoadBalancer IPs, with a port for TCP.
fn frontends(name: &str, addresses: [(IpAddr, IpAddr); 2]) -> ServiceObject {
    let object = service("default", name)
        .port("tcp", PORT, "TCP")
        .target_port(BACKEND_PORT);
    addresses.into_iter().fold(object, |object, (cluster, balancer)| {
        object
            .cluster_ip(&cluster.to_string())
            .load_balancer_ip(&balancer.to_string())
    })
}

/// The Services beside those that have names.
fn other_services(count: u16, hosts: u8) -> String {
    let mut text = String::new();
    for number in 0..count {
        let name = format!("other{number}");
        let addresses = [false, true].map(|v6| (other(v6, 0, number), other(v6, 1, number)));
        text += "---\n";
        text += &documents(&[&frontends(&name, addresses)]);
        for v6 in [false, true] {
            let endpoints = (1..=hosts).fold(empty_slice(&name, "0", v6, BACKEND_PORT), |object, host| {
                object.endpoint(others_backend(v6, number, host)).node("node2")
            });
            text += "---\n";
            text += &documents(&[&endpoints]);
        }
    }
    text
}

/// A ClusterIP (of kind 0) or LoadBalancer IP (of kind 1) of one of the other Services.
fn other(v6: bool, kind: u8, number: u16) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x97 + u16::from(kind), 0, 0, 0, 0, number))
    } else {
        let [high, low] = number.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(10, 97 + kind, high, low))
    }
}

/// A backend's address of one of the other Services.
fn others_backend(v6: bool, number: u16, host: u8) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x8000, 0, 0, 0, number, host.into()))
    } else {
        let [high, low] = number.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(10, 128 + high, low, host))
    }
}

/// What a packet to a backend of any of the other Services has for a destination.
pub(super) fn to_others(v6: bool) -> End {
    End::within(others_backend(v6, 0, 0), if v6 { 48 } else { 9 }, BACKEND_PORT, 16)
}

/// What a packet from the frontend of any of the other Services has for a source.
pub(super) fn from_others(v6: bool) -> End {
    End::within(other(v6, 1, 0), if v6 { 48 } else { 16 }, PORT, 16)
}

/// The frontend that outside clients use of one of the other Services.
pub(super) fn others_frontend(v6: bool, number: u16) -> SocketAddr {
    SocketAddr::new(other(v6, 1, number), PORT)
}

/// A slice of a Service, without endpoints.
fn empty_slice(service: &str, number: &str, v6: bool, port: u16) -> SliceObject {
    let family = if v6 { "v6" } else { "v4" };
    let object = slice("default", &format!("{service}-{family}-{number}"), service);
    let object = if v6 { object.v6() } else { object.v4() };
    object.port_of("tcp", port, "TCP").port_of("udp", port, "UDP")
}

/// The LoadBalancer IP.
fn balancer(v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10))
    } else {
        IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10))
    }
}

/// The ClusterIP.
pub(super) fn cluster(v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10))
    }
}

/// The ClusterIP of `near`.
fn near_cluster(v6: bool) -> IpAddr {
    next(cluster(v6))
}

/// The frontend of `near` that outside clients use.
pub(super) fn near(v6: bool) -> SocketAddr {
    SocketAddr::new(next(balancer(v6)), PORT)
}

/// The address after another.
fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() + 1).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() + 1).into(),
    }
}

/// The frontend that outside clients use.
pub(super) fn frontend(v6: bool) -> SocketAddr {
    SocketAddr::new(balancer(v6), PORT)
}

/// A backend's address: a pod of the second node.
fn backend(v6: bool, host: u8) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, 0, host.into()))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 244, 2, host))
    }
}

/// What a packet to a backend has for a destination.
pub(super) fn to_backends(v6: bool) -> End {
    End::within(backend(v6, 0), if v6 { 64 } else { 24 }, BACKEND_PORT, 12)
}

/// What a packet to an outside client has for a destination.
pub(super) fn to_clients(v6: bool) -> End {
    End::within(client(v6, 0).ip(), if v6 { 64 } else { 16 }, 0, 0)
}

/// An outside client: of each number one, 1,024 ports an address.
pub(super) fn client(v6: bool, number: usize) -> SocketAddr {
    let port = 1024 + (number % 1024) as u16;
    let host = (number / 1024) as u16;
    let address = if v6 {
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, host))
    } else {
        let [high, low] = host.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(198, 18, high, low))
    };
    SocketAddr::new(address, port)
}
