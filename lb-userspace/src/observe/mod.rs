//! What can be seen of a node: counters of the maps, and the form of the log lines. Nothing here writes maps.

mod counters;
mod figures;
mod histogram;
mod logs;

pub use counters::{reason_counters, verdict_of};
pub use figures::{Changes, Figures};
pub use histogram::Histogram;
pub use logs::{LogsSetUp, start as start_logs};
