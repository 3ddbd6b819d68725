//! The daemon, with the flags and the configuration of `buildkitd`.

mod allocator;

use std::process::ExitCode;

use thunk::cli::Chain;
use thunk::daemon;
use thunk::daemon::RunError;

fn main() -> ExitCode {
    match daemon::run("thunkd", std::env::args_os().skip(1)) {
        Ok(code) => code,
        // Help and version come this way as well.
        Err(RunError::Flags(answer)) => answer.exit(),
        Err(error) => {
            eprintln!("thunkd: {}", Chain(&error));
            ExitCode::FAILURE
        }
    }
}
