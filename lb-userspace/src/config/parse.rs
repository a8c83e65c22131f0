//! From text to value: one function a kind of value, and the reader that collects what is wrong.
//!
//! A parser returns the value or the sentence that tells what to write instead. The reader goes on after a wrong value (with
//! a stand-in that never leaves [`Reader::finish`]), so that one start names all of them.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::settings::{Place, Settings, Unused};
use super::{ConfigError, ConfigErrors};
use crate::model::NodePortAddresses;

/// What to write instead of a wrong value.
pub(super) type Fix = String;

/// Reads settings and keeps what is wrong with them.
pub(super) struct Reader<'a> {
    settings: &'a Settings,
    errors: Vec<ConfigError>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            errors: Vec::new(),
        }
    }

    /// The setting's value; `stand_in` where it is wrong.
    pub(super) fn one<T>(&mut self, flag: &'static str, stand_in: T, parse: impl Fn(&str) -> Result<T, Fix>) -> T {
        self.optional(flag, parse).unwrap_or(stand_in)
    }

    /// The setting's value, `None` where it has none or a wrong one.
    pub(super) fn optional<T>(&mut self, flag: &'static str, parse: impl Fn(&str) -> Result<T, Fix>) -> Option<T> {
        let (place, values) = self.settings.get(flag)?;
        let text = values.last().map_or("", |v| v.trim());
        parse(text)
            .map_err(|fix| self.errors.push(wrong(place, text, fix)))
            .ok()
    }

    /// The setting's values.
    pub(super) fn list<T>(&mut self, flag: &'static str, parse: impl Fn(&str) -> Result<T, Fix>) -> Vec<T> {
        let Some((place, values)) = self.settings.get(flag) else {
            return Vec::new();
        };
        let mut parsed = Vec::new();
        for text in items(values) {
            match parse(text) {
                Ok(value) => parsed.push(value),
                Err(fix) => self.errors.push(wrong(place, text, fix)),
            }
        }
        parsed
    }

    /// The setting's values parsed as one.
    pub(super) fn whole<T>(
        &mut self,
        flag: &'static str,
        stand_in: T,
        parse: impl Fn(&[&str]) -> Result<T, (String, Fix)>,
    ) -> T {
        let Some((place, values)) = self.settings.get(flag) else {
            return stand_in;
        };
        parse(&items(values).collect::<Vec<_>>()).unwrap_or_else(|(text, fix)| {
            self.errors.push(wrong(place, &text, fix));
            stand_in
        })
    }

    /// A setting that may be given, correctly, and has no effect for this reason.
    pub(super) fn unused<T>(
        &mut self,
        flag: &'static str,
        parse: impl Fn(&str) -> Result<T, Fix>,
        reason: &str,
    ) -> Option<Unused> {
        if self.list(flag, parse).is_empty() {
            return None;
        }
        let (place, values) = self.settings.get(flag)?;
        Some(Unused {
            place: place.clone(),
            value: values.join(","),
            reason: reason.to_owned(),
            wrong: false,
        })
    }

    /// Whether somebody gave the setting a value.
    pub(super) fn is_given(&self, flag: &str) -> bool {
        self.settings
            .get(flag)
            .is_some_and(|(place, _)| !matches!(place, Place::Default(_)))
    }

    /// Notes a setting that must be given; not when its value was there and wrong, which has been noted.
    pub(super) fn missing(&mut self, flag: &'static str, fix: &str) {
        if self.settings.get(flag).is_none() {
            self.errors.push(ConfigError::Missing {
                flag,
                fix: fix.to_owned(),
            });
        }
    }

    /// The result, unless something was wrong.
    pub(super) fn finish<T>(self, result: T) -> Result<T, ConfigErrors> {
        if self.errors.is_empty() {
            Ok(result)
        } else {
            Err(ConfigErrors(self.errors))
        }
    }
}

fn items(values: &[String]) -> impl Iterator<Item = &str> {
    values
        .iter()
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|v| !v.is_empty())
}

fn wrong(place: &Place, text: &str, fix: Fix) -> ConfigError {
    ConfigError::Value {
        place: place.clone(),
        value: format!("{text:?}"),
        fix,
    }
}

/// One of a few words.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Fix> {
    words
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let names: Vec<_> = words.iter().map(|(name, _)| *name).collect();
            format!("use {}", names.join(" or "))
        })
}

/// true or false.
pub(super) fn truth(text: &str) -> Result<bool, Fix> {
    word(text, &[("true", true), ("false", false)])
}

/// An absolute path.
pub(super) fn path(text: &str) -> Result<PathBuf, Fix> {
    let path = PathBuf::from(text);
    if text.is_empty() {
        return Err("name a folder or file".to_owned());
    }
    std::path::absolute(path).map_err(|e| format!("use an absolute path ({e})"))
}

/// The URL of an API server.
pub(super) fn api_server(text: &str) -> Result<String, Fix> {
    let fix = || "use a URL with the server's own address, for example https://192.0.2.1:6443".to_owned();
    let url: http::Uri = text.parse().map_err(|_| fix())?;
    let usable = matches!(url.scheme_str(), Some("https" | "http")) && url.host().is_some_and(|host| !host.is_empty());
    if usable && url.query().is_none() {
        Ok(text.to_owned())
    } else {
        Err(fix())
    }
}

/// An address to listen at, with a port or at this one; `none` or nothing for nowhere.
pub(super) fn listen_address(text: &str, port: u16) -> Result<Option<SocketAddr>, Fix> {
    if text == "none" || text.is_empty() {
        return Ok(None);
    }
    let alone = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, port));
    let address = text.parse().or(alone).map(Some);
    address.map_err(|_| format!("use ADDRESS:PORT, for example 0.0.0.0:{port} or [::]:{port}, or none"))
}

/// An address.
pub(super) fn address(text: &str) -> Result<IpAddr, Fix> {
    let address = text.parse();
    address.map_err(|_| "use an address, for example 192.0.2.1 or 2001:db8::1".to_owned())
}

/// A number from zero.
pub(super) fn count(text: &str) -> Result<u32, Fix> {
    match text.parse::<u32>() {
        Ok(number @ 0..=0x7fff_ffff) => Ok(number),
        _ => Err("use a number from 0 to 2147483647".to_owned()),
    }
}

/// A prefix; a bare address stands for itself. Host bits are an error: they hint at a mistake in the length.
pub(super) fn cidr(text: &str) -> Result<IpNet, Fix> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let net: IpNet = text
        .parse()
        .map_err(|_| "use a prefix such as 10.244.0.0/16 or fd00:10:244::/48".to_owned())?;
    if net.trunc() == net {
        Ok(net)
    } else {
        Err(format!("bits are set behind the prefix; use {}", net.trunc()))
    }
}

/// `primary` or prefixes.
pub(super) fn nodeport_addresses(items: &[&str]) -> Result<NodePortAddresses, (String, Fix)> {
    if items == ["primary"] {
        return Ok(NodePortAddresses::Primary);
    }
    if items.contains(&"primary") {
        return Err((items.join(","), "use either primary alone or prefixes".to_owned()));
    }
    let one = |text: &&str| cidr(text).map_err(|fix| ((*text).to_owned(), format!("{fix}, or primary")));
    items
        .iter()
        .map(one)
        .collect::<Result<_, _>>()
        .map(NodePortAddresses::Ranges)
}

/// A range of ports for SNAT; at least 64, else a burst of clients to one server exhausts it at once.
pub(super) fn ports(text: &str) -> Result<RangeInclusive<u16>, Fix> {
    let fix = || "use FIRST-LAST with at least 64 ports between 1024 and 65535, for example 1024-29999".to_owned();
    let (first, last) = text.split_once('-').ok_or_else(fix)?;
    let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse::<u16>()) else {
        return Err(fix());
    };
    if first >= 1024 && last >= first && last - first >= 63 {
        Ok(first..=last)
    } else {
        Err(fix())
    }
}

/// A number above zero.
pub(super) fn rate(text: &str) -> Result<u32, Fix> {
    match text.parse::<u32>() {
        Ok(number @ 1..=1_000_000) => Ok(number),
        _ => Err("use a number from 1 to 1000000".to_owned()),
    }
}

/// A 64-bit number, decimal or with 0x.
pub(super) fn seed(text: &str) -> Result<u64, Fix> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "use a number of 64 bits, decimal or hexadecimal with 0x".to_owned())
}

/// Smallest and largest flow table; the largest takes 4 GiB for IPv4 and 8 GiB for IPv6.
const FLOW_ENTRIES: RangeInclusive<u32> = 1 << 10..=1 << 24;

/// A power of two.
pub(super) fn flow_entries(text: &str) -> Result<u32, Fix> {
    let (low, high) = (*FLOW_ENTRIES.start(), *FLOW_ENTRIES.end());
    let Ok(number) = text.parse::<u32>() else {
        return Err(format!("use a power of two from {low} to {high}"));
    };
    if FLOW_ENTRIES.contains(&number) && number.is_power_of_two() {
        return Ok(number);
    }
    let near = number.checked_next_power_of_two().unwrap_or(high).clamp(low, high);
    Err(format!("use a power of two from {low} to {high}, for example {near}"))
}

/// Shortest time-out.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
/// Longest time-out: a jiffy count of 32 bits must hold twice of it at HZ = 1000.
pub(super) const LONGEST: Duration = Duration::from_hours(20 * 24);

/// A time within the bounds of a time-out.
pub(super) fn timeout(text: &str) -> Result<Duration, Fix> {
    let time = parts(text).filter(|time| (SHORTEST..=LONGEST).contains(time));
    time.ok_or_else(|| "use a time from 1s to 20d, for example 30s, 2m, 24h".to_owned())
}

/// A time of any length.
pub(super) fn duration(text: &str) -> Result<Duration, Fix> {
    parts(text).ok_or_else(|| "use a time, for example 0s, 500ms, 30s, 1h30m".to_owned())
}

/// A time as Go writes it (`1h30m0s`), with d for days; seconds where no unit stands.
fn parts(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let factor = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * factor).ok()?;
        total = total.checked_add(part)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

/// A pattern of interface names.
pub(super) fn pattern(text: &str) -> Result<String, Fix> {
    let bad = text.len() > 32 || text.contains(|c: char| c.is_whitespace() || c == '/' || c == '[' || c == ']');
    if bad {
        return Err("use an interface name with `*` and `?` as wildcards, for example eth* or cali*".to_owned());
    }
    Ok(text.to_owned())
}

/// A node name in lower case (RFC 1123 subdomain, as the API server demands).
pub(super) fn node_name(text: &str) -> Result<String, Fix> {
    let name = text.trim().to_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        return Ok(name);
    }
    Err("use the name of the Node object: letters, digits, `-` and `.`".to_owned())
}
