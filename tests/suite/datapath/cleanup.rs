//! After cleanup the node is as it was before the agent, whatever of it was left.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lb_tests::assert::eventually;
use steerway::datapath::attach::{Hook, Kind};
use steerway::datapath::cleanup::{CleanupError, CleanupReport, cleanup};
use steerway::datapath::netlink::Netlink;
use steerway::datapath::pins::PinError;
use steerway::datapath::steer::{RouteNeeds, SteerDevice, VipRoutes};

use super::{SERVED, Site, UPLINK, table};

/// All that the node shows of itself, one fact a line.
fn state(site: &Site) -> BTreeSet<String> {
    let mut text = String::new();
    for command in [
        "ip -d link show",
        "ip address show",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "tc qdisc show",
    ] {
        let argv: Vec<&str> = command.split_whitespace().collect();
        text.push_str(&site.node.ok(&argv));
    }
    for interface in ["lo", UPLINK, super::POD_LINK] {
        for hook in Hook::TC {
            text.push_str(&site.node.ok(&["tc", "filter", "show", "dev", interface, hook.name()]));
            _ = writeln!(
                text,
                "tcx of {interface} {}: {:?}",
                hook.name(),
                site.tcx(interface, hook)
            );
        }
    }
    text.push_str(&site.node.ok(&["sysctl", "-a", "--pattern", "^net.ipv[46].(conf|ip_)"]));
    text.lines().map(str::to_owned).collect()
}

/// The node is as it was.
#[track_caller]
fn check_state(site: &Site, before: &BTreeSet<String>) {
    // The kernel frees links some time after their pins have gone.
    eventually(Duration::from_secs(5), "the node is as it was", || {
        let now = state(site);
        let differences: Vec<_> = now.symmetric_difference(before).collect();
        if differences.is_empty() {
            Ok(())
        } else {
            Err(format!("{differences:#?}"))
        }
    });
}

/// An agent's whole footprint; nothing of it runs any more.
fn install(site: &Site, kind: Kind) {
    drop(site.attach(kind));
    let run_dir = site.run_dir.clone();
    site.block(|| async move {
        run_dir.write_netns().expect("a note");
        let netlink = Netlink::open().expect("netlink");
        let device = SteerDevice::ensure(netlink.handle(), &run_dir, None)
            .await
            .expect("a device");
        let vips = ["10.96.0.1", "10.96.0.2"].map(|text| text.parse().expect("an address"));
        let needs = RouteNeeds {
            steer_ifindex: device.ifindex,
            vips: Arc::new(vips.into()),
            ranges: Vec::new(),
            local: table().await.local_addresses,
            may_go: None,
            source_v4: None,
            source_v6: None,
        };
        VipRoutes::new().expect("netlink").sync(needs).await.expect("routes");
    });
}

fn clean(site: &Site) -> Result<CleanupReport, CleanupError> {
    site.block(|| async { cleanup(&site.pins, &site.run_dir, Duration::from_millis(200)).await })
}

#[track_caller]
fn check_nothing_is_left(kind: Kind) {
    let site = Site::new("cleanup");
    site.node.run(|| site.run_dir.write_netns().expect("a note"));
    let before = state(&site);
    install(&site, kind);
    assert_ne!(state(&site), before);
    let report = clean(&site).expect("a report");
    assert_eq!(report.left, [""; 0]);
    for what in [
        "routes to VIPs (2)",
        "interface steer0",
        "map flows_v4",
        "our value of net/ipv4/conf/lo/accept_local: it is 0 again",
        "our value of net/ipv4/conf/lo/rp_filter: it is 0 again",
    ] {
        assert!(
            report.removed.iter().any(|removed| removed == what),
            "{what}: {report:#?}"
        );
    }
    check_state(&site, &before);
    assert!(!site.pins.root().exists() && !site.run_dir.root().exists());
    assert_eq!(clean(&site).expect("a second report"), CleanupReport::default());
}

#[test]
fn nothing_is_left_of_links() {
    check_nothing_is_left(Kind::Tcx);
}

#[test]
fn nothing_is_left_of_filters() {
    check_nothing_is_left(Kind::Clsact);
}

#[test]
fn half_of_it_is_enough() {
    let damages: [fn(&Site); 5] = [
        |site| drop(site.node.ip("link del steer0")),
        |site| fs::remove_dir_all(site.run_dir.root()).expect("the run directory"),
        |site| remove_files(&site.pins.root().join("links")),
        |site| fs::remove_file(site.pins.root().join("layout")).expect("the mark"),
        |site| {
            remove_files(&site.pins.root().join("maps"));
            fs::remove_dir(site.pins.root().join("maps")).expect("the folder");
        },
    ];
    for damage in damages {
        let site = Site::new("half");
        install(&site, Kind::Tcx);
        damage(&site);
        let report = clean(&site).expect("a report");
        assert_eq!(report.left, [""; 0]);
        assert!(
            !site.pins.root().exists() && !site.run_dir.root().exists(),
            "{report:?}"
        );
        assert!(site.node.ifindex("steer0").is_none());
        for (interface, hook, _) in SERVED {
            site.no_tcx(interface, hook);
        }
    }
}

fn remove_files(folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        fs::remove_file(entry.path()).expect("a file");
    }
}

#[test]
fn a_running_agent_is_not_cleaned_up_after() {
    let site = Site::new("running");
    install(&site, Kind::Tcx);
    let before = state(&site);
    let result = site.block(|| async {
        let _agent = site
            .pins
            .lock(&site.run_dir, Duration::ZERO)
            .await
            .expect("the directory");
        cleanup(&site.pins, &site.run_dir, Duration::from_millis(200)).await
    });
    assert!(
        matches!(result, Err(CleanupError::Pins(PinError::Held { .. }))),
        "{result:?}"
    );
    check_state(&site, &before);
    clean(&site).expect("a report");
}

#[test]
fn what_is_not_ours_stays_and_is_named() {
    let site = Site::new("not-ours");
    install(&site, Kind::Tcx);
    let foreign = site.pins.root().join("maps/folder");
    fs::create_dir(&foreign).expect("a foreign folder");
    site.node.ip_batch("link del steer0\nlink add steer0 type bridge\n");
    let report = clean(&site).expect("a report");
    assert!(
        report
            .left
            .iter()
            .any(|left| left.starts_with("steer0: ") && left.contains("not Steerway's")),
        "{report:?}"
    );
    assert!(
        report.left.iter().any(|left| left.contains("holds folder")),
        "{report:?}"
    );
    assert!(foreign.exists() && site.node.ifindex("steer0").is_some());
    fs::remove_dir(&foreign).expect("the foreign folder");
    clean(&site).expect("a report");
}

#[test]
fn another_namespace_than_the_one_that_was_served_is_not_touched() {
    let (site, elsewhere) = (Site::new("served"), Site::new("elsewhere"));
    install(&site, Kind::Tcx);
    install(&elsewhere, Kind::Tcx);
    let before = state(&elsewhere);
    let report = elsewhere.block(|| async { cleanup(&site.pins, &site.run_dir, Duration::ZERO).await });
    let report = report.expect("a report");
    assert!(
        report
            .left
            .iter()
            .any(|left| left.contains("another network namespace")),
        "{report:?}"
    );
    check_state(&elsewhere, &before);
    assert!(site.node.ifindex("steer0").is_some(), "nothing here can reach it");
    site.no_tcx(UPLINK, Hook::Ingress);
    assert!(!site.pins.root().exists());
}
