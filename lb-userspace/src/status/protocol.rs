//! The lines between command line and agent: one request, then items, then an end.
//!
//! Each line is one JSON object closed by `\n`. A connection carries one request. Bounds: a request has at most
//! [`MAX_REQUEST`] bytes, a line of the answer at most [`MAX_LINE`]; lists are sent item by item, so neither side holds a
//! whole answer. Both sides are the same program, but may differ in version while an upgrade runs: unknown fields are
//! ignored, an unknown request is answered with an error.

use serde::{Deserialize, Serialize};

use super::report::{Report, ServiceFilter, ServiceItem};

/// Longest request in bytes.
pub const MAX_REQUEST: usize = 4096;
/// Longest line of an answer in bytes.
pub const MAX_LINE: usize = 16 << 20;
/// Longest time that a client may ask to wait, in seconds.
pub const MAX_WAIT_SECS: u64 = 24 * 3600;
/// Name of the socket in the run folder.
pub const SOCKET: &str = "agent.sock";

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// The agent's state; answered by one [`Item::Report`].
    Status,
    /// Answered by one [`Item::Programmed`] when every object that the source holds now is programmed or rejected, or by an
    /// error after this time.
    Wait {
        /// Seconds to wait at most.
        seconds: u64,
    },
    /// The service ports; answered by any number of [`Item::Service`].
    Services(ServiceFilter),
}

/// One part of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Item {
    /// The agent's state.
    Report(Box<Report>),
    /// All objects up to this generation of the source are programmed or rejected.
    Programmed {
        /// Generation of the source.
        generation: u64,
    },
    /// One service port.
    Service(Box<ServiceItem>),
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    /// A part.
    Item(Item),
    /// The answer is complete.
    End,
    /// The answer ends here because of an error.
    Error(String),
}

/// One object as a line.
pub(super) fn to_line<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}
