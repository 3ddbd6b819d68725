//! `thunkd` as a process: flags, configuration, sockets, signals.

use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::Image;
use crate::harness::Op;
use crate::harness::TestRegistry;
use crate::harness::llb;
use crate::harness::poll;
use crate::harness::registry::Hold;

const LIMIT: Duration = Duration::from_secs(5);

fn daemon_with(config: &str, flags: &[&str]) -> DaemonOptions {
    DaemonOptions {
        config: config.to_owned(),
        flags: flags.iter().map(ToString::to_string).collect(),
        ..DaemonOptions::default()
    }
}

/// Starts a daemon that must end at once, and gives what it said.
#[track_caller]
fn refused(options: DaemonOptions) -> String {
    let mut daemon = Daemon::prepare(options);
    daemon.spawn();
    let status = daemon.wait(LIMIT);
    assert!(!status.success(), "it started:\n{}", daemon.log());
    daemon.log()
}

/// `thunk`, which asks a daemon.
fn thunk(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_thunk"))
        .args(arguments)
        .env_remove("BUILDKIT_HOST")
        .stdin(Stdio::null())
        .output()
        .expect("run thunk")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// The addresses that the log tells of.
fn addresses(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains(" listening "));
    lines.filter_map(|line| Some(line.split_once("address=\"")?.1.trim_end_matches('"').to_owned())).collect()
}

#[test]
fn a_key_or_a_flag_without_a_use_is_one_warning() {
    let mut daemon = Daemon::start_with(daemon_with(
        "proxyNetwork = true\n[otel]\nsocketPath = \"/x\"\n[made.up]\nkey = 1\n",
        &[
            "--oci-worker=true",
            "--containerd-worker=false",
            "--oci-worker-gc=false",
            "-oci-cni-worker-path=/x",
        ],
    ));
    daemon.terminate();
    let log = daemon.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains(" WARN ")).collect();
    assert_eq!(warnings.len(), 4, "{log}");
    for text in [
        "buildkitd.toml:1: proxyNetwork is accepted and not used",
        "buildkitd.toml:3: otel.socketPath is accepted and not used",
        "buildkitd.toml:5: made.up.key is not a key that is known, and is not used",
        "--oci-cni-worker-path is accepted and not used",
    ] {
        assert_eq!(warnings.iter().filter(|line| line.contains(text)).count(), 1, "{text}\n{log}");
    }
}

#[test]
fn a_bad_configuration_is_refused_with_every_line() {
    let log = refused(daemon_with("debug = 3\n\n[worker.oci]\ngc = \"maybe\"\n", &[]));
    assert!(log.contains("line 1, column 9: debug: expected true or false, found 3"), "{log}");
    assert!(
        log.contains("line 4, column 6: worker.oci.gc: expected true or false, found \"maybe\""),
        "{log}"
    );
    let log = refused(daemon_with("[grpc\n", &[]));
    assert!(log.contains("line 1, column "), "{log}");
}

#[test]
fn a_bad_flag_is_refused() {
    let log = refused(daemon_with("", &["--oci-worker=perhaps"]));
    assert!(log.contains("expected true, false or auto"), "{log}");
    let log = refused(daemon_with("", &["--tlscert=/no/such"]));
    assert!(log.contains("the TLS settings have a certificate and no key"), "{log}");
    let log = refused(daemon_with("", &["--oci-worker=false"]));
    assert!(log.contains("no worker is enabled"), "{log}");
}

#[test]
fn a_second_daemon_on_a_root_is_refused() {
    let mut first = Daemon::start();
    let root = first.root();
    let second = Daemon::prepare(DaemonOptions::default());
    let output = Command::new(env!("CARGO_BIN_EXE_thunkd"))
        .arg("--root")
        .arg(&root)
        .arg("--addr")
        .arg(second.address())
        .output()
        .expect("run thunkd");
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(said.contains("is in use by another daemon (process "), "{said}");
    assert!(!second.socket().exists());
    // The first one is unharmed, and its root is free after it.
    assert!(first.is_running());
    first.restart();
}

#[test]
fn a_socket_that_is_answered_is_left_to_its_owner_and_a_dead_one_is_replaced() {
    let mut first = Daemon::start();
    let directory = TempDir::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_thunkd"))
        .arg("--root")
        .arg(directory.path())
        .arg("--addr")
        .arg(first.address())
        .output()
        .expect("run thunkd");
    assert!(said(&output).contains("another process answers there"), "{}", said(&output));
    UnixStream::connect(first.socket()).expect("the first one listens");
    first.kill9();
    assert!(first.socket().exists());
    // The harness takes away what a kill leaves; put it back.
    drop(UnixListener::bind(first.socket().with_extension("dead")).unwrap());
    std::fs::rename(first.socket().with_extension("dead"), first.socket()).unwrap();
    let mut again =
        RawDaemon::start(directory.path(), &[&format!("unix://{}", first.socket().display())], &[]);
    again.await_ready();
}

/// A daemon that the harness can't start, because its addresses are others.
struct RawDaemon {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    log: String,
}

impl RawDaemon {
    fn start(root: &Path, addresses: &[&str], flags: &[&str]) -> RawDaemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thunkd"));
        RawDaemon::spawn(command.args(arguments(root, addresses, flags)))
    }

    fn spawn(command: &mut Command) -> RawDaemon {
        let command = command.env_remove("NOTIFY_SOCKET").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start thunkd");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        RawDaemon { child, stderr, log: String::new() }
    }

    fn await_ready(&mut self) {
        while !self.log.contains(" ready ") {
            let read = self.stderr.read_line(&mut self.log).expect("read the log");
            assert!(read > 0, "thunkd ended:\n{}", self.log);
        }
    }

    /// The port behind a `tcp://` in the log.
    fn tcp(&self) -> String {
        let (_, rest) = self.log.split_once("address=\"tcp://").expect("a TCP address");
        rest.split('"').next().expect("a quote").to_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("signal thunkd");
    }
}

impl Drop for RawDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn arguments(root: &Path, addresses: &[&str], flags: &[&str]) -> Vec<String> {
    let addresses = addresses.iter().map(|address| format!("--addr={address}"));
    let root = ["--config=/no/such/file".to_owned(), format!("--root={}", root.display())];
    root.into_iter().chain(addresses).chain(flags.iter().map(ToString::to_string)).collect()
}

#[test]
fn several_addresses_lead_to_one_daemon() {
    let mut daemon = Daemon::start_with(daemon_with("", &["--addr=tcp://127.0.0.1:0"]));
    assert!(poll(LIMIT, || addresses(&daemon).len() == 2), "{}", daemon.log());
    for address in addresses(&daemon) {
        let output = thunk(&["debug", "workers", "--addr", &address]);
        assert!(output.status.success(), "{address}: {}", said(&output));
        assert!(said(&output).contains("platform linux/"), "{}", said(&output));
    }
    assert!(daemon.log().contains("TLS is off for a TCP address"), "{}", daemon.log());
    daemon.terminate();
    assert!(!daemon.socket().exists(), "the socket's file is left");
}

#[test]
fn a_socket_is_its_owners_and_its_groups() {
    let daemon = Daemon::start_with(daemon_with("[grpc]\ngid = 12345\n", &[]));
    let metadata = std::fs::metadata(daemon.socket()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o660);
    // Only root may give a file away.
    if rustix::process::geteuid().is_root() {
        assert_eq!(std::os::unix::fs::MetadataExt::gid(&metadata), 12345);
    }
}

#[test]
fn a_socket_that_the_service_manager_made_is_listened_on() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("activated.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // A shell passes the socket on as descriptor 3 of its own process.
    let script = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_thunkd")]);
    command.args(arguments(&directory.path().join("root"), &["fd://"], &[]));
    let mut daemon = RawDaemon::spawn(command.stdin(Stdio::from(OwnedFd::from(listener))));
    daemon.await_ready();
    let output = thunk(&["debug", "workers", "--addr", &format!("unix://{}", socket.display())]);
    assert!(output.status.success(), "{}", said(&output));
    daemon.signal(Signal::TERM);
    assert!(daemon.child.wait().unwrap().success());
    assert!(socket.exists(), "the socket is the service manager's");
}

#[test]
fn without_a_socket_from_the_service_manager_fd_is_refused() {
    let directory = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_thunkd"));
    command.args(arguments(directory.path(), &["fd://"], &[])).env_remove("LISTEN_PID");
    let said = said(&command.output().expect("run thunkd"));
    assert!(said.contains("the service manager handed over no socket"), "{said}");
}

#[test]
fn the_service_manager_is_told_of_start_and_stop() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut daemon = Daemon::start_with(DaemonOptions {
        environment: vec![("NOTIFY_SOCKET".to_owned(), path.display().to_string())],
        ..DaemonOptions::default()
    });
    let receive = || {
        let mut buffer = [0; 64];
        let read = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    };
    assert_eq!(receive(), "READY=1");
    daemon.terminate();
    assert_eq!(receive(), "STOPPING=1");
}

#[test]
fn the_log_is_json_if_asked_for() {
    let mut daemon = Daemon::start_with(daemon_with("[log]\nformat = \"json\"\nlevel = \"warn\"\n", &[]));
    daemon.terminate();
    let log = daemon.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines.iter().any(|line| line["message"] == "ready" && line["level"] == "INFO"), "{log}");
}

#[test]
fn connections_that_say_nothing_hold_up_no_stop() {
    let mut daemon = Daemon::start();
    let _silent = UnixStream::connect(daemon.socket()).unwrap();
    let mut preface = UnixStream::connect(daemon.socket()).unwrap();
    preface.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    daemon.terminate();
}

/// A build that waits for a blob, its daemon and `thunk`, which asked for it.
fn waiting_build(scratch: &TempDir) -> (Daemon, Child, TestRegistry, Hold) {
    let registry = TestRegistry::open();
    let image = Image::incompressible(1, 2, 1 << 20);
    registry.put_image("app", "1", &image);
    let hold = registry.hold(Op::BlobGet.of(image.layer_digests()[0]));
    let daemon = Daemon::start();
    let definition = scratch.path().join("definition");
    std::fs::write(&definition, llb::image(registry.reference("app", "1")).marshal()).unwrap();
    let client = Command::new(env!("CARGO_BIN_EXE_thunk"))
        .arg("build")
        .arg("--addr")
        .arg(daemon.address())
        .arg("--progress=plain")
        .arg(format!("--output=type=oci,dest={}", scratch.path().join("out.tar").display()))
        .arg(definition)
        .env("HOME", scratch.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start thunk");
    assert!(poll(LIMIT, || hold.arrived() > 0), "the blob was never asked for:\n{}", daemon.log());
    (daemon, client, registry, hold)
}

#[test]
fn a_stop_cancels_the_builds_that_run_and_tells_their_clients() {
    let scratch = TempDir::new().unwrap();
    let (mut daemon, client, _registry, _hold) = waiting_build(&scratch);
    daemon.terminate();
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("the build failed: "), "{}", said(&output));
    assert!(!scratch.path().join("out.tar").exists());
    assert!(daemon.log().contains(" stopped"), "{}", daemon.log());
    // What was begun is begun again after a restart.
    daemon.start_again();
}

#[test]
fn a_client_that_is_interrupted_cancels_its_build() {
    let scratch = TempDir::new().unwrap();
    let (daemon, client, _registry, _hold) = waiting_build(&scratch);
    assert!(daemon.counter("content_leases") > 0);
    rustix::process::kill_process(rustix::process::Pid::from_child(&client), Signal::INT).unwrap();
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(said(&output).contains("thunk: interrupted"), "{}", said(&output));
    assert!(!scratch.path().join("out.tar").exists());
    assert!(poll(LIMIT, || daemon.counter("content_leases") == 0), "{:?}", daemon.counters());
}

#[test]
fn a_second_signal_stops_at_once() {
    let scratch = TempDir::new().unwrap();
    let (mut daemon, _client, _registry, _hold) = waiting_build(&scratch);
    daemon.signal(Signal::TERM);
    assert!(poll(LIMIT, || daemon.log().contains(" stopping")), "{}", daemon.log());
    daemon.signal(Signal::TERM);
    daemon.wait(LIMIT);
}

#[test]
fn sigint_stops_in_order_as_well() {
    let mut daemon = Daemon::start();
    daemon.signal(Signal::INT);
    assert!(daemon.wait(LIMIT).success());
    assert!(!daemon.socket().exists());
}

#[test]
fn the_debug_page_counts() {
    let daemon = Daemon::start();
    let counters = daemon.counters();
    for name in ["db_commits", "db_fsyncs", "process_resident_bytes", "tasks"] {
        assert!(counters.contains_key(name), "no {name} in {counters:?}");
    }
}

/// How soon the first call is answered, told and not asserted: the machine may be busy.
#[test]
fn the_time_to_the_first_answer_is_told() {
    let mut daemon = Daemon::start();
    daemon.terminate();
    let began = Instant::now();
    daemon.start_again();
    println!("connectable after {:?}", began.elapsed());
    println!("resident {} KiB", daemon.process().memory() / 1024);
}

/// PEM files of an authority, and of a server and a client that it signed.
struct Certificates(TempDir);

impl Certificates {
    fn new() -> Certificates {
        let directory = TempDir::new().unwrap();
        let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text).unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        write("ca.pem", params.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(params, key);
        for name in ["server", "client"] {
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
            write(&format!("{name}.pem"), certificate.pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Certificates(directory)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

#[test]
fn tls_is_for_tcp_and_a_client_must_show_a_certificate_if_one_is_asked_for() {
    let files = Certificates::new();
    let tls = ["--tlscert", &files.path("server.pem"), "--tlskey", &files.path("server.key")];
    let ca = files.path("ca.pem");
    let client = ["--tlscert", &files.path("client.pem"), "--tlskey", &files.path("client.key")];
    let workers =
        |address: &str, flags: &[&str]| thunk(&[&["debug", "workers", "--addr", address], flags].concat());

    let directory = TempDir::new().unwrap();
    let socket = format!("unix://{}", directory.path().join("thunkd.sock").display());
    let mut open = RawDaemon::start(&directory.path().join("open"), &["tcp://127.0.0.1:0", &socket], &tls);
    open.await_ready();
    let address = format!("tcp://{}", open.tcp());
    let output = workers(&address, &["--tlscacert", &ca]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(workers(&socket, &[]).status.success(), "a unix socket has no TLS");
    assert!(!workers(&address, &[]).status.success(), "a client without TLS came in");
    let stranger = Certificates::new();
    let output = workers(&address, &["--tlscacert", &stranger.path("ca.pem")]);
    assert!(said(&output).contains("invalid peer certificate"), "{}", said(&output));

    let closed = [&tls[..], &["--tlscacert", &ca]].concat();
    let mut closed = RawDaemon::start(&directory.path().join("closed"), &["tcp://127.0.0.1:0"], &closed);
    closed.await_ready();
    let address = format!("tcp://{}", closed.tcp());
    let output = workers(&address, &[&["--tlscacert", &ca][..], &client].concat());
    assert!(output.status.success(), "{}", said(&output));
    assert!(!workers(&address, &["--tlscacert", &ca]).status.success(), "nobody was asked for a certificate");
}
