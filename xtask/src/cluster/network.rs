//! The cluster's network: one bridge that is LAN and router, a namespace a machine, the client behind the router.
//!
//! Idempotent: what is there is left as it is. Routes to other nodes' pods are set on every node, as a CNI plugin of a flat network does;
//! the router has none, so that the client is outside the cluster.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::{
    layout::{CONTROL_PLANE, Folders, PREFIX, ROUTER, Worker, lan, outside},
    process::{NETNS, within},
};
use crate::exec;

/// Makes all namespaces and links.
pub(super) fn make(folders: &Folders, workers: &[Worker]) -> Result<()> {
    let network = Network { folders };
    network.router()?;
    network.machine("control-plane", CONTROL_PLANE)?;
    network.client()?;
    for worker in workers {
        network.machine(&worker.name(), worker.last())?;
    }
    let machines = workers.iter().map(|worker| worker.name());
    for machine in machines.chain(["control-plane".to_owned()]) {
        for other in workers.iter().filter(|worker| worker.name() != machine) {
            for (pods, via) in other.pods().iter().zip(lan(other.last())) {
                network.ip(&machine, &["route", "replace", pods, "via", &via])?;
            }
        }
    }
    Ok(())
}

/// Takes all namespaces away.
pub(super) fn remove() -> Result<()> {
    let entries = std::fs::read_dir(NETNS).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    for name in names.filter(|name| name.starts_with(PREFIX)) {
        exec::output(Command::new("ip").args(["netns", "del", &name]))?;
    }
    Ok(())
}

struct Network<'a> {
    folders: &'a Folders,
}

impl Network<'_> {
    fn ip(&self, namespace: &str, arguments: &[&str]) -> Result<()> {
        exec::output(within(self.folders, namespace, "ip").args(arguments)).map(drop)
    }

    /// Makes a namespace with its loopback up; false if it was there.
    fn namespace(&self, name: &str) -> Result<bool> {
        let full = format!("{PREFIX}{name}");
        if Path::new(NETNS).join(&full).exists() {
            return Ok(false);
        }
        exec::output(Command::new("ip").args(["netns", "add", &full]))?;
        self.ip(name, &["link", "set", "lo", "up"])?;
        Ok(true)
    }

    fn addresses(&self, namespace: &str, device: &str, addresses: [String; 2]) -> Result<()> {
        let [v4, v6] = addresses;
        self.ip(namespace, &["addr", "add", &format!("{v4}/24"), "dev", device])?;
        self.ip(namespace, &["addr", "add", &format!("{v6}/64"), "dev", device, "nodad"])?;
        self.ip(namespace, &["link", "set", device, "up"])
    }

    fn router(&self) -> Result<()> {
        if !self.namespace("router")? {
            return Ok(());
        }
        self.ip("router", &["link", "add", "lan", "type", "bridge"])?;
        self.addresses("router", "lan", lan(ROUTER))?;
        exec::output(within(self.folders, "router", "sysctl").args([
            "-qw",
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.fib_multipath_hash_policy=1",
            "net.ipv6.fib_multipath_hash_policy=1",
        ]))
        .map(drop)
    }

    /// Links a machine's `eth0` with the router, where the other end is `name`.
    fn link(&self, namespace: &str, name: &str) -> Result<()> {
        let place = format!("{NETNS}/{PREFIX}{namespace}");
        self.ip(
            "router",
            &[
                "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", &place,
            ],
        )
    }

    fn machine(&self, name: &str, last: u8) -> Result<()> {
        if !self.namespace(name)? {
            return Ok(());
        }
        let port = format!("port{last}");
        self.link(name, &port)?;
        self.ip("router", &["link", "set", &port, "master", "lan", "up"])?;
        self.addresses(name, "eth0", lan(last))?;
        self.default_routes(name, lan(ROUTER))
    }

    fn client(&self) -> Result<()> {
        if !self.namespace("client")? {
            return Ok(());
        }
        self.link("client", "outside")?;
        self.addresses("router", "outside", outside(1))?;
        self.addresses("client", "eth0", outside(100))?;
        self.default_routes("client", outside(1))
    }

    fn default_routes(&self, namespace: &str, via: [String; 2]) -> Result<()> {
        for (family, via) in ["-4", "-6"].iter().zip(via) {
            self.ip(namespace, &[family, "route", "add", "default", "via", &via])?;
        }
        Ok(())
    }
}
