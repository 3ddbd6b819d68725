//! thunkd beside buildkitd: the same images, the same registry, the same client, in turn.
//!
//! `cargo bench --bench peers` prints a table of medians and ratios; `-- quick` takes fewer and
//! smaller samples, and `-- <words>` runs the scenarios whose name has one of the words. buildkitd
//! and buildctl come from `.ci/peers`. Absolute times depend on the machine and on what else it does:
//! quote the ratios.
//!
//! Each sample of ours is followed by one of the peer's, so that drift hits both. A *cold* sample
//! starts the daemon on an empty root outside of the measured time.

#[path = "../harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the harness offers more than the benchmark uses")]
mod harness;

mod peer;
mod scenarios;
mod table;

use std::process::ExitCode;

use harness::TestRegistry;

use crate::peer::Kind;
use crate::scenarios::Scale;
use crate::table::Table;

fn main() -> ExitCode {
    // Flags are cargo's own, such as `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let scale = if words.iter().any(|word| word == "quick") { Scale::QUICK } else { Scale::FULL };
    let words: Vec<String> = words.into_iter().filter(|word| word != "quick").collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let Some(kinds) = Kind::both() else {
        eprintln!("buildkitd or buildctl is missing: run .ci/peers first");
        return ExitCode::FAILURE;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    let registry = TestRegistry::open();
    let mut table = Table::default();
    for (name, scenario) in scenarios::ALL {
        if wanted(name) {
            eprintln!("{name} …");
            runtime.block_on(scenario(&kinds, &registry, scale, &mut table));
        }
    }
    print!("{table}");
    ExitCode::SUCCESS
}
