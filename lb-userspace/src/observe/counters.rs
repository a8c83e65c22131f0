//! Packets by reason, by the names that `status` and metrics show, and the verdict that each reason stands for.

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

/// What becomes of a packet for the reason of this name: `passed`, `forwarded`, `answered` or `dropped`.
pub fn verdict_of(name: &str) -> &'static str {
    let reason = Reason::ALL.iter().find(|reason| reason.name() == name);
    reason.map_or("passed", |reason| verdict(*reason))
}

fn verdict(reason: Reason) -> &'static str {
    match reason {
        Reason::NotOurs
        | Reason::NotParsed
        | Reason::OtherHook
        | Reason::Takeover
        | Reason::UnknownPortPassed
        | Reason::IcmpErrorPassed
        | Reason::HandedOver => "passed",
        Reason::Forward
        | Reason::Reply
        | Reason::NewFlow
        | Reason::IcmpError
        | Reason::Healed
        | Reason::Lifted
        | Reason::BackendGone => "forwarded",
        Reason::UnknownPort
        | Reason::UnknownProtocol
        | Reason::NoEndpoints
        | Reason::Echo
        | Reason::TooBig
        | Reason::TimeExceeded => "answered",
        Reason::NoLocalEndpoints
        | Reason::SourceRange
        | Reason::EchoDropped
        | Reason::RateLimited
        | Reason::FragmentLost
        | Reason::FlowBusy
        | Reason::FlowTableFull
        | Reason::PortsExhausted
        | Reason::TablesChanged
        | Reason::NoRoute
        | Reason::RewriteFailed
        | Reason::AnswerFailed
        | Reason::NoService
        | Reason::Silent
        | Reason::UnsupportedDevice
        | Reason::StageMissing => "dropped",
    }
}
