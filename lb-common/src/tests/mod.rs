//! Tests of the whole pipeline on the host: packets in, packets, verdict and counters out.
//!
//! [`node`] is a node with Services, [`packet`] the builder and decoder of the integration tests, whose parser is not ours.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names what it expects, and all else is a failure"
)]

mod halves;
mod node;
#[expect(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the integration tests' packets, of which not all is needed here"
)]
#[path = "../../../tests/src/packet/mod.rs"]
mod packet;

mod answers;
mod doorways;
mod early;
mod entries;
mod firsts;
mod floods;
mod fuzzing;
mod hashing;
mod host_routing;
mod icmp_errors;
mod interleavings;
mod journeys;
mod races;
mod reading;
mod reasons;
mod selection;
mod straight;
mod translation;
