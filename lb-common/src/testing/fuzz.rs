//! The body of a fuzzer: raw bytes choose hook, family, tables and packet.

/// Placeholder.
pub fn fuzz(_bytes: &[u8]) {}
