//! Why the tables could not be opened, read or written.

use std::io;
use std::path::PathBuf;

use super::table::Table;

/// A failed operation on a map.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The kernel refused.
    #[error("{operation} of map {map}")]
    Kernel {
        /// What was asked.
        operation: &'static str,
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A write past the end of a table.
    #[error("words {index}+{count} of table {table:?} do not exist")]
    OutOfRange {
        /// The table.
        table: Table,
        /// First word.
        index: u32,
        /// Number of words.
        count: usize,
    },
    /// A name does not fit its map.
    #[error("the name {name:?} of service port {id} is too long")]
    NameTooLong {
        /// The service port.
        id: u32,
        /// Its name.
        name: String,
    },
    /// A fault that a test asked for.
    #[error("injected fault at step {step}")]
    Injected {
        /// The step, from 1.
        step: u64,
    },
}

/// Why the maps of a pin directory or of a loaded object cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such map.
    #[error("map {map} is missing")]
    Missing {
        /// The map.
        map: &'static str,
    },
    /// The pin could not be opened, or what it holds is no map.
    #[error("open map {}", path.display())]
    Pin {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: aya::maps::MapError,
    },
    /// The kernel does not tell what the map is.
    #[error("ask for the type of map {map}")]
    Information {
        /// The map.
        map: &'static str,
        /// Why not.
        #[source]
        source: aya::maps::MapError,
    },
    /// The map is not what this version uses; nothing was touched.
    #[error("map {map} has {property} {found}, this version needs {expected}")]
    Geometry {
        /// The map.
        map: &'static str,
        /// What differs.
        property: &'static str,
        /// As the map has it.
        found: u32,
        /// As it should be.
        expected: u32,
    },
    /// A map could not be made, pinned or mapped into memory.
    #[error("{operation} map {map}")]
    Prepare {
        /// What was tried.
        operation: &'static str,
        /// The map.
        map: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The number of possible CPUs is unknown, and with it the size of per-CPU values.
    #[error("read the number of possible CPUs from {file}")]
    Cpus {
        /// The file.
        file: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}
