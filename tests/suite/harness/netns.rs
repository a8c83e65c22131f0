//! Namespaces appear by name, keep things apart, and vanish.

use std::fs;
use std::net::TcpListener;

use lb_tests::netns::Netns;

#[test]
fn dropping_the_last_clone_removes_the_name() {
    let netns = Netns::new("drop");
    let (path, clone) = (netns.path().to_owned(), netns.clone());
    drop(netns);
    assert!(path.exists(), "a clone still holds {}", path.display());
    assert_eq!(clone.ok(&["echo", "alive"]), "alive\n");
    drop(clone);
    assert!(!path.exists(), "{} is left over", path.display());
}

#[test]
fn code_and_programs_run_inside() {
    let netns = Netns::new("inside");
    let links = netns.run(|| fs::read_to_string("/proc/thread-self/net/dev").expect("the interfaces"));
    let names: Vec<&str> = links
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    assert_eq!(names, ["lo"]);
    let shown = netns.ip("-o link show up");
    assert!(shown.starts_with("1: lo:") && shown.lines().count() == 1, "{shown}");
}

#[test]
fn one_port_can_be_bound_in_two_namespaces() {
    let (first, second) = (Netns::new("a"), Netns::new("b"));
    let bind = || TcpListener::bind("127.0.0.1:7000").expect("a port of one's own");
    let _both = (first.run(bind), second.run(bind));
}

#[test]
fn sysctls_are_written_inside_alone() {
    let (changed, other) = (Netns::new("changed"), Netns::new("other"));
    let before = other.read_sysctl("net.ipv4.ip_default_ttl");
    changed.sysctl("net.ipv4.ip_default_ttl", "33");
    assert_eq!(changed.read_sysctl("net/ipv4/ip_default_ttl"), "33");
    assert_eq!(other.read_sysctl("net.ipv4.ip_default_ttl"), before);
}

#[test]
#[should_panic(expected = "no such thing")]
fn a_panic_inside_goes_on_outside() {
    Netns::new("panic").run(|| panic!("no such thing"));
}

#[test]
#[should_panic(expected = "Cannot find device")]
fn a_failing_command_shows_its_output() {
    Netns::new("fail").ip("link set nothing up");
}

#[test]
fn names_of_a_process_that_is_gone_are_removed() {
    // A child that made namespaces and was killed: here only its names, which a new process must clear away.
    let gone = std::process::Command::new("true")
        .spawn()
        .and_then(|mut child| child.wait().map(|_| child.id()));
    let stale = format!("/run/netns/stw-{}-0-stale", gone.expect("a short-lived process"));
    drop(Netns::new("directory"));
    fs::write(&stale, "").expect("a stale name");
    // This test binary has cleared already, so another process of it must: it runs just one test that makes a namespace.
    let program = std::env::current_exe().expect("this test binary");
    let status = std::process::Command::new(program)
        .args(["--exact", "harness::netns::dropping_the_last_clone_removes_the_name"])
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.expect("this test binary again").success());
    assert!(!fs::exists(&stale).expect("/run/netns"), "{stale} is left over");
}
