//! kube-proxy's tables of its nftables mode: `ip kube-proxy` and `ip6 kube-proxy` (`pkg/proxy/nftables/proxier.go`).

use std::collections::BTreeSet;

use super::socket::{ACK, DUMP, Messages, NetfilterError, ask, attribute};

/// The name of kube-proxy's tables.
pub const TABLE: &str = "kube-proxy";
/// The families that have one, by netfilter's numbers and nft's names.
pub const FAMILIES: [(u8, &str); 2] = [(2, "ip"), (10, "ip6")];

/// The subsystem of nftables, and its messages (`linux/netfilter/nf_tables.h`).
const SUBSYSTEM: u16 = 10;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// The attribute of a message that names a table; of one about rules, the chain; of a chain, its name and its hook.
const TABLE_NAME: u16 = 1;
const RULE_CHAIN: u16 = 2;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
/// The chain with the rule that masquerades.
const MASQUERADING: &str = "masquerading";

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

/// Takes the table's rules away in one step. Its chains stay hooked, and the rule that masquerades stays in a chain that nothing leads to: without
/// both the kernel would neither track nor translate connections any more, those that exist included.
///
/// # Errors
/// Netfilter refuses.
pub fn empty(family: u8) -> Result<(), NetfilterError> {
    let chains = chains(family)?;
    let kept = chains.iter().any(|chain| chain.name == MASQUERADING);
    // A kube-proxy of another version: what no hook leads to any more does nothing.
    let goes = |chain: &&Chain| if kept { chain.name != MASQUERADING } else { chain.hooked };
    let emptied: Vec<&Chain> = chains.iter().filter(goes).collect();
    change("empty kube-proxy's table", emptied.len(), |messages| {
        for chain in emptied {
            let start = messages.begin(DELETE_RULE, ACK, family, 0);
            messages.text(TABLE_NAME, TABLE);
            messages.text(RULE_CHAIN, &chain.name);
            messages.end(start);
        }
    })
}

/// Removes the table.
///
/// # Errors
/// Netfilter refuses.
pub fn remove(family: u8) -> Result<(), NetfilterError> {
    change("remove kube-proxy's table", 1, |messages| {
        let start = messages.begin(DELETE_TABLE, ACK, family, 0);
        messages.text(TABLE_NAME, TABLE);
        messages.end(start);
    })
}

/// The tables of a family with a chain whose name `is_one`, kube-proxy's own aside.
///
/// # Errors
/// Netfilter cannot be asked.
pub(super) fn tables_with(family: u8, is_one: fn(&str) -> bool) -> Result<Vec<String>, NetfilterError> {
    let found = all_chains(family)?.into_iter();
    let tables: BTreeSet<String> = found
        .filter(|(table, chain)| table != TABLE && is_one(&chain.name))
        .map(|(table, _)| table)
        .collect();
    Ok(tables.into_iter().collect())
}

/// A chain.
struct Chain {
    name: String,
    hooked: bool,
}

/// The chains of kube-proxy's table.
fn chains(family: u8) -> Result<Vec<Chain>, NetfilterError> {
    let found = all_chains(family)?.into_iter();
    Ok(found
        .filter(|(table, _)| table == TABLE)
        .map(|(_, chain)| chain)
        .collect())
}

/// Every chain of a family, with its table.
fn all_chains(family: u8) -> Result<Vec<(String, Chain)>, NetfilterError> {
    let mut messages = Messages::default();
    let start = messages.begin(GET_CHAIN, DUMP, family, 0);
    messages.end(start);
    let mut chains = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    ask("list chains", &messages, usize::MAX, |chain| {
        let names = attribute(chain, TABLE_NAME).zip(attribute(chain, CHAIN_NAME));
        chains.extend(names.map(|(table, name)| {
            let hooked = attribute(chain, CHAIN_HOOK).is_some();
            (
                text(table),
                Chain {
                    name: text(name),
                    hooked,
                },
            )
        }));
    })?;
    Ok(chains)
}

/// Makes changes, all or none of them.
fn change(what: &'static str, acks: usize, changes: impl FnOnce(&mut Messages)) -> Result<(), NetfilterError> {
    if acks == 0 {
        return Ok(());
    }
    let mut messages = Messages::default();
    let start = messages.begin(BATCH_BEGIN, 0, 0, SUBSYSTEM);
    messages.end(start);
    changes(&mut messages);
    let start = messages.begin(BATCH_END, 0, 0, SUBSYSTEM);
    messages.end(start);
    match ask(what, &messages, acks, |_| {}) {
        Err(error) if error.is_absent() => Ok(()),
        result => result,
    }
}
