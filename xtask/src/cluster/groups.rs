//! The groups of end-to-end tests, and what kube-proxy's nftables mode makes of them on this cluster.
//!
//! A group's tests are those of its list, by their full names; nothing is chosen by an expression that might match less one day.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

/// A group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    /// On the command line; its list is `tests/cluster/baseline/NAME.txt`.
    pub(super) name: &'static str,
    /// Fewest workers.
    pub(super) workers: usize,
    /// Whether a load balancer is needed.
    pub(super) load_balancer: bool,
    /// Whether the cluster must be of IPv4 alone: a test of this group builds URLs that IPv6 addresses break.
    pub(super) ipv4_only: bool,
    /// Whether Steerway is taken away first: the tests must then fail.
    pub(super) control: bool,
}

const PLAIN: Group = Group {
    name: "",
    workers: 3,
    load_balancer: false,
    ipv4_only: false,
    control: false,
};

/// All groups.
pub(super) const GROUPS: [Group; 7] = [
    Group { name: "short", ..PLAIN },
    Group {
        name: "services",
        ..PLAIN
    },
    Group {
        name: "neighbours",
        ..PLAIN
    },
    Group {
        name: "dual-stack",
        workers: 6,
        ..PLAIN
    },
    Group {
        name: "load-balancers",
        load_balancer: true,
        ipv4_only: true,
        ..PLAIN
    },
    Group {
        name: "disruptive",
        ..PLAIN
    },
    Group {
        name: "control",
        control: true,
        ..PLAIN
    },
];

/// What is expected of a test.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Expected {
    pub(super) name: String,
    pub(super) state: String,
}

impl Group {
    pub(super) fn find(name: &str) -> Option<Self> {
        GROUPS.into_iter().find(|group| group.name == name)
    }

    /// The tests of the group.
    pub(super) fn expected(&self, root: &Path) -> Result<Vec<Expected>> {
        let file = root.join("tests/cluster/baseline").join(format!("{}.txt", self.name));
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        parse(&text).with_context(|| format!("{}", file.display()))
    }
}

/// Lines of a state and a name.
fn parse(text: &str) -> Result<Vec<Expected>> {
    let mut tests = Vec::new();
    for line in text.lines() {
        let Some((state @ ("passed" | "skipped" | "failed"), name)) = line.split_once('\t') else {
            bail!("a line is no state and name: {line}");
        };
        tests.push(Expected {
            name: name.to_owned(),
            state: state.to_owned(),
        });
    }
    Ok(tests)
}

/// An expression that matches these names and no other.
pub(super) fn focus(tests: &[Expected]) -> String {
    let names: Vec<String> = tests.iter().map(|test| escape(&test.name)).collect();
    format!("({})$", names.join("|"))
}

/// The text as a regular expression of Go.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        if r"\.+*?()|[]{}^$".contains(letter) {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Workspace;

    #[test]
    fn names_are_matched_as_they_are() {
        let tests = parse("passed\t[x] a (b)\nskipped\tc\n").unwrap();
        assert_eq!(focus(&tests), r"(\[x\] a \(b\)|c)$");
        assert!(parse("ok\tname").is_err() && parse("passed name").is_err());
    }

    #[test]
    fn every_group_has_a_list_of_kube_proxys_results() {
        let root = Workspace::locate().unwrap().root;
        for group in GROUPS {
            let tests = group.expected(&root).unwrap();
            assert!(!tests.is_empty(), "{}", group.name);
            let failed = tests.iter().filter(|test| test.state == "failed").count();
            assert_eq!(
                failed > 0,
                group.control,
                "{}: {failed} are expected to fail",
                group.name
            );
        }
    }
}
