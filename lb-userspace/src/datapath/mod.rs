//! Between the agent and the kernel's hooks: loads and pins the programs, attaches them, follows interfaces, keeps steer0.
//!
//! Holds no map entries and knows nothing of Services: what it needs of them (addresses to route, addresses of the node)
//! comes in as plain values, and [`load::Programs::map`] and the pins go out to whoever fills the maps. The order of a start:
//!
//! 1. [`pins::PinDir::lock`], [`probe::Features::probe`], [`load::load`];
//! 2. the maps are filled from elsewhere;
//! 3. [`steer::SteerDevice::ensure`], [`interfaces::InterfaceWatch::start`], [`attach::Attacher::apply`] for each table,
//!    [`steer::VipRoutes::sync`] last, so that no route leads to a device without a program.
//!
//! Nothing here detaches or removes anything when it is dropped: forwarding goes on without the agent. Only
//! [`attach::Attacher::apply`] (interfaces that lost their role) and [`cleanup`] remove.
//!
//! All of it acts on the network namespace of the calling thread.

pub mod attach;
mod bulk;
pub mod checks;
pub mod cleanup;
pub mod clock;
pub mod conntrack;
pub mod interfaces;
pub mod load;
pub mod netfilter;
pub mod netlink;
pub mod pins;
pub mod probe;
pub mod run_dir;
pub mod steer;
pub mod sysctl;
pub mod ways;
