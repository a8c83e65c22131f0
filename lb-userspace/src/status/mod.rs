//! How the command line asks a running agent for its state and waits for it: a root-only Unix socket in the run folder.
//!
//! [`report`] is what is told, [`Board`] where the loop tells it, [`protocol`] how it is written, [`Server`] and [`ask`] are the
//! two ends. Nothing here changes maps.

mod board;
mod client;
pub mod protocol;
pub mod report;
mod server;
mod services;

pub use board::{Board, Identity, State};
pub use client::{ClientError, ask};
pub use server::{Answers, LINE_LIMIT, ListenError, MAX_CLIENTS, Server};
pub(crate) use services::kind_name;
#[cfg(test)]
pub(crate) use services::service_items;
