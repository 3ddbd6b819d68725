//! BuildKit's Control API: builds and their status, sessions, disk usage, the build history, health.
//!
//! [`ControlService`] is thin: it turns messages into plain types and asks [`Builds`] (a solve from its
//! request to its record), [`history`], the cache and the sessions. What it does not do is refused
//! with `Unimplemented` and a message.
//!
//! # Cancellation
//!
//! A call ends when its client drops it. A solve that is dropped cancels its build, which still ends
//! its status and writes its record. Streams without an end of their own end when the daemon stops.

mod build;
mod content;
mod convert;
mod greeting;
mod health;
pub mod history;
mod service;
mod status;

pub use build::BuildError;
pub use build::BuildRequest;
pub use build::Builds;
pub use build::ExporterRequest;
pub use greeting::Greeting;
pub use service::ControlService;
