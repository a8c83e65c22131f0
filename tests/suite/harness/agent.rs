//! Agents are started, watched, killed and cleaned up: tried with a stand-in that is a shell script.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use lb_tests::agent::Agent;
use lb_tests::assert::eventually;
use lb_tests::objects::Folder;
use lb_tests::world::World;

/// Runs until SIGTERM, is ready once it has made its pin directory, and cleans that up.
const STAND_IN: &str = r#"#!/bin/sh
command=$1
for word; do [ "$previous" = --pin-dir ] && pins=$word; previous=$word; done
case $command in
run)
    echo "started with $* as $(ip -o -4 address show eth0 | awk '{print $4}')"
    trap 'echo ending; exit 3' TERM
    mkdir -p "$pins"
    while :; do sleep 0.02; done ;;
status) [ -d "$pins" ] && echo '{"ready": true}' ;;
cleanup) rmdir "$pins" ;;
*) echo "unknown: $command" >&2; exit 2 ;;
esac
"#;

fn stand_in(world: &World) -> (Agent, Folder) {
    let folder = Folder::new();
    let script = folder.path().join("stand-in");
    fs::write(&script, STAND_IN).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("an executable script");
    let mut agent = Agent::prepare(world.node(1), &folder, &["--extra"]);
    agent.set_binary(script);
    (agent, folder)
}

fn one_node() -> World {
    World::builder().nodes(1).pods_per_node(0).clients(0).build()
}

#[test]
fn an_agent_runs_in_its_node_until_it_is_told_to_end() {
    let world = one_node();
    let (mut agent, folder) = stand_in(&world);
    agent.restart();
    agent.wait_ready();
    assert_eq!(agent.json(&["status"])["ready"], true);
    let log = agent.log();
    let expected = format!(
        "started with run --source folder --folder {} --node-name node1",
        folder.path().display()
    );
    assert!(
        log.starts_with(&expected) && log.contains("--extra as 172.31.0.11/24"),
        "{log}"
    );
    assert_eq!(agent.terminate().code(), Some(3));
    assert!(agent.log().ends_with("ending\n"));
    assert!(agent.pin_dir().is_dir(), "pins outlive the process");
}

#[test]
fn a_killed_agent_starts_again_on_its_pins() {
    let world = one_node();
    let (mut agent, _folder) = stand_in(&world);
    agent.restart();
    agent.wait_ready();
    let first = agent.pid();
    agent.kill9();
    assert!(!agent.is_running());
    agent.restart();
    agent.wait_ready();
    assert_ne!(agent.pid(), first);
    eventually(Duration::from_secs(2), "a second start in the log", || {
        let starts = agent.log().matches("started").count();
        if starts == 2 {
            Ok(())
        } else {
            Err(format!("{starts} starts"))
        }
    });
}

#[test]
fn a_dropped_agent_leaves_neither_process_nor_pins() {
    let world = one_node();
    let (mut agent, _folder) = stand_in(&world);
    agent.restart();
    agent.wait_ready();
    let (pid, pins) = (agent.pid().expect("a process"), agent.pin_dir().to_owned());
    drop(agent);
    assert!(!pins.exists());
    assert!(
        !fs::exists(format!("/proc/{pid}")).expect("/proc"),
        "process {pid} still runs"
    );
}

#[test]
#[should_panic(expected = "the agent of node1 has ended")]
fn an_agent_that_ends_early_fails_the_wait() {
    let world = one_node();
    let (mut agent, _folder) = stand_in(&world);
    agent.set_binary("/bin/false");
    agent.restart();
    agent.wait_ready();
}

#[test]
fn a_command_that_fails_shows_its_status() {
    let world = one_node();
    let (agent, _folder) = stand_in(&world);
    let output = agent.cli(&["nonsense"]);
    assert_eq!((output.status.code(), output.status.signal()), (Some(2), None));
}
