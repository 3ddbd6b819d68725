//! Sockets that stand for the SSH agents of a client.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::DropGuard;

use super::super::op::ClientFile;
use super::ExecOpError;
use crate::ctx::Ctx;
use crate::executor::Executor;
use crate::executor::Scratch;
use crate::session::Session;
use crate::session::SessionError;
use crate::task::Tasks;

/// Connections to an agent that may be open at the same time.
const CONNECTIONS: usize = 64;

/// A socket; dropping it closes every connection that came through it.
#[derive(Debug)]
pub struct AgentSocket {
    scratch: Scratch,
    _open: DropGuard,
}

impl AgentSocket {
    /// Opens a socket for an agent of whoever asks for the build; none if it is optional and nobody has it.
    pub async fn open(
        ctx: &Ctx,
        file: &ClientFile,
        executor: &Executor,
        tasks: &Tasks,
    ) -> Result<Option<AgentSocket>, ExecOpError> {
        let id = file.id.clone();
        let find = ctx.sessions().any(|session| {
            let id = id.clone();
            async move {
                session.ssh_check(&id).await?;
                Ok::<Session, SessionError>(session)
            }
        });
        let found = ctx.run(find).await.map_err(|cancelled| ExecOpError::Exec(cancelled.into()))?;
        let session = match found {
            Ok(session) => session,
            Err(_) if file.optional => return Ok(None),
            Err(error) if error.is_unsupported() => return Err(ExecOpError::AgentMissing { id }),
            Err(error) => return Err(error.into()),
        };
        let scratch = executor.scratch()?;
        let path = socket(scratch.path());
        let failed = |source| ExecOpError::Socket { id: id.clone(), source };
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::os::unix::fs::chown(&path, Some(file.uid), Some(file.gid)).map_err(failed)?;
        std::fs::set_permissions(&path, Permissions::from_mode(file.mode & 0o777)).map_err(failed)?;
        let open = CancellationToken::new();
        let serving = serve(listener, session, id.clone(), tasks.clone(), open.clone());
        drop(tasks.spawn("agent socket", serving));
        Ok(Some(AgentSocket { scratch, _open: open.drop_guard() }))
    }

    pub fn path(&self) -> PathBuf {
        socket(self.scratch.path())
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("agent")
}

async fn serve(listener: UnixListener, session: Session, id: String, tasks: Tasks, open: CancellationToken) {
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    let accept = async {
        loop {
            // The semaphore is never closed.
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the socket of an agent takes no connections any more");
                    return;
                }
            };
            let (session, id, open) = (session.clone(), id.clone(), open.clone());
            drop(tasks.spawn("agent connection", async move {
                let _slot = slot;
                let _ = open.run_until_cancelled(connect(stream, &session, &id)).await;
            }));
        }
    };
    tokio::select! {
        () = accept => {}
        () = open.cancelled() => {}
        () = tasks.token().cancelled() => {}
    }
}

async fn connect(mut stream: UnixStream, session: &Session, id: &str) {
    let mut agent = match session.ssh_forward(id).await {
        Ok(agent) => agent,
        Err(error) => return tracing::warn!(%error, "an agent can't be reached"),
    };
    // How a connection ends is the business of the two that talk.
    if let Err(error) = tokio::io::copy_bidirectional(&mut stream, &mut agent).await {
        tracing::debug!(%error, "a connection to an agent ended");
    }
}
