//! `steerway run`: validates the settings, starts logs and runtime, and runs the agent until it is told to end.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

use super::output::Format;
use super::settings::Given;
use super::{Outcome, cleanup, prepare};
use crate::config::{Config, Places, process_variable};
use crate::{observe, reconcile};

/// Threads of the runtime; each costs resident memory.
const WORKERS: usize = 2;
/// How long `--cleanup` waits for the agent to end.
const CLEANUP_WAITS: Duration = Duration::from_secs(5);

/// Run the agent of this node
///
/// Reads Services, EndpointSlices and this node's Node object from an API server or a folder and keeps the kernel's
/// forwarding as they say, in the network namespace that it is started in. What this node lacks for now (its Node object, addresses, a default route,
/// interfaces) it waits for; `steerway status` says what. SIGTERM ends the agent and leaves forwarding in place.
///
/// Each setting may also be given by its environment variable, or by its field in the file of --config: the flag's name in
/// camel case, as in `nodeName`. A flag wins over a variable, a variable over the file.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 after SIGTERM or SIGINT; 1 when the agent cannot start, or a file of kind KubeProxyConfiguration changed; 2 for wrong settings.\n\n\
    Examples:\n  steerway run --source kubernetes --kubeconfig /etc/kubernetes/steerway.conf\n  \
    steerway run --folder /etc/steerway/objects --uplink 'eth*'"
)]
pub(super) struct Options {
    /// As kube-proxy's: write the configuration in force to this file, and end
    #[arg(long, hide = true, value_name = "FILE")]
    write_config_to: Option<PathBuf>,
    /// As kube-proxy's: do what `steerway cleanup` does, and end
    #[arg(long, hide = true)]
    cleanup: bool,
    /// As kube-proxy's: do what `steerway prepare` does, and end
    #[arg(long, hide = true, conflicts_with = "cleanup")]
    init_only: bool,
    #[command(flatten)]
    given: Given<true>,
}

/// Runs the command.
pub(super) fn run(options: &Options, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let settings = options.given.gather(process_variable)?;
    if options.cleanup && options.write_config_to.is_none() {
        return cleanup::clean(&Places::validate(&settings)?, CLEANUP_WAITS, Format::Table, out);
    }
    let config = Config::validate(&settings, host_name().as_deref())?;
    if let Some(file) = &options.write_config_to {
        let text = config
            .kube_proxy_file()
            .context("cannot write the configuration as YAML")?;
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        return Ok(Outcome::Success);
    }
    observe::start_logs(config.log)?;
    if options.init_only {
        return prepare::make(&config, out);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let ended = runtime.block_on(reconcile::run(config));
    // A step of the start that still runs is left behind, as by a kill: each of them may stop anywhere.
    runtime.shutdown_background();
    ended?;
    Ok(Outcome::Success)
}

/// The host name of this UTS namespace.
pub(super) fn host_name() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
}
