//! What can be seen of a node: counters, tables and flows, from a running agent's maps or from the pins while none runs; and
//! the form of the log lines. Nothing here writes maps.

mod counters;
mod logs;
mod pinned;
mod sweep;

pub use counters::reason_counters;
pub use logs::{LogsSetUp, start as start_logs};
#[cfg(test)]
pub(crate) use pinned::services_of;
pub use pinned::{ObserveError, report_from_pins, services_from_pins};
pub(crate) use pinned::{direction_name, method_name, table_fill};
pub use sweep::FlowSweep;
