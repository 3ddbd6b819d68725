//! The harness tested itself: a test that counts on it must be able to trust it.

mod client;
mod conformance;
mod daemon;
mod faults;
mod images;
mod tokens;
