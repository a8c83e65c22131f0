//! One publication in a process of its own: what an agent does between reading its source and its next wait, in the pinned
//! maps of an agent that is not there. `publisher PIN_DIR FOLDER NODE STEP` is ended by SIGKILL at that step (each word of a
//! write is one, every other changing call is one), or prints how many operations it took; step 0 never comes.
//!
//! Source, model, plan and maps are the agent's own. What it does not compute is what no publication of objects changes:
//! configuration and devices are taken from the maps.

use std::collections::BTreeSet;
use std::env;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use steerway::datapath::interfaces::{Rules, snapshot};
use steerway::maps::{BpfStore, Dump, Fault, FaultyStore, Table};
use steerway::model::{self, ModelConfig};
use steerway::plan::{NodeTables, Planner};
use steerway::source::folder;

/// The node's secret of tables that have none.
const SEED: u64 = 1;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [pin_dir, objects, node_name, step] = arguments.as_slice() else {
        bail!("usage: publisher PIN_DIR FOLDER NODE STEP");
    };
    let config = ModelConfig::new(node_name);
    let source = folder::start(objects.into(), config.node_name.clone());
    let objects = source.handle().refresh().await?;
    let interfaces = snapshot(&Rules::default()).await?;
    let store = BpfStore::open(&PathBuf::from(pin_dir).join("maps"))?;
    let store = FaultyStore::new(store, Fault::Killed, step.parse().context("the step")?);

    let dump = Dump::of(&store)?;
    let desired = model::build(&objects.snapshot, &config);
    let local: Vec<IpAddr> = interfaces.local_addresses.iter().copied().collect();
    let nodeport: BTreeSet<IpAddr> = model::nodeport_addresses(&config, &desired.node, &local)
        .into_iter()
        .collect();
    let mut node = NodeTables {
        addresses: interfaces.local_addresses,
        nodeport_addresses: nodeport,
        devices: dump.devices.clone(),
        ..NodeTables::default()
    };
    for (word, stands) in node.config.iter_mut().zip(&dump.tables[Table::Config as usize]) {
        *word = *stands;
    }
    let plan = Planner::adopt(dump, SEED).plan(&desired, &node);
    plan.apply(&store)?;
    println!("{}", plan.len());
    Ok(())
}
