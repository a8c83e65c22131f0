//! The pipeline's surroundings on the host: a packet in memory, tables in memory, and a body for fuzzers.
//!
//! For tests only, here and in other packages (feature `testing`). [`Buffer`] behaves as a socket buffer under the helpers of
//! a tc program does, [`HostTables`] as the maps and the kernel's route table do; both are written without the code of this
//! crate that they serve to test.

mod buffer;
mod frame;
mod fuzz;
mod pair;
mod publish;
mod run;
mod sets;
mod tables;

pub use buffer::{Buffer, Summed};
pub use frame::Frame;
pub use fuzz::fuzz;
pub use pair::{Entered, enter_half, enter_pair};
pub use publish::{BackendRecord, Block};
pub use run::{Outcome, run, run_early};
pub use tables::{HostRoute, HostTables, Lookup, Lookups, Sizes};

use std::net::IpAddr;

use crate::family::{Family, Side};

/// An address as map words hold it (see [`Family::to_words`]).
pub fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [u64::from(u32::from_ne_bytes(address.octets())), 0],
        IpAddr::V6(address) => {
            let bytes = address.octets();
            let (high, low) = bytes.split_at(8);
            let word = |half: &[u8]| half.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            [word(high), word(low)]
        }
    }
}

/// The inverse of [`words`].
pub fn address(v6: bool, words: [u64; 2]) -> IpAddr {
    if v6 {
        let mut bytes = [0; 16];
        for (byte, from) in bytes.iter_mut().zip(words.iter().flat_map(|word| word.to_le_bytes())) {
            *byte = from;
        }
        bytes.into()
    } else {
        (words[0] as u32).to_le_bytes().into()
    }
}

/// A side of family `F`; an address of the other family gives one that no packet has.
pub fn side<F: Family>(address: IpAddr, port: u16) -> Side<F> {
    Side {
        addr: F::from_words(words(address)),
        port,
    }
}
