//! Packets by reason, by the names that `status` and metrics show.

use std::collections::BTreeMap;

use lb_common::verdict::Reason;

use crate::maps::{MapError, MapStore};

/// Every reason with its packets, summed over the CPUs.
///
/// # Errors
/// The kernel refuses to read the map.
pub fn reason_counters(store: &dyn MapStore) -> Result<BTreeMap<String, u64>, MapError> {
    let counters = store.reasons()?;
    let count = |reason: Reason| counters.get(reason as usize).copied().unwrap_or(0);
    Ok(Reason::ALL
        .iter()
        .map(|&reason| (reason.name().to_owned(), count(reason)))
        .collect())
}
