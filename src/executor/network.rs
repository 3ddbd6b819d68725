//! The network namespace of a process.

mod cni;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use super::ExecError;
use super::Network;
use super::NetworkMode;
use crate::task::Tasks;

pub use cni::clear_leftovers;

/// Which namespace a runtime is told to use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Namespace {
    Host,
    /// A new one, of which the runtime brings up the loopback.
    Loopback,
    /// A file of the host that holds a namespace.
    At(PathBuf),
}

/// A namespace, and what was set up in it.
#[derive(Debug)]
pub struct Connection {
    pub namespace: Namespace,
    attached: Option<cni::Attachment>,
}

impl Connection {
    /// For a process with `hostname`, which plugins may announce. `directory` is the executor's.
    ///
    /// Not cancellation safe: a connection that was made has to be closed.
    pub async fn open(
        network: Network,
        mode: &NetworkMode,
        hostname: &str,
        directory: &Path,
        tasks: &Tasks,
    ) -> Result<Connection, ExecError> {
        let namespace = match (network, mode) {
            (Network::None, _) => Namespace::Loopback,
            (Network::Host, _) | (Network::Sandbox, NetworkMode::Host) => Namespace::Host,
            (Network::Sandbox, NetworkMode::Cni { config, plugins }) => {
                let plan = Arc::new(cni::Plan::read(config, plugins)?);
                let attached = cni::Attachment::add(plan, hostname, directory, tasks).await?;
                let namespace = Namespace::At(attached.path().to_path_buf());
                return Ok(Connection { namespace, attached: Some(attached) });
            }
        };
        Ok(Connection { namespace, attached: None })
    }

    /// True if the process has the loopback of the host.
    pub fn is_host(&self) -> bool {
        self.namespace == Namespace::Host
    }

    /// Undoes what plugins did. What fails is told, and nothing can be done about it.
    pub async fn close(mut self) {
        if let Some(attached) = self.attached.take() {
            attached.remove().await;
        }
    }
}
