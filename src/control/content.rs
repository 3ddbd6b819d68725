//! What the build history keeps, as containerd's content service: read-only.

mod service;

pub use service::HistoryContent;
