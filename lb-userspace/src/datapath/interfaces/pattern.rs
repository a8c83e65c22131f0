//! Interface name patterns: `*` stands for any text, `?` for one character, as in a shell.

use super::Role;
use crate::config::InterfacePatterns;

/// The role that patterns force upon a name ([`Role::Unhooked`] = ignored); `None` where none fits.
pub(super) fn forced_role(patterns: &InterfacePatterns, name: &str) -> Option<Role> {
    let fits = |patterns: &[String]| {
        patterns
            .iter()
            .any(|pattern| matches(pattern.as_bytes(), name.as_bytes()))
    };
    [
        (&patterns.ignore, Role::Unhooked),
        (&patterns.uplink, Role::Uplink),
        (&patterns.tunnel, Role::Tunnel),
        (&patterns.pod, Role::Pod),
    ]
    .into_iter()
    .find_map(|(patterns, role)| fits(patterns).then_some(role))
}

/// Linear in practice: on a mismatch only the last `*` is extended.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((after, from)) => {
                    retry = Some((after, from + 1));
                    p = after;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name, fits) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth0.100", true),
            ("*", "", true),
            ("?", "", false),
            ("eth?", "eth10", false),
            ("cali*x", "cali123x", true),
            ("cali*x", "cali12x3", false),
            ("*ab*ab", "aabab", true),
            ("*ab*ab", "abaab1ab", true),
            ("*ab*ab", "ab", false),
            ("a*b*c?", "aXbYc", false),
            ("a*b*c?", "aXbYcZ", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn ignore_is_stronger_than_every_other_pattern() {
        let list = |text: &str| vec![text.to_owned()];
        let patterns = InterfacePatterns {
            uplink: list("e*"),
            tunnel: list("t*"),
            pod: list("*h1"),
            ignore: list("eth0"),
        };
        assert_eq!(forced_role(&patterns, "eth0"), Some(Role::Unhooked));
        assert_eq!(forced_role(&patterns, "eth1"), Some(Role::Uplink));
        assert_eq!(forced_role(&patterns, "vh1"), Some(Role::Pod));
        assert_eq!(forced_role(&patterns, "th1"), Some(Role::Tunnel));
        assert_eq!(forced_role(&patterns, "wlan0"), None);
    }
}
