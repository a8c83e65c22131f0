//! XDP on uplinks: taken where it is wanted and can be had, left where not, and the reason told.

use std::net::UdpSocket;
use std::time::Duration;

use aya::programs::XdpMode;
use lb_tests::assert::eventually;
use lb_tests::prog_run::xdp::XDP_PASS;
use lb_tests::tiny_program::TinyXdp;
use steerway::config::Xdp;
use steerway::datapath::attach::{Attacher, Hook, Kind, Trust};
use steerway::datapath::cleanup::cleanup;

use super::stand_in::{PASSED, PASSED_XDP};
use super::{POD_LINK, SERVED, Site, UPLINK, table};

/// A device without native XDP, made an uplink by a default route.
const BRIDGE: &str = "br0";

/// An agent's start with a setting, and the errors of its first look.
fn start(site: &Site, setting: Xdp) -> (Attacher, Vec<String>) {
    let loaded = site.load().expect("programs");
    let (pins, run_dir) = (site.pins.clone(), site.run_dir.clone());
    site.block(|| async move {
        let attacher = Attacher::new(loaded.programs, pins, run_dir, Kind::Tcx).expect("netlink");
        let mut attacher = attacher.with_xdp(setting);
        let errors = attacher.apply(&table().await, Trust::Known).await;
        (attacher, errors.iter().map(ToString::to_string).collect())
    })
}

/// Mode and id of the program at XDP of an interface.
fn running(site: &Site, interface: &str) -> Option<(&'static str, u64)> {
    let shown: serde_json::Value =
        serde_json::from_str(&site.node.ip(&format!("-j -d link show dev {interface}"))).expect("JSON");
    let xdp = shown[0].get("xdp")?;
    let mode = match xdp["mode"].as_u64()? {
        1 => "native",
        2 => "generic",
        _ => "other",
    };
    Some((mode, xdp["prog"]["id"].as_u64()?))
}

/// Waits until no program runs at XDP of the uplink: the kernel frees a link some time after its pin has gone.
#[track_caller]
fn nothing_runs(site: &Site) {
    eventually(Duration::from_secs(5), "XDP without a program", || {
        match running(site, UPLINK) {
            None => Ok(()),
            Some(found) => Err(format!("{found:?}")),
        }
    });
}

fn without(attacher: &Attacher) -> Vec<String> {
    attacher
        .without_xdp()
        .map(|(uplink, left)| format!("{}: {left}", uplink.name))
        .collect()
}

fn xdp_hooks(attacher: &Attacher) -> Vec<(String, Hook)> {
    let attached = attacher.attached().into_iter();
    attached
        .filter(|attached| Hook::XDP.contains(&attached.hook))
        .map(|attached| (attached.ifname, attached.hook))
        .collect()
}

#[test]
fn native_runs_on_the_uplink_alone_stays_when_the_agent_goes_and_is_replaced_in_place() {
    let site = Site::new("xdp-native");
    let (first, errors) = start(&site, Xdp::Native);
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(xdp_hooks(&first), [(UPLINK.to_owned(), Hook::Xdp)]);
    assert_eq!((running(&site, POD_LINK), running(&site, "lo")), (None, None));
    drop(first);
    let Some(("native", old)) = running(&site, UPLINK) else {
        panic!("{:?}", running(&site, UPLINK));
    };
    let links = site.pins.link_pins().expect("the pins");
    let (second, errors) = start(&site, Xdp::Native);
    assert!(errors.is_empty(), "{errors:?}");
    let Some(("native", new)) = running(&site, UPLINK) else {
        panic!("{:?}", running(&site, UPLINK));
    };
    assert_ne!(old, new, "the program was not replaced");
    assert_eq!(site.pins.link_pins().expect("the pins"), links);
    // A frame from outside passes both programs.
    let before = [PASSED_XDP, PASSED].map(|counter| site.counter(counter));
    let send = || UdpSocket::bind("192.0.2.2:0").and_then(|socket| socket.send_to(b"datagram", "192.0.2.1:9"));
    site.outside.run(send).expect("a datagram");
    eventually(Duration::from_secs(5), "both programs see it", || {
        let after = [PASSED_XDP, PASSED].map(|counter| site.counter(counter));
        if after[0] > before[0] && after[1] > before[1] {
            Ok(())
        } else {
            Err(format!("{before:?} {after:?}"))
        }
    });
    drop(second);
}

#[test]
fn auto_leaves_veths_to_tc_and_off_takes_away_what_was_there() {
    let site = Site::new("xdp-auto");
    let (attacher, errors) = start(&site, Xdp::Auto);
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(running(&site, UPLINK), None);
    assert!(
        without(&attacher)[0].starts_with("up0: it is a veth"),
        "{:?}",
        without(&attacher)
    );
    drop(attacher);
    for (setting, expected) in [
        (Xdp::Generic, "generic"),
        (Xdp::Native, "native"),
        (Xdp::Generic, "generic"),
    ] {
        let (attacher, errors) = start(&site, setting);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(running(&site, UPLINK).map(|(mode, _)| mode), Some(expected));
        assert_eq!(site.pins.link_pins().expect("the pins").len(), SERVED.len() + 1);
        drop(attacher);
    }
    let (attacher, errors) = start(&site, Xdp::Off);
    assert!(errors.is_empty(), "{errors:?}");
    nothing_runs(&site);
    assert_eq!(without(&attacher), ["up0: switched off"]);
    assert_eq!(site.pins.link_pins().expect("the pins").len(), SERVED.len());
}

#[test]
fn somebody_elses_program_is_left_alone_named_and_followed_by_ours_when_it_goes() {
    for mode in [XdpMode::Driver, XdpMode::Skb] {
        let site = Site::new("xdp-taken");
        let mut foreign = TinyXdp::returning(XDP_PASS);
        foreign.attach(&site.node, UPLINK, mode);
        let theirs = running(&site, UPLINK);
        assert!(theirs.is_some());
        let (mut attacher, errors) = start(&site, Xdp::Native);
        assert_eq!(errors.len(), 1, "{errors:?}");
        for part in ["up0", "--xdp native", "somebody else's", "ip link set dev"] {
            assert!(errors[0].contains(part), "no {part} in {errors:?}");
        }
        assert_eq!(running(&site, UPLINK), theirs);
        // Everything else is served.
        assert_eq!(attacher.attached().len(), SERVED.len());
        drop(foreign);
        let errors = site.block(|| async { attacher.apply(&table().await, Trust::Nothing).await });
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(xdp_hooks(&attacher), [(UPLINK.to_owned(), Hook::Xdp)]);
    }
}

#[test]
fn a_driver_without_xdp_is_told_and_served_by_tc() {
    let site = Site::new("xdp-none");
    site.node.ip_batch(&format!(
        "link add {BRIDGE} type bridge\naddress add 192.0.3.1/24 dev {BRIDGE}\nlink set {BRIDGE} up\n\
         route add default via 192.0.3.2 metric 9\n"
    ));
    let (attacher, errors) = start(&site, Xdp::Native);
    assert_eq!(
        errors,
        ["XDP on br0 is wanted by --xdp native, but its driver has no native XDP: use --xdp auto or --xdp off"]
    );
    assert_eq!(xdp_hooks(&attacher), [(UPLINK.to_owned(), Hook::Xdp)]);
    drop(attacher);
    let (attacher, errors) = start(&site, Xdp::Auto);
    assert!(errors.is_empty(), "{errors:?}");
    assert!(
        without(&attacher).contains(&"br0: its driver has no native XDP".to_owned()),
        "{:?}",
        without(&attacher)
    );
    let at_tc = |hook| site.tcx(BRIDGE, hook).len();
    assert_eq!((at_tc(Hook::Ingress), at_tc(Hook::Egress)), (1, 1));
    drop(attacher);
    let (attacher, errors) = start(&site, Xdp::Generic);
    assert!(errors.is_empty(), "{errors:?}");
    assert!(xdp_hooks(&attacher).contains(&(BRIDGE.to_owned(), Hook::XdpGeneric)));
}

#[test]
fn cleanup_takes_the_program_away() {
    let site = Site::new("xdp-cleanup");
    drop(start(&site, Xdp::Native));
    assert!(running(&site, UPLINK).is_some());
    let report = site.block(|| async { cleanup(&site.pins, &site.run_dir, Duration::from_millis(200)).await });
    let report = report.expect("a cleanup");
    assert!(report.left.is_empty(), "{report:?}");
    assert!(report.removed.contains(&"program of up0 xdp".to_owned()), "{report:?}");
    nothing_runs(&site);
}
