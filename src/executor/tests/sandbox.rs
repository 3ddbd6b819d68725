//! What a process sees of the host, and who it is.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::Fixture;
use crate::executor::Dns;
use crate::executor::ExecError;
use crate::executor::ExecutorOptions;
use crate::executor::ExtraHost;
use crate::executor::Network;
use crate::executor::Process;
use crate::executor::Security;
use crate::executor::Ulimit;

#[tokio::test]
async fn the_environment_and_the_working_directory_are_those_asked_for() {
    let Some(fixture) = Fixture::new() else { return };
    let process = Process {
        env: vec!["PATH=/bin".into(), "A=b c".into()],
        cwd: "/work/deep".into(),
        user: "7:8".into(),
        ..fixture.script("echo $A; busybox pwd")
    };
    assert_eq!(fixture.output(process).await, "b c\n/work/deep\n");
    let made = fs::metadata(fixture.root().join("work/deep")).expect("the directory");
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (7, 8, 0o755));
}

#[tokio::test]
async fn a_user_is_looked_up_in_the_root() {
    let Some(fixture) = Fixture::new() else { return };
    let etc = fixture.root().join("etc");
    fs::create_dir(&etc).expect("a directory");
    fs::write(etc.join("passwd"), "web:x:33:44::/:/bin/sh\n").expect("a file");
    fs::write(etc.join("group"), "www:x:44:\naudio:x:29:web\n").expect("a file");
    let as_user =
        |user: &str| Process { user: user.into(), ..fixture.script("busybox id -u; busybox id -G") };
    assert_eq!(fixture.output(as_user("web")).await, "33\n44 29\n");
    assert_eq!(fixture.output(as_user("web:audio")).await, "33\n29\n");
    assert_eq!(fixture.output(as_user("1000")).await, "1000\n0\n");
    let (done, _) = fixture.run(as_user("nobody")).await;
    assert!(matches!(done, Err(ExecError::User { .. })), "{done:?}");
}

#[tokio::test]
async fn host_name_hosts_and_resolvers_are_generated() {
    let dns = Dns { nameservers: vec!["192.0.2.1".into()], ..Dns::default() };
    let Some(fixture) = Fixture::with(ExecutorOptions { dns, ..Default::default() }) else { return };
    let process = Process {
        hostname: "box".into(),
        extra_hosts: vec![ExtraHost { host: "db".into(), address: "192.0.2.7".parse().expect("an address") }],
        ..fixture.script("busybox hostname; busybox cat /etc/hosts /etc/resolv.conf")
    };
    let text = fixture.output(process).await;
    assert!(text.starts_with("box\n127.0.0.1\tlocalhost box\n"), "{text}");
    assert!(text.contains("192.0.2.7\tdb\n") && text.contains("nameserver 192.0.2.1\n"), "{text}");
    assert_eq!(fixture.output(fixture.script("busybox hostname")).await, "buildkitsandbox\n");
}

#[tokio::test]
async fn without_a_network_there_is_loopback_alone() {
    let Some(fixture) = Fixture::new() else { return };
    let script = "busybox ip -o link | busybox awk '{ print $2 }'; \
        busybox ip -o addr show lo | busybox awk '{ print $4 }'";
    let on = |network| Process { network, ..fixture.script(script) };
    let text = fixture.output(on(Network::None)).await;
    assert!(text.starts_with("lo:\n127.0.0.1/8\n"), "{text}");
    let host = fs::read_link("/proc/self/ns/net").expect("a namespace");
    let script = "busybox readlink /proc/self/ns/net";
    let process = Process { network: Network::Host, ..fixture.script(script) };
    assert_eq!(fixture.output(process).await.trim(), host.to_str().expect("text"));
    // Nothing is configured: the sandbox has what the host has, as with BuildKit.
    assert_eq!(fixture.output(fixture.script(script)).await.trim(), host.to_str().expect("text"));
    let process = Process { network: Network::None, ..fixture.script(script) };
    assert_ne!(fixture.output(process).await.trim(), host.to_str().expect("text"));
}

#[tokio::test]
async fn a_sandbox_has_the_default_capabilities_and_an_insecure_one_those_of_the_daemon() {
    let Some(fixture) = Fixture::new() else { return };
    let script = "busybox awk '/^(CapEff|Seccomp|NoNewPrivs):/ { print $2 }' /proc/self/status";
    let status = fixture.output(fixture.script(script)).await;
    assert_eq!(status.split_whitespace().collect::<Vec<_>>(), ["00000000a80425fb", "0", "2"]);
    let process = Process { security: Security::Insecure, ..fixture.script(script) };
    let status = fixture.output(process).await;
    let own = fs::read_to_string("/proc/self/status").expect("a status");
    let own = own.lines().find_map(|l| l.strip_prefix("CapEff:\t")).expect("capabilities");
    let status: Vec<_> = status.split_whitespace().collect();
    assert_eq!((status[0], status[1]), (own, "0"));
}

#[tokio::test]
async fn calls_that_need_more_than_a_sandbox_has_are_refused() {
    let Some(fixture) = Fixture::new() else { return };
    let script = "busybox mount -t tmpfs none /mnt 2>/dev/null && echo mounted; \
        busybox unshare -m true 2>/dev/null && echo unshared; \
        echo 1 2>/dev/null > /proc/sys/kernel/domainname && echo written; \
        busybox cat /proc/kcore 2>/dev/null | busybox wc -c; [ -e /dev/fuse ] && echo fuse";
    fs::create_dir(fixture.root().join("mnt")).expect("a directory");
    let shell = |security| Process { security, ..fixture.script(&format!("{script}; true")) };
    let (done, recording) = fixture.run(shell(Security::Sandbox)).await;
    done.expect("it ends well");
    assert_eq!(recording.stdout(), "0\n");
    let script = "busybox mount -t tmpfs none /mnt && [ -c /dev/fuse ] && echo mounted";
    let process = Process { security: Security::Insecure, ..fixture.script(script) };
    assert_eq!(fixture.output(process).await, "mounted\n");
}

#[tokio::test]
async fn a_read_only_root_is_not_written() {
    let Some(fixture) = Fixture::new() else { return };
    let process = Process { read_only_root: true, ..fixture.script("echo > /file || echo refused") };
    let (done, recording) = fixture.run(process).await;
    done.expect("it ends well");
    assert_eq!(recording.stdout(), "refused\n");
    assert!(!fixture.root().join("file").exists());
}

#[tokio::test]
async fn limits_of_the_process_are_set() {
    let Some(fixture) = Fixture::new() else { return };
    let ulimits = vec![Ulimit { name: "nofile".into(), soft: 99, hard: 100 }];
    let process = Process { ulimits, ..fixture.script("ulimit -Sn; ulimit -Hn") };
    assert_eq!(fixture.output(process).await, "99\n100\n");
    let ulimits = vec![Ulimit { name: "nonsense".into(), soft: 1, hard: 1 }];
    let (done, _) = fixture.run(Process { ulimits, ..fixture.script("") }).await;
    assert!(matches!(done, Err(ExecError::Invalid { .. })), "{done:?}");
}

#[tokio::test]
async fn the_cgroup_lies_below_its_parent_and_is_removed() {
    let Some(fixture) = Fixture::new() else { return };
    let parent = format!("thunk-test-{:08x}", rand::random::<u32>());
    let process = Process { cgroup_parent: parent.clone(), ..fixture.script("busybox cat /proc/1/cgroup") };
    let text = fixture.output(process).await;
    assert!(text.contains(&format!("/{parent}/thunk/")), "{text}");
    let cgroups = super::super::cgroup::Cgroups::detect().expect("cgroups");
    let directory = cgroups.group(std::path::Path::new(&parent).join("thunk").as_path());
    let left = directory.directory("pids").or(directory.directory("memory")).expect("a hierarchy");
    assert_eq!(fs::read_dir(&left).expect("the parent").flatten().filter(|e| e.path().is_dir()).count(), 0);
    directory.remove().expect("it is empty");
    cgroups.group(std::path::Path::new(&parent)).remove().expect("it is empty");
}

#[tokio::test]
async fn bad_requests_are_refused_before_anything_is_made() {
    let Some(fixture) = Fixture::new() else { return };
    for process in [
        Process { args: Vec::new(), ..fixture.script("") },
        Process { args: vec!["a\0b".into()], ..fixture.script("") },
        Process { cgroup_parent: "../up".into(), ..fixture.script("") },
    ] {
        let (done, _) = fixture.run(process).await;
        assert!(matches!(done, Err(ExecError::Invalid { .. })), "{done:?}");
    }
}
