//! Tests of the whole pipeline on the host: packets in, packets, verdict and counters out.
//!
//! [`node`] is a node with Services, [`packet`] the builder and decoder of the integration tests, whose parser is not ours.

#[expect(dead_code, reason = "pairs are judged by parts of this so far")]
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
mod icmp_errors;
mod journeys;
mod translation;
