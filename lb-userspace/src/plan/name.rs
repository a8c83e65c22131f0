//! The text by which a service port is named in the tables, and back: `namespace/name:port/TCP/IPv4`; the port's name may
//! be empty. Neither '/' nor ':' can be in a part (RFC 1123 names), so the text is unambiguous.

use crate::model::{Family, Protocol, ServicePortKey};

/// The name of a service port.
pub fn service_port_name(key: &ServicePortKey) -> String {
    let ServicePortKey {
        namespace,
        name,
        port,
        protocol,
        family,
    } = key;
    format!("{namespace}/{name}:{port}/{protocol}/{family}")
}

/// The service port that a name stands for; `None` for text that [`service_port_name`] does not make.
pub fn parse_service_port_name(text: &str) -> Option<ServicePortKey> {
    let mut parts = text.split('/');
    let (namespace, rest, protocol, family) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let (name, port) = rest.split_once(':')?;
    let key = ServicePortKey {
        namespace: namespace.into(),
        name: name.into(),
        port: port.into(),
        protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|known| known.as_str() == protocol)?,
        family: Family::BOTH.into_iter().find(|known| known.as_str() == family)?,
    };
    (service_port_name(&key) == text).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back() {
        for text in [
            "default/kubernetes:https/TCP/IPv4",
            "a/b:/UDP/IPv6",
            "kube-system/kube-dns:dns.x/SCTP/IPv4",
        ] {
            let key = parse_service_port_name(text).unwrap();
            assert_eq!(service_port_name(&key), text);
        }
    }

    #[test]
    fn other_text_is_no_name() {
        for text in [
            "",
            "default/web",
            "default/web:http/TCP",
            "default/web:http/ICMP/IPv4",
            "a/b:c/TCP/IPv5",
        ] {
            assert_eq!(parse_service_port_name(text), None, "{text}");
        }
        assert_eq!(parse_service_port_name("a/b:c/TCP/IPv4/x"), None);
    }
}
