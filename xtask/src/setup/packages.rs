//! Debian's packages: what is needed, what is missing, how it is installed.
//!
//! A package counts as present when the file that it is wanted for is there, wherever it came from: that is exact
//! enough, works on other distributions, and costs microseconds.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use super::{Scope, compiler::Compiler, linker};
use crate::exec;

/// Brings Debian's compiler; newer than the distribution's plain rustc, kept current for its browsers.
const COMPILER: [Need; 3] = [
    Need::new("rustc-web", "/usr/bin/rustc"),
    Need::new("cargo-web", "/usr/bin/cargo"),
    Need::new("libstd-rust-web-dev-bpf", "/usr/lib/rustlib/bpfel-unknown-none"),
];

/// Programs that the tests start, and one that the demo names to try, by name.
const TEST_TOOLS: [Need; 12] = [
    Need::new("nftables", "nft"),
    Need::new("iptables", "iptables"),
    Need::new("ethtool", "ethtool"),
    Need::new("iproute2", "ip"),
    Need::new("bpftool", "bpftool"),
    Need::new("tcpdump", "tcpdump"),
    Need::new("conntrack", "conntrack"),
    Need::new("curl", "curl"),
    Need::new("qemu-system-x86", "qemu-system-x86_64"),
    Need::new("busybox-static", "busybox"),
    Need::new("cpio", "cpio"),
    Need::new("openssl", "openssl"),
];

/// What the test cluster starts, or puts into the images of its pods.
const CLUSTER: [Need; 12] = [
    Need::new("runc", "runc"),
    Need::new("containernetworking-plugins", "/usr/lib/cni/ptp"),
    Need::new("gcc", "gcc"),
    Need::new("iproute2", "ip"),
    Need::new("nftables", "nft"),
    Need::new("conntrack", "conntrack"),
    Need::new("openssl", "openssl"),
    Need::new("busybox-static", "busybox"),
    Need::new("curl", "curl"),
    Need::new("wget", "wget"),
    Need::new("netcat-openbsd", "nc"),
    Need::new("bind9-dnsutils", "dig"),
];

/// Load tools of the bench.
const LOAD_TOOLS: [Need; 2] = [Need::new("wrk", "wrk"), Need::new("iperf3", "iperf3")];

/// A package and the file that it is wanted for: an absolute path, or a program's name.
#[derive(Debug, Clone, Copy)]
struct Need {
    package: &'static str,
    file: &'static str,
}

impl Need {
    const fn new(package: &'static str, file: &'static str) -> Self {
        Self { package, file }
    }
}

/// The packages that `scope` needs and that are missing. `llvm` is the compiler's LLVM, if there is a compiler.
pub(crate) fn missing(scope: Scope, compiler: &Compiler, llvm: Option<u32>) -> Vec<String> {
    missing_by(scope, compiler, llvm, is_there)
}

fn missing_by(scope: Scope, compiler: &Compiler, llvm: Option<u32>, is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let mut missing = Vec::new();
    if *compiler == Compiler::Debian {
        // A compiler too old for the linker is replaced by the current one; the whole set moves together.
        let outdated = llvm.is_some_and(|llvm| !linker::SUPPORTED_LLVM.contains(&llvm));
        if outdated || COMPILER.iter().any(|need| !is_there(need.file)) {
            missing.extend(COMPILER.map(|need| need.package.to_owned()));
        }
    }
    let llvm = llvm
        .filter(|llvm| linker::SUPPORTED_LLVM.contains(llvm))
        .unwrap_or(linker::EXPECTED_LLVM);
    if !is_there(&linker::llvm_prefix(llvm).join("bin/llvm-config").to_string_lossy()) {
        missing.push(format!("llvm-{llvm}-dev"));
    }
    if scope >= Scope::Demo {
        let load_tools = if scope.has_load_tools() { &LOAD_TOOLS[..] } else { &[] };
        missing.extend(
            TEST_TOOLS
                .iter()
                .chain(load_tools)
                .filter(|need| !is_there(need.file))
                .map(|need| need.package.to_owned()),
        );
    }
    missing
}

/// The packages that the test cluster needs and that are missing.
pub(crate) fn missing_for_cluster() -> Vec<String> {
    let needs = CLUSTER.iter().filter(|need| !is_there(need.file));
    needs.map(|need| need.package.to_owned()).collect()
}

/// Whether a path exists or a program of this name is found.
fn is_there(file: &str) -> bool {
    if file.starts_with('/') {
        Path::new(file).exists()
    } else {
        exec::find(file).is_some()
    }
}

/// Installs `packages` as root. Nothing that is installed is removed for them.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    let names = packages.join(" ");
    let Some(apt) = exec::find("apt-get") else {
        bail!("missing, by their Debian names: {names}. This system has no apt-get: install them its own way");
    };
    let apt = |arguments: &[&str]| -> Result<Command> {
        let variables = [("DEBIAN_FRONTEND", "noninteractive".as_ref())];
        let mut command = exec::as_root(&apt, &variables, &format!("install the Debian packages {names}"))?;
        command.args(["-qq", "-o", "DPkg::Lock::Timeout=600"]).args(arguments);
        Ok(command)
    };
    // One unreachable source of several fails the update, and need not matter: the installation decides.
    if let Err(error) = exec::run(&mut apt(&["update"])?) {
        eprintln!("warning: {error:#}");
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    arguments.extend(packages.iter().map(String::as_str));
    exec::run(&mut apt(&arguments)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_need_is_met_by_a_path_or_by_a_program_of_that_name() {
        assert!(is_there("/etc") && is_there("sh"));
        assert!(!is_there("/no/such/file") && !is_there("no-such-program-anywhere"));
    }

    #[test]
    fn on_a_new_machine_all_is_missing_and_on_a_complete_one_nothing() {
        let all = missing_by(Scope::Test, &Compiler::Debian, None, |_| false);
        assert_eq!(
            all[..4],
            ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22-dev"]
        );
        assert!(all.contains(&"nftables".to_owned()));
        assert_eq!(missing_by(Scope::Build, &Compiler::Debian, None, |_| false).len(), 4);
        assert!(missing_by(Scope::Test, &Compiler::Debian, Some(22), |_| true).is_empty());
    }

    #[test]
    fn load_tools_are_wanted_by_the_bench_alone() {
        let wants = |scope| missing_by(scope, &Compiler::Debian, None, |_| false).contains(&"wrk".to_owned());
        assert!(wants(Scope::Load) && wants(Scope::Bench));
        assert!(!wants(Scope::Demo) && !wants(Scope::Test));
    }

    #[test]
    fn a_compiler_too_old_for_the_linker_is_replaced_with_all_that_belongs_to_it() {
        let missing = missing_by(Scope::Build, &Compiler::Debian, Some(19), |_| true);
        assert_eq!(missing, ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"]);
    }

    #[test]
    fn llvm_is_missing_by_the_version_of_the_compiler() {
        let nightly = Compiler::Nightly("nightly".to_owned());
        assert_eq!(missing_by(Scope::Build, &nightly, Some(23), |_| false), ["llvm-23-dev"]);
    }
}
