//! The agent of `steerway run`: takes the pin folder, loads the programs, starts source, host and socket, and runs the loop.
//!
//! Everything that can fail for good fails here, before anything of the former agent was touched; afterwards the agent only
//! ends on SIGTERM, SIGINT or a change of its configuration file, and leaves programs, tables and routes as they are.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinError;
use tracing::{info, warn};

use super::host::{HostStartError, KernelHost};
use super::sweep::FlowSweep;
use super::{Parts, Reconciler};
use crate::clock;
use crate::config::{Attach, Config, ReadFile, Source, Unused};
use crate::datapath::attach::{Attacher, Kind};
use crate::datapath::checks;
use crate::datapath::clock::{Clock, ClockError};
use crate::datapath::conntrack;
use crate::datapath::load::{self, LoadError, LoadOptions, Loaded};
use crate::datapath::pins::{PinDir, PinError, PinLock};
use crate::datapath::probe::Features;
use crate::datapath::run_dir::RunDir;
use crate::datapath::ways::WayWatch;
use crate::health::{self, BindError, Facts, Told};
use crate::maps::{BpfStore, MapStore, OpenError, pinned_seed};
use crate::source::{folder, kubernetes};
use crate::status::report::{ServiceFilter, UnusedSetting};
use crate::status::{Answers as _, Board, Identity, ListenError, Server, State};

/// How long a start waits for another agent of the pin folder to end.
const OTHER_AGENT_ENDS: Duration = Duration::from_secs(30);

/// Why an agent does not start.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The process may not do what an agent does.
    #[error("this process lacks {}: run the agent as root, or give it what is missing", .0.join(" and "))]
    Rights(Vec<&'static str>),
    /// The pin folder cannot be had.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The run folder cannot be used.
    #[error("cannot use the run folder {}", path.display())]
    RunDir {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel has no tcx.
    #[error("this kernel has no tcx hooks (they came with Linux 6.6): use --attach auto")]
    NoTcx,
    /// The programs cannot be loaded.
    #[error("the kernel programs cannot be loaded")]
    Load(#[from] LoadError),
    /// The maps cannot be used.
    #[error("the maps cannot be used")]
    Maps(#[from] OpenError),
    /// The kernel's clock cannot be read.
    #[error("the kernel's clock cannot be read")]
    Clock(#[from] ClockError),
    /// Interfaces cannot be followed.
    #[error("interfaces cannot be followed")]
    Host(#[from] HostStartError),
    /// The socket cannot be offered.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// An address of the health or metrics server cannot be had, and must be.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A resource of the process cannot be had.
    #[error("cannot {what}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The agent worked, and has to start with other settings.
    #[error("the content of the configuration file {} has changed: start the agent again", .0.display())]
    Changed(PathBuf),
    /// A step of the start panicked.
    #[error("a step of the start broke off")]
    Broken(#[from] JoinError),
}

fn process(what: &'static str) -> impl FnOnce(io::Error) -> AgentError {
    move |source| AgentError::Process { what, source }
}

/// Runs an agent until SIGTERM or SIGINT; either may come at any time.
///
/// # Errors
/// It cannot start; nothing of a former agent was touched, unless the error says so. Or its configuration file has changed.
pub async fn run(config: Config) -> Result<(), AgentError> {
    let mut end = pin!(end(config.file.clone(), stop().map_err(process("take signals"))?));
    let ended = tokio::select! {
        biased;
        ended = &mut end => ended,
        agent = Agent::start(config) => {
            let agent = agent?;
            agent.reconciler.run(end).await
        }
    };
    info!("agent stops; what it programmed goes on forwarding");
    ended
}

/// Waits for what ends an agent: a signal, or a change of the file that has its settings.
async fn end(file: Option<ReadFile>, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
    let changed = async {
        match file {
            Some(file) => {
                file.changed().await;
                file.path
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop => Ok(()),
        path = changed => Err(AgentError::Changed(path)),
    }
}

/// A started agent.
struct Agent {
    reconciler: Reconciler<KernelHost>,
    _ways: WayWatch,
    _lock: PinLock,
}

impl Agent {
    /// The socket answers early: the verifier may take long.
    async fn start(config: Config) -> Result<Self, AgentError> {
        let lacking = checks::lacking_capabilities();
        if !lacking.is_empty() {
            return Err(AgentError::Rights(lacking));
        }
        let started = clock::now();
        let pins = PinDir::new(&config.places.pin_dir);
        let run_dir = RunDir::new(&config.places.run_dir);
        pins.create()?;
        let in_run_dir = |source| AgentError::RunDir {
            path: config.places.run_dir.clone(),
            source,
        };
        run_dir.create().map_err(in_run_dir)?;
        let lock = pins.lock(&run_dir, OTHER_AGENT_ENDS).await?;
        run_dir.write_owner(std::process::id()).map_err(in_run_dir)?;
        run_dir.write_netns().map_err(in_run_dir)?;
        let sockets = config.listen.listen().await?;

        let node_name = config.node_name.as_str();
        let (source, source_kind, source_location) = match &config.source {
            Source::Folder(path) => (
                folder::start(path.clone(), node_name.into()),
                "folder",
                path.display().to_string(),
            ),
            Source::Kubernetes(access) => (
                kubernetes::start(access.clone(), node_name),
                "kubernetes",
                access.to_string(),
            ),
        };
        let state = watch::Sender::new(State::starting());
        let identity = Identity {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node_name: config.node_name.clone(),
            takeover: config.takeover,
            started,
            source_kind: source_kind.to_owned(),
            source_location,
            unused_settings: config.unused.iter().map(unused_setting).collect(),
        };
        for unused in &config.unused {
            let (setting, value, reason) = (&unused.place, &unused.value, &unused.reason);
            if unused.wrong {
                warn!(%setting, value, reason, "setting is not known and has no effect");
            } else {
                info!(%setting, value, reason, "setting has no effect here");
            }
        }
        let facts = watch::Sender::new(Facts::default());
        let board = Arc::new(Board::new(identity, state.subscribe(), source.handle()));
        tokio::spawn(Server::bind(run_dir.root())?.serve(Arc::clone(&board)));
        let failed_checks = watch::Sender::default();
        if let Source::Kubernetes(access) = &config.source {
            let (notices, node_name) = (watch::Sender::default(), config.node_name.clone());
            let recorded = notices.subscribe();
            tokio::spawn(kubernetes::record(access.clone(), node_name.as_str().into(), recorded));
            let failed = failed_checks.subscribe();
            tokio::spawn(super::notices::tell(node_name, state.subscribe(), failed, notices));
        }
        let told = told(&config, &board);
        tokio::spawn(health::run(sockets, facts.subscribe(), failed_checks, told));
        tokio::spawn(super::health::tell(config.sync_period, state.subscribe(), facts));

        // Should the tables have to be made anew, ports are chosen as before: most connections find their way again.
        let seed = match pinned_seed(&pins.maps()) {
            Some(seed) => seed,
            None => random().map_err(process("read /dev/urandom"))?,
        };
        let (loaded, kind, hz, clock) = {
            let (pins, attach, flow_sets) = (pins.clone(), config.attach, config.flow_entries);
            tokio::task::spawn_blocking(move || prepare(&pins, attach, flow_sets)).await??
        };
        let store: Arc<dyn MapStore> = Arc::new(BpfStore::open(&pins.maps())?);
        board.set_store(Arc::clone(&store));
        info!(
            pin_dir = %pins.root().display(),
            reused = loaded.report.reused.len(),
            created = loaded.report.created.len(),
            replaced = loaded.report.replaced.len(),
            hz,
            ms = (clock::now() - started).as_millis() as u64,
            "programs loaded"
        );
        let attacher = Attacher::new(loaded.programs, pins, run_dir.clone(), kind);
        let attacher = attacher
            .map_err(process("open an rtnetlink socket"))?
            .with_xdp(config.xdp);
        let ways = WayWatch::start(Arc::clone(&store)).map_err(process("open an rtnetlink socket"))?;
        tokio::spawn(conntrack::keep(config.conntrack, run_dir.clone()));
        let host = KernelHost::start(config.interfaces.clone(), attacher, run_dir).await?;
        let sweep = Arc::new(FlowSweep::new(clock));
        let reconciler = Reconciler::new(Parts {
            config,
            source,
            store,
            host,
            sweep,
            hz,
            state,
            random: seed,
        });
        Ok(Self {
            reconciler,
            _ways: ways,
            _lock: lock,
        })
    }
}

/// What the metrics port tells of an agent.
fn told(config: &Config, board: &Arc<Board>) -> Told {
    let (reporting, listing) = (Arc::clone(board), Arc::clone(board));
    Told {
        report: Box::new(move || reporting.report()),
        services: config
            .service_metrics
            .then(|| Box::new(move || listing.services(&ServiceFilter::default())) as Box<_>),
        configz: config.configz(),
    }
}

/// A value without effect as `status` tells it.
fn unused_setting(unused: &Unused) -> UnusedSetting {
    UnusedSetting {
        setting: unused.place.to_string(),
        value: unused.value.clone(),
        reason: unused.reason.clone(),
        wrong: unused.wrong,
    }
}

/// What takes time and must not stop the runtime: probes, the verifier, measuring the clock.
fn prepare(pins: &PinDir, attach: Attach, flow_sets: u32) -> Result<(Loaded, Kind, u32, Clock), AgentError> {
    let features = Features::probe();
    let kind = match (attach, features.tcx) {
        (Attach::Tcx, false) => return Err(AgentError::NoTcx),
        (Attach::Auto | Attach::Tcx, true) => Kind::Tcx,
        (Attach::Auto, false) | (Attach::Clsact, _) => Kind::Clsact,
    };
    let clock = Clock::open()?;
    let hz = clock.measure_hz()?;
    let options = LoadOptions {
        flow_sets_v4: flow_sets,
        flow_sets_v6: flow_sets,
        features,
    };
    Ok((load::load(load::OBJECT, pins, &options)?, kind, hz, clock))
}

/// A random number of the kernel: the node's secret, should the tables have none yet.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Ready when the process is asked to end.
fn stop() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
