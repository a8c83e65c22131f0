//! Port numbers, port names and protocols, checked alike in Services, EndpointSlices and Endpoints.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::object::quoted;

/// The transport protocol of a Service port. SCTP is carried; whether it can be forwarded is decided by the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The protocol as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The protocol's number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Reads the API's spelling; absent means TCP. The error is the reason of a rejection.
    fn parse(text: Option<&str>) -> Result<Self, String> {
        match text {
            None | Some("TCP") => Ok(Self::Tcp),
            Some("UDP") => Ok(Self::Udp),
            Some("SCTP") => Ok(Self::Sctp),
            Some(other) => Err(format!("{} is not a protocol; use TCP, UDP or SCTP", quoted(other))),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A checked port: its name, protocol and number.
pub(super) type CheckedPort<'a> = (&'a str, Protocol, u16);
/// The field of a port that is wrong, and the reason of the rejection.
pub(super) type PortFault = (&'static str, String);

/// Checks a port of any kind of object.
pub(super) fn check_port<'a>(name: &'a str, protocol: Option<&str>, number: i32) -> Result<CheckedPort<'a>, PortFault> {
    let name = port_name(name).map_err(|reason| ("name", reason))?;
    let protocol = Protocol::parse(protocol).map_err(|reason| ("protocol", reason))?;
    let number = port_number(number).map_err(|reason| ("port", reason))?;
    Ok((name, protocol, number))
}

/// Checks a port number. The error is the reason of a rejection.
pub(super) fn port_number(value: i32) -> Result<u16, String> {
    u16::try_from(value)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("{value} is not a port number; use 1 to 65535"))
}

/// Checks a port name, which may be empty. The error is the reason of a rejection.
fn port_name(name: &str) -> Result<&str, String> {
    const LONGEST: usize = 63;
    let fits = name.len() <= LONGEST
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fits {
        Ok(name)
    } else {
        Err(format!(
            "{} is not a port name; use at most 63 lower-case letters, digits and '-'",
            quoted(name)
        ))
    }
}
