//! What a session has of this machine: directories, secrets and agents, and the places of outputs.

mod service;

pub(super) use service::FileSendService;
