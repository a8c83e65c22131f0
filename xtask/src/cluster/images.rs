//! The images that the cluster's pods ask for, under their real names, from files of this machine and our own programs; no registry
//! and no builder.
//!
//! In: Debian's tools with the libraries that `ldd` names, programs from the cache, three files of Kubernetes' sources. Out: archives
//! for `ctr images import`.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    archive::{self, Image},
    layout::Folders,
    node_files::PAUSE,
};
use crate::{exec, setup, workspace::Workspace};

/// Steerway's image, as its manifests name it.
pub(super) const STEERWAY: &str = "docker.io/library/steerway:0.1.0";
/// Tools that end-to-end tests call in their pods.
const TOOLS: [&str; 11] = [
    "bash",
    "curl",
    "wget",
    "nc",
    "dig",
    "ip",
    "ss",
    "conntrack",
    "nft",
    "getent",
    "host",
];

/// Makes `images.tar` of all that end-to-end tests and the cluster itself ask for.
pub(super) fn make(workspace: &Workspace, folders: &Folders) -> Result<()> {
    let archive = folders.state("images.tar");
    if archive.is_file() {
        return Ok(());
    }
    let sources = setup::cluster::sources(workspace)?;
    let work = Work::new(folders)?;
    let program = |name: &str| folders.programs.join(name);

    let pause = work.root("pause")?;
    exec::output(
        Command::new("gcc")
            .args(["-Os", "-static", "-DVERSION=3.10.2", "-o"])
            .arg(pause.join("pause"))
            .arg(sources.join("build/pause/linux/pause.c")),
    )?;
    let tools = work.tools()?;
    let agnhost = work.root("agnhost")?;
    copy(&program("agnhost"), &agnhost.join("agnhost"))?;
    symlink("agnhost", agnhost.join("agnhost-2"))?;
    for file in ["localhost.crt", "localhost.key"] {
        copy(
            &sources.join("test/images/agnhost/porter").join(file),
            &agnhost.join(file),
        )?;
        // Tests run as any user.
        fs::set_permissions(agnhost.join(file), fs::Permissions::from_mode(0o644))?;
    }
    let coredns = work.root("coredns")?;
    copy(&program("coredns"), &coredns.join("coredns"))?;
    let regression = work.root("regression")?;
    let name = "regression-issue-74839";
    copy(&program(name), &regression.join(name))?;

    let tests = "registry.k8s.io/e2e-test-images";
    let image = |names: &[&str], layers: &[&PathBuf], entrypoint: &[&str], command: &[&str]| Image {
        names: names.iter().map(|&name| name.to_owned()).collect(),
        layers: layers.iter().map(|&layer| layer.clone()).collect(),
        entrypoint: entrypoint.iter().map(|&word| word.to_owned()).collect(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        user: String::new(),
    };
    let images = [
        Image {
            user: "65535:65535".to_owned(),
            ..image(&[PAUSE], &[&pause], &["/pause"], &[])
        },
        image(
            &[&format!("{tests}/agnhost:2.63.0"), &format!("{tests}/agnhost:2.55")],
            &[&tools, &agnhost, &coredns],
            &["/agnhost"],
            &["pause"],
        ),
        image(
            &[&format!("{tests}/nginx:1.15-4"), &format!("{tests}/nginx:1.27-0")],
            &[&tools, &agnhost],
            &[],
            &["/agnhost", "test-webserver"],
        ),
        image(
            &[
                &format!("{tests}/glibc-dns-testing:2.0.0"),
                "registry.k8s.io/build-image/distroless-iptables:v0.9.6",
            ],
            &[&tools],
            &[],
            &["/bin/bash"],
        ),
        image(&[&format!("{tests}/busybox:1.37.0-1")], &[&tools], &[], &["sh"]),
        image(
            &[&format!("{tests}/{name}:1.4")],
            &[&regression],
            &[&format!("/{name}")],
            &[],
        ),
        image(
            &["registry.k8s.io/coredns/coredns:v1.15.0"],
            &[&coredns],
            &["/coredns"],
            &[],
        ),
    ];
    archive::write(&work.folder, &images, &archive)?;
    work.remove()
}

/// Makes the image of the agent.
pub(super) fn steerway(folders: &Folders, agent: &Path) -> Result<PathBuf> {
    let archive = folders.state("steerway.tar");
    let work = Work::new(folders)?;
    let root = work.root("steerway")?;
    let stripped = work.folder.join("agent");
    exec::output(Command::new("strip").arg("-o").arg(&stripped).arg(agent))?;
    put(&root, &stripped, "usr/local/bin/steerway")?;
    let image = Image {
        names: vec![STEERWAY.to_owned()],
        layers: vec![root],
        entrypoint: vec!["/usr/local/bin/steerway".to_owned()],
        command: Vec::new(),
        user: String::new(),
    };
    archive::write(&work.folder, &[image], &archive)?;
    work.remove()?;
    Ok(archive)
}

/// A folder for what goes into images.
struct Work {
    folder: PathBuf,
}

impl Work {
    fn new(folders: &Folders) -> Result<Self> {
        let folder = folders.state("image-work");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self { folder })
    }

    fn root(&self, name: &str) -> Result<PathBuf> {
        let root = self.folder.join(name);
        fs::create_dir_all(&root)?;
        Ok(root)
    }

    /// A small system: a shell, busybox's applets, and the tools that tests call.
    fn tools(&self) -> Result<PathBuf> {
        let root = self.root("tools")?;
        for folder in [
            "bin",
            "sbin",
            "usr/local/bin",
            "etc",
            "proc",
            "sys",
            "dev",
            "run",
            "var/lib",
            "root",
            "home",
            "uploads",
            "tmp",
        ] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        symlink("../bin", root.join("usr/bin"))?;
        symlink("../sbin", root.join("usr/sbin"))?;
        for (file, content) in [
            (
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
            ),
            ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
            ("etc/nsswitch.conf", "hosts: files dns\n"),
            // Tests expect one try, as busybox's does; busybox's own in Debian dies of a signal.
            ("etc/wgetrc", "tries = 1\n"),
        ] {
            fs::write(root.join(file), content)?;
        }
        for tool in TOOLS {
            let path = exec::find(tool).with_context(|| format!("no {tool} on this machine"))?;
            put(&root, &path, &format!("bin/{tool}"))?;
        }
        symlink("bash", root.join("bin/sh"))?;
        let busybox = exec::find("busybox").context("no busybox on this machine")?;
        put(&root, &busybox, "bin/busybox")?;
        for applet in exec::output(Command::new(&busybox).arg("--list"))?.lines() {
            let link = root.join("bin").join(applet);
            if link.symlink_metadata().is_err() {
                symlink("busybox", link)?;
            }
        }
        Ok(root)
    }

    fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }
}

/// Copies a program into an image, with the libraries that it needs.
fn put(root: &Path, program: &Path, place: &str) -> Result<()> {
    let program = fs::canonicalize(program)?;
    copy(&program, &root.join(place))?;
    // A static program has none, and ldd says so by its status.
    let libraries = exec::output(Command::new("ldd").arg(&program)).unwrap_or_default();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let target = root.join(library.trim_start_matches('/'));
        if !target.exists() {
            copy(&fs::canonicalize(library)?, &target)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
        .map(drop)
}
