//! The tables that are shared memory, and the geometry that every pinned map must have.
//!
//! A map of another type, size or flags than [`Geometry`] says must not be used: the programs would reach past its values.
//! Source: [`lb_common::layout`]; flag names are those of the kernel's `include/uapi/linux/bpf.h`.

use lb_common::family::{Family, V4, V6};
use lb_common::flow::roll;
use lb_common::layout::{self, SET_SLOTS, map};
use lb_common::verdict::REASONS;

/// A table of words in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Frontends, IPv4.
    FrontendsV4,
    /// Frontends, IPv6.
    FrontendsV6,
    /// Service words.
    Services,
    /// Blocks of the service ports.
    Arena,
    /// Backend records.
    Backends,
    /// Configuration words.
    Config,
    /// Addresses towards which packets are looked up.
    ForwardBits,
    /// Addresses from which packets are looked up.
    ReplyBits,
    /// Flows, IPv4; written by packets, swept by user space.
    FlowsV4,
    /// Flows, IPv6.
    FlowsV6,
    /// A word that rises when a way out may have changed; written by whoever follows the kernel's routes.
    Epoch,
}

impl Table {
    /// The tables that user space publishes.
    pub const PUBLISHED: [Self; 8] = [
        Self::FrontendsV4,
        Self::FrontendsV6,
        Self::Services,
        Self::Arena,
        Self::Backends,
        Self::Config,
        Self::ForwardBits,
        Self::ReplyBits,
    ];
    /// All tables; the published ones first, in the same order.
    pub const ALL: [Self; 11] = [
        Self::FrontendsV4,
        Self::FrontendsV6,
        Self::Services,
        Self::Arena,
        Self::Backends,
        Self::Config,
        Self::ForwardBits,
        Self::ReplyBits,
        Self::FlowsV4,
        Self::FlowsV6,
        Self::Epoch,
    ];

    /// The map's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FrontendsV4 => "frontends_v4",
            Self::FrontendsV6 => "frontends_v6",
            Self::Services => map::SERVICES,
            Self::Arena => map::ARENA,
            Self::Backends => map::BACKENDS,
            Self::Config => map::CONFIG,
            Self::ForwardBits => map::FORWARD_BITS,
            Self::ReplyBits => map::REPLY_BITS,
            Self::FlowsV4 => "flows_v4",
            Self::FlowsV6 => "flows_v6",
            Self::Epoch => map::EPOCH,
        }
    }

    /// Words of one value of the map.
    pub const fn value_words(self) -> usize {
        match self {
            Self::FrontendsV4 => V4::FRONTEND_WORDS * SET_SLOTS,
            Self::FrontendsV6 => V6::FRONTEND_WORDS * SET_SLOTS,
            Self::Services | Self::ForwardBits | Self::ReplyBits | Self::Epoch => 1,
            Self::Arena => layout::BLOCK_HEADER_WORDS as usize,
            Self::Backends => layout::BACKEND_WORDS,
            Self::Config => layout::config::WORDS,
            Self::FlowsV4 => V4::SLOT_WORDS * SET_SLOTS,
            Self::FlowsV6 => V6::SLOT_WORDS * SET_SLOTS,
        }
    }

    /// Values of the map; for flow tables the default, since their size is set when the maps are made.
    pub const fn values(self) -> u32 {
        match self {
            Self::FrontendsV4 | Self::FrontendsV6 => layout::FRONTEND_SETS,
            Self::Services => layout::SERVICES,
            Self::Arena => layout::ARENA_WORDS / layout::BLOCK_HEADER_WORDS,
            Self::Backends => layout::BACKENDS,
            Self::Config | Self::Epoch => 1,
            Self::ForwardBits | Self::ReplyBits => layout::BITS_WORDS,
            Self::FlowsV4 | Self::FlowsV6 => self.values_of(layout::FLOW_SETS),
        }
    }

    /// Values of a flow table of so many sets, a power of two from two on: the sets, and behind them their rolls.
    pub const fn values_of(self, sets: u32) -> u32 {
        roll::values(sets, self.value_words())
    }

    /// Sets of a flow table of so many words.
    pub const fn sets_of(self, words: usize) -> u32 {
        roll::sets_of((words / self.value_words()) as u32)
    }

    /// The flow table of a family.
    pub const fn flows(v6: bool) -> Self {
        if v6 { Self::FlowsV6 } else { Self::FlowsV4 }
    }

    /// The frontend table of a family.
    pub const fn frontends(v6: bool) -> Self {
        if v6 { Self::FrontendsV6 } else { Self::FrontendsV4 }
    }
}

/// Number of values that a map may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Exactly so many.
    Exactly(u32),
    /// So many as sets of a flow table and their rolls take, of which there is any power of two from two on: the size is configured.
    SetsAndRolls,
}

/// The map types in use, with their numbers in `enum bpf_map_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_HASH`.
    Hash = 1,
    /// `BPF_MAP_TYPE_ARRAY`.
    Array = 2,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray = 6,
    /// `BPF_MAP_TYPE_LRU_HASH`.
    LruHash = 9,
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    LpmTrie = 11,
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
    ArrayOfMaps = 12,
}

/// `BPF_F_NO_PREALLOC`: memory is taken as entries come.
pub(super) const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`.
pub(super) const MMAPABLE: u32 = 0x400;

/// What a map must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The map's name, which is also its pin's.
    pub name: &'static str,
    /// Its type.
    pub kind: MapKind,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Number of values.
    pub values: Values,
    /// `map_flags`.
    pub flags: u32,
}

impl Geometry {
    /// The geometry of a shared-memory table.
    pub const fn of_table(table: Table) -> Self {
        let is_sized_at_start = matches!(table, Table::FlowsV4 | Table::FlowsV6);
        let values = if is_sized_at_start {
            Values::SetsAndRolls
        } else {
            Values::Exactly(table.values())
        };
        Self {
            name: table.name(),
            kind: MapKind::Array,
            key: 4,
            value: table.value_words() as u32 * 8,
            values,
            flags: MMAPABLE,
        }
    }

    /// The number of values that a map which has so many must have: where several are right, that of as many sets.
    pub(super) fn values_like(&self, found: u32) -> u32 {
        match self.values {
            Values::Exactly(expected) => expected,
            Values::SetsAndRolls => roll::values(roll::sets_of(found).max(2), self.value as usize / size_of::<u64>()),
        }
    }

    const fn keyed(name: &'static str, kind: MapKind, key: u32, value: u32, values: u32) -> Self {
        let flags = if matches!(kind, MapKind::LpmTrie) {
            NO_PREALLOC
        } else {
            0
        };
        Self {
            name,
            kind,
            key,
            value,
            values: Values::Exactly(values),
            flags,
        }
    }
}

/// Devices by interface index.
pub(super) const DEVICES: Geometry = Geometry::keyed(
    map::DEVICES,
    MapKind::Hash,
    4,
    layout::DEVICE_WORDS as u32 * 8,
    layout::DEVICES,
);
/// Names of service ports; made by user space, since no program reads it.
pub(super) const NAMES: Geometry = Geometry {
    flags: NO_PREALLOC,
    ..Geometry::keyed(
        map::NAMES,
        MapKind::Hash,
        4,
        layout::NAME_BYTES as u32,
        layout::SERVICES,
    )
};
/// Source ranges by family: prefix length, service port id and address.
pub(super) const RANGES: [Geometry; 2] = [
    Geometry::keyed("ranges_v4", MapKind::LpmTrie, 4 + 4 + 4, 4, layout::RANGE_ENTRIES),
    Geometry::keyed("ranges_v6", MapKind::LpmTrie, 4 + 4 + 16, 4, layout::RANGE_ENTRIES),
];
/// Session affinity by family.
pub(super) const AFFINITY: [Geometry; 2] = [
    Geometry::keyed("affinity_v4", MapKind::LruHash, 24, 16, layout::AFFINITY_ENTRIES),
    Geometry::keyed("affinity_v6", MapKind::LruHash, 24, 16, layout::AFFINITY_ENTRIES),
];
/// Counters by reason.
pub(super) const REASON_COUNTERS: Geometry = Geometry::keyed(map::REASONS, MapKind::PerCpuArray, 4, 8, REASONS as u32);

/// Every map that the programs and the agent share, for checking pins before they are used. The last one, `names`, is made
/// by the agent.
pub fn geometries() -> Vec<Geometry> {
    let fragments = |name| Geometry::keyed(name, MapKind::LruHash, 40, 8, layout::FRAGMENT_ENTRIES);
    let mut all: Vec<Geometry> = Table::ALL.into_iter().map(Geometry::of_table).collect();
    all.extend([DEVICES, RANGES[0], RANGES[1], AFFINITY[0], AFFINITY[1]]);
    all.extend([
        fragments("fragments_v4"),
        fragments("fragments_v6"),
        REASON_COUNTERS,
        NAMES,
    ]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::layout::{AffinityKey, AffinityValue, FragmentKey, flow_set_bytes};

    #[test]
    fn geometry_follows_the_layout() {
        assert_eq!(
            Geometry::of_table(Table::FlowsV4).value as usize,
            flow_set_bytes::<V4>()
        );
        assert_eq!(
            Geometry::of_table(Table::FlowsV6).value as usize,
            flow_set_bytes::<V6>()
        );
        assert_eq!(AFFINITY[0].key as usize, size_of::<AffinityKey>());
        assert_eq!(AFFINITY[0].value as usize, size_of::<AffinityValue>());
        let fragments = geometries()
            .into_iter()
            .find(|geometry| geometry.name == "fragments_v6")
            .unwrap();
        assert_eq!(fragments.key as usize, size_of::<FragmentKey>());
    }

    #[test]
    fn a_flow_table_has_a_power_of_two_of_sets_and_a_roll_each() {
        assert_eq!(Table::FlowsV4.values(), (1 << 18) + (1 << 13));
        assert_eq!(Table::FlowsV6.values(), (1 << 18) + (1 << 12));
        for table in [Table::FlowsV4, Table::FlowsV6] {
            let geometry = Geometry::of_table(table);
            for sets in [2, 4, 64, 128, 1 << 10, 1 << 24] {
                let values = table.values_of(sets);
                assert_eq!(geometry.values_like(values), values);
                for wrong in [sets, values - 1, values + 1, 2 * sets] {
                    assert_ne!(geometry.values_like(wrong), wrong, "{sets}");
                }
            }
        }
        assert_eq!(Geometry::of_table(Table::FlowsV4).values_like(1024), 1024 + 32);
        assert_eq!(Geometry::of_table(Table::FlowsV6).values_like(0), 3);
    }

    #[test]
    fn names_of_pairs_end_in_their_family() {
        for (stem, v4, v6) in [
            (map::FRONTENDS, Table::FrontendsV4.name(), Table::FrontendsV6.name()),
            (map::FLOWS, Table::FlowsV4.name(), Table::FlowsV6.name()),
            (map::RANGES, RANGES[0].name, RANGES[1].name),
            (map::AFFINITY, AFFINITY[0].name, AFFINITY[1].name),
        ] {
            assert_eq!((format!("{stem}_v4").as_str(), format!("{stem}_v6").as_str()), (v4, v6));
        }
    }
}
