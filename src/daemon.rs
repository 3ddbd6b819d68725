//! The daemon: configuration into running services, and their end in order.

pub mod config;
pub mod file;
pub mod flags;
pub mod listen;
pub mod lock;
pub mod log;
mod notify;
mod tls;
mod toml;
mod units;

pub use units::Space;
