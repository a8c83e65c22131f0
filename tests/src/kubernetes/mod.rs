//! A real Kubernetes control plane for one world: etcd, kube-apiserver and kube-controller-manager on the world's LAN.
//!
//! ```no_run
//! # use lb_tests::{agent::Agent, kubernetes::ControlPlane, objects::{NodeObject, service}, world::World};
//! let world = World::builder().build();
//! let cluster = ControlPlane::start(&world, &[]);
//! cluster.create(&NodeObject::from(world.node(1)));
//! let mut agent = Agent::start_on_api(world.node(1), &cluster.kube_proxy(), &[]);
//! cluster.create(&service("default", "web").cluster_ip("10.96.0.10").port("http", 80, "TCP"));
//! agent.wait_ready();
//! ```
//!
//! The programs come from `$KUBEBUILDER_ASSETS` (`cargo xtask setup` builds them, `cargo xtask test` sets it); that one is
//! missing is a failure, never a reason to skip. They run in the fabric's namespace at [`SERVER`], so that every node and pod
//! reaches the API server, and each world has its own. kubectl is the real one. There is no kubelet and no scheduler: Nodes
//! and Pods are written by the test. Dropping a `ControlPlane` ends its processes; when the test is failing, the ends of
//! their logs are printed first.

mod audit;
mod etcd;
mod kube_proxy;
mod kubectl;
mod process;
mod relay;
mod requests;

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

pub use audit::Use;
pub use kube_proxy::KubeProxy;
pub use relay::Relay;
pub use requests::{Connection, Requests};

use crate::assert::eventually;
use crate::netns::Netns;
use crate::world::World;
use process::{Process, program};

/// Address of the API server: the fabric's on the LAN.
pub const SERVER: &str = "172.31.0.1";
/// The ranges of ClusterIPs.
pub const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// Port of the API server.
const PORT: u16 = 6443;
/// Port of a second API server on the same etcd, that no agent knows.
const SECOND_PORT: u16 = 6444;
/// Port of a relay to the API server.
const RELAY_PORT: u16 = 6445;
/// How long a program may take to be ready; several of them start on two processors.
const START: Duration = Duration::from_mins(2);

/// Who may ask, and as whom: token, user, groups.
const USERS: [(&str, &str, &str); 3] = [
    ("admin", "admin", "system:masters"),
    // As root of the cluster, in place of an account for each controller.
    ("controllers", "system:kube-controller-manager", "system:masters"),
    // Bound to the ClusterRole system:node-proxier by the API server itself.
    ("kube-proxy", "system:kube-proxy", ""),
];

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    netns: Netns,
    folder: TempDir,
    flags: Vec<String>,
    etcd: Process,
    server: Option<Process>,
    second: Option<Process>,
    controllers: Option<Process>,
}

impl ControlPlane {
    /// Starts etcd, an API server with further `flags` after the usual ones, and the controllers that write slices.
    #[track_caller]
    pub fn start(world: &World, flags: &[&str]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("stw-kubernetes-")
            .tempdir()
            .expect("a temporary directory");
        write_credentials(folder.path());
        let netns = world.fabric.clone();
        let etcd = Process::start(&netns, "etcd", folder.path(), &etcd_flags(folder.path()));
        await_port(&netns, etcd::ADDRESS, "etcd");
        let mut cluster = Self {
            netns,
            folder,
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            etcd,
            server: None,
            second: None,
            controllers: None,
        };
        cluster.start_server();
        let kubeconfig = format!("--kubeconfig={}", cluster.kubeconfig("controllers").display());
        let flags = [
            kubeconfig.as_str(),
            "--controllers=endpointslice-controller,endpointslice-mirroring-controller",
            "--leader-elect=false",
            "--secure-port=0",
            "--mirroring-max-endpoints-per-subset=1000",
        ];
        let flags = flags.map(str::to_owned);
        cluster.controllers = Some(Process::start(
            &cluster.netns,
            "kube-controller-manager",
            cluster.folder.path(),
            &flags,
        ));
        cluster
    }

    /// Starts the API server and waits until it is ready.
    #[track_caller]
    pub fn start_server(&mut self) {
        assert!(self.server.is_none(), "the API server still runs");
        self.server = Some(self.api_server("kube-apiserver", PORT));
        self.await_ready("admin");
    }

    /// Replaces the flags of the API server's next start.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|&flag| flag.to_owned()).collect();
    }

    /// Kills the API server.
    #[track_caller]
    pub fn kill_server(&mut self) {
        drop(self.server.take().expect("a running API server"));
    }

    /// Runs `work` with a second API server on the same data, at an address that no agent knows: what it changes is missed by
    /// everyone who follows the first.
    #[track_caller]
    pub fn behind_the_back(&mut self, work: impl FnOnce(&Self)) {
        self.second = Some(self.api_server("kube-apiserver-2", SECOND_PORT));
        self.await_ready("second");
        work(self);
        self.second = None;
    }

    fn api_server(&self, name: &str, port: u16) -> Process {
        let path = |file: &str| self.folder.path().join(file).display().to_string();
        let key = path("service-account.key");
        let mut flags = vec![
            format!("--etcd-servers=http://{}", etcd::ADDRESS),
            format!("--service-cluster-ip-range={SERVICE_RANGES}"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            format!("--token-auth-file={}", path("tokens.csv")),
            format!("--cert-dir={}", path(name)),
            format!("--secure-port={port}"),
            format!("--bind-address={SERVER}"),
            format!("--advertise-address={SERVER}"),
            "--authorization-mode=RBAC".to_owned(),
            // Pods need no ServiceAccount here: no controller makes the default one.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            format!("--audit-policy-file={}", path("audit-policy.yaml")),
            format!("--audit-log-path={}", path("audit.log")),
        ];
        flags.extend(self.flags.iter().cloned());
        let process = Process::start_as(&self.netns, "kube-apiserver", name, self.folder.path(), &flags);
        // It makes its certificate before it listens.
        let certificate = self.folder.path().join(name).join("apiserver.crt");
        eventually(START, "the API server has a certificate", || {
            fs::read_to_string(&certificate)
                .ok()
                .filter(|text| text.contains("END CERTIFICATE"))
                .ok_or("none yet")
        });
        for (user, _, _) in USERS {
            write_kubeconfig(
                &self.kubeconfig(user),
                &json!({ "token": user }),
                PORT,
                &self.certificate(),
            );
        }
        write_kubeconfig(
            &self.kubeconfig("second"),
            &json!({ "token": "admin" }),
            SECOND_PORT,
            &self.folder.path().join("kube-apiserver-2/apiserver.crt"),
        );
        process
    }

    #[track_caller]
    fn await_ready(&self, user: &str) {
        eventually(START, "the API server is ready", || {
            let output = self.kubectl_as(user, &["get", "--raw=/readyz"], "");
            if output.status.success() {
                return Ok(());
            }
            Err(format!(
                "{}\n{}",
                String::from_utf8_lossy(&output.stderr),
                self.server.as_ref().map(Process::log_end).unwrap_or_default()
            ))
        });
    }

    /// A kubeconfig with exactly kube-proxy's rights.
    pub fn kube_proxy(&self) -> PathBuf {
        self.kubeconfig("kube-proxy")
    }

    fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder.path().join(format!("{user}.kubeconfig"))
    }

    /// A kubeconfig with a token of a ServiceAccount, as a pod of it has one.
    #[track_caller]
    pub fn service_account(&self, namespace: &str, name: &str) -> PathBuf {
        let token = self.kubectl(&["create", "token", name, "-n", namespace], "");
        self.kubeconfig_of(name, &json!({ "token": token.trim() }))
    }

    /// A kubeconfig with a user of the test's making: `token` or `tokenFile`.
    #[track_caller]
    pub fn kubeconfig_of(&self, name: &str, user: &Value) -> PathBuf {
        let file = self.kubeconfig(name);
        write_kubeconfig(&file, user, PORT, &self.certificate());
        file
    }

    /// Whether the API server knows whose this token is.
    #[track_caller]
    pub fn takes(&self, token: &str) -> bool {
        self.kubeconfig_of("tried", &json!({ "token": token }));
        let output = self.kubectl_as("tried", &["get", "--raw=/version"], "");
        output.status.success()
    }

    /// Starts a relay to the API server, and makes a kubeconfig that goes through it.
    #[track_caller]
    pub fn relay(&self, user: &Value) -> (Relay, PathBuf) {
        let address = |port| SocketAddr::new(SERVER.parse().expect("an address"), port);
        let relay = Relay::start(&self.netns, address(RELAY_PORT), Some(&self.netns), address(PORT));
        let file = self.kubeconfig("relayed");
        write_kubeconfig(&file, user, RELAY_PORT, &self.certificate());
        (relay, file)
    }

    /// The URL of the API server by way of its relay.
    pub fn relayed() -> String {
        format!("https://{SERVER}:{RELAY_PORT}")
    }

    /// The certificate of the API server, which names [`SERVER`] whatever the port.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("kube-apiserver/apiserver.crt")
    }

    /// What kube-proxy's user has asked for so far.
    pub fn uses(&self) -> BTreeMap<Use, usize> {
        self.uses_of("system:kube-proxy")
    }

    /// What a user has asked for so far.
    pub fn uses_of(&self, user: &str) -> BTreeMap<Use, usize> {
        audit::uses(&self.folder.path().join("audit.log"), user)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let processes = [&self.server, &self.second, &self.controllers];
            for process in processes.into_iter().flatten().chain([&self.etcd]) {
                eprintln!("=== end of the log of {}\n{}", process.name(), process.log_end());
            }
        }
    }
}

fn etcd_flags(folder: &Path) -> Vec<String> {
    vec![
        format!("--data-dir={}", folder.join("etcd").display()),
        "--unsafe-no-fsync".to_owned(),
        format!("--listen-client-urls=http://{}", etcd::ADDRESS),
        format!("--advertise-client-urls=http://{}", etcd::ADDRESS),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

#[track_caller]
fn await_port(netns: &Netns, address: &str, name: &str) {
    let address: SocketAddr = address.parse().expect("an address");
    eventually(START, &format!("{name} listens"), || {
        netns.run(|| TcpStream::connect(address)).map(drop)
    });
}

/// Tokens, the key that signs ServiceAccount tokens, and what is audited.
#[track_caller]
fn write_credentials(folder: &Path) {
    let tokens = USERS.map(|(token, user, groups)| format!("{token},{user},{token},\"{groups}\"\n"));
    let policy = json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{ "level": "Metadata", "users": ["system:kube-proxy", "system:serviceaccount:kube-system:steerway"] }, { "level": "None" }] });
    for (file, text) in [
        ("tokens.csv", tokens.concat()),
        ("audit-policy.yaml", policy.to_string()),
    ] {
        fs::write(folder.join(file), text).expect("a file in a new directory");
    }
    let key = folder.join("service-account.key");
    let made = std::process::Command::new("openssl")
        .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"])
        .arg(&key)
        .output()
        .expect("start openssl");
    assert!(
        made.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&made.stderr)
    );
}

fn write_kubeconfig(file: &Path, user: &Value, port: u16, certificate: &Path) {
    let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": { "server": format!("https://{SERVER}:{port}"), "certificate-authority": certificate } }],
        "users": [{ "name": "u", "user": user }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }] });
    fs::write(file, config.to_string()).expect("a kubeconfig");
}

/// The path of one of the programs.
#[track_caller]
pub fn asset(name: &str) -> PathBuf {
    program(name)
}
