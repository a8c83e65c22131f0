//! Tests of the plan: what packets would find, at every step, against what the desired state says.

mod adoption;
mod degrade;
mod oracle;
mod quarantine;
mod reader;
mod scale;
mod sequence;
pub(super) mod world;
