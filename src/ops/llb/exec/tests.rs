use proptest::prelude::*;

use super::*;

fn root() -> pb::Mount {
    pb::Mount { dest: "/".into(), ..Default::default() }
}

fn none(dest: &str, kind: pb::MountType) -> pb::Mount {
    pb::Mount { dest: dest.into(), input: -1, output: -1, mount_type: kind.into(), ..Default::default() }
}

fn op(mounts: Vec<pb::Mount>) -> pb::ExecOp {
    let meta = pb::Meta { args: vec!["true".into()], ..Default::default() };
    pb::ExecOp { meta: Some(meta), mounts, ..Default::default() }
}

fn refused(op: &pb::ExecOp) -> String {
    exec(op, None, 1).unwrap_err().to_string()
}

#[test]
fn every_mount_kind_is_parsed() {
    let secret = pb::SecretOpt { id: "s".into(), uid: 1, gid: 2, mode: 0o400, optional: true };
    let ssh = pb::SshOpt { id: "agent".into(), uid: 1, gid: 2, mode: 0o600, optional: false };
    let sent = op(vec![
        root(),
        pb::Mount {
            input: 0,
            output: 1,
            readonly: true,
            selector: "/sub".into(),
            ..none("/in", pb::MountType::Bind)
        },
        pb::Mount {
            cache_opt: Some(pb::CacheOpt { id: "c".into(), sharing: 2 }),
            ..none("/cache", pb::MountType::Cache)
        },
        pb::Mount { tmpfs_opt: Some(pb::TmpfsOpt { size: 9 }), ..none("/tmp", pb::MountType::Tmpfs) },
        // As clients send them: with output 0.
        pb::Mount { secret_opt: Some(secret), output: 0, ..none("/s", pb::MountType::Secret) },
        pb::Mount { ssh_opt: Some(ssh), output: 0, ..none("/ssh", pb::MountType::Ssh) },
    ]);
    let parsed = exec(&sent, None, 1).unwrap();
    let kinds: Vec<_> = parsed.mounts.iter().map(|m| m.kind.clone()).collect();
    let secret = ClientFile { id: "s".into(), uid: 1, gid: 2, mode: 0o400, optional: true };
    let ssh = ClientFile { id: "agent".into(), uid: 1, gid: 2, mode: 0o600, optional: false };
    let expected = [
        MountKind::Bind,
        MountKind::Bind,
        MountKind::Cache { id: "c".into(), sharing: CacheSharing::Locked },
        MountKind::Tmpfs { size: Some(9) },
        MountKind::Secret(secret),
        MountKind::Ssh(ssh),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(parsed.mounts[1].input, Some(0));
    assert_eq!((parsed.mounts[1].selector.as_str(), parsed.mounts[1].read_only), ("/sub", true));
    assert_eq!(parsed.outputs().collect::<Vec<_>>(), [0, 1]);
    assert_eq!(outputs(&sent), 2);
    assert_eq!(parsed.valid_exit_codes, [0]);
    assert_eq!(parsed.root().map(|m| m.input), Some(Some(0)));
}

#[test]
fn every_part_of_the_process_is_parsed() {
    let sent = pb::ExecOp {
        meta: Some(pb::Meta {
            args: vec!["sh".into(), "-c".into()],
            env: vec!["A=b".into()],
            cwd: "/w".into(),
            user: "u:g".into(),
            proxy_env: Some(pb::ProxyEnv { http_proxy: "p".into(), ..Default::default() }),
            extra_hosts: vec![pb::HostIp { host: "h".into(), ip: "1.2.3.4".into() }],
            hostname: "name".into(),
            ulimit: vec![pb::Ulimit { name: "nofile".into(), soft: 1, hard: -1 }],
            cgroup_parent: "cg".into(),
            remove_mount_stubs_recursive: true,
            valid_exit_codes: vec![1, 2],
        }),
        network: 2,
        security: 1,
        secretenv: vec![pb::SecretEnv { id: "i".into(), name: "N".into(), optional: true }],
        cdi_devices: vec![pb::CdiDevice { name: "v/d=x".into(), optional: false }],
        ..op(vec![root()])
    };
    let parsed = exec(&sent, None, 1).unwrap();
    assert_eq!(parsed.args, ["sh", "-c"]);
    assert_eq!(parsed.env, ["A=b"]);
    assert_eq!((parsed.cwd.as_str(), parsed.user.as_str(), parsed.hostname.as_str()), ("/w", "u:g", "name"));
    assert_eq!(parsed.proxy.map(|p| p.http), Some("p".into()));
    assert_eq!(parsed.extra_hosts, [ExtraHost { host: "h".into(), ip: "1.2.3.4".into() }]);
    assert_eq!(parsed.ulimits, [Ulimit { name: "nofile".into(), soft: 1, hard: -1 }]);
    assert_eq!(parsed.cgroup_parent, "cg");
    assert!(parsed.remove_mount_stubs_recursive);
    assert_eq!(parsed.valid_exit_codes, [1, 2]);
    assert_eq!((parsed.network, parsed.security), (NetworkMode::None, SecurityMode::Insecure));
    assert_eq!(parsed.secret_env, [SecretEnv { id: "i".into(), name: "N".into(), optional: true }]);
    assert_eq!(parsed.devices, [CdiDevice { name: "v/d=x".into(), optional: false }]);
}

#[test]
fn what_is_wrong_is_named() {
    let with = |m: pb::Mount| refused(&op(vec![root(), m]));
    let meta = |change: &dyn Fn(&mut pb::Meta)| {
        let mut sent = op(vec![root()]);
        change(sent.meta.as_mut().unwrap());
        refused(&sent)
    };
    let over = pb::SecretOpt { id: "s".into(), mode: 0o10000, ..Default::default() };
    for (found, expected) in [
        (refused(&pb::ExecOp { meta: None, ..op(vec![root()]) }), "there is no meta"),
        (meta(&|m| m.args.clear()), "there is no argument"),
        (meta(&|m| m.args.push("\0".into())), "args has a NUL byte"),
        (meta(&|m| m.env.push("A=\0".into())), "env has a NUL byte"),
        (
            meta(&|m| m.ulimit.push(pb::Ulimit { name: "cpu".into(), soft: -2, hard: 0 })),
            "ulimit cpu is -2, which is below 0",
        ),
        (refused(&op(vec![])), "there is no mount at /"),
        (refused(&op(vec![none("/a", pb::MountType::Bind)])), "there is no mount at /"),
        (
            refused(&op(vec![none("/", pb::MountType::Tmpfs)])),
            "the root file system is a mount of another kind than bind",
        ),
        (
            refused(&pb::ExecOp { network: 7, ..op(vec![root()]) }),
            "network has the value 7, which is not known here: is the client newer than the daemon?",
        ),
        (
            refused(&pb::ExecOp { security: -1, ..op(vec![root()]) }),
            "security has the value -1, which is not known here: is the client newer than the daemon?",
        ),
        (
            with(pb::Mount { input: 1, ..none("/a", pb::MountType::Bind) }),
            "input of mount 1 is 1, and there are 1",
        ),
        (
            with(pb::Mount { input: -2, ..none("/a", pb::MountType::Bind) }),
            "input of mount 1 is -2, and there are 1",
        ),
        (
            with(pb::Mount { output: -2, ..none("/a", pb::MountType::Bind) }),
            "output of mount 1 is -2, which is below 0",
        ),
        (with(none("", pb::MountType::Bind)), "there is no dest of mount 1"),
        (with(none("/c", pb::MountType::Cache)), "there is no cacheOpt of mount 1"),
        (with(none("/c", pb::MountType::Ssh)), "there is no SSHOpt of mount 1"),
        (with(none("/c", pb::MountType::Secret)), "there is no secretOpt of mount 1"),
        (
            with(pb::Mount { secret_opt: Some(over), ..none("/c", pb::MountType::Secret) }),
            "mode of mount 1 is 4096, and at most 4095 is allowed",
        ),
        (
            with(pb::Mount {
                tmpfs_opt: Some(pb::TmpfsOpt { size: -1 }),
                ..none("/t", pb::MountType::Tmpfs)
            }),
            "size of mount 1 is -1, which is below 0",
        ),
        (
            with(pb::Mount { mount_type: 9, ..none("/t", pb::MountType::Bind) }),
            "mountType of mount 1 has the value 9, which is not known here: is the client newer than the daemon?",
        ),
        (
            with(pb::Mount {
                cache_opt: Some(pb::CacheOpt { id: "c".into(), sharing: 3 }),
                ..none("/t", pb::MountType::Cache)
            }),
            "sharing of mount 1 has the value 3, which is not known here: is the client newer than the daemon?",
        ),
        (
            with(pb::Mount { content_cache: 5, ..none("/t", pb::MountType::Bind) }),
            "contentCache of mount 1 has the value 5, which is not known here: is the client newer than the daemon?",
        ),
        (
            with(pb::Mount {
                content_cache: 1,
                input: 0,
                output: 1,
                selector: "/part".into(),
                ..none("/t", pb::MountType::Bind)
            }),
            "the contents of mount 1 are to count for the cache, but the op may change what they don't cover",
        ),
    ] {
        assert_eq!(found, expected);
    }
}

#[test]
fn limits_of_resources_are_parsed() {
    let sent = pb::LinuxResources { memory: 5, memory_swap: -1, cpu_shares: 2, ..Default::default() };
    let parsed = resources(&sent).unwrap();
    assert_eq!((parsed.memory, parsed.memory_swap, parsed.cpu_shares), (Some(5), Some(-1), Some(2)));
    assert_eq!((parsed.cpu_quota, parsed.cpu_period), (None, None));
    assert!(resources(&pb::LinuxResources { memory: -1, ..Default::default() }).is_err());
    assert!(resources(&pb::LinuxResources { cpu_quota: -2, ..Default::default() }).is_err());
}

/// The text was written by BuildKit's Go types.
#[test]
fn the_key_is_that_of_the_json_that_other_builders_hash() {
    let platform = pb::Platform {
        os: "linux".into(),
        architecture: "arm".into(),
        variant: "v7".into(),
        ..Default::default()
    };
    let sent = pb::ExecOp {
        meta: Some(pb::Meta {
            args: vec!["sh".into(), "-c".into(), "a && b".into()],
            cwd: "/".into(),
            proxy_env: Some(pb::ProxyEnv { http_proxy: "p".into(), ..Default::default() }),
            extra_hosts: vec![pb::HostIp { host: "h".into(), ip: "1.2.3.4".into() }],
            ..Default::default()
        }),
        ..op(vec![root()])
    };
    let meta = r#""meta":{"args":["sh","-c","a \u0026\u0026 b"],"cwd":"/","extraHosts":[{"Host":"h"}]}"#;
    let expected = format!(
        r#"{{"Type":"buildkit.exec.v0","Exec":{{{meta}}},"OS":"linux","Arch":"arm","Variant":"v7"}}"#
    );
    assert_eq!(exec(&sent, Some(&platform), 1).unwrap().key, Digest::sha256(expected));
    let own = pb::Mount {
        cache_opt: Some(pb::CacheOpt { id: "/c".into(), sharing: 0 }),
        ..none("/c", pb::MountType::Cache)
    };
    let with = |mount: &pb::Mount| {
        let sent = pb::ExecOp { mounts: vec![root(), mount.clone()], ..sent.clone() };
        exec(&sent, Some(&platform), 1).unwrap().key
    };
    let mounts = r#""mounts":[{"dest":"/"},{"input":-1,"dest":"/c","output":-1,"mountType":3,"cacheOpt":{"ID":"/c"}}]"#;
    let expected = format!(
        r#"{{"Type":"buildkit.exec.v0","Exec":{{{meta},{mounts}}},"OS":"linux","Arch":"arm","Variant":"v7"}}"#
    );
    assert_eq!(with(&own), Digest::sha256(expected));
    // The name of a cache mount that people chose is left out.
    let named =
        |id: &str| pb::Mount { cache_opt: Some(pb::CacheOpt { id: id.into(), sharing: 2 }), ..own.clone() };
    assert_eq!(with(&named("a")), with(&named("b")));
    assert_ne!(with(&named("a")), with(&own));
    let selected = pb::Mount { selector: "/x".into(), ..own.clone() };
    assert_eq!(with(&selected), with(&own));
}

fn any_mount() -> impl Strategy<Value = pb::Mount> {
    let dest = prop_oneof![Just("/"), Just(""), Just("/a"), Just("b")];
    (-3i64..4, -3i64..4, dest, -1i32..6, -1i32..4, any::<[bool; 4]>()).prop_map(
        |(input, output, dest, kind, content, present)| pb::Mount {
            input,
            output,
            dest: dest.to_owned(),
            mount_type: kind,
            content_cache: content,
            readonly: present[0],
            cache_opt: present[1].then(|| pb::CacheOpt { id: "c".into(), sharing: content }),
            secret_opt: present[2].then(|| pb::SecretOpt { id: "s".into(), ..Default::default() }),
            ssh_opt: present[3].then(pb::SshOpt::default),
            ..Default::default()
        },
    )
}

proptest! {
    #[test]
    fn what_is_taken_has_a_root_and_inputs_that_are_there(
        inputs in 0usize..3,
        mounts in proptest::collection::vec(any_mount(), 0..5),
    ) {
        let sent = op(mounts);
        if let Ok(parsed) = exec(&sent, None, inputs) {
            prop_assert!(parsed.mounts.iter().all(|m| m.input.is_none_or(|n| n < inputs)));
            prop_assert_eq!(parsed.root().map(|m| m.kind.clone()), Some(MountKind::Bind));
            prop_assert_eq!(i64::try_from(parsed.outputs().count()).unwrap(), outputs(&sent));
        }
    }
}
