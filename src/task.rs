//! Owned tasks, and work that many callers share.
//!
//! A bare `tokio::spawn` makes work that nobody waits for and nobody can stop. Everything that runs
//! beside its caller belongs to a [`Tasks`], which cancels and joins it at shutdown. Work that must
//! happen once whatever number of callers ask for it goes through [`Flights`].
//!
//! # Cancellation
//!
//! Dropping a [`Task`] detaches it from its caller, never from its owner. Dropping the future of
//! [`Flights::join`] gives up that caller's interest; the work's token is cancelled when the last
//! interest is gone.

mod backoff;
mod cores;
mod flights;
mod tasks;

pub use backoff::Backoff;
pub use cores::map_on_cores;
pub use flights::Flights;
pub use tasks::Task;
pub use tasks::TaskFailed;
pub use tasks::Tasks;
