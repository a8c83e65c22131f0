//! The harness of the integration tests: real packets, real sockets, real namespaces, and objects in YAML.
//!
//! A test makes a [`World`](world::World), puts servers on its pods, writes objects into a
//! [`Folder`](objects::Folder), starts an [`Agent`](agent::Agent) on each node, sends traffic and compares what it sees
//! with what it expects. Everything here only makes, sends and reports; the test alone asserts.
//!
//! ```no_run
//! use std::net::SocketAddr;
//!
//! use lb_tests::agent::Agent;
//! use lb_tests::assert::OnFailure;
//! use lb_tests::objects::{Folder, NodeObject, service, slice};
//! use lb_tests::traffic::{Server, distribution};
//! use lb_tests::world::World;
//!
//! let world = World::builder().build();
//! let _dump = OnFailure::of(&world);
//! let folder = Folder::new();
//! folder.put(&NodeObject::from(world.node(1)));
//! folder.put(&service("default", "web").cluster_ip("10.96.0.10").port("http", 80, "TCP").target_port(8080));
//! let pod = world.pod("pod2-1");
//! folder.put(&slice("default", "web-1", "web").port("http", 8080).endpoint(pod.ip4).node("node2").ready(true));
//! let server = Server::tcp(pod, "pod2-1", (pod.ip4, 8080));
//! let mut agent = Agent::start(world.node(1), &folder, &[]);
//! agent.wait_ready();
//! let vip: SocketAddr = "10.96.0.10:80".parse().expect("an address");
//! assert_eq!(distribution(world.pod("pod1-1"), vip, 10)["pod2-1"], 10);
//! ```
//!
//! Tiers, and what each stands on:
//! - *program*: one packet through one program. [`packet::Packet`] in, [`prog_run::Input`] runs it, [`packet::Decoded`]
//!   and [`packet::diff`] judge what came out. For CHECKSUM_PARTIAL and GSO packets
//!   [`FrameSocket`](traffic::FrameSocket)s at the two ends of a veth take the place of the test run.
//! - *netns*: sockets and agents in a world, as above.
//! - *kubernetes*: a world with a real control plane, [`kubernetes::ControlPlane`].
//! - *cli*: [`Agent::cli`](agent::Agent::cli) and [`Agent::json`](agent::Agent::json).
//!
//! Rules: a test needs root and fails without it, it never skips. It names conditions and their deadline
//! ([`assert::eventually`]) instead of sleeping. It may run beside any other: names, addresses and pins are its own. Values
//! clean up when they are dropped, in the order in which a test leaves them; what a killed run leaves is removed by the
//! next one. `--nocapture` with `STEERWAY_BIN` set to an agent is the way to look at one test alone.

pub mod agent;
pub mod assert;
pub mod kubernetes;
pub mod memory;
pub mod netfilter;
pub mod netns;
pub mod objects;
pub mod packet;
pub mod pinned_map;
pub mod prog_run;
pub mod program_cost;
mod syscall;
pub mod tiny_program;
pub mod traffic;
pub mod tun;
pub mod world;
