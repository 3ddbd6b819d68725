//! The command for people.

mod allocator;

use std::process::ExitCode;

fn main() -> ExitCode {
    thunk::cli::run(std::env::args_os())
}
