//! The agent under test: one process in a node's namespace, with a pin directory and a log of its own.
//!
//! The program is `$STEERWAY_BIN`, else `target/release/steerway` of this checkout (`cargo xtask build` makes it); that
//! it is missing is a failure, never a reason to skip. Dropping an `Agent` ends the process and runs `steerway cleanup`;
//! when the test is failing, the log is printed first.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::Netns;
use crate::world::{NODE_CIDR, Node};

const BPFFS: &str = "/sys/fs/bpf";
const PINS: &str = "/sys/fs/bpf/steerway-tests";
/// Where a pod has the credentials of its ServiceAccount.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long `wait_ready` lets the agent take.
const READY_SECONDS: u32 = 60;
/// How long an agent may take to end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How an agent is told its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// By flags of its command line.
    ByFlags,
    /// By environment variables.
    ByEnvironment,
    /// By a configuration file, which a flag names.
    ByFile,
}

/// An agent of one node. It can be killed and started again; pins and log stay.
#[derive(Debug)]
pub struct Agent {
    netns: Netns,
    binary: PathBuf,
    node_name: String,
    /// The arguments that name its source.
    source: Vec<OsString>,
    arguments: Vec<String>,
    told: Told,
    pin_dir: PathBuf,
    files: TempDir,
    /// Whether the usual arguments are given.
    usual: bool,
    child: Option<Child>,
}

impl Agent {
    /// Starts an agent on `node` that reads `folder`, with further arguments after the usual ones.
    #[track_caller]
    pub fn start(node: &Node, folder: impl AsRef<Path>, arguments: &[&str]) -> Self {
        let mut agent = Self::prepare(node, folder, arguments);
        agent.restart();
        agent
    }

    /// All that [`start`](Self::start) does, but the process is not started yet.
    #[track_caller]
    pub fn prepare(node: &Node, folder: impl AsRef<Path>, arguments: &[&str]) -> Self {
        let folder = folder.as_ref().as_os_str();
        Self::with_source(
            node,
            &["--source".as_ref(), "folder".as_ref(), "--folder".as_ref(), folder],
            arguments,
        )
    }

    /// Starts an agent on `node` that follows the API server of a kubeconfig.
    #[track_caller]
    pub fn start_on_api(node: &Node, kubeconfig: impl AsRef<Path>, arguments: &[&str]) -> Self {
        let file = kubeconfig.as_ref().as_os_str();
        let source = [
            "--source".as_ref(),
            "kubernetes".as_ref(),
            "--kubeconfig".as_ref(),
            file,
        ];
        let mut agent = Self::with_source(node, &source, arguments);
        agent.restart();
        agent
    }

    /// Starts an agent on `node` as in a pod: the folder with the ServiceAccount's credentials is where pods have it, and the environment
    /// names a ClusterIP as the API server's address, as it does in every pod. The agent is told `server`.
    #[track_caller]
    pub fn start_in_pod(node: &Node, account: &Path, server: &str) -> Self {
        let source = ["--source", "kubernetes", "--api-server", server].map(OsStr::new);
        let mut agent = Self::with_source(node, &source, &[]);
        let script = agent.files.path().join("in-pod");
        let text = format!(
            "#!/bin/sh\nexport KUBERNETES_SERVICE_HOST=10.96.0.1 KUBERNETES_SERVICE_PORT=443\n\
             exec unshare --mount sh -c 'mkdir -p {ACCOUNT} && mount --bind {} {ACCOUNT} && exec {} \"$@\"' sh \"$@\"\n",
            account.display(),
            agent.binary.display()
        );
        fs::write(&script, text).expect("a file in a temporary directory");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a file of ours");
        agent.binary = script;
        agent.restart();
        agent
    }

    /// Starts an agent on `node` that has all its settings from a file, and from `arguments` alone beside it.
    #[track_caller]
    pub fn start_on_config(node: &Node, file: impl AsRef<Path>, arguments: &[&str]) -> Self {
        let source = ["--config".as_ref(), file.as_ref().as_os_str()];
        let mut agent = Self::with_source(node, &source, arguments);
        agent.usual = false;
        agent.restart();
        agent
    }

    /// Another agent with the same settings and pins, and a log of its own; its process is not started yet.
    #[must_use]
    #[track_caller]
    pub fn second(&self) -> Self {
        Self {
            netns: self.netns.clone(),
            binary: self.binary.clone(),
            node_name: self.node_name.clone(),
            source: self.source.clone(),
            arguments: self.arguments.clone(),
            told: self.told,
            pin_dir: self.pin_dir.clone(),
            files: files(),
            usual: self.usual,
            child: None,
        }
    }

    #[track_caller]
    fn with_source(node: &Node, source: &[&OsStr], arguments: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        mount_bpffs();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            netns: node.ns.clone(),
            binary: default_binary(),
            node_name: node.name.clone(),
            source: source.iter().map(|&argument| argument.to_owned()).collect(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            told: Told::ByFlags,
            pin_dir: Path::new(PINS).join(format!("{}-{number}-{}", process::id(), node.name)),
            files: files(),
            usual: true,
            child: None,
        }
    }

    /// Starts the process, with the same pins as before; one that still runs must have been ended.
    #[track_caller]
    pub fn restart(&mut self) {
        assert!(!self.is_running(), "the agent of {} still runs", self.node_name);
        let binary = &self.binary;
        assert!(
            binary.is_file(),
            "no agent at {}: run `cargo xtask build` or set STEERWAY_BIN",
            binary.display()
        );
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the agent's log");
        let mut command = self.netns.command(&self.binary);
        command.arg("run");
        let settings = self.settings();
        match self.told {
            Told::ByFlags => _ = command.args(&settings),
            Told::ByEnvironment => _ = command.envs(pairs(&settings).map(|(flag, value)| (variable(flag), value))),
            Told::ByFile => _ = command.arg("--config").arg(self.write_configuration(&settings)),
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("start the agent: {error}")));
    }

    /// Everything that the process is told, as flags.
    fn settings(&self) -> Vec<OsString> {
        let mut all = self.source.clone();
        all.extend(self.usual_arguments().into_iter().map(OsString::from));
        all.extend(["--pin-dir".into(), self.pin_dir.clone().into()]);
        all.extend(self.arguments.iter().map(OsString::from));
        all
    }

    /// Writes the configuration file that says what `settings` do.
    #[track_caller]
    fn write_configuration(&self, settings: &[OsString]) -> PathBuf {
        let mut document = json!({ "apiVersion": "steerway.dev/v1alpha1", "kind": "SteerwayConfiguration" });
        for (flag, value) in pairs(settings) {
            document[field(flag)] = value.into();
        }
        let path = self.files.path().join("configuration.yaml");
        let text = serde_saphyr::to_string(&document).expect("a plain document");
        fs::write(&path, text).expect("a file in a temporary directory");
        path
    }

    /// Has the next start told its settings in this way; every further argument must be a flag with a value then.
    pub fn tell(&mut self, told: Told) {
        self.told = told;
    }

    /// The node's name; the nodes' network serves NodePorts, unless the arguments say what does.
    fn usual_arguments(&self) -> Vec<&str> {
        const FLAG: &str = "--nodeport-addresses";
        if !self.usual {
            return Vec::new();
        }
        let mut usual = vec!["--node-name", self.node_name.as_str()];
        if !self.arguments.iter().any(|argument| argument == FLAG) {
            usual.extend([FLAG, NODE_CIDR]);
        }
        usual
    }

    /// The program of the next start and of the command line.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Replaces the program of the next start and of the command line: another version, for an upgrade.
    pub fn set_binary(&mut self, path: impl Into<PathBuf>) {
        self.binary = path.into();
    }

    /// Replaces the arguments of the next start.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    }

    /// Waits until all that the source held when this was called is programmed or rejected.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let limit = Duration::from_secs(READY_SECONDS.into());
        let started = Instant::now();
        let seconds = READY_SECONDS.to_string();
        loop {
            // A just started agent may not answer yet, so that a failure before the limit is no verdict.
            let output = self.cli(&["status", "--wait", &seconds]);
            if output.status.success() {
                return;
            }
            let text = text(&output);
            assert!(
                self.is_running(),
                "the agent of {} has ended; log:\n{}",
                self.node_name,
                self.log()
            );
            assert!(
                started.elapsed() < limit,
                "not ready in {limit:?}: {text}\nlog:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs `steerway ARGUMENTS --pin-dir …` in the node's namespace.
    #[track_caller]
    pub fn cli<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        let mut command = self.netns.command(&self.binary);
        command
            .args(arguments)
            .arg("--pin-dir")
            .arg(&self.pin_dir)
            .stdin(Stdio::null());
        command
            .output()
            .unwrap_or_else(|error| panic!("start steerway: {error}"))
    }

    /// Runs a command that must succeed, with `-o json`, and returns what it printed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.cli(&[arguments, &["-o", "json"]].concat());
        let (text, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "steerway {arguments:?}: {errors}{text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("steerway {arguments:?}: {error} in {text}"))
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The process id while it has one.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends the process by SIGKILL and waits for its end.
    #[track_caller]
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("an agent that was started");
        child.kill().expect("a process of ours");
        child.wait().expect("the end of the process");
    }

    /// Ends the process by SIGTERM and returns how it ended; one that does not end in 10 s fails the test.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("an agent that was started");
        end(&mut child).unwrap_or_else(|| {
            child.kill().ok();
            panic!(
                "the agent of {} did not end in {END_LIMIT:?}; log:\n{}",
                self.node_name,
                self.log()
            )
        })
    }

    /// Waits until the process has ended by itself and returns how; one that goes on for 10 s fails the test.
    #[track_caller]
    pub fn wait_end(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("an agent that was started");
        let status = ended(child);
        status.unwrap_or_else(|| panic!("the agent of {} goes on; log:\n{}", self.node_name, self.log()))
    }

    /// The directory of its pins.
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// All that it has logged, over all starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.files.path().join("log")
    }
}

/// A directory for an agent's log and configuration.
fn files() -> TempDir {
    let directory = tempfile::Builder::new().prefix("stw-agent-").tempdir();
    directory.expect("a temporary directory")
}

/// Flags, without their dashes, with their values.
#[track_caller]
fn pairs(settings: &[OsString]) -> impl Iterator<Item = (&str, &str)> {
    settings.chunks(2).map(|pair| {
        let [flag, value] = pair else {
            panic!("{pair:?} is no flag with a value")
        };
        let (flag, value) = (
            flag.to_str().expect("a plain flag"),
            value.to_str().expect("plain text"),
        );
        let flag = flag.strip_prefix("--").unwrap_or_else(|| panic!("{flag} is no flag"));
        (flag, value)
    })
}

/// The environment variable of a flag.
fn variable(flag: &str) -> String {
    format!("STEERWAY_{}", flag.replace('-', "_").to_uppercase())
}

/// The field of a flag in a configuration file: `node-name` is `nodeName`.
fn field(flag: &str) -> String {
    let mut words = flag.split('-');
    let mut field = words.next().unwrap_or_default().to_owned();
    for word in words {
        field += &word[..1].to_uppercase();
        field += &word[1..];
    }
    field
}

impl Drop for Agent {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("=== log of the agent of {}\n{}", self.node_name, self.log());
        }
        if let Some(mut child) = self.child.take()
            && end(&mut child).is_none()
        {
            child.kill().ok();
            child.wait().ok();
        }
        // Best effort: the pins are removed below whatever the outcome, and the namespace takes links with it.
        let mut cleanup = self.netns.command(&self.binary);
        cleanup.arg("cleanup").arg("--pin-dir").arg(&self.pin_dir).output().ok();
        fs::remove_dir_all(&self.pin_dir).ok();
    }
}

/// Sends SIGTERM and waits; `None` if the process still runs at the limit.
fn end(child: &mut Child) -> Option<ExitStatus> {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).ok();
    ended(child)
}

/// Waits; `None` if the process still runs at the limit.
fn ended(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            _ if Instant::now() >= deadline => return None,
            _ => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn default_binary() -> PathBuf {
    env::var_os("STEERWAY_BIN").map_or_else(
        || {
            let workspace_target = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
            let target = env::var_os("CARGO_TARGET_DIR").map_or_else(workspace_target, PathBuf::from);
            target.join("release/steerway")
        },
        PathBuf::from,
    )
}

/// Mounts bpffs at its usual place if there is none, and removes pins of test processes that are gone.
pub fn mount_bpffs() {
    static PREPARE: Once = Once::new();
    PREPARE.call_once(|| {
        let mounted = statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
        if !mounted {
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).expect("mount bpffs (root?)");
        }
        fs::create_dir_all(PINS).expect("a directory in bpffs");
        for entry in fs::read_dir(PINS).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name
                .to_str()
                .and_then(|name| name.split('-').next()?.parse::<u32>().ok());
            if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
    });
}

/// All that a command has printed: its output, then its errors.
pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
