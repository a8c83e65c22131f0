//! iptables as a side: the rules of Services alone, in the form that kube-proxy's iptables mode gives them.
//!
//! In: Services by address and port, with their backends. Out: their rules in the nat table of the kernel's own iptables
//! (`iptables-legacy`), or why this kernel or machine has none. Each Service is a rule of the chain that all new connections walk, with
//! a chain of its own and one for each backend; a mark tells what to masquerade. Left out is what nft as a side has neither: other
//! Services, NodePorts, kube-proxy's filter table and comments.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_tests::netns::Netns;
use tempfile::NamedTempFile;

/// Who is not masqueraded.
const PODS: &str = "10.244.0.0/16";

/// A Service.
#[derive(Clone, Debug)]
pub(crate) struct Frontend {
    /// `tcp` or `udp`.
    pub(crate) protocol: &'static str,
    /// What clients ask.
    pub(crate) at: SocketAddr,
    /// Who answers, at least one.
    pub(crate) backends: Vec<SocketAddr>,
}

/// Why this machine has no such side; found out in a namespace of its own.
pub(crate) fn missing() -> Option<String> {
    let probe = Frontend {
        protocol: "tcp",
        at: SocketAddr::from(([10, 96, 0, 1], 80)),
        backends: [1, 2].map(|host| SocketAddr::from(([10, 244, 0, host], 80))).into(),
    };
    let error = put(&Netns::new("iptables"), &[probe]).err()?;
    let told = error.to_string();
    Some(told.lines().next().unwrap_or_default().to_owned())
}

/// Puts the rules of these Services, and no others, into the nat table of a namespace.
pub(crate) fn put(place: &Netns, frontends: &[Frontend]) -> Result<()> {
    let mut file = NamedTempFile::new().context("a file for rules")?;
    file.write_all(rules(frontends).as_bytes()).context("write rules")?;
    let path = file.path().to_string_lossy();
    let output = place.cmd(&["iptables-legacy-restore", &path]);
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// What `iptables-restore` takes.
fn rules(frontends: &[Frontend]) -> String {
    let mut chains = ["SERVICES", "POSTROUTING", "MARK-MASQ"].map(chain).concat();
    let mut rules = String::from(
        "-A PREROUTING -j KUBE-SERVICES\n\
         -A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n",
    );
    for (number, frontend) in frontends.iter().enumerate() {
        let (protocol, address, port) = (frontend.protocol, frontend.at.ip(), frontend.at.port());
        let to = format!("-d {address}/32 -p {protocol} -m {protocol} --dport {port}");
        let service = format!("SVC-{number}");
        let mut add = |chain: &str, rule: &str| writeln!(rules, "-A KUBE-{chain} {rule}").expect("a string");
        add("SERVICES", &format!("{to} -j KUBE-{service}"));
        add(&service, &format!("! -s {PODS} {to} -j KUBE-MARK-MASQ"));
        chains += &chain(&service);
        for (place, backend) in frontend.backends.iter().enumerate() {
            let endpoint = format!("SEP-{number}-{place}");
            chains += &chain(&endpoint);
            // Each of those that are left is as likely as the others.
            let left = frontend.backends.len() - place;
            let drawn = if left == 1 {
                String::new()
            } else {
                format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64)
            };
            add(&service, &format!("{drawn}-j KUBE-{endpoint}"));
            add(&endpoint, &format!("-s {}/32 -j KUBE-MARK-MASQ", backend.ip()));
            add(
                &endpoint,
                &format!("-p {protocol} -m {protocol} -j DNAT --to-destination {backend}"),
            );
        }
    }
    format!("*nat\n{chains}{rules}COMMIT\n")
}

/// Makes a chain.
fn chain(name: &str) -> String {
    format!(":KUBE-{name} - [0:0]\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_a_chain_and_draws_among_its_backends_alike() {
        let text = rules(&[Frontend {
            protocol: "udp",
            at: "203.0.113.10:80".parse().unwrap(),
            backends: ["10.244.2.10:8080", "10.244.2.11:8080"]
                .map(|at| at.parse().unwrap())
                .into(),
        }]);
        for rule in [
            "-A KUBE-SERVICES -d 203.0.113.10/32 -p udp -m udp --dport 80 -j KUBE-SVC-0\n",
            "-A KUBE-SVC-0 -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-0-0\n",
            "-A KUBE-SVC-0 -j KUBE-SEP-0-1\n",
            "-A KUBE-SEP-0-1 -p udp -m udp -j DNAT --to-destination 10.244.2.11:8080\n",
        ] {
            assert!(text.contains(rule), "{rule} in {text}");
        }
        assert!(text.ends_with("COMMIT\n"));
    }
}
