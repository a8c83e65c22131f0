//! The packet's whole way through a Service load balancer: parse, look up, choose, rewrite.
//!
//! The crate has no I/O, no allocation, no panics and no unsafe code. It is generic over the packet ([`access::Packet`]), the
//! tables ([`access::Tables`]) and the address family ([`family::Family`]), so that the code which runs in the kernel is the
//! code which unit tests, property tests and a fuzzer run on the host. Start reading at [`pipeline`].
//!
//! Byte order: an address is the native-endian load of its network-order bytes ([`family::Family::Addr`]) and is never
//! converted; a port is in host order everywhere outside the packet, in map words too.
#![cfg_attr(not(any(test, feature = "testing")), no_std)]
#![forbid(unsafe_code)]

pub mod access;
pub mod checksum;
pub mod family;
pub mod flow;
pub mod frontend;
pub mod hash;
pub mod layout;
pub mod pipeline;
pub mod slots;
pub mod steps;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod verdict;
pub mod wire;
