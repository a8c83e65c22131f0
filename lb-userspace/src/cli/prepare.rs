//! `steerway prepare`: makes what an agent without privileges has to find, once for each start of the node. kube-proxy's `run --init-only` is the same.

use std::io::Write;

use anyhow::Context as _;

use super::Outcome;
use super::settings::Given;
use crate::config::Config;
use crate::datapath::conntrack;
use crate::datapath::netlink::Netlink;
use crate::datapath::pins::PinDir;
use crate::datapath::run_dir::RunDir;
use crate::datapath::steer::SteerDevice;
use crate::observe;

/// Make what an agent without privileges cannot: mounts, our interface, settings
///
/// Mounts bpffs where there is none, makes the folders, the interface steer0 and its settings, and the settings of netfilter's connection tracking
/// where that is loaded: an agent in a container may not write them. An agent with privileges does all of it itself. What is there
/// already is left as it is. Takes the settings of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0; 1 when something could not be made; 2 for wrong usage.")]
pub(super) struct Options {
    #[command(flatten)]
    given: Given<true>,
}

/// Runs the command.
pub(super) fn run(options: &Options, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let config = options.given.of_the_node()?;
    observe::start_logs(config.log)?;
    make(&config, out)
}

/// Makes all of it.
pub(super) fn make(config: &Config, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let places = &config.places;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    PinDir::new(&places.pin_dir).create()?;
    let run_dir = RunDir::new(&places.run_dir);
    run_dir
        .create()
        .with_context(|| format!("cannot create {}", places.run_dir.display()))?;
    let device = runtime.block_on(async {
        let netlink = Netlink::open().context("cannot open rtnetlink")?;
        let device = SteerDevice::ensure(netlink.handle(), &run_dir, None).await?;
        anyhow::Ok(device)
    })?;
    for name in conntrack::make_now(&config.conntrack, &run_dir) {
        writeln!(
            out,
            "{name} is not there: netfilter's connection tracking is not loaded"
        )?;
    }
    writeln!(
        out,
        "prepared {} and steer0 (index {})",
        places.pin_dir.display(),
        device.ifindex
    )?;
    Ok(Outcome::Success)
}
