//! `--kind`: the same commands for a cluster of kind (<https://kind.sigs.k8s.io>) on a machine with Docker: nodes are containers, the
//! manifests are the same.
//!
//! In: `docker`, `kind` and `kubectl` in PATH. Out: a cluster named [`NAME`] without kube-proxy, with bpffs on every node, and Steerway as its
//! only Service proxy. Nothing else of the machine is touched, and no rights are needed beside Docker's. Every step is idempotent.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{Action, Up, deploy, images, layout::Families};
use crate::{build, exec, phases::Phases, workspace::Workspace};

/// The cluster's name; its control plane is the container `steerway-control-plane`, under which the overlays name the API server.
const NAME: &str = "steerway";
/// What Docker leaves out of an image's name.
const REGISTRY: &str = "docker.io/library/";

/// Does `action` to the cluster of kind.
pub(super) fn run(action: &Action, workspace: &Workspace, phases: &mut Phases) -> Result<()> {
    let programs = Programs::find(exec::find)?;
    match action {
        Action::Up(up) => bring_up(up, &programs, workspace, phases),
        Action::Down => phases.time("kind's cluster", || {
            exec::run(programs.kind().args(["delete", "cluster", "--name", NAME]))
        }),
        Action::Deploy(options) => {
            build::build(workspace, phases)?;
            for (phase, mut command) in programs.deploy(&workspace.root, &workspace.agent(), options.unprivileged)? {
                phases.time(phase, || exec::run(&mut command))?;
            }
            phases.time("no kube-proxy", || deploy::no_kube_proxy_set(&mut programs.kubectl()))
        }
        Action::Kubectl { arguments } => Err(programs.kubectl().args(arguments).exec()).context("cannot start kubectl"),
        Action::E2e(_) | Action::On { .. } | Action::Worker { .. } | Action::LoadBalancer | Action::Hold(_) => {
            bail!(
                "--kind knows up, deploy, kubectl and down: `cargo xtask cluster up` makes a cluster that can do the rest"
            )
        }
    }
}

fn bring_up(up: &Up, programs: &Programs, workspace: &Workspace, phases: &mut Phases) -> Result<()> {
    let clusters = exec::output(programs.kind().args(["get", "clusters"]))?;
    if !clusters.lines().any(|name| name.trim() == NAME) {
        let file = workspace.target.join("kind.yaml");
        exec::write_if_changed(&file, configuration(up.workers, up.families()).as_bytes())?;
        phases.time("kind's cluster", || {
            let mut command = programs.kind();
            exec::run(
                command
                    .args(["create", "cluster", "--name", NAME, "--config"])
                    .arg(&file),
            )
        })?;
    }
    phases.time("bpffs", || {
        let nodes = exec::output(programs.kind().args(["get", "nodes", "--name", NAME]))?;
        nodes
            .split_whitespace()
            .try_for_each(|node| exec::run(&mut programs.mount_bpffs(node)))
    })
}

/// kind's configuration: no kube-proxy, its own network for pods.
fn configuration(workers: u8, families: Families) -> String {
    let family = match families {
        Families::V4 => "ipv4",
        Families::Dual => "dual",
    };
    let nodes = "- role: worker\n".repeat(workers.into());
    format!(
        "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnetworking:\n  kubeProxyMode: none\n  ipFamily: {family}\nnodes:\n\
         - role: control-plane\n{nodes}"
    )
}

/// The programs that make and know such clusters.
#[derive(Debug)]
struct Programs {
    docker: PathBuf,
    kind: PathBuf,
    kubectl: PathBuf,
}

impl Programs {
    fn find(find: impl Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        let program = |name: &str| {
            find(name).with_context(|| {
                format!(
                    "there is no {name} in PATH: --kind needs docker, kind and kubectl (without --kind none of them)"
                )
            })
        };
        Ok(Self {
            docker: program("docker")?,
            kind: program("kind")?,
            kubectl: program("kubectl")?,
        })
    }

    fn kind(&self) -> Command {
        Command::new(&self.kind)
    }

    /// kubectl as the cluster's administrator.
    fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.args(["--context", &format!("kind-{NAME}")]);
        command
    }

    /// systemd mounts bpffs on a machine, not in a container.
    fn mount_bpffs(&self, node: &str) -> Command {
        let mut command = Command::new(&self.docker);
        let script = "mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf";
        command.args(["exec", node, "sh", "-c", script]);
        command
    }

    /// The steps of a deployment, by phase.
    fn deploy(&self, root: &Path, agent: &Path, unprivileged: bool) -> Result<Vec<(&'static str, Command)>> {
        let overlay = if unprivileged {
            "overlay-kind-unprivileged"
        } else {
            "overlay-kind"
        };
        let name = images::STEERWAY.trim_start_matches(REGISTRY);
        // Docker takes the whole folder along.
        let folder = agent.with_extension("image");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let copy = folder.join("steerway");
        fs::copy(agent, &copy).with_context(|| format!("cannot copy {}", agent.display()))?;
        let mut image = Command::new(&self.docker);
        image
            .args(["build", "-t", name, "-f"])
            .arg(root.join("deploy/Dockerfile"))
            .arg(&folder);
        let mut load = self.kind();
        load.args(["load", "docker-image", name, "--name", NAME]);
        let mut apply = self.kubectl();
        apply
            .args(["apply", "-k"])
            .arg(root.join("tests/cluster").join(overlay));
        let set = |words: &[&str]| {
            let mut command = self.kubectl();
            command
                .args(["-n", "kube-system", "rollout"])
                .args(words)
                .arg("daemonset/steerway");
            command
        };
        Ok(vec![
            ("image", image),
            ("load", load),
            ("manifests", apply),
            // The image has the same name in every version.
            ("restart", set(&["restart"])),
            ("rollout", set(&["status", "--timeout=240s"])),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Programs {
        Programs::find(|name| Some(name.into())).unwrap()
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = Programs::find(|name| (name != "kind").then(|| name.into())).unwrap_err();
        assert!(error.to_string().contains("no kind in PATH"), "{error}");
    }

    #[test]
    fn the_cluster_has_no_kube_proxy_and_as_many_workers_as_asked_for() {
        let text = configuration(3, Families::Dual);
        assert!(text.contains("kubeProxyMode: none\n  ipFamily: dual\n"), "{text}");
        assert_eq!(text.matches("- role: worker").count(), 3);
        assert!(configuration(1, Families::V4).contains("ipFamily: ipv4\n"));
    }

    #[test]
    fn a_deployment_builds_and_loads_the_image_that_the_manifests_name_and_waits_for_it() {
        let target = tempfile::tempdir().unwrap();
        let agent = target.path().join("steerway");
        fs::write(&agent, "agent").unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (unprivileged, overlay) in [(false, "overlay-kind"), (true, "overlay-kind-unprivileged")] {
            let steps = programs().deploy(&root, &agent, unprivileged).unwrap();
            let said: Vec<String> = steps.iter().map(|(_, command)| exec::describe(command)).collect();
            assert!(said[0].starts_with("docker build -t steerway:0.1.0 -f "), "{said:?}");
            assert_eq!(said[1], "kind load docker-image steerway:0.1.0 --name steerway");
            assert!(said[2].ends_with(overlay), "{said:?}");
            assert!(
                root.join("tests/cluster")
                    .join(overlay)
                    .join("kustomization.yaml")
                    .is_file()
            );
            assert!(
                said[4].contains("rollout status --timeout=240s daemonset/steerway"),
                "{said:?}"
            );
        }
        assert_eq!(
            fs::read(target.path().join("steerway.image/steerway")).unwrap(),
            b"agent"
        );
    }
}
