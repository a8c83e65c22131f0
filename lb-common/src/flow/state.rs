//! The control word of a flow entry, its state bits, time-outs and its worth when room is needed.
//!
//! Control word: version 16 | state 16 | last seen 32 (jiffies).
//! State bits only grow during a flow's life, so both halves may set them in any order; each half keeps all of them.

use crate::access::Tables;
use crate::layout::{VERSION_MASK, config};
use crate::wire;

/// Phase bits: nothing here, or not yet.
pub const FREE: u16 = 0;
/// Phase bits: held what was freed just now; the slot is about to be left.
pub const GONE: u16 = 1;
/// Phase bits: holds an entry.
pub const LIVE: u16 = 2;
/// Phase bits: holds an entry that is being displaced and may stay after all. It stands for readers; none but its holder changes it.
pub const HELD: u16 = LIVE | GONE;
/// Mask of the phase bits.
pub const PHASE: u16 = 3;
/// The entry is the reply half.
pub const REPLY_HALF: u16 = 4;
/// A UDP flow.
pub const DATAGRAM: u16 = 8;
/// The backend answered (TCP: its SYN-ACK or any segment; UDP: a datagram).
pub const REPLIED: u16 = 16;
/// TCP: the client sent something after the backend's answer.
pub const ESTABLISHED: u16 = 32;
/// The flow lived past its first second with traffic both ways.
pub const SETTLED: u16 = 64;
/// TCP: FIN from the client.
pub const FIN_FORWARD: u16 = 128;
/// TCP: FIN from the backend.
pub const FIN_REPLY: u16 = 256;
/// TCP: RST from either.
pub const RESET: u16 = 512;
/// Bits that both halves share.
pub const SHARED: u16 = REPLIED | ESTABLISHED | SETTLED | FIN_FORWARD | FIN_REPLY | RESET;

/// A control word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// The version bits in place (bits 48..64 of the word).
    pub version: u64,
    /// Phase and state bits.
    pub state: u16,
    /// Jiffies at which a packet was last seen.
    pub last_seen: u32,
}

impl Control {
    /// Reads a word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            version: word & VERSION_MASK,
            state: (word >> 32) as u16,
            last_seen: word as u32,
        }
    }

    /// The word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.version | (self.state as u64) << 32 | self.last_seen as u64
    }

    /// Whether an entry stands, for readers.
    #[inline(always)]
    pub const fn stands(self) -> bool {
        self.state & LIVE != 0
    }

    /// The phase.
    #[inline(always)]
    pub const fn phase(self) -> u16 {
        self.state & PHASE
    }

    /// No entry, under this version.
    #[inline(always)]
    pub const fn nothing(version: u64) -> Self {
        Self {
            version,
            state: FREE,
            last_seen: 0,
        }
    }

    /// The word in another phase.
    #[inline(always)]
    #[must_use]
    pub const fn in_phase(self, phase: u16) -> Self {
        Self {
            state: self.state & !PHASE | phase,
            ..self
        }
    }

    /// Both directions have said that they are done, or one has torn the flow down.
    #[inline(always)]
    pub const fn closed(self) -> bool {
        is_closed(self.state)
    }

    /// Jiffies since the last packet; a packet seen "later" by another CPU counts as now.
    #[inline(always)]
    pub const fn age(self, now: u32) -> u32 {
        let age = now.wrapping_sub(self.last_seen);
        if age > u32::MAX / 2 { 0 } else { age }
    }
}

/// See [`Control::closed`].
#[inline(always)]
pub const fn is_closed(state: u16) -> bool {
    state & RESET != 0 || state & (FIN_FORWARD | FIN_REPLY) == FIN_FORWARD | FIN_REPLY
}

/// The configuration word that holds the time-out of a state (kube-proxy's conntrack defaults).
#[inline(always)]
pub const fn timeout_word(state: u16) -> usize {
    if state & DATAGRAM != 0 {
        if state & REPLIED != 0 {
            config::UDP_REPLIED
        } else {
            config::UDP_UNREPLIED
        }
    } else if is_closed(state) {
        config::TCP_CLOSED
    } else if state & (FIN_FORWARD | FIN_REPLY) != 0 {
        config::TCP_HALF_CLOSED
    } else if state & ESTABLISHED != 0 {
        config::TCP_ESTABLISHED
    } else {
        config::TCP_HALF_OPEN
    }
}

/// The configuration word that holds how old the note of a packet may be before another packet is noted.
#[inline(always)]
pub const fn grain_word(state: u16) -> usize {
    if state & (SETTLED | FIN_FORWARD | FIN_REPLY | RESET) == SETTLED {
        config::TCP_GRAIN
    } else if state & (DATAGRAM | REPLIED) == DATAGRAM | REPLIED {
        config::UDP_GRAIN
    } else {
        config::HZ
    }
}

/// True when the entry's time is over.
#[inline(always)]
pub fn expired<T: Tables>(tables: &T, control: Control, now: u32) -> bool {
    control.age(now) as u64 > tables.config(timeout_word(control.state))
}

/// Class of an entry when room is needed; a lower class goes first, never for a newcomer of a lower class.
#[inline(always)]
pub const fn class(state: u16) -> u8 {
    if state & DATAGRAM != 0 {
        if state & REPLIED != 0 { 2 } else { 0 }
    } else if is_closed(state) {
        1
    } else if state & ESTABLISHED == 0 {
        0
    } else if state & SETTLED == 0 {
        3
    } else {
        4
    }
}

/// State bits that a TCP segment or a datagram adds, by direction.
#[inline(always)]
pub const fn observed(state: u16, reply: bool, protocol: u8, tcp_flags: u8) -> u16 {
    let mut add = 0;
    if reply {
        add |= REPLIED;
    }
    if protocol == wire::TCP {
        if tcp_flags & wire::TCP_RST != 0 {
            add |= RESET;
        }
        if tcp_flags & wire::TCP_FIN != 0 {
            add |= if reply { FIN_REPLY } else { FIN_FORWARD };
        }
        if !reply && state & REPLIED != 0 && tcp_flags & wire::TCP_ACK != 0 {
            add |= ESTABLISHED;
        }
    }
    add & !state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_word_survives_the_round_trip() {
        let c = Control {
            version: 0xabcd << 48,
            state: LIVE | SETTLED,
            last_seen: 0xffff_fff0,
        };
        assert_eq!(Control::from_word(c.word()), c);
        assert_eq!(c.age(0x10), 0x20, "jiffies wrap");
        assert_eq!(c.age(0xffff_ffe0), 0, "another CPU was later");
    }

    #[test]
    fn a_handshake_establishes_and_two_fins_close() {
        let mut s = LIVE;
        s |= observed(s, false, wire::TCP, wire::TCP_SYN);
        assert_eq!(class(s), 0);
        s |= observed(s, true, wire::TCP, wire::TCP_SYN | wire::TCP_ACK);
        assert_eq!(timeout_word(s), config::TCP_HALF_OPEN);
        s |= observed(s, false, wire::TCP, wire::TCP_ACK);
        assert_eq!((timeout_word(s), class(s)), (config::TCP_ESTABLISHED, 3));
        s |= observed(s, true, wire::TCP, wire::TCP_FIN | wire::TCP_ACK);
        assert_eq!(timeout_word(s), config::TCP_HALF_CLOSED);
        assert!(!is_closed(s));
        s |= observed(s, false, wire::TCP, wire::TCP_FIN | wire::TCP_ACK);
        assert_eq!((timeout_word(s), class(s)), (config::TCP_CLOSED, 1));
    }

    #[test]
    fn a_reset_closes_at_once() {
        assert!(is_closed(LIVE | observed(LIVE, true, wire::TCP, wire::TCP_RST)));
    }

    #[test]
    fn a_flood_is_worth_less_than_what_it_floods() {
        let syn = LIVE;
        let udp = LIVE | DATAGRAM;
        let answered = LIVE | DATAGRAM | REPLIED;
        let open = LIVE | REPLIED | ESTABLISHED;
        assert!(class(syn) < class(answered) && class(udp) < class(answered));
        assert!(class(answered) < class(open) && class(open) < class(open | SETTLED));
    }
}
