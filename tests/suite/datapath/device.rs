//! The device steer0: made once, adopted, repaired; and what a host process's packet to a VIP looks like when it leaves.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::ChildStdout;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use lb_tests::assert::eventually;
use lb_tests::netns::Netns;
use lb_tests::traffic::{Captured, Direction, FrameSocket};
use steerway::datapath::netlink::Netlink;
use steerway::datapath::run_dir::RunDir;
use steerway::datapath::steer::{RouteNeeds, STEER, SteerDevice, SteerError, VipRoutes};
use tempfile::TempDir;

use super::{block_in, table};

/// A node with an uplink and addresses of both families, but no default route.
fn node() -> (Netns, TempDir) {
    let node = Netns::new("steer");
    node.ip_batch(
        "link add up0 type veth peer name out0\nlink set up0 up\nlink set out0 up\n\
         address add 192.0.2.1/24 dev up0\naddress add 198.51.100.1/24 dev up0\n\
         address add fd00::1/64 dev up0 nodad\n",
    );
    (node, tempfile::tempdir().expect("a temporary directory"))
}

fn ensure(node: &Netns, files: &TempDir, mtu: Option<u32>) -> Result<SteerDevice, SteerError> {
    let run_dir = RunDir::new(files.path());
    block_in(node, || async move {
        let netlink = Netlink::open().expect("netlink");
        SteerDevice::ensure(netlink.handle(), &run_dir, mtu).await
    })
}

fn shown(node: &Netns) -> String {
    STEER
        .map(|name| node.ip(&format!("-d link show {name}")) + &node.ip(&format!("address show {name}")))
        .concat()
}

/// The lines of a program's output, as they come.
fn lines_of(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

#[test]
fn the_device_is_made_once_and_left_as_it_is() {
    let (node, files) = node();
    let first = ensure(&node, &files, Some(1450)).expect("a device");
    assert_eq!(Some(first.ifindex), node.ifindex("steer0"));
    let before = shown(&node);
    for text in ["NOARP", "UP", "mtu 1450", "addrgenmode none"] {
        assert!(before.matches(text).count() >= 2, "{text}: {before}");
    }
    assert!(!before.contains("inet"), "{before}");
    // Requests that change something are reported to listeners, those that only ask are not. Changes of lo that are heard before
    // and after show that the listener listens.
    let mut monitor = node
        .command("ip")
        .args(["monitor", "link", "address"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("a listener");
    let lines = lines_of(monitor.stdout.take().expect("its output"));
    let heard_until = |mtu: u32, patience: Duration| {
        node.ip(&format!("link set lo mtu {mtu}"));
        let mark = format!("mtu {mtu} ");
        let mut heard = Vec::new();
        while let Ok(line) = lines.recv_timeout(patience) {
            if line.contains(&mark) {
                return Some(heard);
            }
            heard.push(line);
        }
        None
    };
    let listens = (2000..2100).any(|mtu| heard_until(mtu, Duration::from_millis(100)).is_some());
    assert!(listens, "the listener hears nothing");
    assert_eq!(ensure(&node, &files, Some(1450)).expect("the device"), first);
    let heard = heard_until(3000, Duration::from_secs(5)).expect("the second change of lo");
    monitor.kill().expect("the listener");
    monitor.wait().expect("the listener's end");
    assert!(!heard.iter().any(|line| line.contains("steer")), "{heard:?}");
    assert_eq!(shown(&node), before);
    let larger = ensure(&node, &files, Some(9000)).expect("the device");
    assert_eq!(
        (larger.ifindex, larger.mtu, larger.mac),
        (first.ifindex, 9000, first.mac)
    );
    assert!(!shown(&node).contains("mtu 1450"));
    assert_eq!(
        ensure(&node, &files, Some(576)).expect("the device").mtu,
        1280,
        "IPv6 needs as much"
    );
}

#[test]
fn settings_are_made_and_those_outside_the_device_are_remembered() {
    let (node, files) = node();
    node.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
    ensure(&node, &files, None).expect("a device");
    for (key, value) in [
        ("net.ipv4.conf.steer0.rp_filter", "2"),
        ("net.ipv4.conf.steer1.forwarding", "0"),
        ("net.ipv4.conf.lo.accept_local", "1"),
        ("net.ipv4.conf.lo.rp_filter", "2"),
        ("net.ipv6.conf.steer0.disable_ipv6", "0"),
        ("net.ipv6.conf.steer1.disable_ipv6", "1"),
    ] {
        assert_eq!(node.read_sysctl(key), value, "{key}");
    }
    let remembered = RunDir::new(files.path()).remembered().expect("the notes");
    let notes: Vec<_> = remembered
        .iter()
        .map(|note| (note.key.as_str(), note.value.as_str()))
        .collect();
    assert_eq!(
        notes,
        [
            ("net/ipv4/conf/lo/accept_local", "0"),
            ("net/ipv4/conf/lo/rp_filter", "0")
        ]
    );
}

#[test]
fn a_broken_pair_is_made_anew_and_a_foreign_device_refused() {
    let (node, files) = node();
    let other = Netns::new("thief");
    let first = ensure(&node, &files, None).expect("a device");
    node.ip(&format!("link set steer1 netns {}", other.name()));
    let second = ensure(&node, &files, None).expect("another device");
    assert_ne!(second.ifindex, first.ifindex);
    assert!(node.ifindex("steer1").is_some() && other.ifindex("steer1").is_none());
    node.ip_batch("link del steer0\nlink add steer1 type bridge\n");
    let error = ensure(&node, &files, None).expect_err("a bridge");
    assert!(matches!(error, SteerError::Foreign { name: "steer1" }), "{error}");
    assert!(error.to_string().contains("ip link del steer1"), "{error}");
}

/// The first IP packet to `to` that leaves by steer0: it comes in at steer1.
fn leaving(socket: &FrameSocket, to: IpAddr) -> Option<Captured> {
    let at = |frame: &[u8]| -> Option<IpAddr> {
        match frame.get(12..14)? {
            [0x08, 0x00] => Some(<[u8; 4]>::try_from(frame.get(30..34)?).ok()?.into()),
            [0x86, 0xdd] => Some(<[u8; 16]>::try_from(frame.get(38..54)?).ok()?.into()),
            _ => None,
        }
    };
    socket.next_matching(Duration::from_millis(100), |captured| {
        captured.direction == Direction::Incoming && at(&captured.frame) == Some(to)
    })
}

fn source(frame: &[u8]) -> IpAddr {
    if frame[12..14] == [0x08, 0x00] {
        <[u8; 4]>::try_from(&frame[26..30]).expect("four bytes").into()
    } else {
        <[u8; 16]>::try_from(&frame[22..38]).expect("sixteen bytes").into()
    }
}

#[test]
fn a_host_process_reaches_vips_by_steer0_with_the_node_s_address_whatever_rp_filter_is() {
    for rp_filter in ["0", "1", "2"] {
        let (node, files) = node();
        for name in ["all", "default", "up0", "lo"] {
            node.sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), rp_filter);
        }
        let device = ensure(&node, &files, None).expect("a device");
        // The second address of the node is the one that packets must have; the last VIP is on the node's own subnet.
        let vips = ["10.96.0.10", "fd00:96::10", "192.0.2.200"].map(|text| text.parse::<IpAddr>().unwrap());
        block_in(&node, || async move {
            let needs = RouteNeeds {
                steer_ifindex: device.ifindex,
                vips: Arc::new(vips.into()),
                ranges: Vec::new(),
                local: table().await.local_addresses,
                may_go: None,
                source_v4: Some("198.51.100.1".parse().unwrap()),
                source_v6: Some("fd00::1".parse().unwrap()),
            };
            let report = VipRoutes::new().expect("netlink").sync(needs).await.expect("routes");
            assert_eq!((report.added, report.conflicts.len()), (3, 0));
        });
        for vip in vips {
            let socket = FrameSocket::open(&node, "steer1");
            let expected: IpAddr = if vip.is_ipv4() { "198.51.100.1" } else { "fd00::1" }.parse().unwrap();
            let to = SocketAddr::from((vip, 80));
            // Nobody answers: the packet alone counts. A new device may swallow the first ones, until its queue is in place.
            let captured = eventually(Duration::from_secs(5), "a packet leaves by steer0", || {
                node.run(|| drop(TcpStream::connect_timeout(&to, Duration::from_millis(20))));
                leaving(&socket, vip).ok_or_else(|| format!("none to {vip} with rp_filter {rp_filter}"))
            });
            assert_eq!(source(&captured.frame), expected);
            assert_eq!(
                captured.frame[..6],
                device.mac,
                "a NOARP device sends to its own address"
            );
            let local = node.run(|| {
                let socket = UdpSocket::bind(if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).expect("a socket");
                socket.connect(to).expect("a route");
                socket.local_addr().expect("a source").ip()
            });
            assert_eq!(local, expected);
        }
    }
}

#[test]
fn what_no_program_took_dies_at_the_far_end() {
    let (node, files) = node();
    node.sysctls(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")]);
    let device = ensure(&node, &files, None).expect("a device");
    let vip: IpAddr = "10.96.0.10".parse().unwrap();
    block_in(&node, || async move {
        let needs = RouteNeeds {
            steer_ifindex: device.ifindex,
            vips: Arc::new([vip].into()),
            ranges: Vec::new(),
            local: table().await.local_addresses,
            may_go: None,
            source_v4: None,
            source_v6: None,
        };
        VipRoutes::new().expect("netlink").sync(needs).await.expect("routes");
    });
    let socket = FrameSocket::open(&node, "steer1");
    eventually(Duration::from_secs(5), "a datagram leaves by steer0", || {
        node.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.send_to(b"lost", (vip, 53)).expect("a datagram");
        });
        leaving(&socket, vip).ok_or("none")
    });
    // Time to live, in byte 8 of the IP header: one that was forwarded has less than it started with.
    let again = socket.next_matching(Duration::from_millis(300), |captured| {
        captured.frame[12..14] == [0x08, 0x00] && captured.frame[22] != 64
    });
    assert_eq!(again, None, "it came round again");
}
