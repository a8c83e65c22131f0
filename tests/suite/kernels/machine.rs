//! A virtual machine with another kernel that runs tests of this very binary.
//!
//! In: a folder with an unpacked Debian kernel package (`boot/vmlinuz-*`, `lib/modules/*`), the tests by name, and what they need beside
//! the usual. Out: what the machine said on its console. QEMU emulates the processor, so that it needs no rights and no hardware; that
//! is some ten times slower than the host. The machine's whole file system is an archive in memory: busybox, the programs that tests
//! start with their libraries, the agent, the kernel object and this binary, each at its path on the host. Where it has a
//! network, its first namespace reaches what a namespace of the host reaches, by TCP and in this direction alone.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lb_tests::netns::Netns;

use super::modules;

/// Kernel modules that the tests need; on the host these are built in.
const MODULES: [&str; 10] = [
    "veth",
    "bridge",
    "br_netfilter",
    "vxlan",
    "sch_ingress",
    "cls_bpf",
    "act_gact",
    "nf_tables",
    "nf_conntrack",
    "nft_ct",
];

/// Kernel modules of a machine with a network.
const NETWORK: [&str; 2] = ["virtio_pci", "virtio_net"];
/// The addresses that QEMU's network has by itself (its manual, "Using the user mode network stack").
const NETWORK_UP: &str = "busybox ip addr add 10.0.2.15/24 dev eth0\nbusybox ip link set eth0 up\nbusybox ip route add default via 10.0.2.2\n";

/// The variable by which a process knows that it runs in a machine.
const HERE: &str = "LB_TESTS_MACHINE";

/// Programs that tests start.
const PROGRAMS: [&str; 7] = ["nsenter", "ip", "tc", "nft", "bpftool", "ethtool", "sysctl"];

/// The processor that is emulated: an old one has no wide registers, which cost most. Neither do the mitigations of its flaws help here.
const PROCESSOR: &str = "Nehalem";

/// Seconds after which a machine is ended.
const LIMIT_SECONDS: u32 = 900;

/// Whether this process runs in such a machine.
pub(crate) fn is_here() -> bool {
    env::var_os(HERE).is_some()
}

/// A machine that was not booted yet.
#[derive(Default)]
pub(super) struct Machine<'a> {
    /// The folder of its kernel.
    pub(super) kernel: PathBuf,
    /// Kernel modules beside the usual ones.
    pub(super) modules: &'a [&'a str],
    /// Programs beside the usual ones.
    pub(super) programs: &'a [PathBuf],
    /// Other files, each at its path on the host.
    pub(super) files: &'a [PathBuf],
    /// Environment variables beside the usual ones.
    pub(super) variables: &'a [(&'a str, &'a Path)],
    /// The namespace of the host that its network leads to.
    pub(super) network: Option<&'a Netns>,
}

impl Machine<'_> {
    /// Boots it, runs this binary with `arguments` there, and returns the console's text.
    #[track_caller]
    pub(super) fn run(&self, arguments: &[&str]) -> String {
        let root = tempfile::tempdir().expect("a folder for the machine's files");
        self.furnish(root.path(), arguments);
        let image = root.path().with_extension("cpio");
        archive(root.path(), &image);
        let output = self.command(&image).output().expect("timeout and qemu-system-x86_64");
        fs::remove_file(&image).expect("the machine's image");
        let console = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "the machine did not end by itself: {}\n{}\n{console}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        console
    }

    fn command(&self, image: &Path) -> Command {
        let mut command = self
            .network
            .map_or_else(|| Command::new("timeout"), |netns| netns.command("timeout"));
        command
            .arg(LIMIT_SECONDS.to_string())
            .args([
                "qemu-system-x86_64",
                "-M",
                "q35",
                "-cpu",
                PROCESSOR,
                "-m",
                "4096",
                "-smp",
                "1",
            ])
            .args(["-nographic", "-no-reboot"]);
        if self.network.is_some() {
            let device = "virtio-net-pci,netdev=host,romfile=";
            command.args(["-netdev", "user,id=host,ipv6=off", "-device", device]);
        } else {
            command.args(["-net", "none"]);
        }
        command
            .arg("-kernel")
            .arg(only_file(&self.kernel.join("boot"), "vmlinuz-"))
            .arg("-initrd")
            .arg(image)
            .args(["-append", "console=ttyS0 panic=-1 quiet mitigations=off"])
            .stdin(Stdio::null());
        command
    }

    /// Lays out the machine's files below `root`.
    fn furnish(&self, root: &Path, arguments: &[&str]) {
        for folder in ["bin", "dev", "proc", "run", "sys", "tmp", "modules", "var/run"] {
            fs::create_dir_all(root.join(folder)).expect("a folder of the machine");
        }
        let busybox = find("busybox");
        fs::copy(&busybox, root.join("bin/busybox")).expect("busybox");
        symlink("busybox", root.join("bin/sh")).expect("a shell");
        let this = env::current_exe().expect("the path of this binary");
        let variable = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("{name} is not set")));
        let agent = variable("STEERWAY_BIN");
        let object = variable("STEERWAY_EBPF");
        for program in PROGRAMS.map(find).iter().chain(self.programs).chain([&this, &agent]) {
            bring_program(root, program);
        }
        // The machine would take a minute to unpack what debuggers read of these two.
        for program in [&this, &agent] {
            let copy = place(root, program);
            let stripped = Command::new("strip").arg(&copy).status().expect("strip, of binutils");
            assert!(stripped.success(), "strip {}: {stripped}", copy.display());
        }
        self.files.iter().chain([&object]).for_each(|file| bring(root, file));
        let network: &[&str] = if self.network.is_some() { &NETWORK } else { &[] };
        let names = [&MODULES[..], network, self.modules].concat();
        let names = modules::unpack(&self.kernel.join("lib/modules"), &names, &root.join("modules"));
        let mut variables = format!(
            "{HERE}=1 STEERWAY_BIN={} STEERWAY_EBPF={}",
            agent.display(),
            object.display()
        );
        for (name, value) in self.variables {
            variables.extend([" ", name, "=", &value.display().to_string()]);
        }
        let script = format!(
            "#!/bin/busybox sh\n\
             export PATH=/bin:/sbin:/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin\n\
             busybox mount -t proc proc /proc\n\
             busybox mount -t sysfs sysfs /sys\n\
             busybox mount -t devtmpfs devtmpfs /dev\n\
             busybox mount -t bpf bpf /sys/fs/bpf\n\
             busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
             busybox ip link set lo up\n\
             for name in {}; do busybox insmod /modules/$name; done\n\
             {}\
             export LB_TESTS_REQUIRE=1 RUST_BACKTRACE=0 {variables}\n\
             echo\n\
             busybox uname -sr\n\
             {} {}\n\
             echo \"ended with $?\"\n\
             busybox poweroff -f\n",
            names.join(" "),
            if network.is_empty() { "" } else { NETWORK_UP },
            this.display(),
            arguments.join(" "),
        );
        let init = root.join("init");
        fs::write(&init, script).expect("the machine's first program");
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).expect("its mode");
    }
}

/// Copies a program and the libraries that it names to their own paths below `root`.
fn bring_program(root: &Path, program: &Path) {
    bring(root, program);
    let output = Command::new("ldd").arg(program).output().expect("ldd");
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    let libraries: BTreeSet<&str> = listing
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .collect();
    for library in libraries {
        bring(root, Path::new(library));
    }
}

/// Where a file of the host stands below `root`.
fn place(root: &Path, file: &Path) -> PathBuf {
    root.join(file.strip_prefix("/").expect("an absolute path"))
}

/// Copies a file to its own path below `root`, once.
fn bring(root: &Path, file: &Path) {
    let target = place(root, file);
    if !target.exists() {
        fs::create_dir_all(target.parent().expect("a folder")).expect("a folder of the machine");
        fs::copy(file, &target).unwrap_or_else(|error| panic!("copy {}: {error}", file.display()));
    }
}

/// Packs `root` into an archive that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
fn archive(root: &Path, image: &Path) {
    let listing = Command::new("find")
        .arg(".")
        .current_dir(root)
        .output()
        .expect("find")
        .stdout;
    let mut packer = Command::new("cpio")
        .args(["--create", "--quiet", "--format=newc"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(image).expect("the machine's image"))
        .spawn()
        .expect("cpio");
    packer
        .stdin
        .take()
        .expect("its input")
        .write_all(&listing)
        .expect("the list of files");
    assert!(packer.wait().expect("cpio").success(), "cpio failed");
}

/// The program called `name`.
#[track_caller]
pub(super) fn find(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("no program {name}: `cargo xtask setup` installs it"))
}

/// The one file in `folder` whose name begins with `prefix`.
#[track_caller]
fn only_file(folder: &Path, prefix: &str) -> PathBuf {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| {
        path.file_name()
            .and_then(OsStr::to_str)
            .is_some_and(|name| name.starts_with(prefix))
    });
    files
        .next()
        .unwrap_or_else(|| panic!("no {prefix}* in {}", folder.display()))
}
