//! The cluster of the show: two nodes with an agent each, pods of which one asks and the others serve, one client
//! outside, and the folder that the agents read.
//!
//! ```text
//! client1 ── router ── node1: web-1 web-2
//!                   ── node2: shop web-3, later web-4
//! ```
//! The router brings 203.0.113.10 and .53 (and their IPv6 like) to node2, .20 to node1. Dropping a stage takes all down,
//! agents first.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use lb_tests::agent::Agent;
use lb_tests::traffic::Server;
use lb_tests::world::{Pod, World};

use crate::examples::{Backend, Examples, State};
use crate::lane::{Lane, Ledger, Means, Reach};
use crate::stop::Stop;

/// How long the agents may take to program what the folder holds. A busy machine's verifier takes its time with the
/// programs at the first start.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// The pod that asks.
pub(crate) const SHOP: &str = "shop";
const HTTP_PORT: u16 = 8080;
const UDP_PORT: u16 = 5353;
/// Lines of an agent's log that go into an error.
const LOG_LINES: usize = 15;

/// The cluster. Fields are dropped from the first to the last.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) agents: Vec<Agent>,
    servers: Vec<Server>,
    pub(crate) world: World,
    pub(crate) examples: Examples,
    pub(crate) backends: Vec<Backend>,
}

impl Stage {
    /// Makes nodes, pods, servers and folder; the agents are not started.
    pub(crate) fn build() -> Result<Self> {
        let world = World::builder().pods_per_node(0).build();
        for (prefix, node) in [
            ("203.0.113.10/32", 2),
            ("203.0.113.53/32", 2),
            ("203.0.113.20/32", 1),
            ("2001:db8:113::10/128", 2),
            ("2001:db8:113::53/128", 2),
            ("2001:db8:113::20/128", 1),
        ] {
            world.route_to_node(prefix, node);
        }
        let mut stage = Self {
            agents: Vec::new(),
            servers: Vec::new(),
            world,
            examples: Examples::copy()?,
            backends: Vec::new(),
        };
        for (name, node) in [("web-1", 1), ("web-2", 1), ("web-3", 2)] {
            stage.add_backend(name, node);
        }
        stage.world.add_pod(2, SHOP);
        for node in stage.world.nodes() {
            stage.agents.push(Agent::prepare(node, stage.examples.path(), &[]));
        }
        Ok(stage)
    }

    /// Makes a pod that serves; the EndpointSlices do not tell of it yet.
    pub(crate) fn add_backend(&mut self, name: &str, node: usize) {
        let pod = self.world.add_pod(node, name);
        for address in addresses(&pod) {
            self.servers.push(Server::http(&pod, name, (address, HTTP_PORT)));
            self.servers.push(Server::udp(&pod, name, (address, UDP_PORT)));
        }
        self.backends.push(Backend {
            name: name.to_owned(),
            node,
            addresses: addresses(&pod),
            state: State::Serving,
        });
    }

    /// Changes a backend's entry in the EndpointSlices and waits until both nodes know.
    pub(crate) fn set_state(&mut self, name: &str, state: State, stop: &Stop) -> Result<Duration> {
        for backend in self.backends.iter_mut().filter(|backend| backend.name == name) {
            backend.state = state;
        }
        self.examples.set_backends(&self.backends);
        self.settle(stop)
    }

    /// Puts every backend back into the EndpointSlices.
    pub(crate) fn serve_all(&mut self, stop: &Stop) -> Result<()> {
        for backend in &mut self.backends {
            backend.state = State::Serving;
        }
        self.examples.set_backends(&self.backends);
        self.settle(stop)?;
        Ok(())
    }

    /// Starts the agents that do not run.
    pub(crate) fn start_agents(&mut self) {
        for agent in &mut self.agents {
            if !agent.is_running() {
                agent.restart();
            }
        }
    }

    /// Waits until all that the folder holds is programmed on both nodes; returns how long that took.
    pub(crate) fn settle(&mut self, stop: &Stop) -> Result<Duration> {
        let started = Instant::now();
        for index in 0..self.agents.len() {
            loop {
                let agent = &mut self.agents[index];
                let output = agent.cli(&["status", "--wait", "1"]);
                if output.status.success() {
                    break;
                }
                if !agent.is_running() {
                    bail!(
                        "the agent of node{} has ended; its log:\n{}",
                        index + 1,
                        tail(&agent.log())
                    );
                }
                if started.elapsed() >= SETTLE_LIMIT {
                    let said = String::from_utf8_lossy(&output.stderr).into_owned();
                    return Err(anyhow!("{}\nlog:\n{}", said.trim(), tail(&agent.log()))
                        .context(format!("node{} is not ready in {SETTLE_LIMIT:?}", index + 1)));
                }
                stop.pause(Duration::from_millis(20))?;
            }
        }
        Ok(started.elapsed())
    }

    /// All requests that the show makes.
    pub(crate) fn lanes(&self) -> Vec<Lane> {
        let (client, shop) = (self.world.client(), self.world.pod(SHOP));
        let node = self.world.node(2);
        let (node1, node2) = (self.world.node(1), self.world.node(2));
        let inside = |from, netns: &lb_tests::netns::Netns, own: [IpAddr; 2]| {
            let (netns, own) = (netns.clone(), own.to_vec());
            move |what, to: SocketAddr, means, reach| Lane {
                from,
                netns: netns.clone(),
                own: own.clone(),
                entry: None,
                to,
                what,
                means,
                reach,
                ledger: Ledger::default().into(),
            }
        };
        let pod = inside("pod", &shop.ns, addresses(shop));
        let host = inside("node2", &node.ns, [node.ip4.into(), node.ip6.into()]);
        let outside = inside("client", &client.ns, [client.ip4.into(), client.ip6.into()]);
        let enter = |entry, lane| Lane {
            entry: Some(entry),
            ..lane
        };
        let at = |text: &str| -> SocketAddr { text.parse().expect("an address and a port") };
        vec![
            pod("ClusterIP", at("10.96.0.10:80"), Means::Http, Reach::All),
            pod("ClusterIP", at("[fd00:10:96::10]:80"), Means::Http, Reach::All),
            pod("ClusterIP, affinity", at("10.96.0.20:80"), Means::Http, Reach::One),
            pod("ClusterIP", at("10.96.0.53:53"), Means::Udp, Reach::All),
            host("ClusterIP", at("10.96.0.10:80"), Means::Http, Reach::All),
            enter(
                1,
                outside("NodePort", (node1.ip4, 30080).into(), Means::Http, Reach::All),
            ),
            enter(
                2,
                outside("NodePort", (node2.ip6, 30080).into(), Means::Http, Reach::All),
            ),
            enter(
                2,
                outside("LoadBalancer", at("203.0.113.10:80"), Means::Http, Reach::All),
            ),
            enter(
                1,
                outside(
                    "LoadBalancer, Local",
                    at("[2001:db8:113::20]:80"),
                    Means::Http,
                    Reach::OnNode,
                ),
            ),
            enter(
                2,
                outside("LoadBalancer", at("[2001:db8:113::53]:53"), Means::Udp, Reach::All),
            ),
            enter(
                2,
                outside("one UDP flow", at("203.0.113.53:53"), Means::UdpFlow, Reach::OneServing),
            ),
            enter(
                2,
                outside(
                    "12 open connections",
                    at("203.0.113.10:80"),
                    Means::OpenHttp(12),
                    Reach::Opened,
                ),
            ),
        ]
    }
}

fn addresses(pod: &Pod) -> [IpAddr; 2] {
    [pod.ip4.into(), pod.ip6.into()]
}

/// The last lines of a log.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
