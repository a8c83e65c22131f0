//! How decoded packets are printed and compared.

use std::fmt::{self, Debug, Formatter, Write as _};

use super::{Checksum, Decoded, Transport};

impl Debug for Decoded {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(link) = &self.link {
            write!(f, "{} > {} ", mac(link.source), mac(link.destination))?;
            link.vlans.iter().try_for_each(|id| write!(f, "vlan {id} "))?;
        }
        let (source, destination) = match self.ports() {
            Some((source, destination)) => (format!(":{source}"), format!(":{destination}")),
            None => Default::default(),
        };
        let ip = &self.ip;
        write!(f, "{}{source} > {}{destination} ", ip.source, ip.destination)?;
        match &self.transport {
            Transport::Tcp {
                flags,
                sequence,
                acknowledgement,
                window,
                options,
                ..
            } => {
                write!(f, "tcp {flags} seq {sequence} ack {acknowledgement} win {window}")?;
                if !options.is_empty() {
                    write!(f, " opt {}", hex(options))?;
                }
            }
            Transport::Udp { .. } => write!(f, "udp")?,
            Transport::Icmp {
                icmp_type, code, rest, ..
            } => write!(f, "icmp {icmp_type}/{code} {}", hex(rest))?,
            Transport::Ports { .. } | Transport::Opaque => write!(f, "protocol {}", ip.protocol)?,
        }
        write!(f, " len {} ttl {}", self.payload.len(), ip.ttl)?;
        if ip.tos != 0 {
            write!(f, " tos {:#x}", ip.tos)?;
        }
        if ip.dont_fragment {
            write!(f, " DF")?;
        }
        if let Some(part) = &ip.fragment {
            let more = if part.more { "+" } else { "" };
            write!(f, " fragment {}@{}{more}", part.identification, part.offset)?;
        }
        for (number, content) in &ip.options {
            write!(f, " option {number} {}", hex(content))?;
        }
        if !matches!(ip.header_sum, Checksum::Good | Checksum::Absent) {
            write!(f, " header sum {:?}", ip.header_sum)?;
        }
        if self.transport_sum != Checksum::Good {
            write!(f, " sum {:?}", self.transport_sum)?;
        }
        if let Some(quoted) = self.quoted() {
            write!(f, " [{quoted:?}]")?;
        }
        Ok(())
    }
}

/// In which fields two frames (bytes from the Ethernet header on) differ, a line each; `None` if they are equal bytes.
///
/// A frame that cannot be decoded differs as a whole; where only padding or undecoded bytes differ, the first is named.
pub fn diff(expected: &[u8], got: &[u8]) -> Option<String> {
    if expected == got {
        return None;
    }
    let mut lines = String::new();
    match (Decoded::frame(expected), Decoded::frame(got)) {
        (Ok(expected), Ok(got)) => {
            _ = writeln!(lines, "expected {expected:?}\n     got {got:?}");
            let (expected, got) = (fields(&expected, ""), fields(&got, ""));
            for ((name, wanted), (_, found)) in expected.iter().zip(&got).filter(|(wanted, found)| wanted != found) {
                _ = writeln!(lines, "  {name}: expected {wanted}, got {found}");
            }
        }
        (wanted, found) => _ = writeln!(lines, "expected {wanted:?}\n     got {found:?}"),
    }
    let first = expected.iter().zip(got).position(|(wanted, found)| wanted != found);
    let first = first.unwrap_or_else(|| expected.len().min(got.len()));
    _ = writeln!(
        lines,
        "  {} bytes expected, {} got; the first to differ is byte {first}",
        expected.len(),
        got.len()
    );
    let around = |bytes: &[u8]| hex(bytes.get(first..bytes.len().min(first + 8)).unwrap_or_default());
    _ = writeln!(
        lines,
        "  from there: expected {}, got {}",
        around(expected),
        around(got)
    );
    Some(lines)
}

/// Every field by name, in a fixed order, the quoted packet's last.
fn fields(packet: &Decoded, prefix: &str) -> Vec<(String, String)> {
    let ip = &packet.ip;
    let link = packet.link.as_ref();
    let mut all = vec![
        ("source mac", link.map(|link| mac(link.source)).unwrap_or_default()),
        (
            "destination mac",
            link.map(|link| mac(link.destination)).unwrap_or_default(),
        ),
        ("vlans", format!("{:?}", link.map(|link| &link.vlans))),
        ("source", ip.source.to_string()),
        ("destination", ip.destination.to_string()),
        ("protocol", ip.protocol.to_string()),
        ("ttl", ip.ttl.to_string()),
        ("tos", ip.tos.to_string()),
        ("length", ip.length.to_string()),
        ("df", ip.dont_fragment.to_string()),
        ("identification", ip.identification.to_string()),
        ("flow label", ip.flow_label.to_string()),
        ("fragment", format!("{:?}", ip.fragment)),
        ("options", format!("{:?}", ip.options)),
        ("header sum", format!("{:?}", ip.header_sum)),
        ("ports", format!("{:?}", packet.ports())),
        ("transport sum", format!("{:?}", packet.transport_sum)),
        (
            "payload",
            format!(
                "{} bytes {}",
                packet.payload.len(),
                hex(&packet.payload[..packet.payload.len().min(32)])
            ),
        ),
    ];
    match &packet.transport {
        Transport::Tcp {
            flags,
            sequence,
            acknowledgement,
            window,
            options,
            ..
        } => all.extend([
            ("tcp flags", flags.clone()),
            ("sequence", sequence.to_string()),
            ("acknowledgement", acknowledgement.to_string()),
            ("window", window.to_string()),
            ("tcp options", hex(options)),
        ]),
        Transport::Icmp {
            icmp_type, code, rest, ..
        } => {
            all.extend([("icmp", format!("{icmp_type}/{code}")), ("icmp rest", hex(rest))]);
        }
        Transport::Udp { .. } | Transport::Ports { .. } | Transport::Opaque => {}
    }
    let mut all: Vec<_> = all
        .into_iter()
        .map(|(name, value)| (format!("{prefix}{name}"), value))
        .collect();
    if let Some(quoted) = packet.quoted() {
        all.extend(fields(quoted, &format!("{prefix}quoted ")));
    }
    all
}

fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    })
}
