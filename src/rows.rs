//! Holds the rule of the rows: a module uses lower rows only.
//!
//! The rows are read from the `// Row n.` comments and the `mod` lines of `lib.rs`, and the uses
//! from the `crate::x` paths of every source file, so that neither can drift from the other.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Row of each top-level module, in the order of `lib.rs`.
fn rows(lib: &str) -> BTreeMap<String, u32> {
    let mut rows = BTreeMap::new();
    let mut row = None;
    for line in lib.lines() {
        if let Some(n) = line.strip_prefix("// Row ").and_then(|l| l.strip_suffix('.')) {
            let n: u32 = n.parse().expect("a row has a number");
            assert_eq!(n, row.map_or(0, |row: u32| row + 1), "rows stand in order");
            row = Some(n);
        } else if let Some(name) = line.strip_prefix("pub mod ").and_then(|l| l.strip_suffix(';')) {
            let row = row.unwrap_or_else(|| panic!("module {name} stands in no row"));
            rows.insert(name.to_owned(), row);
        }
    }
    rows
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the source tree is readable") {
        let path = entry.expect("a directory entry is readable").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The module names that follow `crate::` in code (comments and docs may speak of anything).
fn uses(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")).flat_map(
        |(number, line)| {
            line.match_indices("crate::").map(move |(at, prefix)| {
                let rest = &line[at + prefix.len()..];
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                (number + 1, &rest[..end])
            })
        },
    )
}

#[test]
fn a_module_uses_lower_rows_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rows = rows(&fs::read_to_string(src.join("lib.rs")).expect("lib.rs is readable"));
    assert!(rows.len() >= 2, "the rows were not found in lib.rs");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&src).expect("a source lies below src");
        let first = relative.components().next().expect("a path has a component");
        let own = first.as_os_str().to_string_lossy();
        let own = own.strip_suffix(".rs").unwrap_or(&own).to_owned();
        let Some(&own_row) = rows.get(&own) else { continue };
        let text = fs::read_to_string(&file).expect("a source is readable");
        for (line, used) in uses(&text) {
            if used != own && rows.get(used).is_some_and(|&row| row >= own_row) {
                wrong.push(format!("{}:{line}: `{own}` uses `{used}`", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "not a lower row:\n{}", wrong.join("\n"));
}

#[test]
fn generated_types_stay_at_the_edge() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&src).expect("a source lies below src");
        let name = relative.file_name().expect("a source has a name").to_string_lossy();
        let edge = ["service.rs", "convert.rs", "llb.rs", "proto.rs", "rows.rs"].contains(&&*name)
            || relative.starts_with("session")
            || relative.starts_with("proto");
        let text = fs::read_to_string(&file).expect("a source is readable");
        if !edge && let Some((line, _)) = uses(&text).find(|(_, used)| *used == "proto") {
            wrong.push(format!("{}:{line}", relative.display()));
        }
    }
    assert!(wrong.is_empty(), "generated types beyond the edge:\n{}", wrong.join("\n"));
}
