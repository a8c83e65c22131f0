//! What the kernel can do, its clock, and the checks, on the kernel that runs the tests.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use steerway::datapath::checks::{CheckInput, Verdict, run};
use steerway::datapath::clock::Clock;
use steerway::datapath::interfaces::InterfaceTable;
use steerway::datapath::load::{OBJECT, wanted_shapes};
use steerway::datapath::probe::Features;

use super::Site;

#[test]
fn required_features_are_found() {
    let features = Features::probe();
    assert!(features.mappable_arrays && features.redirect_neigh, "{features:?}");
}

#[test]
fn probes_agree_with_each_other_about_the_age_of_the_kernel() {
    // Flags came one after another: a kernel with a newer one has the older ones.
    let features = Features::probe();
    let by_age = [features.csum_ipv6, features.fib_source, features.tcx];
    assert!(by_age.is_sorted(), "6.16, 6.7 and 6.6 brought these: {features:?}");
}

#[test]
fn jiffies_advance_by_hz_a_second() {
    let clock = Clock::open().expect("the clock");
    let hz = clock.measure_hz().expect("a rate");
    let (first, started) = (clock.jiffies().expect("jiffies"), Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    let (last, took) = (clock.jiffies().expect("jiffies"), started.elapsed());
    let expected = took.as_secs_f64() * f64::from(hz);
    let found = f64::from(last.wrapping_sub(first));
    assert!(
        (found - expected).abs() < expected * 0.05 + 2.0,
        "{found} jiffies in {took:?} at {hz}"
    );
}

#[test]
fn checks_have_names_and_remedies() {
    let site = Site::new("checks");
    let table = site.block(super::table);
    let tables = wanted_shapes(OBJECT, &[]).expect("tables");
    let checks = site.node.run(|| {
        run(&CheckInput {
            snat_ports: 16384..=29999,
            tables,
            interfaces: &table,
            xdp: Vec::new(),
            xdp_insists: false,
        })
    });
    let mut names: Vec<_> = checks.iter().map(|check| check.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), checks.len(), "{checks:#?}");
    for check in &checks {
        assert_ne!(check.verdict, Verdict::Fail, "{check:?}");
        assert_eq!(check.verdict == Verdict::Ok, check.remedy.is_empty(), "{check:?}");
    }
    let detail = |name: &str| {
        checks
            .iter()
            .find(|check| check.name == name)
            .map(|check| check.detail.as_str())
    };
    assert_eq!(detail("uplinks"), Some("up0"));
    assert_eq!(detail("pods"), Some("1 links of pods"));
    assert!(detail("memory").is_some_and(|text| text.contains("MiB")), "{checks:#?}");
}

#[test]
fn checks_tell_what_is_wrong_with_a_node() {
    let site = Site::new("wrong");
    site.node.sysctls(&[
        ("net.ipv4.ip_local_port_range", "1024 65000"),
        ("net.ipv4.ip_forward", "0"),
    ]);
    let table = InterfaceTable::default();
    let input = CheckInput {
        snat_ports: 20000..=31000,
        tables: BTreeMap::new(),
        interfaces: &table,
        xdp: Vec::new(),
        xdp_insists: false,
    };
    let checks = site.node.run(|| run(&input));
    let warned: Vec<_> = checks
        .iter()
        .filter(|check| check.verdict == Verdict::Warn)
        .map(|check| check.name)
        .collect();
    for name in ["uplinks", "IPv4 forwarding", "local ports", "SNAT ports"] {
        assert!(warned.contains(&name), "{name}: {checks:#?}");
    }
}
