//! The flow table's protocol under a model checker: every schedule of two CPUs (and of user space's sweep) up to a bound of
//! preemptions, with BPF's memory model.
//!
//! Run: `RUSTFLAGS="--cfg loom" cargo test -p lb-common --features testing --test loom --release`, with a target folder of
//! its own, because the flag compiles everything anew; `cargo xtask test` does so. Without the flag the file is empty.
//! `LOOM_MAX_PREEMPTIONS` raises the bound of a run.
#![cfg(loom)]

mod evicting;
mod inserting;
mod model;
mod reading;
mod sweeping;
