//! The store against scripted providers that count what is asked of them.

mod access;
mod collecting;
mod crash;
mod entitlement;
mod fetching;
mod harness;
mod model;
mod storm;
mod streaming;
mod writing;
