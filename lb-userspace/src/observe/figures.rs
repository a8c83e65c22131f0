//! What kube-proxy's metrics tell of its work, as plain numbers that the loop keeps.

use super::Histogram;

/// The figures of an agent since its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// How long cycles took that ended well: all, those that began with a look at the tables, the others.
    pub cycles: Histogram,
    /// Those that began with a look at all tables.
    pub full_cycles: Histogram,
    /// The others.
    pub partial_cycles: Histogram,
    /// From what triggered a change of endpoints to its programming, IPv4 and IPv6.
    pub programming: [Histogram; 2],
    /// Changes of Services.
    pub services: Changes,
    /// Changes of slices.
    pub slices: Changes,
    /// Service ports with policy Local that have endpoints, but none on this node; internal and external, IPv4 and IPv6 each.
    pub no_local_endpoints: [[u64; 2]; 2],
}

/// Changes of one kind of object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Seen since the start.
    pub total: u64,
    /// Seen and not programmed yet.
    pub pending: u64,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            cycles: Histogram::cycles(),
            full_cycles: Histogram::cycles(),
            partial_cycles: Histogram::cycles(),
            programming: [Histogram::programming(), Histogram::programming()],
            services: Changes::default(),
            slices: Changes::default(),
            no_local_endpoints: [[0; 2]; 2],
        }
    }
}
