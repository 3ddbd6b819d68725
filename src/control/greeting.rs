//! What clients ask first, and what needs no store to be answered.

mod service;

pub use service::Greeting;
