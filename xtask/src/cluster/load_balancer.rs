//! A stand-in for a cloud's load balancers, for the end-to-end tests that want one: it works as MetalLB does by BGP.
//!
//! Each Service of type LoadBalancer gets an address outside of every node, and the LAN's router a route to it by every node that
//! may have its packets: all, or with `externalTrafficPolicy: Local` those whose health check node port says yes. A node that does not
//! answer in time is asked again before it loses its place, as anywhere. All work on packets is the nodes' Service proxy's. One turn reads all
//! Services and makes it so; what went wrong with one of them is tried again in the next, and keeps no other from its turn.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    layout::{Folders, lan},
    process::{self, kubectl, within},
};
use crate::exec;

/// The finalizer by which the cloud is told of a deletion.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Between two turns.
const TURN: Duration = Duration::from_millis(500);
/// The longest that a node may take to answer a probe.
const PROBE: Duration = Duration::from_secs(1);
/// How often in a row a node may fail to answer and keep its place.
const SILENCES: u32 = 3;

/// Starts the stand-in unless it runs.
pub(super) fn start(folders: &Folders) -> Result<()> {
    let program = std::env::current_exe()?;
    let mut command = within(folders, "router", &program.to_string_lossy());
    for variable in ["CARGO_MANIFEST_DIR", "STEERWAY_CACHE", "HOME"] {
        if let Some(value) = std::env::var_os(variable) {
            command.env(variable, value);
        }
    }
    process::start(folders, "load-balancer", command.args(["cluster", "load-balancer"]))
}

/// Balances until it is ended. Runs in the router's network namespace.
pub(super) fn run(folders: &Folders) -> Result<()> {
    let mut balancer = Balancer {
        folders,
        routes: BTreeMap::new(),
        silences: BTreeMap::new(),
    };
    loop {
        if let Err(error) = balancer.turn() {
            eprintln!("again: {error:#}");
        }
        thread::sleep(TURN);
    }
}

struct Balancer<'a> {
    folders: &'a Folders,
    /// Next hops by address.
    routes: BTreeMap<String, Vec<String>>,
    /// How often in a row a node has not answered, by address and node.
    silences: BTreeMap<(String, String), u32>,
}

impl Balancer<'_> {
    fn turn(&mut self) -> Result<()> {
        let text = exec::output(kubectl(self.folders).args(["get", "--raw=/api/v1/services"]))?;
        let list: Value = serde_json::from_str(&text)?;
        let services: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
        let mut live = BTreeSet::new();
        for service in &services {
            if let Err(error) = self.serve(service, &services, &mut live) {
                eprintln!("{}: again: {error:#}", service["metadata"]["name"]);
            }
        }
        let gone: Vec<String> = self
            .routes
            .keys()
            .filter(|address| !live.contains(*address))
            .cloned()
            .collect();
        for address in gone {
            exec::output(Command::new("ip").args([family(&address), "route", "del", &address]))?;
            self.routes.remove(&address);
            self.silences.retain(|(of, _), _| *of != address);
        }
        Ok(())
    }

    /// What one Service wants, or what is left of one that wants nothing any more.
    fn serve(&mut self, service: &Value, all: &[&Value], live: &mut BTreeSet<String>) -> Result<()> {
        if !is_mine(service) {
            return if has_finalizer(service) {
                self.release(service)
            } else {
                Ok(())
            };
        }
        // Whatever else goes wrong, its route stays.
        live.extend(address(service).map(str::to_owned));
        let address = self.claim(service, all)?;
        live.insert(address.clone());
        let hops = self.next_hops(service, &address);
        if self.routes.get(&address) != Some(&hops) {
            self.route(&address, &hops)?;
            self.routes.insert(address, hops);
        }
        Ok(())
    }

    /// The address of a Service; gives it one, and the finalizer, where it has none.
    fn claim(&self, service: &Value, all: &[&Value]) -> Result<String> {
        if !has_finalizer(service) {
            let mut list = finalizers(service);
            list.push(FINALIZER);
            self.patch(service, &json!({ "metadata": { "finalizers": list } }), false)?;
        }
        if let Some(address) = address(service) {
            return Ok(address.to_owned());
        }
        let v6 = service["spec"]["ipFamilies"][0] == "IPv6";
        let own = (10..250).map(|number| {
            if v6 {
                format!("fd00:32::{number}")
            } else {
                format!("172.32.0.{number}")
            }
        });
        let free = own
            .into_iter()
            .find(|candidate| {
                !self.routes.contains_key(candidate) && all.iter().all(|other| address(other) != Some(candidate))
            })
            .context("no address is free")?;
        let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": free, "ipMode": "VIP" }] } } });
        self.patch(service, &status, true)?;
        Ok(free)
    }

    fn release(&self, service: &Value) -> Result<()> {
        if address(service).is_some() && service["metadata"]["deletionTimestamp"].is_null() {
            self.patch(
                service,
                &json!({ "status": { "loadBalancer": { "ingress": null } } }),
                true,
            )?;
        }
        let rest: Vec<&str> = finalizers(service)
            .into_iter()
            .filter(|name| *name != FINALIZER)
            .collect();
        self.patch(service, &json!({ "metadata": { "finalizers": rest } }), false)
    }

    fn patch(&self, service: &Value, patch: &Value, status: bool) -> Result<()> {
        let text = |field: &str| service["metadata"][field].as_str().unwrap_or_default();
        let mut command = kubectl(self.folders);
        command.args([
            "patch",
            "service",
            text("name"),
            "-n",
            text("namespace"),
            "--type=merge",
            "-p",
            &patch.to_string(),
        ]);
        if status {
            command.arg("--subresource=status");
        }
        exec::output(&mut command).map(drop)
    }

    /// The nodes that may have the Service's packets.
    fn next_hops(&mut self, service: &Value, address: &str) -> Vec<String> {
        let nodes = self.folders.workers().into_iter().map(|worker| {
            let [v4, v6] = lan(worker.last());
            if address.contains(':') { v6 } else { v4 }
        });
        let mut hops: Vec<String> = nodes.collect();
        let spec = &service["spec"];
        if spec["externalTrafficPolicy"] == "Local" {
            let port = spec["healthCheckNodePort"].as_u64().unwrap_or_default() as u16;
            hops.retain(|node| self.may_have(address, node, port));
        }
        if spec["sessionAffinity"] == "ClientIP" {
            // A node remembers its clients, and no other node does.
            hops.truncate(1);
        }
        hops
    }

    /// Whether a node may have an address's packets by what it answers; by what it answered before, if it is silent for a while.
    fn may_have(&mut self, address: &str, node: &str, port: u16) -> bool {
        let silences = self.silences.entry((address.to_owned(), node.to_owned())).or_default();
        if let Some(answer) = answer(node, port) {
            *silences = 0;
            return answer;
        }
        *silences += 1;
        let has = self
            .routes
            .get(address)
            .is_some_and(|hops| hops.iter().any(|hop| hop == node));
        has && *silences <= SILENCES
    }

    fn route(&self, address: &str, hops: &[String]) -> Result<()> {
        let mut command = Command::new("ip");
        command.args([family(address), "route", "replace"]);
        if self.routes.contains_key(address) {
            exec::output(Command::new("ip").args([family(address), "route", "del", address]))?;
        }
        if hops.is_empty() {
            command.args(["blackhole", address]);
        } else {
            command.arg(address);
        }
        for hop in hops {
            command.args(["nexthop", "via", hop]);
        }
        exec::output(&mut command).map(drop)
    }
}

fn family(address: &str) -> &'static str {
    if address.contains(':') { "-6" } else { "-4" }
}

fn is_mine(service: &Value) -> bool {
    let spec = &service["spec"];
    spec["type"] == "LoadBalancer"
        && spec["loadBalancerClass"].is_null()
        && service["metadata"]["deletionTimestamp"].is_null()
}

fn finalizers(service: &Value) -> Vec<&str> {
    let list = service["metadata"]["finalizers"].as_array().into_iter().flatten();
    list.filter_map(Value::as_str).collect()
}

fn has_finalizer(service: &Value) -> bool {
    finalizers(service).contains(&FINALIZER)
}

fn address(service: &Value) -> Option<&str> {
    service
        .pointer("/status/loadBalancer/ingress/0/ip")
        .and_then(Value::as_str)
}

/// Whether a node says that it has endpoints; `None` where it says nothing in time.
fn answer(node: &str, port: u16) -> Option<bool> {
    let ask = || -> Result<String> {
        let address = SocketAddr::new(node.parse()?, port);
        let mut stream = TcpStream::connect_timeout(&address, PROBE)?;
        stream.set_read_timeout(Some(PROBE))?;
        write!(
            stream,
            "GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ask().ok().map(|text| text.split(' ').nth(1) == Some("200"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn only_live_load_balancers_without_a_class_are_ours() {
        let mut service = json!({ "metadata": { "finalizers": ["x", FINALIZER] }, "spec": { "type": "LoadBalancer" },
            "status": { "loadBalancer": { "ingress": [{ "ip": "172.32.0.10" }] } } });
        assert!(is_mine(&service) && has_finalizer(&service));
        assert_eq!(address(&service), Some("172.32.0.10"));
        service["spec"]["loadBalancerClass"] = json!("other");
        assert!(!is_mine(&service));
        assert!(!is_mine(
            &json!({ "metadata": { "deletionTimestamp": "now" }, "spec": { "type": "LoadBalancer" } })
        ));
        assert!(!is_mine(&json!({ "metadata": {}, "spec": { "type": "NodePort" } })));
    }

    #[test]
    fn a_node_that_does_not_answer_keeps_its_place_for_a_while_and_one_that_says_no_does_not() {
        let workspace = crate::workspace::Workspace::locate().unwrap();
        let folders = Folders::new(&workspace).unwrap();
        let node = "127.0.0.1".to_owned();
        let mut balancer = Balancer {
            folders: &folders,
            routes: BTreeMap::from([("a".to_owned(), vec![node.clone()])]),
            silences: BTreeMap::new(),
        };
        let listener = TcpListener::bind((node.as_str(), 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = thread::spawn(move || {
            for status in ["200 OK", "503 No"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 512];
                let _ = stream.read(&mut request).unwrap();
                write!(stream, "HTTP/1.1 {status}\r\n\r\n").unwrap();
            }
        });
        assert!(balancer.may_have("b", &node, port), "says yes");
        assert!(!balancer.may_have("a", &node, port), "says no");
        answers.join().unwrap();
        // Nobody listens any more.
        let now = |balancer: &mut Balancer<'_>, address| balancer.may_have(address, &node, port);
        assert!((0..SILENCES).all(|_| now(&mut balancer, "a")) && !now(&mut balancer, "a"));
        assert!(!now(&mut balancer, "b"), "it had no place");
    }
}
