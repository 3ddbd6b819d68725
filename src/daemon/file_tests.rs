use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::daemon::config::LogFormat;

fn read_text(text: &str) -> Result<Loaded, ConfigError> {
    read(text, Path::new("/etc/buildkit/buildkitd.toml"))
}

fn settings_of(text: &str) -> Settings {
    read_text(text).unwrap().settings
}

fn findings_of(text: &str) -> Vec<String> {
    match read_text(text).unwrap_err() {
        ConfigError::Refused { findings, .. } => findings.iter().map(ToString::to_string).collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn an_empty_file_says_nothing() {
    let loaded = read_text("").unwrap();
    assert_eq!(loaded.settings, Settings::default());
    assert!(loaded.warnings.is_empty());
}

#[test]
fn every_honoured_key_arrives() {
    let loaded = read_text(
        r#"
root = "/foo/bar"
insecure-entitlements = ["security.insecure", "network.host"]

[log]
level = "debug"
format = "json"

[grpc]
address = ["unix:///run/a.sock", "tcp://127.0.0.1:1234", "fd://"]
debugAddress = "127.0.0.1:6060"
uid = 7
gid = 1234
[grpc.tls]
cert = "cert.pem"
key = "key.pem"
ca = "ca.pem"

[registry."docker.io"]
mirrors = ["hub.docker.io", "core.harbor.domain/proxy.docker.io"]
http = true
insecure = true
ca = ["myca.pem"]
tlsconfigdir = ["/etc/buildkitd/myregistry"]
[[registry."docker.io".keypair]]
key = "key.pem"
cert = "cert.pem"

[system]
maxRegistryConcurrency = 6

[thunk.registry]
retries = 5
retryBase = "500ms"
maxRetryAfter = "10s"
connectTimeout = 4
stallTimeout = "20s"
commitTimeout = "1m"

[worker.oci]
enabled = true
platforms = ["linux/amd64", "linux/arm64"]
gc = true
gckeepstorage = 123456789
max-parallelism = 4
[worker.oci.labels]
foo = "bar"
"aa.bb.cc" = "baz"
[[worker.oci.gcpolicy]]
all = true
filters = ["type==source.local"]
reservedSpace = 20
keepDuration = 3600
[[worker.oci.gcpolicy]]
keepBytes = "40MB"
maxUsedSpace = "80%"
minFreeSpace = "10%"
keepDuration = "24h"

[dns]
nameservers = ["1.1.1.1", "8.8.8.8"]
options = ["edns0"]
searchDomains = ["example.com"]

[history]
maxAge = "48h"
maxEntries = 7
"#,
    )
    .unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let settings = loaded.settings;
    assert_eq!(settings.root, Some(PathBuf::from("/foo/bar")));
    assert_eq!(settings.entitlements.unwrap().len(), 2);
    assert_eq!((settings.log_level, settings.log_format), (Some(LogLevel::Debug), Some(LogFormat::Json)));
    assert_eq!(
        settings.listen.unwrap(),
        [Address::Unix("/run/a.sock".into()), Address::Tcp("127.0.0.1:1234".into()), Address::Activated]
    );
    assert_eq!(settings.debug_address, Some(DebugAddress::Tcp("127.0.0.1:6060".into())));
    assert_eq!((settings.uid, settings.gid), (Some(7), Some(1234)));
    assert_eq!(settings.tls_client_ca, Some("ca.pem".into()));
    let docker = &settings.registries["docker.io"];
    assert_eq!(docker.mirrors, ["hub.docker.io", "core.harbor.domain/proxy.docker.io"]);
    assert_eq!((docker.http, docker.insecure), (Some(true), Some(true)));
    assert_eq!(docker.keypairs, [KeyPair { key: "key.pem".into(), cert: "cert.pem".into() }]);
    assert_eq!(docker.tls_config_dirs, [PathBuf::from("/etc/buildkitd/myregistry")]);
    assert_eq!(settings.registry_concurrency.map(NonZeroUsize::get), Some(6));
    let waits = settings.registry_waits;
    assert_eq!((waits.retries, waits.retry_base), (Some(5), Some(Duration::from_millis(500))));
    assert_eq!(waits.longest_retry_after, Some(Duration::from_secs(10)));
    let patience = [waits.connect, waits.stall, waits.commit];
    assert_eq!(patience.map(|wait| wait.unwrap().as_secs()), [4, 20, 60]);
    assert_eq!(settings.labels["aa.bb.cc"], "baz");
    assert_eq!(settings.platforms.unwrap().len(), 2);
    assert_eq!(settings.gc_limits.reserved, Some(Space::Bytes(123_456_789)));
    assert_eq!(settings.max_parallelism, Some(4));
    let rules = settings.gc_rules.unwrap();
    assert!(rules[0].all);
    assert_eq!(rules[0].keep, Duration::from_secs(3600));
    assert_eq!(rules[1].limits.reserved, Some(Space::Bytes(40 << 20)));
    assert_eq!(rules[1].limits.max_used, Some(Space::Percent(80)));
    assert_eq!(rules[1].keep, Duration::from_secs(86400));
    assert_eq!(settings.dns.unwrap().nameservers, ["1.1.1.1", "8.8.8.8"]);
    assert_eq!(settings.history_max_age, Some(Duration::from_secs(172_800)));
    assert_eq!(settings.history_max_entries, Some(7));
}

#[test]
fn a_key_without_a_use_is_one_warning_with_its_line() {
    let warnings = read_text(
        "proxyNetwork = true\n\
         [otel]\n\
         socketPath = \"/tmp/otel.sock\"\n\
         [gc]\n\
         enabled = true\n\
         [worker.oci]\n\
         rootless = false\n\
         gc = false\n\
         [worker.containerd.runtime]\n\
         name = \"exotic\"\n\
         options.foo = \"bar\"\n\
         [frontend.\"gateway.v0\"]\n\
         allowedRepositories = []\n\
         [[worker.oci.gcpolicy]]\n\
         keepdays = 3\n",
    )
    .unwrap()
    .warnings;
    let file = "/etc/buildkit/buildkitd.toml";
    assert_eq!(
        warnings,
        [
            format!("{file}:1: proxyNetwork is accepted and not used"),
            format!("{file}:3: otel.socketPath is accepted and not used"),
            format!("{file}:5: gc.enabled is not a key that is known, and is not used"),
            format!("{file}:7: worker.oci.rootless is accepted and not used"),
            format!("{file}:10: worker.containerd.runtime.name is accepted and not used"),
            format!("{file}:11: worker.containerd.runtime.options.foo is accepted and not used"),
            format!("{file}:13: frontend.\"gateway.v0\".allowedRepositories is accepted and not used"),
            format!("{file}:15: worker.oci.gcpolicy.keepdays is not a key that is known, and is not used"),
        ]
    );
}

#[test]
fn wrong_types_and_values_are_all_refused_with_their_place() {
    let findings = findings_of(
        r#"
root = 3
debug = "yes"
insecure-entitlements = ["root"]
log.level = "loud"

[grpc]
address = ["buildkit.sock", "tcp://nowhere", "npipe://x"]
uid = -1
gid = 4294967295

[registry."docker.io"]
mirrors = ["https:///x"]
http = "true"
[[registry."docker.io".keypair]]
key = "key.pem"

[worker.oci]
platforms = ["linux", "linux/amd64"]
labels = { a = 1 }
reservedSpace = "20 parsecs"
maxUsedSpace = -5
gc = 1
max-parallelism = 1.5
snapshotter = true
[[worker.oci.gcpolicy]]
filters = ["type==regular", "type=regular"]

[dns]
nameservers = ["one.one"]

[history]
maxAge = "2 days"
maxEntries = "many"

[otel]
socketPath = 1

[worker.containerd]
enabled = "auto"

[thunk.registry]
retries = -1
stallTimeout = 0
"#,
    );
    insta::with_settings!({ omit_expression => true }, {
        insta::assert_snapshot!(findings.join("\n"));
    });
}

#[test]
fn a_fault_of_the_syntax_has_its_line() {
    let findings = findings_of("root = \"/x\"\n[grpc\naddress = 1\n");
    assert_eq!(findings.len(), 1);
    assert!(findings[0].starts_with("line 2, column "), "{findings:?}");
    let findings = findings_of("root = \"/x\"\nroot = \"/y\"\n");
    assert!(findings[0].starts_with("line 2, column 1: "), "{findings:?}");
}

#[test]
fn a_section_that_is_no_table_is_refused_once() {
    assert_eq!(findings_of("worker = 3"), ["line 1, column 10: worker: expected a table, found 3"]);
}

#[test]
fn keys_are_found_whatever_their_case() {
    let settings = settings_of("Root = \"/x\"\n[worker.oci]\nGCKeepStorage = \"1GB\"\n");
    assert_eq!(settings.root, Some("/x".into()));
    assert_eq!(settings.gc_limits.reserved, Some(Space::Bytes(1 << 30)));
}

#[test]
fn the_new_spelling_of_a_key_goes_before_the_old_one() {
    assert_eq!(settings_of("debug = true").log_level, Some(LogLevel::Debug));
    assert_eq!(settings_of("debug = true\nlog.level = \"warn\"").log_level, Some(LogLevel::Warn));
    let settings = settings_of("[worker.oci]\ngckeepstorage = 5\nmaxUsedSpace = 7");
    assert_eq!(settings.gc_limits.reserved, None);
}

#[test]
fn a_missing_file_says_nothing_and_an_unreadable_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(load(&dir.path().join("none.toml")).unwrap().settings, Settings::default());
    assert!(matches!(load(dir.path()).unwrap_err(), ConfigError::Read { .. }));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[a-z\\[\\]\\.=\"0-9 \n{},#'-]{0,120}") {
        let _ = read_text(&text);
    }

    #[test]
    fn any_value_of_any_key_is_read_or_refused_on_its_line(
        section in prop::sample::select(vec!["grpc", "worker.oci", "history", "dns", "log", "registry.a"]),
        key in prop::sample::select(vec![
            "address", "uid", "level", "gc", "maxAge", "nameservers", "mirrors", "http", "platforms",
        ]),
        value in prop::sample::select(vec!["1", "-1", "1.5", "true", "\"x\"", "[]", "[1]", "[\"x\"]", "{}", "1979-05-27"]),
    ) {
        match read_text(&format!("[{section}]\n{key} = {value}\n")) {
            Ok(_) => {}
            Err(ConfigError::Refused { findings, .. }) => {
                prop_assert!(!findings.is_empty());
                prop_assert!(findings.iter().all(|f| f.line == 2), "{:?}", findings);
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        }
    }
}
