//! Health of the services that a client may ask for.

mod service;

pub use service::Healthy;
