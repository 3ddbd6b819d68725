//! Records on a real store, over registries in memory that count what is asked of them.

mod adopted;
mod files;
pub(crate) mod fixture;
mod lazy;
mod lifetime;
mod long;
mod model;
mod parts;
mod paths;
mod power;
