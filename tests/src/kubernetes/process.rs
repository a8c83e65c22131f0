//! One process of the control plane: started in a namespace, its output in a file, ended when dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::netns::Netns;

/// How much of a log is shown.
const SHOWN_LINES: usize = 40;

/// A running process.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    #[track_caller]
    pub(super) fn start(netns: &Netns, program: &str, folder: &Path, flags: &[String]) -> Self {
        Self::start_as(netns, program, program, folder, flags)
    }

    /// Starts `program` under another name, for one that runs twice.
    #[track_caller]
    pub(super) fn start_as(netns: &Netns, program: &str, name: &str, folder: &Path, flags: &[String]) -> Self {
        let log = folder.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).expect("a log");
        let child = netns
            .command(self::program(program))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle of the log"))
            .stderr(output)
            .spawn();
        Self {
            name: name.to_owned(),
            child: child.unwrap_or_else(|error| panic!("start {name}: {error}")),
            log,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The last lines that it wrote.
    pub(super) fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing of it is worth an orderly end.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The path of a program.
#[track_caller]
pub(super) fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("KUBEBUILDER_ASSETS")
        .map(PathBuf::from)
        .expect("KUBEBUILDER_ASSETS names the folder of etcd, kube-apiserver and so on: `cargo xtask test` sets it");
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "no {name} in {}: run `cargo xtask setup`",
        folder.display()
    );
    path
}
