use super::*;

fn parse(args: &[&str]) -> Result<(Flags, Vec<String>), clap::Error> {
    let args = two_dashes(args.iter().map(OsString::from));
    Flags::read(
        &command("thunkd").try_get_matches_from(std::iter::once(OsString::from("thunkd")).chain(args))?,
    )
}

fn settings(args: &[&str]) -> Settings {
    parse(args).unwrap().0.settings().unwrap()
}

#[test]
fn the_harness_of_buildkit_starts_us_as_it_starts_buildkitd() {
    let args = [
        "--oci-worker=true",
        "--containerd-worker=false",
        "--oci-worker-gc=false",
        "--oci-worker-labels=org.mobyproject.buildkit.worker.sandbox=true",
        "--config=/d/buildkitd.toml",
        "--root",
        "/d",
        "--addr",
        "unix:///d/buildkitd.sock",
        "--debug",
    ];
    let (flags, warnings) = parse(&args).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(flags.config, Some("/d/buildkitd.toml".into()));
    let settings = flags.settings().unwrap();
    assert_eq!((settings.oci_worker, settings.containerd_worker), (Some(true), Some(false)));
    assert_eq!(settings.gc, Some(false));
    assert_eq!(settings.labels["org.mobyproject.buildkit.worker.sandbox"], "true");
    assert_eq!(settings.listen, Some(vec![Address::Unix("/d/buildkitd.sock".into())]));
    assert_eq!(settings.log_level, Some(LogLevel::Debug));
}

#[test]
fn one_dash_is_as_good_as_two_and_the_last_of_a_flag_counts() {
    let settings = settings(&["-debug", "-root=/a", "-root", "/b", "-oci-worker-gc=0"]);
    assert_eq!(settings.log_level, Some(LogLevel::Debug));
    assert_eq!(settings.root, Some("/b".into()));
    assert_eq!(settings.gc, Some(false));
}

#[test]
fn lists_add_up() {
    let settings = settings(&[
        "--addr=unix:///a",
        "--addr=tcp://127.0.0.1:1",
        "--oci-worker-platform=linux/arm64",
        "--oci-worker-platform",
        "linux/amd64",
        "--allow-insecure-entitlement=network.host",
    ]);
    assert_eq!(settings.listen.unwrap().len(), 2);
    assert_eq!(settings.platforms.unwrap()[0].to_string(), "linux/arm64");
    assert!(settings.entitlements.unwrap().contains(&Entitlement::NetworkHost));
}

#[test]
fn every_flag_without_a_use_is_taken_and_warned_of() {
    for (name, takes) in UNUSED {
        let args = match takes {
            Takes::Flag => vec![format!("--{name}"), format!("--{name}=false")],
            Takes::Text => vec![format!("--{name}=x"), format!("--{name}=y")],
            Takes::Number => vec![format!("--{name}=3")],
        };
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (_, warnings) = parse(&args).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(warnings, [format!("--{name} is accepted and not used")]);
    }
}

#[test]
fn an_unknown_flag_or_a_bad_value_is_refused() {
    for args in [
        &["--no-such-flag"][..],
        &["--debug=perhaps"],
        &["--oci-worker=perhaps"],
        &["--addr=buildkitd.sock"],
        &["--oci-worker-labels=x"],
        &["--oci-worker-platform=linux"],
        &["--oci-worker-gc-keepstorage=1,2,3,4"],
        &["--oci-cni-pool-size=x"],
        &["--log-level=loud"],
        &["--root"],
    ] {
        assert!(parse(args).is_err(), "{args:?}");
    }
    let flags = parse(&["--group=no such group"]).unwrap().0;
    assert_eq!(flags.settings().unwrap_err().to_string(), "--group: there is no group \"no such group\"");
}

#[test]
fn storage_is_in_millions_of_bytes() {
    let limits = settings(&["--oci-worker-gc-keepstorage=10,0,30"]).gc_limits;
    assert_eq!(
        limits,
        GcLimits {
            reserved: Some(Space::Bytes(10_000_000)),
            min_free: None,
            max_used: Some(Space::Bytes(30_000_000))
        }
    );
}

#[test]
fn a_group_is_a_number_or_a_name() {
    assert_eq!(settings(&["--group=1234"]).gid, Some(1234));
    assert_eq!(settings(&["--group", "root"]).gid, Some(0));
    assert_eq!(settings(&["--group="]).gid, None);
}
