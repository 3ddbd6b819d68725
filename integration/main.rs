//! One binary for all integration tests, so that they link once.

#[allow(dead_code, unused_imports, reason = "the harness offers more than the tests use at any one time")]
mod harness;

mod ahead;
mod builds;
mod cancel;
mod cli;
mod collecting;
mod compression;
mod crash;
mod credentials;
mod daemon;
mod errors;
mod exporters;
mod faults;
mod full;
mod harness_tests;
mod hostile;
mod house;
mod laziness;
mod lazy_images;
mod load;
mod memory;
mod mount_points;
mod networks;
mod paths;
mod ranges;
mod registry;
mod restart;
mod root_files;
mod same_bytes;
mod sources;
mod states;
