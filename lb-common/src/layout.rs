//! Bytes of the maps that kernel and user space share: names, sizes, words. Change anything here and [`LAYOUT_VERSION`] must rise.
//!
//! Every shared table is an array of u64 words that user space maps into its memory. What is read without a lock carries a
//! version in bits 48..64 of each word, or is immutable once published and echoes its owner's id.
//!
//! ```text
//! frontends_v4/6  sets of 4 slots; slot = packed side (1|3 words), value word           written by user space
//! services        one word a service port: generation | arena offset of its block       written by user space
//! arena           immutable blocks: 8 header words, then backend ids, two a word; eight words a value  written by user space
//! backends        4 words a backend: control, address (2), port and flags               written by user space
//! config          one value of CONFIG_WORDS words                                       written by user space
//! forward_bits, reply_bits   bit-sets of 2^20 bits over addresses                       written by user space
//! devices         hash: ifindex -> device words                                         written by user space
//! ranges_v4/6     LPM: service port id, prefix                                          written by user space
//! flows_v4/6      sets of 4 slots, then a roll a set (see crate::flow)                  written by packets, swept by user space
//! affinity_v4/6   LRU hash: client, service port id -> backend, last new connection     written by packets
//! fragments_v4/6  LRU hash: datagram -> ports                                           written by packets
//! epoch           one word, raised when a way out may have changed                      written by user space
//! reasons         per-CPU array of counters                                             written by packets
//! answers, work_v4/6, hops, receivers   per-CPU scratch: rate limit, what stages leave for the next, ways out, whose frames are received   written by packets
//! stages, stages_xdp   program arrays of the later stages                               written at load
//! names           hash: service port id -> its name, for people and for a restarted agent   written by user space, not read by packets
//! ```

use crate::family::Family;

/// Version of everything in this file; pins of another version are not reused.
pub const LAYOUT_VERSION: u32 = 5;

/// Slots of a set in the frontend and flow tables.
pub const SET_SLOTS: usize = 4;
/// Bits 48..64: the version in a word of a slot.
pub const VERSION_SHIFT: u32 = 48;
/// Mask of the version in a word of a slot.
pub const VERSION_MASK: u64 = 0xffff << VERSION_SHIFT;

/// Map names as the kernel object has them; `_v4`/`_v6` pairs are given without their ending.
pub mod map {
    /// Frontend tables (pair).
    pub const FRONTENDS: &str = "frontends";
    /// Service words.
    pub const SERVICES: &str = "services";
    /// Arena of service blocks.
    pub const ARENA: &str = "arena";
    /// Backend records.
    pub const BACKENDS: &str = "backends";
    /// Configuration words.
    pub const CONFIG: &str = "config";
    /// Bit-set of addresses towards which packets are looked up.
    pub const FORWARD_BITS: &str = "forward_bits";
    /// Bit-set of addresses from which packets are looked up.
    pub const REPLY_BITS: &str = "reply_bits";
    /// Devices by interface index.
    pub const DEVICES: &str = "devices";
    /// Source ranges (pair).
    pub const RANGES: &str = "ranges";
    /// Flow tables (pair).
    pub const FLOWS: &str = "flows";
    /// Session affinity (pair).
    pub const AFFINITY: &str = "affinity";
    /// Fragments in flight (pair).
    pub const FRAGMENTS: &str = "fragments";
    /// A word that rises when a way out may have changed.
    pub const EPOCH: &str = "epoch";
    /// Counters by reason.
    pub const REASONS: &str = "reasons";
    /// Names of service ports by id.
    pub const NAMES: &str = "names";
    /// Read-only data of the programs; holds the masks of the tables' sizes.
    pub const FLOW_MASK_V4: &str = "FLOW_MASK_V4";
    /// As [`FLOW_MASK_V4`] for IPv6.
    pub const FLOW_MASK_V6: &str = "FLOW_MASK_V6";
    /// Program array of the later stages; indices are [`super::stage`]'s.
    pub const STAGES: &str = "stages";
    /// As [`STAGES`], of the programs at XDP.
    pub const STAGES_XDP: &str = "stages_xdp";
    /// Global: 1 where `bpf_l4_csum_replace` knows `BPF_F_IPV6`.
    pub const CSUM_IPV6: &str = "CSUM_IPV6";
    /// Global: 1 where `bpf_fib_lookup` knows `BPF_FIB_LOOKUP_SRC`.
    pub const FIB_SOURCE: &str = "FIB_SOURCE";
}

/// Later stages of the pipeline: program names by their index in the `stages` map.
pub mod stage {
    /// Programs in index order.
    pub const PROGRAMS: [&str; 12] = [
        "note_v4",
        "note_v6",
        "begin_v4",
        "begin_v6",
        "enter_v4",
        "enter_v6",
        "translate_v4",
        "translate_v6",
        "control_v4",
        "control_v6",
        "answer_v4",
        "answer_v6",
    ];
    /// Programs at XDP, in the same order.
    pub const XDP_PROGRAMS: [&str; PROGRAMS.len()] = [
        "note_xdp_v4",
        "note_xdp_v6",
        "begin_xdp_v4",
        "begin_xdp_v6",
        "enter_xdp_v4",
        "enter_xdp_v6",
        "translate_xdp_v4",
        "translate_xdp_v6",
        "control_xdp_v4",
        "control_xdp_v6",
        "answer_xdp_v4",
        "answer_xdp_v6",
    ];
    /// `pipeline::note`; plus one for IPv6, as all of these.
    pub const NOTE: u32 = 0;
    /// `pipeline::begin`.
    pub const BEGIN: u32 = 2;
    /// `pipeline::enter`.
    pub const ENTER: u32 = 4;
    /// `pipeline::translate_known`.
    pub const TRANSLATE: u32 = 6;
    /// `pipeline::control`.
    pub const CONTROL: u32 = 8;
    /// `pipeline::reply_in_place`.
    pub const ANSWER: u32 = 10;
}

/// Default number of sets of a flow table: 2^18 sets = 1M slots = 256k flows (two slots each) at half load.
pub const FLOW_SETS: u32 = 1 << 18;
/// Sets of a frontend table (65,536 slots).
pub const FRONTEND_SETS: u32 = 1 << 14;
/// Service ports of both families together; id 0 is never used.
pub const SERVICES: u32 = 1 << 16;
/// Words of the arena.
pub const ARENA_WORDS: u32 = 1 << 20;
/// Backends of both families together; id 0 is never used.
pub const BACKENDS: u32 = 1 << 18;
/// Words of one backend record.
pub const BACKEND_WORDS: usize = 4;
/// Words of the header of a service's block in the arena.
pub const BLOCK_HEADER_WORDS: u32 = 8;
/// Binary logarithm of the number of bits in a bit-set: with 100,000 backends one address in eleven has its bit set.
pub const BITS_LOG: u32 = 20;
/// Words of the bit-sets.
pub const BITS_WORDS: u32 = 1 << (BITS_LOG - 6);
/// Entries of each affinity table.
pub const AFFINITY_ENTRIES: u32 = 1 << 16;
/// Entries of each fragment table.
pub const FRAGMENT_ENTRIES: u32 = 1 << 13;
/// Prefixes of each source-range table.
pub const RANGE_ENTRIES: u32 = 1 << 16;
/// Devices with a role.
pub const DEVICES: u32 = 4096;
/// Bytes of a name, padded with zeros: two names and a port name of 63 bytes each, protocol and family.
pub const NAME_BYTES: usize = 256;

/// The value word of a frontend slot: version 16 | protocol 8 | flags 8 | service port id 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendValue {
    /// IP protocol; 0 in a wildcard (port 0), which stands for the address itself.
    pub protocol: u8,
    /// `FRONTEND_*` flags.
    pub flags: u8,
    /// Service port id; 0 in a wildcard.
    pub service: u32,
}

/// The slot is in use.
pub const FRONTEND_VALID: u8 = 1;
/// A ClusterIP frontend (internal policy); without it external policy applies.
pub const FRONTEND_CLUSTER: u8 = 2;
/// A LoadBalancer IP: source ranges apply.
pub const FRONTEND_RANGES: u8 = 4;
/// Wildcard: the address answers for unknown ports with a refusal.
pub const FRONTEND_REFUSE: u8 = 8;
/// Wildcard: a node address; NodePorts are looked up under the zero address.
pub const FRONTEND_NODE: u8 = 16;
/// Wildcard: the address answers pings.
pub const FRONTEND_ECHO: u8 = 32;
/// A NodePort (key has the zero address).
pub const FRONTEND_NODE_PORT: u8 = 64;

impl FrontendValue {
    /// No frontend.
    pub const NONE: Self = Self {
        protocol: 0,
        flags: 0,
        service: 0,
    };

    /// True unless this is [`Self::NONE`].
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.flags & FRONTEND_VALID != 0
    }

    /// The word without its version.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        (self.protocol as u64) << 40 | (self.flags as u64) << 32 | self.service as u64
    }

    /// Reads a word; the version is ignored.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            protocol: (word >> 40) as u8,
            flags: (word >> 32) as u8,
            service: word as u32,
        }
    }
}

/// The word of a service port: generation 16 | arena offset 32 (in words). Zero = not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceWord {
    /// Generation of the id, from 1; echoed by the block.
    pub generation: u16,
    /// Offset of the block in the arena, in words, a multiple of 8.
    pub offset: u32,
}

impl ServiceWord {
    /// The word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        (self.generation as u64) << 32 | self.offset as u64
    }

    /// Reads a word; `None` where nothing is published.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Option<Self> {
        if word == 0 {
            None
        } else {
            Some(Self {
                generation: (word >> 32) as u16,
                offset: word as u32,
            })
        }
    }
}

/// Words of a block's header, by index.
pub mod block {
    /// service port id 32 | generation 16 | flags 16.
    pub const OWNER: u32 = 0;
    /// Run for ClusterIP frontends: offset 32 in ids from the block's first id | length 32 in the upper half.
    pub const INTERNAL: u32 = 1;
    /// Run for external frontends and external sources.
    pub const EXTERNAL: u32 = 2;
    /// Run for external frontends and sources inside the cluster (pods, the node).
    pub const INSIDE: u32 = 3;
    /// Affinity time-out in seconds (0 = none), lower half.
    pub const AFFINITY: u32 = 4;
}

/// Block flag: source ranges are set (test the LPM for LoadBalancer IPs).
pub const BLOCK_RANGES: u16 = 1;
/// Block flag: an empty internal run drops instead of refusing.
pub const BLOCK_INTERNAL_DROP: u16 = 2;
/// Block flag: an empty external run drops instead of refusing.
pub const BLOCK_EXTERNAL_DROP: u16 = 4;
/// Block flag: an empty inside run drops instead of refusing.
pub const BLOCK_INSIDE_DROP: u16 = 8;
/// Block flag: the internal run is the local set (a remembered backend must be in it).
pub const BLOCK_INTERNAL_LOCAL: u16 = 16;
/// Block flag: the external run is the local set.
pub const BLOCK_EXTERNAL_LOCAL: u16 = 32;
/// Block flag: the inside run is the local set.
pub const BLOCK_INSIDE_LOCAL: u16 = 64;

/// A run of backend ids in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the first id among the block's ids.
    pub offset: u32,
    /// Number of ids.
    pub length: u32,
}

impl Run {
    /// The header word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        (self.length as u64) << 32 | self.offset as u64
    }

    /// Reads the header word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            offset: word as u32,
            length: (word >> 32) as u32,
        }
    }
}

/// The owner word of a block.
#[inline(always)]
pub const fn owner_word(service: u32, generation: u16, flags: u16) -> u64 {
    (flags as u64) << 48 | (generation as u64) << 32 | service as u64
}

/// The control word of a backend: generation 16 | state 8 | 8 spare | service port id 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendControl {
    /// Generation of the id, bumped at each re-use.
    pub generation: u16,
    /// `BACKEND_*` state bits.
    pub state: u8,
    /// Service port id of the owner; 0 = free.
    pub service: u32,
}

/// State: in the cluster set of its service port.
pub const BACKEND_IN_CLUSTER: u8 = 1;
/// State: in the local set of its service port.
pub const BACKEND_IN_LOCAL: u8 = 2;
/// State: serving; a UDP flow leaves a backend that is not.
pub const BACKEND_SERVING: u8 = 4;

/// Backend flag (word 3): it runs on this node, so that its replies pass this node.
pub const BACKEND_ON_NODE: u16 = 1;
/// Backend flag (word 3): its address is an address of this node (host network).
pub const BACKEND_HOST: u16 = 2;
/// Backend flag (word 3): IPv6.
pub const BACKEND_V6: u16 = 4;

impl BackendControl {
    /// The word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        (self.generation as u64) << 48 | (self.state as u64) << 40 | self.service as u64
    }

    /// Reads a word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            generation: (word >> 48) as u16,
            state: (word >> 40) as u8,
            service: word as u32,
        }
    }
}

/// Word 3 of a backend: flags 16 | port 16.
#[inline(always)]
pub const fn backend_port_word(port: u16, flags: u16) -> u64 {
    (flags as u64) << 16 | port as u64
}

/// A device with a role, as the kernel needs it. MAC addresses: bytes in order, in the low 48 bits of a little-endian word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// MAC address of the bridge whose port this is; 0 = none.
    pub bridge_mac: u64,
    /// Its own MAC address; 0 = none.
    pub mac: u64,
    /// IPv4 source for SNAT out of this device (native-endian load of network order); 0 = none.
    pub source_v4: u32,
    /// `DEVICE_*` bits.
    pub flags: u32,
    /// IPv6 source for SNAT out of this device; zero = none.
    pub source_v6: [u64; 2],
}

/// Device flag: the host's end of a pod's link.
pub const DEVICE_POD: u32 = 1;

/// Number of words of a [`Device`] value.
pub const DEVICE_WORDS: usize = 5;

impl Device {
    /// The map value.
    #[inline(always)]
    pub const fn words(self) -> [u64; DEVICE_WORDS] {
        [
            self.bridge_mac,
            self.source_v4 as u64 | (self.flags as u64) << 32,
            self.source_v6[0],
            self.source_v6[1],
            self.mac,
        ]
    }

    /// Reads the map value.
    #[inline(always)]
    pub const fn from_words(w: [u64; DEVICE_WORDS]) -> Self {
        Self {
            bridge_mac: w[0],
            mac: w[4],
            source_v4: w[1] as u32,
            flags: (w[1] >> 32) as u32,
            source_v6: [w[2], w[3]],
        }
    }
}

/// Words of the configuration value, by index. Times are in jiffies.
pub mod config {
    /// Words of the value.
    pub const WORDS: usize = 64;
    /// `FLAG_*` bits.
    pub const FLAGS: usize = 0;
    /// Seed of the flow and frontend tables, the node's secret.
    pub const TABLE_SEED: usize = 1;
    /// Seed of backend selection, the same on every node of the cluster.
    pub const SELECT_SEED: usize = 2;
    /// Jiffies a second.
    pub const HZ: usize = 3;
    /// First SNAT port.
    pub const PORT_MIN: usize = 4;
    /// Number of SNAT ports.
    pub const PORT_COUNT: usize = 5;
    /// Interface index of steer0 (the end whose egress is hooked), 0 = absent.
    pub const STEER_IFINDEX: usize = 6;
    /// MAC of steer0, bytes in order in the low 48 bits of a little-endian word.
    pub const STEER_MAC: usize = 7;
    /// Interface index of lo.
    pub const LO_IFINDEX: usize = 8;
    /// Time-out of a TCP flow that is not established.
    pub const TCP_HALF_OPEN: usize = 9;
    /// Time-out of an established TCP flow.
    pub const TCP_ESTABLISHED: usize = 10;
    /// Time-out after one FIN.
    pub const TCP_HALF_CLOSED: usize = 11;
    /// Time-out after both FINs or a RST.
    pub const TCP_CLOSED: usize = 12;
    /// Time-out of a UDP flow without reply.
    pub const UDP_UNREPLIED: usize = 13;
    /// Time-out of a UDP flow with replies.
    pub const UDP_REPLIED: usize = 14;
    /// Answers (RST, ICMP) a second on each CPU.
    pub const ANSWER_RATE: usize = 15;
    /// How old the note of a settled TCP flow's packet may be; other TCP flows' a second.
    pub const TCP_GRAIN: usize = 16;
    /// As [`TCP_GRAIN`], of a UDP flow with replies.
    pub const UDP_GRAIN: usize = 17;

    /// Leave TCP segments without a flow to the stack (netfilter may own them).
    pub const FLAG_TAKEOVER: u64 = 1;
    /// Answer pings to VIPs.
    pub const FLAG_ECHO: u64 = 2;
    /// Refuse TCP by ICMP instead of RST.
    pub const FLAG_REFUSE_BY_ICMP: u64 = 4;
    /// Some hooked device is a bridge port: replies may need lifting.
    pub const FLAG_BRIDGES: u64 = 8;
    /// Packets of Services go from pod to pod past the host's stack.
    pub const FLAG_HOST_ROUTING: u64 = 16;
}

/// Key of the affinity tables: client address (IPv4 in the first word) and service port id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct AffinityKey {
    /// Client address as backends store addresses.
    pub client: [u64; 2],
    /// Service port id.
    pub service: u64,
}

/// Value of the affinity tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct AffinityValue {
    /// generation 16 << 32 | backend id.
    pub backend: u64,
    /// Jiffies of the last new connection.
    pub last_new: u64,
}

/// Key of the fragment tables: addresses as backends store them, and identification | protocol << 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address.
    pub src: [u64; 2],
    /// Destination address.
    pub dst: [u64; 2],
    /// Identification, protocol << 32.
    pub id: u64,
}

/// Prefix bits of a source-range key before the address: the service port id, big-endian so that it is a prefix.
pub const RANGE_ID_BITS: u32 = 32;

/// Packs a backend id and its generation as flow entries and affinity hold them.
#[inline(always)]
pub const fn backend_ref(id: u32, generation: u16) -> u64 {
    (generation as u64) << 32 | id as u64
}

/// Bytes of one set of a flow table.
pub const fn flow_set_bytes<F: Family>() -> usize {
    F::SLOT_WORDS * SET_SLOTS * 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};

    #[test]
    fn words_survive_the_round_trip() {
        let value = FrontendValue {
            protocol: 17,
            flags: 0xa5,
            service: 0xdead_beef,
        };
        assert_eq!(FrontendValue::from_word(value.word() | VERSION_MASK), value);
        let backend = BackendControl {
            generation: 0xfffe,
            state: 7,
            service: 77,
        };
        assert_eq!(BackendControl::from_word(backend.word()), backend);
        let r = Run { offset: 3, length: 250 };
        assert_eq!(Run::from_word(r.word()), r);
        let s = ServiceWord {
            generation: 9,
            offset: 64,
        };
        assert_eq!(ServiceWord::from_word(s.word()), Some(s));
        assert_eq!(ServiceWord::from_word(0), None);
        let d = Device {
            bridge_mac: 1,
            mac: 5,
            source_v4: 2,
            flags: 6,
            source_v6: [3, 4],
        };
        assert_eq!(Device::from_words(d.words()), d);
    }

    #[test]
    fn sets_fill_whole_cache_lines() {
        assert_eq!(flow_set_bytes::<V4>(), 256);
        assert_eq!(flow_set_bytes::<V6>(), 512);
        assert_eq!(V4::FRONTEND_WORDS * SET_SLOTS * 8, 64);
        assert_eq!(V6::FRONTEND_WORDS * SET_SLOTS * 8, 128);
    }
}
