//! The command for people: thin commands over what the library does.

use std::ffi::OsString;
use std::future::Future;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use clap::Subcommand;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::daemon;
use crate::daemon::RunError;
use crate::daemon::config::LogConfig;
use crate::daemon::config::LogLevel;

mod build;
mod debug;
mod host;
mod output;
mod progress;
mod report;
mod usage;

pub use report::Chain;

use report::CliError;

/// What a shell says of a command that an interrupt ended.
const INTERRUPTED: u8 = 130;
/// Threads for a command: the work is the daemon's, which may be in this process.
const WORKER_THREADS: usize = 4;

#[derive(Debug, Parser)]
#[command(name = "thunk", version, about = "A lazy build cache for container images")]
struct Cli {
    /// Say what happens inside
    #[arg(long, global = true)]
    debug: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a definition and export the result
    Build(Box<build::BuildArgs>),
    /// Show what the cache holds
    Du(usage::DuArgs),
    /// Delete what nobody uses from the cache
    Prune(usage::PruneArgs),
    /// Look inside a daemon
    Debug(debug::DebugArgs),
    /// Run the daemon (the same as thunkd)
    #[command(disable_help_flag = true)]
    Daemon {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// Runs `thunk` with these arguments, the first of which is the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // Help and version come this way as well.
        Err(answer) => return exit(answer),
    };
    if let Command::Daemon { args } = cli.command {
        return match daemon::run("thunk daemon", args) {
            Ok(code) => code,
            Err(RunError::Flags(answer)) => exit(answer),
            Err(error) => failed(&error),
        };
    }
    let level = if cli.debug { LogLevel::Debug } else { LogLevel::Warn };
    daemon::start_log(LogConfig { level, ..LogConfig::default() });
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(WORKER_THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Build(args) => Box::pin(build::build(*args)).await,
            Command::Du(args) => usage::du(args).await,
            Command::Prune(args) => usage::prune(args).await,
            Command::Debug(args) => debug::debug(args).await,
            Command::Daemon { .. } => Ok(()),
        }
    });
    // A read of standard input can't be stopped and must not hold the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError::Interrupted) => {
            eprintln!("thunk: interrupted");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprint!("{}", report::excerpts(&error));
            failed(&error)
        }
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("thunk: {}", Chain(error));
    ExitCode::FAILURE
}

fn exit(answer: clap::Error) -> ExitCode {
    // Nobody reads it if this fails.
    let _ = answer.print();
    u8::try_from(answer.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Writes to standard output.
fn print(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|source| CliError::Write { path: "/dev/stdout".into(), source })
}

/// Runs `work` unless an interrupt comes first; then `work` is dropped.
async fn unless_interrupted<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Signals)?;
    tokio::select! {
        result = work => result,
        _ = terminate.recv() => Err(CliError::Interrupted),
        _ = interrupt.recv() => Err(CliError::Interrupted),
    }
}
