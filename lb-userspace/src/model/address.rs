//! IP addresses and ranges as Kubernetes reads them.
//!
//! Kubernetes keeps Go's pre-1.17 reading for old objects ("sloppy"): leading zeros in an IPv4 address are decimal, not
//! octal, and ranges may have host bits set. What was read is canonical: an IPv4-mapped IPv6 address is IPv4, and a
//! range is cut to its network. Source: k8s.io/utils/net `ParseIPSloppy`, `ParseCIDRSloppy`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The address family; every Service port exists once per family, and the two never mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family of a range.
    pub fn of_range(range: &IpNet) -> Self {
        match range {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The family as the API spells it: `IPv4` or `IPv6`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Reads the API's spelling.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::BOTH.into_iter().find(|family| family.as_str() == text)
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One value for each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PerFamily<T> {
    /// The value for IPv4.
    pub v4: T,
    /// The value for IPv6.
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// The value for `family`.
    pub fn get(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The value for `family`, to be changed.
    pub fn get_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// Reads an address; leading zeros are decimal, an IPv4-mapped IPv6 address becomes IPv4. No zone, no spaces.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return parse_ipv4(text).map(IpAddr::V4);
    }
    let plain = text.parse::<Ipv6Addr>().ok().or_else(|| {
        let (head, tail) = text.rsplit_once(':')?;
        format!("{head}:{}", parse_ipv4(tail)?).parse().ok()
    })?;
    Some(IpAddr::V6(plain).to_canonical())
}

/// Reads a range and cuts it to its network: `10.180.00.001/8` is `10.0.0.0/8`.
pub fn parse_range(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length = decimal(length, 128)? as u8;
    let address = if address.contains(':') {
        address.parse().ok()?
    } else {
        parse_address(address)?
    };
    Some(IpNet::new(address, length).ok()?.trunc())
}

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?, 255)? as u8;
    }
    parts.next().is_none().then(|| octets.into())
}

fn decimal(text: &str, highest: u32) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|value| digits && *value <= highest)
}

/// Why an address can never be a frontend: it names no one host, or every host itself.
pub(super) fn unusable_frontend(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("is the unspecified address")
    } else if address.is_loopback() {
        Some("is a loopback address")
    } else if address.is_multicast() {
        Some("is a multicast address")
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("is the broadcast address")
    } else {
        None
    }
}

/// Why an address can never be an endpoint or an external IP (apiserver validation `ValidateNonSpecialIP`).
pub(super) fn unusable_endpoint(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    unusable_frontend(address).or(link_local.then_some("is a link-local address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal_and_mapped_addresses_are_ipv4() {
        for (text, expected) in [
            ("10.180.00.001", Some("10.180.0.1")),
            ("010.0.0.08", Some("10.0.0.8")),
            ("0000000000010.0.0.1", Some("10.0.0.1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("2001:DB8:0:0::cb00:71fa", Some("2001:db8::cb00:71fa")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("64:ff9b::192.000.2.1", Some("64:ff9b::c000:201")),
            ("", None),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.256", None),
            ("+10.0.0.1", None),
            (" 10.0.0.1", None),
            ("10.0.0.1/8", None),
            ("fe80::1%eth0", None),
            ("web", None),
            (":10.0.0.1", None),
        ] {
            assert_eq!(
                parse_address(text).map(|address| address.to_string()).as_deref(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn ranges_are_cut_to_their_network() {
        for (text, expected) in [
            ("10.180.00.001/8", Some("10.0.0.0/8")),
            ("192.0.2.1/32", Some("192.0.2.1/32")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("2001:db8::1/32", Some("2001:db8::/32")),
            ("::/0", Some("::/0")),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("10.0.0.0", None),
            ("::/129", None),
        ] {
            assert_eq!(
                parse_range(text).map(|range| range.to_string()).as_deref(),
                expected,
                "{text}"
            );
        }
    }
}
