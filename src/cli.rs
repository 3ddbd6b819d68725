//! The command for people: thin commands over what the library does.

mod report;

pub use report::Chain;
