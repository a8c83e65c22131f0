//! Process 1 of a worker: its mounts, its settings, containerd and kubelet; then it reaps what ends, for as long as the node lives.
//!
//! In: namespaces of its own, unshared by [`super::worker`]. Everything that a node writes goes to the worker's folder in the state:
//! `/etc`, `/var` and `/opt` are overlays, `/run` is memory, `/sys/fs/bpf` and the cgroups are the node's own. Settings that no
//! namespace holds back are shown to kubelet as it wants them, so that it leaves the machine's alone.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::wait::wait,
};

use super::{
    layout::{Families, Folders, POD_NETWORKS, ROUTER, Worker, lan},
    node_files, process,
};
use crate::exec;

/// Plugins of Debian's containernetworking-plugins that are used.
const PLUGINS: [&str; 4] = ["ptp", "host-local", "portmap", "loopback"];
/// What kubelet sets for the whole machine.
const MACHINE_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
/// How long containerd may take to answer.
const CONTAINERD: Duration = Duration::from_mins(1);

/// Makes the node of this process and never returns.
pub(super) fn run(folders: &Folders, worker: Worker, families: Families) -> Result<()> {
    let node = Node { folders, worker };
    exec::output(Command::new("hostname").arg(worker.name()))?;
    set_propagation("/", MsFlags::MS_PRIVATE)?;
    Node::kernel_file_systems()?;
    node.disks()?;
    node.files(families)?;
    Node::network(families)?;
    for (key, value) in MACHINE_SETTINGS {
        let shown = Path::new("/run").join(format!("sysctl-{}", key.replace('/', "-")));
        write(&shown, &format!("{value}\n"))?;
        bind(&shown, &Path::new("/proc/sys").join(key))?;
    }
    Node::daemon("containerd", &[])?;
    process::wait(CONTAINERD, "containerd answers", || {
        exec::output(Command::new("ctr").arg("version")).map_err(|error| format!("{error:#}"))
    })?;
    node.import(&folders.state("images.tar"))?;
    let addresses = families.of(lan(worker.last())).join(",");
    Node::daemon(
        "kubelet",
        &[
            "--config=/etc/kubelet.json".to_owned(),
            format!(
                "--kubeconfig={}",
                folders.kubeconfig(&format!("kubelet-{}", worker.name())).display()
            ),
            format!("--hostname-override={}", worker.name()),
            format!("--node-ip={addresses}"),
            format!("--node-labels=topology.kubernetes.io/zone={}", worker.zone()),
        ],
    )?;
    loop {
        match wait() {
            Ok(_) | Err(Errno::EINTR) => {}
            // containerd and kubelet are gone, and so is the node.
            Err(error) => return Err(error).context("nothing of the node runs any more"),
        }
    }
}

struct Node<'a> {
    folders: &'a Folders,
    worker: Worker,
}

impl Node<'_> {
    fn own(&self, folder: &str) -> PathBuf {
        self.folders.worker(self.worker).join(folder)
    }

    /// `/proc` and `/sys` of these namespaces, with the node's own cgroups and bpffs.
    fn kernel_file_systems() -> Result<()> {
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
        exec::output(Command::new("umount").args(["-R", "/sys"]))?;
        mount_new("proc", "/proc", "")?;
        mount_new("sysfs", "/sys", "")?;
        let hierarchies = hierarchies(&mounts);
        if hierarchies.is_empty() {
            mount_new("cgroup2", "/sys/fs/cgroup", "")?;
            delegate_controllers()?;
        } else {
            mount_new("tmpfs", "/sys/fs/cgroup", "mode=755")?;
            for (place, options) in hierarchies {
                mount_new("cgroup", place, &options)?;
            }
            mount_new("cgroup2", "/sys/fs/cgroup/unified", "")?;
        }
        mount_new("bpf", "/sys/fs/bpf", "")
    }

    fn disks(&self) -> Result<()> {
        for name in ["etc", "var", "opt"] {
            let (upper, work) = (self.own(&format!("over/{name}")), self.own(&format!("work/{name}")));
            for folder in [&upper, &work] {
                fs::create_dir_all(folder)?;
            }
            let options = format!(
                "lowerdir=/{name},upperdir={},workdir={}",
                upper.display(),
                work.display()
            );
            mount_new("overlay", &format!("/{name}"), &options)?;
        }
        mount_new("tmpfs", "/run", "mode=755")?;
        // What containerd mounts overlays on must be no overlay.
        for place in ["var/lib/containerd", "var/lib/kubelet", "var/log"] {
            let disk = self.own(&format!("disk/{place}"));
            fs::create_dir_all(&disk)?;
            bind(&disk, &Path::new("/").join(place))?;
        }
        set_propagation("/", MsFlags::MS_SHARED)
    }

    fn files(&self, families: Families) -> Result<()> {
        for folder in [
            "/run/netns",
            "/run/lock",
            "/opt/cni/bin",
            "/etc/cni/net.d",
            "/etc/containerd",
            "/var/log/pods",
            "/var/log/containers",
        ] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {folder}"))?;
        }
        for plugin in PLUGINS {
            let (from, to) = (
                Path::new("/usr/lib/cni").join(plugin),
                Path::new("/opt/cni/bin").join(plugin),
            );
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        let name = self.worker.name();
        let [address, _] = lan(self.worker.last());
        let [router, _] = lan(ROUTER);
        for (file, content) in [
            ("/etc/hostname", format!("{name}\n")),
            (
                "/etc/hosts",
                format!("127.0.0.1 localhost\n::1 localhost\n{address} {name}\n"),
            ),
            ("/run/resolv.conf", format!("nameserver {router}\n")),
            (
                "/etc/cni/net.d/10-cluster.conflist",
                node_files::cni(self.worker, families),
            ),
            (
                "/etc/containerd/config.toml",
                node_files::containerd(may_raise_oom_score()?),
            ),
            (
                "/etc/kubelet.json",
                node_files::kubelet(&self.folders.state("pki/ca.crt")),
            ),
        ] {
            write(Path::new(file), &content)?;
        }
        Ok(())
    }

    /// Forwarding, and masquerading of what pods send out of the cluster, as a CNI plugin does.
    fn network(families: Families) -> Result<()> {
        exec::output(Command::new("sysctl").args([
            "-qw",
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=0",
        ]))?;
        let mut rules = String::new();
        for (family, pods) in families.of([("ip", POD_NETWORKS[0]), ("ip6", POD_NETWORKS[1])]) {
            writeln!(
                rules,
                "{family} saddr {pods} {family} daddr != {pods} fib daddr type != local masquerade"
            )?;
        }
        let table = format!(
            "table inet cluster-masquerade {{ chain postrouting {{ type nat hook postrouting priority 110;\n{rules}}}\n}}\n"
        );
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
        nft.stdin.take().context("a pipe to nft")?.write_all(table.as_bytes())?;
        ensure!(nft.wait()?.success(), "nft refused {table}");
        Ok(())
    }

    fn daemon(program: &str, arguments: &[String]) -> Result<()> {
        let log = File::create(format!("/var/log/{program}.log"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        command
            .spawn()
            .with_context(|| format!("cannot start {program}"))
            .map(drop)
    }

    fn import(&self, archive: &Path) -> Result<()> {
        exec::output(
            Command::new("ctr")
                .args(["-n", "k8s.io", "images", "import"])
                .arg(archive),
        )
        .with_context(|| format!("{} has no images", self.worker.name()))
        .map(drop)
    }
}

/// Places and options of the first version's hierarchies.
fn hierarchies(mounts: &str) -> Vec<(&str, String)> {
    const GENERAL: [&str; 8] = ["rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec", "xattr"];
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (place, kind, options) = (words.next()?, words.next()?, words.next()?);
            let own: Vec<&str> = options.split(',').filter(|option| !GENERAL.contains(option)).collect();
            (kind == "cgroup").then(|| (place, own.join(",")))
        })
        .collect()
}

/// In a hierarchy of the second version alone, kubelet wants controllers where no process is: this one goes into a leaf.
fn delegate_controllers() -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let leaf = root.join("init");
    fs::create_dir_all(&leaf)?;
    write(&leaf.join("cgroup.procs"), "0")?;
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    let all: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    write(&root.join("cgroup.subtree_control"), &all.join(" "))
}

/// Whether this machine lets processes lower their out-of-memory score (CAP_SYS_RESOURCE); containerd must know.
fn may_raise_oom_score() -> Result<bool> {
    const SYS_RESOURCE: u64 = 24;
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = u64::from_str_radix(mask.context("/proc/self/status has no CapEff")?.trim(), 16)?;
    Ok(mask >> SYS_RESOURCE & 1 == 1)
}

fn mount_new(kind: &str, place: &str, options: &str) -> Result<()> {
    fs::create_dir_all(place).with_context(|| format!("cannot create {place}"))?;
    mount(Some(kind), place, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("cannot mount {kind} at {place} ({options})"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
    }
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))
}

fn set_propagation(place: &str, how: MsFlags) -> Result<()> {
    mount(None::<&str>, place, None::<&str>, MsFlags::MS_REC | how, None::<&str>)
        .with_context(|| format!("cannot set how mounts below {place} propagate"))
}

fn write(file: &Path, content: &str) -> Result<()> {
    fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_mounted_again_with_their_own_options() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/systemd cgroup rw,nosuid,name=systemd 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let expected = [
            ("/sys/fs/cgroup/cpu", "cpu".to_owned()),
            ("/sys/fs/cgroup/systemd", "name=systemd".to_owned()),
        ];
        assert_eq!(hierarchies(mounts), expected);
    }
}
