//! thunkd beside buildkitd: the same images, the same registry, the same client, in turn.
//!
//! `cargo bench --bench peers` prints a table of medians and ratios. buildkitd and buildctl come from
//! `.ci/peers`. Absolute times depend on the machine and on what else it does: quote the ratios.
//!
//! | word after `--` | what it does |
//! |---|---|
//! | `list` | names the scenarios, and runs none |
//! | `quick` | takes fewer and smaller samples |
//! | `alone` | measures thunkd without the peer |
//! | any other | runs the scenarios whose name has one of the words; all of them without one |
//!
//! `THUNK_BENCH_THUNKD` names another `thunkd` than the one built here, so that two can be compared.
//!
//! Each sample of ours is followed by one of the peer's, so that drift hits both. A *cold* sample
//! starts the daemon on an empty root outside of the measured time. No build, and so no row, takes for
//! ever: what isn't done in time is given up and told as such.

#[path = "../harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the harness offers more than the benchmark uses")]
mod harness;

mod containerd;
mod peer;
mod runc;
mod scenarios;
mod table;

use std::process::ExitCode;

use harness::TestRegistry;

use crate::peer::Kind;
use crate::scenarios::Bench;
use crate::scenarios::Scale;
use crate::table::Table;

fn main() -> ExitCode {
    // Flags are cargo's own, such as `--bench`.
    let mut words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut take = |wanted: &str| {
        let before = words.len();
        words.retain(|word| word != wanted);
        words.len() != before
    };
    let (is_list, is_quick, is_alone) = (take("list"), take("quick"), take("alone"));
    if is_list {
        scenarios::ALL.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let scale = if is_quick { Scale::QUICK } else { Scale::FULL };
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let Some(kinds) = Kind::all(is_alone) else {
        eprintln!("buildkitd or buildctl is missing: run .ci/peers first");
        return ExitCode::FAILURE;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    let mut bench = Bench { kinds, registry: TestRegistry::open(), scale, table: Table::default() };
    for (name, scenario) in scenarios::ALL {
        if wanted(name) {
            eprintln!("{name} …");
            runtime.block_on(scenario(&mut bench));
        }
    }
    print!("{}", bench.table);
    ExitCode::SUCCESS
}
