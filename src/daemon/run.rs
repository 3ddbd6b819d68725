//! A daemon as a process: arguments in, exit code out.
//!
//! The first SIGTERM or SIGINT stops the daemon in order, the second one at once, and the third ends the process
//! where it stands.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::ArgMatches;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio_util::sync::CancellationToken;

use super::Broken;
use super::Daemon;
use super::StartError;
use super::Stopped;
use super::config::Checked;
use super::config::Config;
use super::config::ConfigError;
use super::defaults::Defaults;
use super::file;
use super::flags;
use super::flags::Flags;
use super::log;
use super::notify;
use super::notify::State;
use crate::failpoint;
use crate::failpoint::InvalidFailpoint;
use crate::task::Tasks;

pub use super::flags::command;

/// Threads that run tasks, at most. Work that fills a core has threads of its own.
const WORKER_THREADS: usize = 8;
/// Threads for work that blocks, at most; each goes when it is idle.
const BLOCKING_THREADS: usize = 128;

/// A daemon ended badly.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Flags(#[from] clap::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("THUNKD_FAILPOINT is not valid")]
    Failpoint(#[from] InvalidFailpoint),
    #[error("could not start the runtime")]
    Runtime(#[source] io::Error),
    #[error("could not listen for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// Runs a daemon called `name` with these arguments, which don't have the program's name, until it is told to stop.
pub fn run(name: &'static str, args: impl IntoIterator<Item = OsString>) -> Result<ExitCode, RunError> {
    let args = std::iter::once(OsString::from(name)).chain(flags::two_dashes(args));
    run_matches(&command(name).try_get_matches_from(args)?)
}

/// The same with arguments that [`command`] has read.
pub fn run_matches(matches: &ArgMatches) -> Result<ExitCode, RunError> {
    let Checked { config, warnings } = configure(matches)?;
    log::start(config.log);
    failpoint::arm_from_environment()?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(WORKER_THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(RunError::Runtime)?;
    let code = runtime.block_on(serve(config));
    // Blocking work that is left behind must not hold the process.
    runtime.shutdown_background();
    code
}

/// The file below the flags, and both checked.
pub fn configure(matches: &ArgMatches) -> Result<Checked, RunError> {
    let (flags, mut warnings) = Flags::read(matches)?;
    let path = flags.config.clone().unwrap_or_else(Defaults::config_file);
    // buildkitd takes a missing file for an empty one, even if it was named; silence there hides typing errors.
    if flags.config.is_some() && !path.exists() {
        warnings.push(format!("the configuration {path:?} is not there: it counts as empty"));
    }
    let loaded = file::load(&path)?;
    warnings.extend(loaded.warnings);
    Ok(Config::check(loaded.settings.under(flags.settings()?), warnings)?)
}

async fn serve(config: Config) -> Result<ExitCode, RunError> {
    let watch = Tasks::new();
    let stop = Signals::watch(&watch).map_err(RunError::Signals)?;
    let manager = notify::socket();
    let tell = |state| {
        if let Some(socket) = &manager
            && let Err(error) = notify::tell(socket, state)
        {
            tracing::warn!(%error, "the service manager can't be told {state:?}");
        }
    };
    let root = config.root.clone();
    let started = std::time::Instant::now();
    let mut daemon = Daemon::start(config).await?;
    for address in daemon.addresses() {
        tracing::info!(address, "listening");
    }
    if let Some(address) = daemon.debug_address() {
        tracing::info!(address, "debug page");
    }
    tracing::info!(root = %root.display(), milliseconds = started.elapsed().as_millis(), "ready");
    tell(State::Ready);

    let broken = tokio::select! {
        () = stop.first.cancelled() => None,
        broken = daemon.broken() => Some(broken),
    };
    tell(State::Stopping);
    tracing::info!("stopping");
    let stopped = stop.second.run_until_cancelled(daemon.stop()).await;
    match stopped {
        Some(Stopped::InOrder) => tracing::info!("stopped"),
        Some(Stopped::CallsCut) => tracing::info!("stopped; calls that clients held open were cut"),
        Some(Stopped::Late) => tracing::warn!("stopped; something did not end in time"),
        None => tracing::warn!("stopped at once, as a second signal asked"),
    }
    match broken {
        Some(broken) => Err(broken.into()),
        None if stopped.is_none() => Ok(ExitCode::FAILURE),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The signals that end a daemon.
struct Signals {
    first: CancellationToken,
    second: CancellationToken,
}

impl Signals {
    fn watch(tasks: &Tasks) -> io::Result<Signals> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let signals = Signals { first: CancellationToken::new(), second: CancellationToken::new() };
        let stages = [signals.first.clone(), signals.second.clone()];
        tasks.spawn("signals", async move {
            for stage in stages {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                stage.cancel();
            }
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::error!("ended by a third signal");
            #[expect(
                clippy::disallowed_methods,
                reason = "whoever asks three times wants no shutdown in order"
            )]
            std::process::exit(1);
        });
        Ok(signals)
    }
}
