//! The kernels that nodes run besides this one: the oldest and the middle one that are supported, in virtual machines.
//!
//! `$STEERWAY_KERNELS` names the folder with one unpacked kernel package for each version, as `cargo xtask setup` makes it.
//! Each test runs a choice of this binary's other tests inside the machine and demands that all of them pass there.

mod iptables_mode;
pub(crate) mod machine;
mod modules;

use std::env;
use std::path::PathBuf;

use machine::Machine;

/// The folder of the kernel `version`.
#[track_caller]
fn kernel(version: &str) -> PathBuf {
    let kernels = env::var_os("STEERWAY_KERNELS").expect("STEERWAY_KERNELS is not set: run `cargo xtask test`");
    PathBuf::from(kernels).join(version)
}

/// Runs the tests whose names contain one of `filters` in a machine with the kernel `version`.
#[track_caller]
fn all_pass(version: &str, machine: &Machine<'_>, filters: &[&str]) {
    let mut arguments = filters.to_vec();
    arguments.push("--test-threads=1");
    let console = machine.run(&arguments);
    assert!(
        console
            .lines()
            .any(|line| line.starts_with(&format!("Linux {version}."))),
        "another kernel than {version}:\n{console}"
    );
    assert!(console.contains("ended with 0"), "under Linux {version}:\n{console}");
    for filter in filters {
        let passed = console
            .lines()
            .any(|line| line.contains(filter) && line.trim_end().ends_with("... ok"));
        assert!(passed, "no test of {filter} ran under Linux {version}:\n{console}");
    }
}

/// Every program loads and does what it does on this kernel, and filters are replaced as here. Of the program tests those are left out
/// that take longest and ask the kernel least (the machine is some twenty times slower), and the one that attaches by tcx.
const EVERYWHERE: [&str; 17] = [
    "program::affinity::",
    "program::answers::",
    "program::changes::",
    "program::fragments::",
    "program::headers::",
    "program::host_routing::",
    "program::icmp_error::",
    "program::journeys::",
    "program::link_less::",
    "program::many_flows::",
    "program::masquerade::",
    "program::not_ours::",
    "program::policy::",
    "program::refusal::",
    "program::steered::",
    "program::xdp::",
    "datapath::clsact::filters_are_replaced_without_a_gap",
];

/// A machine with the kernel `version` and nothing beside the usual.
#[track_caller]
fn all_pass_as_here(version: &str, restart: &str) {
    let machine = Machine {
        kernel: kernel(version),
        ..Machine::default()
    };
    all_pass(version, &machine, &[&EVERYWHERE[..], &[restart]].concat());
}

#[test]
fn all_is_as_here_under_linux_6_1_which_has_clsact_alone() {
    all_pass_as_here("6.1", "agent::life::with_clsact_filters_it_restarts_as_silently");
}

#[test]
fn all_is_as_here_under_linux_6_12() {
    all_pass_as_here("6.12", "agent::life::killed_and_started_again");
}

/// What the host's kernel may lack runs in the machine alone: there this test is the thing itself.
#[test]
fn devices_of_a_vlan_serve_as_uplinks_under_linux_6_12() {
    if machine::is_here() {
        crate::netns::vlan::devices_of_a_vlan_serve_as_uplinks();
    } else {
        let machine = Machine {
            kernel: kernel("6.12"),
            modules: &["8021q"],
            ..Machine::default()
        };
        let this = "kernels::devices_of_a_vlan_serve_as_uplinks_under_linux_6_12";
        all_pass("6.12", &machine, &[this]);
    }
}
