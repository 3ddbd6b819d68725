//! Definitions to begin with: ops of every kind, with every field that they have.

use std::collections::BTreeMap;

use prost::Message as _;
use thunk::oci::Digest;
use thunk::proto::pb;
use thunk::proto::pb::file_action::Action;
use thunk::proto::pb::op::Op;

/// A definition in the making.
#[derive(Default)]
struct Builder {
    definition: pb::Definition,
}

/// An output of an op.
#[derive(Clone)]
struct Output(pb::Input);

impl Output {
    fn number(&self, index: i64) -> Output {
        Output(pb::Input { index, ..self.0.clone() })
    }
}

impl Builder {
    fn op(&mut self, op: impl Into<Option<Op>>, inputs: &[&Output]) -> Output {
        let inputs = inputs.iter().map(|input| input.0.clone()).collect();
        self.whole(pb::Op { inputs, op: op.into(), ..Default::default() })
    }

    fn whole(&mut self, op: pb::Op) -> Output {
        let bytes = op.encode_to_vec();
        let digest = Digest::sha256(&bytes).to_string();
        self.definition.def.push(bytes.into());
        Output(pb::Input { digest, index: 0 })
    }

    fn source(&mut self, identifier: &str, attrs: &[(&str, &str)]) -> Output {
        self.op(Op::Source(pb::SourceOp { identifier: identifier.to_owned(), attrs: texts(attrs) }), &[])
    }

    /// The definition whose result is this.
    fn finish(mut self, result: &Output) -> Vec<u8> {
        self.op(None, &[result]);
        self.definition.encode_to_vec()
    }
}

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn list(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![sources(), commands(), files(), layers(), described(), unsupported(), diamonds(), Vec::new()]
}

fn sources() -> Vec<u8> {
    let digest = Digest::sha256("").to_string();
    let mut b = Builder::default();
    let image = b.source(
        &format!("docker-image://r.example:5000/a/b:c@{digest}"),
        &[
            ("image.resolvemode", "pull"),
            ("image.recordtype", "frontend"),
            ("image.layerlimit", "2"),
            ("image.checksum", &digest),
        ],
    );
    let layout = b.source(
        &format!("oci-layout://a/b:c@{digest}"),
        &[("oci.session", "s"), ("oci.store", "t"), ("oci.layerlimit", "1")],
    );
    let local = b.source(
        "local://context",
        &[
            ("local.session", "proxy:s"),
            ("local.unique", "u"),
            ("local.includepattern", r#"["a/**","!b"]"#),
            ("local.excludepatterns", "null"),
            ("local.followpaths", r#"["c"]"#),
            ("local.sharedkeyhint", "h"),
            ("local.differ", "none"),
            ("local.metadatatransfer", "true"),
            ("local.metadatatransferexclude", r#"["d"]"#),
        ],
    );
    let http = b.source(
        "https://a.example:1/b?c",
        &[
            ("http.checksum", &digest),
            ("http.filename", "f"),
            ("http.perm", "0644"),
            ("http.uid", "0x1"),
            ("http.gid", "2"),
            ("http.authheadersecret", "k"),
            ("http.header.accept", "*/*"),
            ("http.header.user-agent", "x"),
            ("http.sig.pubkey", "p"),
            ("http.sig.signature", "q"),
        ],
    );
    let inputs = [&image, &layout, &local, &http];
    let merged = merge(&mut b, &inputs);
    b.finish(&merged)
}

fn merge(b: &mut Builder, inputs: &[&Output]) -> Output {
    let order = (0..inputs.len() as i64).map(|input| pb::MergeInput { input }).collect();
    b.op(Op::Merge(pb::MergeOp { inputs: order }), inputs)
}

fn mount(input: i64, dest: &str, output: i64, kind: pb::MountType) -> pb::Mount {
    pb::Mount { input, dest: dest.to_owned(), output, mount_type: kind.into(), ..Default::default() }
}

fn commands() -> Vec<u8> {
    let mut b = Builder::default();
    let image = b.source("docker-image://a", &[]);
    let small = pb::ExecOp {
        meta: Some(pb::Meta { args: list(&["true"]), ..Default::default() }),
        mounts: vec![mount(0, "/", 0, pb::MountType::Bind)],
        ..Default::default()
    };
    let first = b.op(Op::Exec(small), &[&image]);
    let cache = pb::Mount {
        cache_opt: Some(pb::CacheOpt { id: "ns/c".to_owned(), sharing: pb::CacheSharingOpt::Locked.into() }),
        content_cache: pb::MountContentCache::Off.into(),
        ..mount(1, "/c", 1, pb::MountType::Cache)
    };
    let secret = pb::SecretOpt { id: "s".to_owned(), uid: 1, gid: 2, mode: 0o400, optional: true };
    let ssh = pb::SshOpt { id: "default".to_owned(), uid: 1, gid: 2, mode: 0o600, optional: true };
    let read = pb::Mount {
        readonly: true,
        selector: "x/y".to_owned(),
        content_cache: pb::MountContentCache::On.into(),
        ..mount(1, "/r", 2, pb::MountType::Bind)
    };
    let meta = pb::Meta {
        args: list(&["sh", "-c", "echo <&>"]),
        env: list(&["A=b", "PATH=/bin"]),
        cwd: "/w".to_owned(),
        user: "u:g".to_owned(),
        proxy_env: Some(pb::ProxyEnv { http_proxy: "http://p".to_owned(), ..Default::default() }),
        extra_hosts: vec![pb::HostIp { host: "h".to_owned(), ip: "::1".to_owned() }],
        hostname: "n".to_owned(),
        ulimit: vec![pb::Ulimit { name: "nofile".to_owned(), soft: 1, hard: -1 }],
        cgroup_parent: "p".to_owned(),
        remove_mount_stubs_recursive: true,
        valid_exit_codes: vec![0, 3, -1],
    };
    let exec = pb::ExecOp {
        meta: Some(meta),
        mounts: vec![
            mount(0, "/", 0, pb::MountType::Bind),
            cache,
            read,
            pb::Mount {
                tmpfs_opt: Some(pb::TmpfsOpt { size: 4096 }),
                ..mount(0, "/t", 0, pb::MountType::Tmpfs)
            },
            pb::Mount { secret_opt: Some(secret), ..mount(0, "/s", 0, pb::MountType::Secret) },
            pb::Mount { ssh_opt: Some(ssh), ..mount(0, "/a", 0, pb::MountType::Ssh) },
            mount(-1, "/e", 3, pb::MountType::Bind),
        ],
        network: pb::NetMode::Host.into(),
        security: pb::SecurityMode::Insecure.into(),
        secretenv: vec![pb::SecretEnv { id: "s".to_owned(), name: "S".to_owned(), optional: true }],
        cdi_devices: vec![pb::CdiDevice { name: "v.example/d=all".to_owned(), optional: true }],
    };
    let inputs = vec![first.0.clone(), image.0];
    let platform = pb::Platform {
        architecture: "aarch64".to_owned(),
        os: "linux".to_owned(),
        variant: "v8".to_owned(),
        os_version: "1".to_owned(),
        os_features: list(&["f"]),
    };
    let second = b.whole(pb::Op {
        inputs,
        op: Some(Op::Exec(exec)),
        platform: Some(platform),
        constraints: Some(pb::WorkerConstraints { filter: list(&["a==b"]) }),
    });
    b.finish(&second.number(3))
}

fn files() -> Vec<u8> {
    let mut b = Builder::default();
    let (base, from) = (b.source("docker-image://a", &[]), b.source("local://b", &[]));
    let named = pb::user_opt::User::ByName(pb::NamedUserOpt { name: "n".to_owned(), input: 0 });
    let owner = pb::ChownOpt {
        user: Some(pb::UserOpt { user: Some(named) }),
        group: Some(pb::UserOpt { user: Some(pb::user_opt::User::ById(0)) }),
    };
    let copy = pb::FileActionCopy {
        src: "/x/y*".to_owned(),
        dest: "/z/".to_owned(),
        owner: Some(owner.clone()),
        mode: -1,
        follow_symlink: true,
        dir_copy_contents: true,
        attempt_unpack_docker_compatibility: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        timestamp: 1_600_000_000_000_000_000,
        include_patterns: list(&["a", "!b"]),
        exclude_patterns: list(&["**/c"]),
        always_replace_existing_dest_paths: true,
        mode_str: "u+rwX,g=u".to_owned(),
        required_paths: list(&["a"]),
    };
    let make = pb::FileActionMkFile {
        path: "/f".to_owned(),
        mode: 0o644,
        data: "data".into(),
        owner: Some(owner.clone()),
        timestamp: -1,
    };
    let directory = pb::FileActionMkDir {
        path: "/d/e".to_owned(),
        mode: 0o755,
        make_parents: true,
        owner: Some(owner.clone()),
        timestamp: 0,
    };
    let remove = pb::FileActionRm { path: "/g*".to_owned(), allow_not_found: true, allow_wildcard: true };
    let link = pb::FileActionSymlink {
        oldpath: "../t".to_owned(),
        newpath: "/l".to_owned(),
        owner: Some(owner),
        timestamp: -2,
    };
    let actions = [
        (0, 1, -1, Action::Copy(copy)),
        (2, -1, 1, Action::Mkfile(make)),
        (3, -1, -1, Action::Mkdir(directory)),
        (4, -1, 0, Action::Rm(remove)),
        (-1, -1, 2, Action::Symlink(link)),
    ];
    let actions = actions.map(|(input, secondary_input, output, action)| pb::FileAction {
        input,
        secondary_input,
        output,
        action: Some(action),
    });
    let file = b.op(Op::File(pb::FileOp { actions: actions.into() }), &[&base, &from]);
    b.finish(&file.number(2))
}

fn diff(b: &mut Builder, lower: i64, upper: i64, inputs: &[&Output]) -> Output {
    let diff = pb::DiffOp {
        lower: Some(pb::LowerDiffInput { input: lower }),
        upper: Some(pb::UpperDiffInput { input: upper }),
    };
    b.op(Op::Diff(diff), inputs)
}

fn layers() -> Vec<u8> {
    let mut b = Builder::default();
    let (one, two) = (b.source("docker-image://one", &[]), b.source("docker-image://two", &[]));
    let changed = diff(&mut b, 0, 1, &[&one, &two]);
    let all = diff(&mut b, -1, 0, &[&changed]);
    let merged = merge(&mut b, &[&one, &all, &changed, &one]);
    b.finish(&merged)
}

/// All that can be said about an op without being part of it.
fn described() -> Vec<u8> {
    let mut b = Builder::default();
    let one = b.source("docker-image://one", &[]);
    let top = merge(&mut b, &[&one, &one]);
    let metadata = pb::OpMetadata {
        ignore_cache: true,
        description: texts(&[("llb.customname", "[1/2] FROM one"), ("a", "b")]),
        export_cache: Some(pb::ExportCache { value: true }),
        caps: [("source.image".to_owned(), true), ("mergeop".to_owned(), true)].into(),
        progress_group: Some(pb::ProgressGroup { id: "g".to_owned(), name: "n".to_owned(), weak: true }),
        linux_resources: Some(pb::LinuxResources {
            memory: 1 << 20,
            memory_swap: -1,
            cpu_shares: 2,
            cpu_period: 1000,
            cpu_quota: -1,
            cpuset_cpus: "0-1".to_owned(),
            cpuset_mems: "0".to_owned(),
        }),
    };
    b.definition.metadata =
        [(one.0.digest.clone(), metadata), (top.0.digest.clone(), Default::default())].into();
    let place = |line| pb::Position { line, character: 2 };
    let location = pb::Location {
        source_index: 0,
        ranges: vec![pb::Range { start: Some(place(1)), end: Some(place(3)) }],
    };
    let beyond = pb::Location { source_index: -1, ranges: Vec::new() };
    let within = pb::Definition { def: vec!["".into()], ..Default::default() };
    b.definition.source = Some(pb::Source {
        locations: [(one.0.digest, pb::Locations { locations: vec![location, beyond] })].into(),
        infos: vec![pb::SourceInfo {
            filename: "Dockerfile".to_owned(),
            data: "FROM one".into(),
            definition: Some(within),
            language: "Dockerfile".to_owned(),
        }],
    });
    b.finish(&top)
}

/// What LLB knows and thunk does not do, beside what it does.
fn unsupported() -> Vec<u8> {
    let mut b = Builder::default();
    let one = b.source("docker-image://one", &[]);
    let build = pb::BuildOp {
        builder: -1,
        inputs: [("buildkit.llb.definition".to_owned(), pb::BuildInput { input: 0 })].into(),
        def: Some(pb::Definition::default()),
        attrs: texts(&[("a", "b")]),
    };
    b.op(Op::Build(build), &[&one]);
    b.op(Op::Passthrough(pb::PassthroughOp { id: "p".to_owned(), outputs: vec![0, 5] }), &[&one]);
    b.source("git://r.example/a#b", &[]);
    b.finish(&one)
}

/// A way through each level for each of the two halves.
fn diamonds() -> Vec<u8> {
    let mut b = Builder::default();
    let mut top = b.source("docker-image://one", &[]);
    for _ in 0..12 {
        let side = diff(&mut b, -1, 0, &[&top]);
        top = merge(&mut b, &[&top, &side]);
    }
    b.finish(&top)
}
