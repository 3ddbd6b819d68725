//! `thunk debug`.

use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;

use super::build;
use super::host::Host;
use super::host::HostArgs;
use super::report::CliError;

#[derive(Clone, Debug, Args)]
pub(super) struct DebugArgs {
    #[command(subcommand)]
    command: DebugCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum DebugCommand {
    /// Show the daemon's version, workers, platforms and labels
    Workers {
        #[command(flatten)]
        host: HostArgs,
    },
    /// Write a definition as protobuf, which is what buildctl reads, to standard output
    Encode {
        /// LLB definition, as protobuf or JSON; - or nothing for standard input
        definition: Option<PathBuf>,
    },
}

pub(super) async fn debug(args: DebugArgs) -> Result<(), CliError> {
    super::unless_interrupted(async {
        match args.command {
            DebugCommand::Workers { host } => workers(host).await,
            DebugCommand::Encode { definition } => encode(definition).await,
        }
    })
    .await
}

async fn workers(host: HostArgs) -> Result<(), CliError> {
    let host = Host::find(host).await?;
    let answers = async { Ok((host.client.version().await?, host.client.workers().await?)) }.await;
    host.leave().await;
    let (version, workers) = answers.map_err(CliError::Call)?;
    let mut text = format!("version {version}\n");
    for worker in workers {
        text += &format!("worker {}\n", worker.id);
        worker.platforms.iter().for_each(|platform| text += &format!("  platform {platform}\n"));
        worker.labels.iter().for_each(|(key, value)| text += &format!("  label {key}={value}\n"));
    }
    super::print(text.as_bytes())
}

async fn encode(definition: Option<PathBuf>) -> Result<(), CliError> {
    super::print(&build::definition(definition).await?.encode())
}
