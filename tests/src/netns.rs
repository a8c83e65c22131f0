//! Network namespaces that live as long as a value.
//!
//! A namespace is a bind mount of `/proc/thread-self/ns/net` at `/run/netns/stw-<pid>-<n>-<label>`, as `ip netns add`
//! makes it, so `ip`, `nsenter` and a person can reach it by name while a test runs. `lo` is up. The last clone's Drop
//! removes the name; the kernel frees the namespace when no socket and no process is left in it.
//!
//! Code enters a namespace on a fresh thread (`setns` is a thread's matter); threads and processes started there
//! inherit it. `ip netns exec` is never used: it remounts sysfs, which hides bpffs and cgroup mounts.
//!
//! What a killed test process left behind (names whose pid no longer lives, and the processes inside those namespaces)
//! is removed when the first namespace of the next process is made.
//!
//! Every failure panics with the command and its output: a test cannot go on without its world.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{panic, process, thread};

use nix::ifaddrs::getifaddrs;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::assert::eventually;

const DIRECTORY: &str = "/run/netns";
const PREFIX: &str = "stw-";
const LINK_LIMIT: Duration = Duration::from_secs(5);

/// A network namespace; clones share it, the last one removes it.
#[derive(Clone, Debug)]
pub struct Netns {
    inner: Arc<Named>,
}

#[derive(Debug)]
struct Named {
    name: String,
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Makes a namespace with `lo` up. `label` tells a person what it is; it need not be unique.
    ///
    /// IPv6 duplicate address detection and router solicitations are off, so that addresses work at once.
    #[track_caller]
    pub fn new(label: &str) -> Self {
        static PREPARE: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        PREPARE.call_once(|| {
            share_directory();
            remove_stale();
        });
        let name = format!(
            "{PREFIX}{}-{}-{label}",
            process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = Path::new(DIRECTORY).join(&name);
        File::create_new(&path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        let made = thread::scope(|scope| scope.spawn(|| make_here(&path)).join());
        if let Err(payload) = made {
            fs::remove_file(&path).ok();
            panic::resume_unwind(payload);
        }
        let file = File::open(&path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        let netns = Self {
            inner: Arc::new(Named { name, path, file }),
        };
        netns.ip_batch("link set lo up\n");
        netns
    }

    /// Takes the name from a namespace that lives as long as the process and is never dropped: nothing stays behind then.
    #[must_use]
    pub fn nameless(self) -> Self {
        let file = self.inner.file.try_clone().expect("a second descriptor of a namespace");
        let path = format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()).into();
        let name = self.name().to_owned();
        Self {
            inner: Arc::new(Named { name, path, file }),
        }
    }

    /// The name as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The path that `nsenter --net=PATH` takes.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Runs `work` inside the namespace and returns its result; a panic in `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    work()
                })
                .join()
        });
        result.unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// Starts a thread inside the namespace.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let netns = self.clone();
        thread::spawn(move || {
            netns.enter();
            work()
        })
    }

    /// Prepares a program that will run inside the namespace, through `nsenter`, for the caller to start.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs a program to its end, whatever its exit status.
    #[track_caller]
    pub fn cmd(&self, argv: &[&str]) -> Output {
        let (program, arguments) = argv.split_first().expect("a program to run");
        self.command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{}: start {argv:?}: {error}", self.name()))
    }

    /// Runs a program that must succeed and returns what it printed.
    #[track_caller]
    pub fn ok(&self, argv: &[&str]) -> String {
        let output = self.cmd(argv);
        self.check(argv, &output, "");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `ip ARGUMENTS`, split at white space, which must succeed; returns what it printed.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        let argv: Vec<&str> = std::iter::once("ip").chain(arguments.split_whitespace()).collect();
        self.ok(&argv)
    }

    /// Runs many `ip` commands, one a line, in one process; all must succeed.
    #[track_caller]
    pub fn ip_batch(&self, commands: &str) {
        self.feed(&["ip", "-batch", "-"], commands);
    }

    /// Loads an nft script, which must succeed.
    #[track_caller]
    pub fn nft(&self, script: &str) {
        self.feed(&["nft", "-f", "-"], script);
    }

    /// Writes a sysctl of the namespace; `key` with dots or slashes, below `net.` or in full.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        self.sysctls(&[(key, value)]);
    }

    /// Writes several sysctls in order.
    #[track_caller]
    pub fn sysctls(&self, settings: &[(&str, &str)]) {
        self.run(|| {
            for (key, value) in settings {
                write_sysctl(key, value);
            }
        });
    }

    /// Reads a sysctl of the namespace.
    #[track_caller]
    pub fn read_sysctl(&self, key: &str) -> String {
        let path = sysctl_path(key);
        self.run(|| fs::read_to_string(&path))
            .unwrap_or_else(|error| panic!("{}: read {}: {error}", self.name(), path.display()))
            .trim()
            .to_owned()
    }

    /// Every sysctl below `net.` that can be read, but those of netfilter: its counters change by themselves, and its modules come
    /// and go.
    #[track_caller]
    pub fn all_sysctls(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        self.run(|| read_sysctls(Path::new("/proc/sys/net"), &mut all));
        assert!(!all.is_empty(), "{}: no sysctls", self.name());
        all
    }

    /// The index of an interface, or `None` if there is none of that name.
    pub fn ifindex(&self, interface: &str) -> Option<u32> {
        self.run(|| nix::net::if_::if_nametoindex(interface).ok())
    }

    /// Waits until these interfaces carry packets of both families; panics if one does not within 5 s.
    ///
    /// A link that was just set up drops what is sent on it until a worker of the kernel (linkwatch) has activated its
    /// queue, and has no IPv6 link-local address until then.
    #[track_caller]
    pub fn await_links(&self, interfaces: &[&str]) {
        eventually(
            LINK_LIMIT,
            &format!("links {interfaces:?} of {} are up", self.name()),
            || {
                let ready = self.run(|| interfaces.iter().find(|interface| !link_is_ready(interface)));
                ready.map_or(Ok(()), |interface| {
                    Err(format!("{interface} is not running or has no link-local address"))
                })
            },
        );
    }

    /// Switches transmit checksum offload of an interface; off, it sends full checksums instead of
    /// CHECKSUM_PARTIAL packets (and no TSO, which needs it).
    #[track_caller]
    pub fn tx_checksum(&self, interface: &str, on: bool) {
        self.ok(&["ethtool", "-K", interface, "tx", if on { "on" } else { "off" }]);
    }

    #[track_caller]
    fn feed(&self, argv: &[&str], input: &str) {
        // A child inherits the namespace of the thread that starts it, so no `nsenter` is needed here.
        let result = self.run(|| -> std::io::Result<Output> {
            let mut child = Command::new(argv[0])
                .args(&argv[1..])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            // A program that stops reading early has failed, and says why itself.
            child
                .stdin
                .take()
                .and_then(|mut stdin| stdin.write_all(input.as_bytes()).ok());
            child.wait_with_output()
        });
        let output = result.unwrap_or_else(|error| panic!("{}: {argv:?}: {error}", self.name()));
        self.check(argv, &output, input);
    }

    #[track_caller]
    fn check(&self, argv: &[&str], output: &Output, input: &str) {
        let (errors, text) = (
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout),
        );
        assert!(
            output.status.success(),
            "{}: {argv:?} failed: {errors}{text}\n{input}",
            self.name()
        );
    }

    fn enter(&self) {
        setns(&self.inner.file, CloneFlags::CLONE_NEWNET)
            .unwrap_or_else(|error| panic!("enter {}: {error}", self.name()));
    }
}

impl AsRef<Self> for Netns {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        detach(&self.path);
    }
}

/// Whether an interface of the calling thread's namespace is running and has its IPv6 link-local address.
fn link_is_ready(interface: &str) -> bool {
    let addresses: Vec<_> = getifaddrs()
        .map(|all| all.filter(|one| one.interface_name == interface).collect())
        .unwrap_or_default();
    let running = addresses
        .iter()
        .any(|one| one.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING));
    let link_local = addresses.iter().any(|one| {
        one.address
            .as_ref()
            .and_then(|address| address.as_sockaddr_in6())
            .is_some_and(|v6| v6.ip().is_unicast_link_local())
    });
    running && link_local
}

/// Turns the calling thread's network namespace into a new one and gives it the name `path`.
fn make_here(path: &Path) {
    unshare(CloneFlags::CLONE_NEWNET).expect("unshare a network namespace (root?)");
    mount(
        Some("/proc/thread-self/ns/net"),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap_or_else(|error| panic!("bind {}: {error}", path.display()));
    for (key, value) in [
        ("net.ipv6.conf.all.accept_dad", "0"),
        ("net.ipv6.conf.default.accept_dad", "0"),
        ("net.ipv6.conf.default.dad_transmits", "0"),
        ("net.ipv6.conf.default.router_solicitations", "0"),
        ("net.ipv6.conf.default.accept_ra", "0"),
    ] {
        write_sysctl(key, value);
    }
}

#[track_caller]
fn write_sysctl(key: &str, value: &str) {
    let path = sysctl_path(key);
    fs::write(&path, value).unwrap_or_else(|error| panic!("write {value} to {}: {error}", path.display()));
}

/// Reads the sysctls below a folder.
fn read_sysctls(folder: &Path, all: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if entry.file_name() != "netfilter" {
                read_sysctls(&path, all);
            }
        } else if let Ok(value) = fs::read_to_string(&path) {
            all.insert(path.display().to_string(), value.trim().to_owned());
        }
    }
}

/// Dots separate; a key that holds slashes keeps its dots (interface names may have some).
fn sysctl_path(key: &str) -> PathBuf {
    let key = if key.contains('/') {
        key.to_owned()
    } else {
        key.replace('.', "/")
    };
    Path::new("/proc/sys").join(key)
}

/// Makes the directory a shared mount, once for the machine, as iproute2 does: names then are seen, and can be removed,
/// in every mount namespace.
fn share_directory() {
    fs::create_dir_all(DIRECTORY).unwrap_or_else(|error| panic!("create {DIRECTORY}: {error}"));
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    if mount(None::<&str>, DIRECTORY, None::<&str>, shared, None::<&str>).is_ok() {
        return;
    }
    mount(
        Some(DIRECTORY),
        DIRECTORY,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .unwrap_or_else(|error| panic!("bind {DIRECTORY}: {error}"));
    mount(None::<&str>, DIRECTORY, None::<&str>, shared, None::<&str>)
        .unwrap_or_else(|error| panic!("share {DIRECTORY}: {error}"));
}

/// Removes the namespaces of test processes that are gone, and ends what still runs in them.
fn remove_stale() {
    for entry in fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        let Some(owner) = owner else { continue };
        if Path::new(&format!("/proc/{owner}")).exists() {
            continue;
        }
        end_processes_in(&entry.path());
        detach(&entry.path());
    }
}

/// Kills the processes whose network namespace is the one named `path`.
fn end_processes_in(path: &Path) {
    let Ok(wanted) = fs::metadata(path) else { return };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(found) = fs::metadata(entry.path().join("ns/net")) else {
            continue;
        };
        if found.ino() == wanted.ino() && found.dev() == wanted.dev() {
            // It may have ended by itself in between; that is as good.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

fn detach(path: &Path) {
    // Best effort, from Drop: a second process may have removed a stale name first.
    umount2(path, MntFlags::MNT_DETACH).ok();
    fs::remove_file(path).ok();
}
