//! kube-proxy's tables of its nftables mode: `ip kube-proxy` and `ip6 kube-proxy` (`pkg/proxy/nftables/proxier.go`).

use super::socket::{ACK, Messages, NetfilterError, ask};

/// The name of kube-proxy's tables.
pub const TABLE: &str = "kube-proxy";
/// The families that have one, by netfilter's numbers and nft's names.
pub const FAMILIES: [(u8, &str); 2] = [(2, "ip"), (10, "ip6")];

/// The subsystem of nftables, and its messages (`linux/netfilter/nf_tables.h`).
const SUBSYSTEM: u16 = 10;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// The attribute of a message that names a table.
const TABLE_NAME: u16 = 1;

/// Whether there is such a table.
///
/// # Errors
/// Netfilter cannot be asked.
pub fn exists(family: u8) -> Result<bool, NetfilterError> {
    let mut messages = Messages::default();
    let start = messages.begin(GET_TABLE, ACK, family, 0);
    messages.text(TABLE_NAME, TABLE);
    messages.end(start);
    match ask("look for kube-proxy's tables", &messages, 1, |_| {}) {
        Ok(()) => Ok(true),
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes all rules of the table in one step; its chains stay hooked.
///
/// # Errors
/// Netfilter refuses.
pub fn empty(family: u8) -> Result<(), NetfilterError> {
    change("empty kube-proxy's table", DELETE_RULE, family)
}

/// Removes the table.
///
/// # Errors
/// Netfilter refuses.
pub fn remove(family: u8) -> Result<(), NetfilterError> {
    change("remove kube-proxy's table", DELETE_TABLE, family)
}

fn change(what: &'static str, kind: u16, family: u8) -> Result<(), NetfilterError> {
    let mut messages = Messages::default();
    let start = messages.begin(BATCH_BEGIN, 0, 0, SUBSYSTEM);
    messages.end(start);
    let start = messages.begin(kind, ACK, family, 0);
    messages.text(TABLE_NAME, TABLE);
    messages.end(start);
    let start = messages.begin(BATCH_END, 0, 0, SUBSYSTEM);
    messages.end(start);
    match ask(what, &messages, 1, |_| {}) {
        Err(error) if error.is_absent() => Ok(()),
        result => result,
    }
}
