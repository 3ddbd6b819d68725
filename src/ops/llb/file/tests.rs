use proptest::prelude::*;

use super::*;

/// An action with its three indices.
fn action(input: i64, secondary: i64, output: i64, kind: Kind) -> pb::FileAction {
    pb::FileAction { input, secondary_input: secondary, output, action: Some(kind) }
}

fn mkdir(path: &str) -> Kind {
    Kind::Mkdir(pb::FileActionMkDir {
        path: path.to_owned(),
        mode: 0o755,
        timestamp: -1,
        ..Default::default()
    })
}

fn copy(src: &str, dest: &str) -> pb::FileActionCopy {
    let (src, dest) = (src.to_owned(), dest.to_owned());
    pb::FileActionCopy { src, dest, mode: -1, timestamp: -1, ..Default::default() }
}

fn op(actions: Vec<pb::FileAction>) -> pb::FileOp {
    pb::FileOp { actions }
}

fn named(name: &str, input: i64) -> Option<pb::UserOpt> {
    let user = pb::user_opt::User::ByName(pb::NamedUserOpt { name: name.to_owned(), input });
    Some(pb::UserOpt { user: Some(user) })
}

fn by_id(id: u32) -> Option<pb::UserOpt> {
    Some(pb::UserOpt { user: Some(pb::user_opt::User::ById(id)) })
}

#[test]
fn every_attribute_of_a_copy_is_parsed() {
    let sent = pb::FileActionCopy {
        owner: Some(pb::ChownOpt { user: by_id(3), group: named("staff", 3) }),
        mode: 0o4750,
        follow_symlink: true,
        dir_copy_contents: true,
        attempt_unpack_docker_compatibility: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        timestamp: 7,
        include_patterns: vec!["i".into()],
        exclude_patterns: vec!["e".into()],
        always_replace_existing_dest_paths: true,
        required_paths: vec!["r".into()],
        ..copy("/a*", "/b/")
    };
    let sent = op(vec![action(0, 1, -1, Kind::Copy(sent)), action(0, -1, 0, mkdir("/d"))]);
    let parsed = file(&sent, 2).unwrap();
    let FileChange::Copy(copy) = &parsed.actions[0].change else { panic!() };
    let expected = CopyFiles {
        from: FileInput::Input(1),
        src: "/a*".into(),
        dest: "/b/".into(),
        owner: Some(Owner {
            user: Some(Principal::Id(3)),
            group: Some(Principal::Name { name: "staff".into(), input: FileInput::Action(1) }),
        }),
        mode: CopyMode::Set(0o4750),
        follow_symlink: true,
        contents_only: true,
        unpack: true,
        create_dest_path: true,
        wildcard: Wildcard::MayBeEmpty,
        timestamp: Some(Timestamp(7)),
        include: vec!["i".into()],
        exclude: vec!["e".into()],
        required: vec!["r".into()],
        replace: true,
    };
    assert_eq!(**copy, expected);
}

#[test]
fn the_other_actions_are_parsed() {
    let owner = Some(pb::ChownOpt { user: named("u", 0), group: None });
    let sent = op(vec![
        action(
            -1,
            -1,
            1,
            Kind::Mkfile(pb::FileActionMkFile {
                path: "/f".into(),
                mode: 0o100_644,
                data: "x".into(),
                owner: owner.clone(),
                timestamp: -1,
            }),
        ),
        action(
            1,
            -1,
            -1,
            Kind::Rm(pb::FileActionRm { path: "/f".into(), allow_not_found: true, allow_wildcard: true }),
        ),
        action(
            2,
            -1,
            0,
            Kind::Symlink(pb::FileActionSymlink {
                oldpath: "../t".into(),
                newpath: "/l".into(),
                owner: None,
                timestamp: 0,
            }),
        ),
    ]);
    let parsed = file(&sent, 1).unwrap();
    assert_eq!(parsed.outputs, [2, 0]);
    let bases: Vec<_> = parsed.actions.iter().map(|a| a.base).collect();
    assert_eq!(bases, [FileInput::Scratch, FileInput::Action(0), FileInput::Action(1)]);
    let owner =
        Owner { user: Some(Principal::Name { name: "u".into(), input: FileInput::Input(0) }), group: None };
    let made =
        MakeFile { path: "/f".into(), mode: 0o644, data: "x".into(), owner: Some(owner), timestamp: None };
    assert_eq!(parsed.actions[0].change, FileChange::MakeFile(made));
    let removed = Remove { path: "/f".into(), allow_not_found: true, wildcard: true };
    assert_eq!(parsed.actions[1].change, FileChange::Remove(removed));
    let link =
        Symlink { target: "../t".into(), path: "/l".into(), owner: None, timestamp: Some(Timestamp(0)) };
    assert_eq!(parsed.actions[2].change, FileChange::Symlink(link));
    assert_eq!(names(&sent).collect::<Vec<_>>(), ["mkfile /f", "rm /f", "symlink /l -> ../t"]);
}

#[test]
fn what_is_wrong_is_named() {
    let one = |a: pb::FileAction| file(&op(vec![a]), 1).unwrap_err().to_string();
    let with_copy = |c: pb::FileActionCopy| one(action(0, -1, 0, Kind::Copy(c)));
    let owned = |user| {
        let owner = Some(pb::ChownOpt { user, group: None });
        with_copy(pb::FileActionCopy { owner, ..copy("/a", "/b") })
    };
    for (found, expected) in [
        (file(&op(vec![]), 0).unwrap_err().to_string(), "there is no action"),
        (one(action(3, -1, 0, mkdir("/a"))), "input of action 0 is 3, and there are 2"),
        (one(action(-2, -1, 0, mkdir("/a"))), "input of action 0 is -2, and there are 2"),
        (one(action(0, 2, 0, mkdir("/a"))), "secondaryInput of action 0 is 2, and there are 2"),
        (one(action(1, -1, 0, mkdir("/a"))), "action 0 needs its own result"),
        (one(action(0, -1, -1, mkdir("/a"))), "there is no output"),
        (one(action(0, -1, -3, mkdir("/a"))), "there is no output"),
        (one(action(0, -1, 1, mkdir("/a"))), "there is no output 0, and there are 1"),
        (one(action(0, -1, i64::MAX, mkdir("/a"))), "there is no output 0, and there are 1"),
        (one(action(0, -1, 0, mkdir("/a\0"))), "path of action 0 has a NUL byte"),
        (
            one(pb::FileAction { input: 0, secondary_input: -1, output: 0, action: None }),
            "there is no kind of action 0",
        ),
        (
            with_copy(pb::FileActionCopy { mode: -2, ..copy("/a", "/b") }),
            "mode of action 0 is -2, which is below 0",
        ),
        (
            with_copy(pb::FileActionCopy { mode_str: "u+q".into(), ..copy("/a", "/b") }),
            "mode of action 0: \"u+q\" is no mode: chmod would not take it",
        ),
        (owned(named("u", -1)), "input of the user of action 0 is -1, and there are 2"),
        (owned(named("u", 9)), "input of the user of action 0 is 9, and there are 2"),
        (owned(named("u", 1)), "action 0 needs its own result"),
    ] {
        assert_eq!(found, expected);
    }
    let twice = op(vec![action(0, -1, 0, mkdir("/a")), action(0, -1, 0, mkdir("/b"))]);
    assert_eq!(file(&twice, 1).unwrap_err(), InvalidOp::DuplicateOutput { output: 0 });
    let gap = op(vec![action(0, -1, 0, mkdir("/a")), action(0, -1, 2, mkdir("/b"))]);
    assert_eq!(file(&gap, 1).unwrap_err(), InvalidOp::OutputGap { output: 1, count: 2 });
    let cycle = op(vec![action(2, -1, 0, mkdir("/a")), action(1, -1, 1, mkdir("/b"))]);
    assert_eq!(file(&cycle, 1).unwrap_err(), InvalidOp::Loop { action: 0 });
    let below = op(vec![action(0, -1, 0, mkdir("/a")), action(0, -1, -2, mkdir("/b"))]);
    assert_eq!(file(&below, 1).unwrap_err().to_string(), "output of action 1 is -2, which is below 0");
    let symbolic = pb::FileActionCopy { mode: 0, mode_str: "u+x".into(), ..copy("/a", "/b") };
    let parsed = file(&op(vec![action(0, -1, 0, Kind::Copy(symbolic))]), 1).unwrap();
    let FileChange::Copy(copy) = &parsed.actions[0].change else { panic!() };
    assert!(matches!(copy.mode, CopyMode::Change(_)));
}

#[test]
fn an_action_may_use_the_result_of_a_later_one() {
    let sent = op(vec![action(2, -1, 0, mkdir("/a/b")), action(0, -1, -1, mkdir("/a"))]);
    assert_eq!(file(&sent, 1).unwrap().actions[0].base, FileInput::Action(1));
}

/// The texts were written by BuildKit's Go types.
#[test]
fn the_key_is_that_of_the_json_that_other_builders_hash() {
    let sent = pb::FileActionCopy {
        owner: Some(pb::ChownOpt { user: by_id(0), group: named("g", 0) }),
        follow_symlink: true,
        dir_copy_contents: true,
        attempt_unpack_docker_compatibility: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        include_patterns: vec!["a".into()],
        exclude_patterns: vec!["b".into()],
        always_replace_existing_dest_paths: true,
        mode_str: "u+x".into(),
        required_paths: vec!["r".into()],
        ..copy("/deep/<a&b>", "/d")
    };
    let json = r#"{"src":"\u003ca\u0026b\u003e","dest":"/d","owner":{"user":{"User":{}},"group":{"User":{"byName":{"name":"g"}}}},"mode":-1,"followSymlink":true,"dirCopyContents":true,"attemptUnpackDockerCompatibility":true,"createDestPath":true,"allowWildcard":true,"allowEmptyWildcard":true,"timestamp":-1,"include_patterns":["a"],"exclude_patterns":["b"],"alwaysReplaceExistingDestPaths":true,"modeStr":"u+x","required_paths":["r"]}"#;
    let whole = |indexes: &str| {
        format!(r#"{{"Type":"buildkit.file.v0","Actions":["{}"]{indexes}}}"#, STANDARD.encode(json))
    };
    let usual = op(vec![action(0, 1, 0, Kind::Copy(sent.clone()))]);
    assert_eq!(file(&usual, 2).unwrap().key, Digest::sha256(whole("")));
    let other = op(vec![action(-1, 0, 0, Kind::Copy(sent))]);
    assert_eq!(file(&other, 2).unwrap().key, Digest::sha256(whole(r#","indexes":[[-1,0,0]]"#)));
}

#[test]
fn a_source_that_is_no_input_counts_with_its_whole_path() {
    let key = |src: &str, secondary| {
        let sent =
            op(vec![action(0, -1, -1, mkdir("/x")), action(1, secondary, 0, Kind::Copy(copy(src, "/d")))]);
        file(&sent, 1).unwrap().key
    };
    assert_eq!(key("/a/f", 0), key("/b/f", 0));
    assert_ne!(key("/a/f", 1), key("/b/f", 1));
    assert_ne!(key("/a/f", -1), key("/b/f", -1));
}

#[test]
fn the_last_part_of_a_path_is_gos() {
    for (path, base) in
        [("", "."), ("/", "/"), ("//", "/"), ("a", "a"), ("/a/b", "b"), ("/a/b/", "b"), ("a/.", ".")]
    {
        assert_eq!(base_name(path), base, "{path:?}");
    }
}

fn any_action() -> impl Strategy<Value = pb::FileAction> {
    let kind = prop_oneof![
        Just(mkdir("/a")),
        (-3i64..8, -3i32..4).prop_map(|(input, mode)| {
            let owner = Some(pb::ChownOpt { user: named("u", input), group: None });
            Kind::Copy(pb::FileActionCopy { owner, mode, ..copy("/a", "/b") })
        }),
    ];
    (-3i64..8, -3i64..8, -3i64..5, proptest::option::of(kind)).prop_map(|(input, secondary, output, kind)| {
        pb::FileAction { input, secondary_input: secondary, output, action: kind }
    })
}

proptest! {
    #[test]
    fn what_is_taken_has_indices_in_range_and_can_be_run_in_some_order(
        inputs in 0usize..4,
        actions in proptest::collection::vec(any_action(), 0..6),
    ) {
        let sent = op(actions);
        if let Ok(parsed) = file(&sent, inputs) {
            prop_assert_eq!(i64::try_from(parsed.outputs.len()).unwrap(), outputs(&sent));
            let mut done = vec![false; parsed.actions.len()];
            let ready = |need: FileInput, done: &[bool]| match need {
                FileInput::Scratch => true,
                FileInput::Input(n) => { assert!(n < inputs); true }
                FileInput::Action(n) => done[n],
            };
            for _ in 0..done.len() {
                for (n, action) in parsed.actions.iter().enumerate() {
                    done[n] = done[n] || action.needs().all(|need| ready(need, &done));
                }
            }
            prop_assert!(done.iter().all(|done| *done));
            prop_assert!(parsed.outputs.iter().all(|n| *n < parsed.actions.len()));
        }
    }
}
