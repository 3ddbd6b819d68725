//! Generates the messages of LLB from their `.proto` file, as the crate does, without a `protoc` on the machine.

#[path = "../../proto/messages.rs"]
mod messages;

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("../../proto");
    let file = root.join("buildkit/ops.proto");
    for read in [&file, &root.join("messages.rs")] {
        println!("cargo::rerun-if-changed={}", read.display());
    }
    let descriptors = protox::compile([&file], [root])?;
    let mut config = messages::configure();
    descriptors.file.iter().for_each(|file| messages::derive_json(&mut config, file));
    config.compile_fds(descriptors)?;
    Ok(())
}
