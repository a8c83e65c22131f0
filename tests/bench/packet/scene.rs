//! The node whose programs are measured: a real agent on real objects, in a world of its own.
//!
//! The Service `bench` has a LoadBalancer IP and a ClusterIP in each family and backends on another node, so that what comes in by
//! the uplink is translated on both sides. Further Services stand beside it, as many as are asked for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lb_tests::agent::Agent;
use lb_tests::objects::{Folder, NodeObject, SliceObject, documents, service, slice};
use lb_tests::world::World;
use steerway::datapath::clock::Clock;
use steerway::flows::{Flow, Sweeper, dump};
use steerway::maps::{BpfStore, MapStore as _, Table};

/// The Service's port.
const PORT: u16 = 80;
/// The backends' ports begin here; they differ in the last four bits.
pub(super) const BACKEND_PORT: u16 = 0x1f90;
/// Ports of a backend's address, and addresses: so many that a million flows find ports of the node in few tries.
const PORTS: u16 = 8;
const HOSTS: u8 = 200;
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
    /// A world of two nodes with an agent on the first, and as many Services beside the one that is measured, with ten endpoints
    /// each, and a table that is made for a number of flows.
    pub(super) fn new(others: u16, table_flows: usize) -> Result<Self> {
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
        let bench = service("default", "bench")
            .cluster_ip("10.96.0.10")
            .cluster_ip("fd00:10:96::10")
            .port("tcp", PORT, "TCP")
            .target_port(BACKEND_PORT)
            .port("udp", PORT, "UDP")
            .target_port(BACKEND_PORT)
            .load_balancer_ip(&balancer(false).to_string())
            .load_balancer_ip(&balancer(true).to_string());
        folder.put(&bench);
        for v6 in [false, true] {
            for number in 0..PORTS {
                let port = BACKEND_PORT + number;
                let object = empty_slice("bench", &format!("{number}"), v6, port);
                folder.put(&(1..=HOSTS).fold(object, |object, host| object.endpoint(backend(v6, host)).node("node2")));
            }
        }
        folder.write("others.yaml", &other_services(others));
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
            *read == u64::from(others) + 1,
            "the agent has read {read} Services, not {others} and one"
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

    /// Forgets all flows.
    pub(super) fn clear(&self) {
        for table in [Table::FlowsV4, Table::FlowsV6] {
            let words = self.store.words(table);
            (0..words.len()).for_each(|index| words.store(index, 0));
        }
    }

    /// Sweeps both families' tables as the agent does; milliseconds.
    pub(super) fn sweep(&self) -> Result<f64> {
        let now = Clock::open()?.jiffies()?;
        let started = Instant::now();
        Sweeper::default().sweep(&self.store, now);
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }

    /// The flows that stand.
    pub(super) fn flows(&self) -> Vec<Flow> {
        dump(&self.store, 0).collect()
    }
}

/// The Services beside the one that is measured.
fn other_services(count: u16) -> String {
    let mut text = String::new();
    for number in 0..count {
        let [high, low] = number.to_be_bytes();
        let name = format!("other{number}");
        let other = service("default", &name)
            .cluster_ip(&Ipv4Addr::new(10, 97, high, low).to_string())
            .port("tcp", PORT, "TCP")
            .target_port(BACKEND_PORT);
        let endpoints = (1..=10).fold(empty_slice(&name, "0", false, BACKEND_PORT), |object, host| {
            object.endpoint(Ipv4Addr::new(10, 128 + high, low, host)).node("node2")
        });
        text += "---\n";
        text += &documents(&[&other, &endpoints]);
    }
    text
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
