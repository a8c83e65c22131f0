//! How the command line asks a running agent for its state and waits for it: a root-only Unix socket in the run folder.
//!
//! [`report`] is what is told, [`Board`] where the loop tells it, [`protocol`] how it is written, [`Server`] and [`ask`] are the
//! two ends. Nothing here changes maps.

mod board;
mod client;
mod flows;
mod pinned;
pub mod protocol;
pub mod report;
mod server;
mod services;

pub use board::{Board, Identity, State};
pub use client::{ClientError, ask};
pub use flows::{Endpoint, FlowError, FlowFilter, FlowItem, flows_from_pins};
#[cfg(test)]
pub(crate) use pinned::services_of;
pub(crate) use pinned::table_fill;
pub use pinned::{PinnedError, report_from_pins, services_from_pins};
pub use server::{Answers, LINE_LIMIT, ListenError, MAX_CLIENTS, Server};
#[cfg(test)]
pub(crate) use services::service_items;
