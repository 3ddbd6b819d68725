//! The daemon that a command works with: one that runs, or one inside this process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::report::CliError;
use crate::client::Client;
use crate::client::Endpoint;
use crate::client::TlsFiles;
use crate::daemon::Config;
use crate::daemon::Daemon;
use crate::daemon::Defaults;
use crate::daemon::LockError;
use crate::daemon::Settings;
use crate::daemon::StartError;
use crate::daemon::config::Checked;
use crate::daemon::file;

/// How often to look whether another command has left the root.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Which daemon to use.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct HostArgs {
    /// Daemon to use: unix:///path or tcp://host:port
    #[arg(long, env = "BUILDKIT_HOST", value_name = "ADDRESS")]
    addr: Option<String>,
    /// Without a daemon: directory of the cache [default: thunk below the user's cache directory]
    #[arg(long, value_name = "DIR", conflicts_with = "addr")]
    root: Option<PathBuf>,
    /// Without a daemon: configuration, as for thunkd
    #[arg(long, value_name = "FILE", conflicts_with = "addr")]
    config: Option<PathBuf>,
    /// Authority of the daemon's certificate; turns TLS on
    #[arg(long, value_name = "FILE")]
    tlscacert: Option<PathBuf>,
    /// Certificate to show to the daemon
    #[arg(long, value_name = "FILE", requires = "tlskey", requires = "tlscacert")]
    tlscert: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "tlscert")]
    tlskey: Option<PathBuf>,
    /// Name in the daemon's certificate, if it is not the host's
    #[arg(long, value_name = "NAME", requires = "tlscacert")]
    tlsservername: Option<String>,
}

/// A client, and the daemon behind it if it is in this process.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) client: Client,
    daemon: Option<Daemon>,
}

impl Host {
    /// The daemon that was named; else one that listens where daemons do; else one in this process.
    ///
    /// Whoever names a root wants that cache, so then no other daemon is looked for.
    pub(super) async fn find(args: HostArgs) -> Result<Host, CliError> {
        if let Some(address) = args.addr.as_deref().filter(|address| !address.is_empty()) {
            let tls = args.tlscacert.map(|ca| TlsFiles {
                ca,
                keypair: args.tlscert.zip(args.tlskey),
                server_name: args.tlsservername,
            });
            let client = Client::connect(&Endpoint::parse(address, tls)?).await?;
            return Ok(Host { client, daemon: None });
        }
        if args.root.is_none() && args.config.is_none() {
            let socket = Defaults::socket();
            if socket.exists()
                && let Ok(client) = Client::connect(&Endpoint::Unix(socket)).await
            {
                return Ok(Host { client, daemon: None });
            }
        }
        Host::embed(args).await
    }

    async fn embed(args: HostArgs) -> Result<Host, CliError> {
        let mut settings = Settings::default();
        let mut warnings = Vec::new();
        if let Some(path) = &args.config {
            let loaded = file::load(path)?;
            (settings, warnings) = (loaded.settings, loaded.warnings);
        }
        settings.root = args.root.or(settings.root).or_else(default_root);
        if settings.root.is_none() {
            return Err(CliError::NoRoot);
        }
        let Checked { config, warnings } = Config::check_embedded(settings, warnings)?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let daemon = start(config).await?;
        let connector = daemon.connector();
        let open = Arc::new(move || {
            let connector = connector.clone();
            Box::pin(async move { connector.connect().await }) as futures::future::BoxFuture<'static, _>
        });
        let client = Client::connect(&Endpoint::Inside(open)).await?;
        Ok(Host { client, daemon: Some(daemon) })
    }

    /// Stops what was started.
    pub(super) async fn leave(self) {
        // The daemon waits for connections that are open.
        drop(self.client);
        if let Some(daemon) = self.daemon {
            daemon.stop().await;
        }
    }
}

/// Starts the daemon as soon as the root is free: commands on one root take turns.
async fn start(config: Config) -> Result<Daemon, CliError> {
    let mut told = false;
    loop {
        match Daemon::start(config.clone()).await {
            Err(StartError::Lock(LockError::Held { root, holder })) => {
                if !told {
                    told = true;
                    let by = holder.map(|pid| format!(" (process {pid})")).unwrap_or_default();
                    eprintln!("waiting for another thunk{by} to leave {}", root.display());
                }
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            started => return Ok(started?),
        }
    }
}

fn default_root() -> Option<PathBuf> {
    let of = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    Some(of("XDG_CACHE_HOME").or_else(|| Some(of("HOME")?.join(".cache")))?.join("thunk"))
}
