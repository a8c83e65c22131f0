//! The agent and command line of Steerway as a library, so that tests can drive every part.
//!
//! Objects go one way, each stage in its own module:
//!
//! ```text
//! source ──Snapshot──► model ──DesiredState──► plan ──ordered ops──► maps (pinned)
//! (folder, kubernetes) (pure)                  (pure)                  │
//!                └──────────── reconcile joins them ────────────┘      ▼  kernel programs read
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | validated settings from arguments, environment and file |
//! | [`clock`] | the one place that reads a clock |
//! | [`source`] | watches objects and hands out whole snapshots |
//! | [`model`] | from objects to what this node should forward, pure |
//! | [`plan`] | from that to stable ids, exact bytes and ordered operations, pure |
//! | [`maps`] | the tables: in the kernel, in memory, and faulty ones for tests |
//! | [`datapath`] | programs, hooks, interfaces, our device and routes; no map entries |
//! | [`flows`] | sweeps and decodes the flow tables; creates no entry |
//! | [`reconcile`] | the loop that joins all of them |
//! | [`health`] | probes of the node and of its local endpoints, over HTTP |
//! | [`heap`] | the C library's heap, kept small |
//! | [`observe`] | counters, and the form of the log lines |
//! | [`status`] | what is told: by a running agent over its socket, by the pins while none runs |
//! | [`cli`] | the commands; nothing depends on it |

pub mod cli;
pub mod clock;
pub mod config;
pub mod datapath;
pub mod flows;
pub mod health;
#[cfg(target_env = "gnu")]
pub mod heap;
pub mod maps;
pub mod model;
pub mod observe;
pub mod plan;
pub mod reconcile;
pub mod source;
pub mod status;
#[cfg(test)]
mod test_objects;
