//! All integration tests, in one binary: it links once, and `cargo test -p lb-tests --test suite` runs it as root.

mod agent;
mod datapath;
mod harness;
mod kernels;
mod kubernetes;
mod netns;
mod program;
