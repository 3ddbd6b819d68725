use std::ops::ControlFlow;

use super::*;
use crate::fs::FileTime;
use crate::fs::Root;
use crate::session::fsutil::Directory;
use crate::session::fsutil::FileKind;

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn attestation(kind: AttestationKind, path: &str) -> Attestation<()> {
    let (metadata, subjects, predicate_type) = (BTreeMap::new(), Vec::new(), String::new());
    Attestation { kind, metadata, files: Some(()), path: path.to_owned(), predicate_type, subjects }
}

fn predicate(path: &str) -> Predicate {
    let json = "{}".to_owned();
    Predicate { path: path.to_owned(), predicate_type: "t".to_owned(), subjects: Vec::new(), json }
}

fn read_at(root: &tempfile::TempDir, one: &Attestation<()>) -> Result<Vec<Predicate>, AttestationError> {
    let read = read::predicates(&Root::open(root.path()).unwrap(), one)?;
    Ok(read.into_iter().map(|(predicate, _)| predicate).collect())
}

#[test]
fn a_link_in_a_state_leads_to_nothing_outside() {
    let dir = directory(&[("in/x", "1")]);
    std::os::unix::fs::symlink("/etc/hostname", dir.path().join("out")).unwrap();
    std::os::unix::fs::symlink("../../../in/x", dir.path().join("back")).unwrap();
    assert!(read_at(&dir, &attestation(AttestationKind::InToto, "out")).is_err());
    assert_eq!(read_at(&dir, &attestation(AttestationKind::InToto, "back")).unwrap()[0].json, "1");
}

#[test]
fn a_file_that_is_too_large_is_refused_and_an_empty_one_is_null() {
    let dir = directory(&[("empty", "")]);
    let large = std::fs::File::create(dir.path().join("large")).unwrap();
    large.set_len(MAX_STATEMENT + 1).unwrap();
    assert_eq!(read_at(&dir, &attestation(AttestationKind::InToto, "empty")).unwrap()[0].json, "null");
    for kind in [AttestationKind::InToto, AttestationKind::Bundle] {
        let path = if kind == AttestationKind::Bundle { "" } else { "large" };
        std::fs::remove_file(dir.path().join("empty")).ok();
        let refused = read_at(&dir, &attestation(kind, path)).unwrap_err();
        assert!(matches!(refused, AttestationError::TooLarge { .. }), "{refused}");
    }
}

#[test]
fn a_bundle_brings_no_provenance_and_nothing_that_is_no_statement() {
    for (text, is_expected) in [
        (r#"{"predicateType":"https://slsa.dev/provenance/v1"}"#, |e: &AttestationError| {
            matches!(e, AttestationError::Provenance { .. })
        }),
        ("{} {}", |e: &AttestationError| matches!(e, AttestationError::Statement { .. })),
        ("[]", |e: &AttestationError| matches!(e, AttestationError::Statement { .. })),
    ] as [(&str, fn(&AttestationError) -> bool); 3]
    {
        let dir = directory(&[("b/s", text)]);
        let refused = read_at(&dir, &attestation(AttestationKind::Bundle, "b/")).unwrap_err();
        assert!(is_expected(&refused), "{text}: {refused}");
    }
}

#[test]
fn statements_stand_in_the_order_of_a_walk_and_for_files_of_their_names() {
    let dir = directory(&[("a/x", "1"), ("b", "2"), ("m", "3"), ("z/y", "4")]);
    let tree = Directory::open(dir.path()).unwrap();
    let names = StatementNames { prefix: "", platform: None, time: FileTime::from((7, 0)) };
    let predicates = ["0", "m", "a.json", "zz"].map(predicate);
    let files = StatementFiles::about(Some(&tree), &predicates, &names).unwrap();
    let mut seen = Vec::new();
    let mut see = |stat: crate::session::fsutil::FileStat| {
        let path = String::from_utf8(stat.path).unwrap();
        seen.push(if stat.mode == 0o600 { format!("{path}!") } else { path });
        ControlFlow::Continue(())
    };
    files.walk_with(Some(&tree), &mut see).unwrap();
    assert_eq!(seen, ["0!", "a", "a/x", "a.json!", "b", "m!", "z", "z/y", "zz!"]);
    let mut count = 0;
    let mut stop = |_| {
        count += 1;
        if count == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    files.walk_with(Some(&tree), &mut stop).unwrap();
    assert_eq!(count, 4, "nothing is told after a break");
    assert!(files.open(b"m").is_some() && files.open(b"b").is_none());
}

#[test]
fn a_link_to_a_file_that_gives_way_is_an_error() {
    let dir = directory(&[("m", "3")]);
    std::fs::hard_link(dir.path().join("m"), dir.path().join("n")).unwrap();
    let tree = Directory::open(dir.path()).unwrap();
    let names = StatementNames { prefix: "", platform: None, time: FileTime::default() };
    let files = StatementFiles::about(Some(&tree), &[predicate("m")], &names).unwrap();
    assert!(files.walk_with(Some(&tree), &mut |_| ControlFlow::Continue(())).is_err());
}

#[test]
fn names_of_files_are_names_and_stand_once() {
    let named = |prefix: &str, platform: Option<&str>, path: &str| {
        let names = StatementNames { prefix, platform, time: FileTime::default() };
        let made = StatementFiles::about(None, &[predicate(path)], &names).unwrap();
        let mut found = String::new();
        made.walk_with(None, &mut |stat| {
            assert_eq!(stat.kind, FileKind::File);
            found = String::from_utf8(stat.path).unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
        found
    };
    assert_eq!(named("p-", Some("linux/arm/v7"), "x/s.spdx.json"), "p-s.spdx.linux_arm_v7.json");
    assert_eq!(named("", Some("a"), "s"), "s.a");
    assert_eq!(named("q", None, "/s.json/"), "qs.json");
    let names = StatementNames { prefix: "", platform: None, time: FileTime::default() };
    for (paths, duplicate) in [(&["a/x", "b/x"][..], true), (&[".."], false), (&["/"], false)] {
        let predicates: Vec<Predicate> = paths.iter().map(|path| predicate(path)).collect();
        let refused = StatementFiles::about(None, &predicates, &names).unwrap_err();
        let is_duplicate = matches!(refused, ExportError::Attestation(AttestationError::Duplicate { .. }));
        assert_eq!(is_duplicate, duplicate, "{refused}");
    }
}
