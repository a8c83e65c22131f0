//! kube-proxy's chains of its iptables mode (`pkg/proxy/iptables/cleanup.go`), by the programs that iptables consists of: its older form has
//! no other interface that is stable.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use super::nftables;

/// Pairs of programs, one for each form and family.
const FORMS: [Form; 4] = [
    Form::new("iptables-nft", Kept::Nftables(2)),
    Form::new("ip6tables-nft", Kept::Nftables(10)),
    Form::new("iptables-legacy", Kept::Named("/proc/net/ip_tables_names")),
    Form::new("ip6tables-legacy", Kept::Named("/proc/net/ip6_tables_names")),
];

/// A form of iptables for one family.
struct Form {
    name: &'static str,
    kept: Kept,
}

/// Where the kernel keeps the rules of a form.
enum Kept {
    /// In nftables, in the family of this number, where chains can be seen without the form's programs.
    Nftables(u8),
    /// In tables of its own, of which only the names can be seen, in this file.
    Named(&'static str),
}

impl Form {
    const fn new(name: &'static str, kept: Kept) -> Self {
        Self { name, kept }
    }

    /// Tables in which chains of kube-proxy are, or may be where that cannot be seen.
    fn tables(&self) -> Vec<String> {
        match self.kept {
            Kept::Nftables(family) => nftables::tables_with(family, is_kube_proxys).unwrap_or_default(),
            Kept::Named(file) => {
                let names = fs::read_to_string(file).unwrap_or_default();
                names.lines().map(str::to_owned).collect()
            }
        }
    }

    /// What is, or may be, in them.
    const fn what(&self) -> &'static str {
        match self.kept {
            Kept::Nftables(_) => "chains",
            Kept::Named(_) => "what may be",
        }
    }
}

/// Chains that are kubelet's.
const OF_KUBELET: [&str; 4] = [
    "KUBE-FIREWALL",
    "KUBE-KUBELET-CANARY",
    "KUBE-IPTABLES-HINT",
    "KUBE-MARK-DROP",
];

/// The chain of the table `nat` with the rule that masquerades.
const MASQUERADING: &str = "KUBE-POSTROUTING";

/// What became of kube-proxy's chains, in words.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was removed.
    pub done: Vec<String>,
    /// What was not, and why.
    pub failed: Vec<String>,
    /// Whether chains that masquerade are there yet.
    pub kept: bool,
}

/// Removes kube-proxy's chains and the jumps to them, each form in one step, but for the one that masquerades, to which nothing leads
/// then: without any such rule the kernel would no longer track connections, nor translate those that exist.
pub fn empty() -> Outcome {
    each(Part::AllButMasquerading)
}

/// Removes what [`empty`] kept.
pub fn remove() -> Outcome {
    each(Part::All)
}

/// How much of the chains goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    AllButMasquerading,
}

fn each(part: Part) -> Outcome {
    let mut outcome = Outcome::default();
    for form in FORMS {
        match remove_of(form.name, part) {
            Ok(removal) => {
                outcome.kept |= removal.kept;
                if removal.chains > 0 {
                    outcome.done.push(format!("{} chains of {}", removal.chains, form.name));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let left = form.tables();
                if !left.is_empty() {
                    outcome.failed.push(format!(
                        "{} in the tables {} of {}, which is not installed here: run this where it is",
                        form.what(),
                        left.join(", "),
                        form.name
                    ));
                }
            }
            Err(error) => outcome.failed.push(format!("chains of {}: {error}", form.name)),
        }
    }
    outcome
}

fn remove_of(form: &str, part: Part) -> io::Result<Removal> {
    let saved = run(&format!("{form}-save"), &[], "")?;
    let removal = removal(&saved, part);
    if !removal.text.is_empty() {
        run(&format!("{form}-restore"), &["--noflush", "--wait=5"], &removal.text)?;
    }
    Ok(removal)
}

fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}", errors.trim())))
}

/// How to remove chains.
struct Removal {
    /// What `iptables-restore --noflush` has to be told; empty for nothing.
    text: String,
    /// How many chains go.
    chains: usize,
    /// Whether one stays that masquerades.
    kept: bool,
}

/// How to remove kube-proxy's chains from what `iptables-save` told.
fn removal(saved: &str, part: Part) -> Removal {
    let mut removal = Removal {
        text: String::new(),
        chains: 0,
        kept: false,
    };
    for table in saved.split("\n*").map(|table| table.trim_start_matches('*')) {
        let name = table.lines().next().unwrap_or_default();
        let mut going: BTreeSet<&str> = table
            .lines()
            .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
            .filter(|chain| is_kube_proxys(chain))
            .collect();
        let led_to = going.clone();
        if part == Part::AllButMasquerading && name == "nat" {
            removal.kept |= going.remove(MASQUERADING);
        }
        let jumps = table.lines().filter_map(|line| {
            let rule = line.strip_prefix("-A ")?;
            let from = rule.split(' ').next()?;
            let to = rule.split(" -j ").nth(1)?.split(' ').next()?;
            (led_to.contains(to) && !going.contains(from)).then(|| format!("-D {rule}\n"))
        });
        // A chain that is named anew is emptied; then none refers to another.
        let emptied = going.iter().map(|chain| format!(":{chain} - [0:0]\n"));
        let removed = going.iter().map(|chain| format!("-X {chain}\n"));
        let commands: String = emptied.chain(jumps).chain(removed).collect();
        if !commands.is_empty() {
            removal.text.extend(["*", name, "\n", commands.as_str(), "COMMIT\n"]);
            removal.chains += going.len();
        }
    }
    removal
}

/// Whether a chain is kube-proxy's by its name.
fn is_kube_proxys(chain: &str) -> bool {
    chain.starts_with("KUBE-") && !OF_KUBELET.contains(&chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_proxys_chains_go_and_everybody_elses_stay() {
        let saved = "# Generated by iptables-save\n*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\n:KUBE-FORWARD - [0:0]\n\
            -A INPUT -j KUBE-FIREWALL\n-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
            -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n:CNI-HOSTPORT-DNAT - [0:0]\n\
            :KUBE-SERVICES - [0:0]\n:KUBE-SVC-AAA - [0:0]\n-A PREROUTING -j CNI-HOSTPORT-DNAT\n-A PREROUTING -j KUBE-SERVICES\n\
            -A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-AAA\nCOMMIT\n*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
        let whole = removal(saved, Part::All);
        assert_eq!((whole.chains, whole.kept), (3, false));
        assert_eq!(
            whole.text,
            "*filter\n:KUBE-FORWARD - [0:0]\n-D FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
             -X KUBE-FORWARD\nCOMMIT\n*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-AAA - [0:0]\n-D PREROUTING -j KUBE-SERVICES\n\
             -X KUBE-SERVICES\n-X KUBE-SVC-AAA\nCOMMIT\n"
        );
        assert_eq!(removal("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n", Part::All).text, "");
    }

    #[test]
    fn the_chain_that_masquerades_stays_unused_until_the_rest_is_over() {
        let saved = "*nat\n:POSTROUTING ACCEPT [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
            -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
            -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n-A KUBE-POSTROUTING -j MASQUERADE --random-fully\nCOMMIT\n";
        let first = removal(saved, Part::AllButMasquerading);
        assert_eq!((first.chains, first.kept), (1, true));
        assert_eq!(
            first.text,
            "*nat\n:KUBE-MARK-MASQ - [0:0]\n\
             -D POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n-X KUBE-MARK-MASQ\nCOMMIT\n"
        );
        let after = "*nat\n:POSTROUTING ACCEPT [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
            -A KUBE-POSTROUTING -j MASQUERADE --random-fully\nCOMMIT\n";
        let again = removal(after, Part::AllButMasquerading);
        assert_eq!((again.text.as_str(), again.chains, again.kept), ("", 0, true));
        let last = removal(after, Part::All);
        assert_eq!(
            last.text,
            "*nat\n:KUBE-POSTROUTING - [0:0]\n-X KUBE-POSTROUTING\nCOMMIT\n"
        );
    }
}
