//! `thunk debug`.

use clap::Args;
use clap::Subcommand;

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
}

pub(super) async fn debug(args: DebugArgs) -> Result<(), CliError> {
    let DebugCommand::Workers { host } = args.command;
    super::unless_interrupted(async {
        let host = Host::find(host).await?;
        let answers = async { Ok((host.client.version().await?, host.client.workers().await?)) }.await;
        host.leave().await;
        let (version, workers) = answers.map_err(CliError::Call)?;
        println!("version {version}");
        for worker in workers {
            println!("worker {}", worker.id);
            for platform in &worker.platforms {
                println!("  platform {platform}");
            }
            for (key, value) in &worker.labels {
                println!("  label {key}={value}");
            }
        }
        Ok(())
    })
    .await
}
