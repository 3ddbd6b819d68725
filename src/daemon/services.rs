//! Everything that a daemon consists of, wired in the order of the rows.

use std::path::PathBuf;

use tonic::service::Routes;

use super::config::Config;
use super::debug;
use super::debug::Counters;
use crate::db::Db;
use crate::db::DbError;
use crate::task::Tasks;

/// A store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("could not open the database {path:?}")]
    Db { path: PathBuf, source: DbError },
}

/// The services of a daemon and the stores below them.
pub(super) struct Services {
    db: Db,
    tasks: Tasks,
    routes: Routes,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

impl Services {
    pub(super) async fn open(config: &Config) -> Result<Services, OpenError> {
        let tasks = Tasks::new();
        let path = config.root.join("thunk.redb");
        let db = Db::open(&path).map_err(|source| OpenError::Db { path, source })?;
        Ok(Services { db, tasks, routes: Routes::default() })
    }

    pub(super) fn routes(&self) -> Routes {
        self.routes.clone()
    }

    pub(super) fn counters(&self) -> Counters {
        let mut counters = Counters::from([
            ("db_commits", self.db.commits()),
            ("db_fsyncs", self.db.fsyncs()),
            ("db_written_bytes", self.db.written_bytes()),
            ("tasks", u64::try_from(self.tasks.running()).unwrap_or(u64::MAX)),
        ]);
        debug::process(&mut counters);
        counters
    }

    pub(super) async fn cancel_builds(&self) {}

    pub(super) async fn close(&self) {
        self.tasks.shutdown().await;
        self.db.close();
    }
}
