//! Proxies of the environment, which belongs to a process: the test runs itself as a child with one.

use std::process::Command;

use super::*;
use crate::harness::Op;

/// Names the registry on loopback to the child.
const LOCAL: &str = "THUNK_TEST_LOCAL_REGISTRY";

#[test]
fn a_proxy_of_the_environment_is_used_but_for_loopback() {
    let image = Image::incompressible(0x960, 1, 1000);
    // A proxy that answers by itself.
    let (proxy, local) = (TestRegistry::open(), TestRegistry::open());
    proxy.put_image("app", "v1", &image);
    local.put_image("app", "v1", &image);
    let child = Command::new(std::env::current_exe().expect("the test"))
        .args(["--ignored", "--exact", "registry::proxy::child"])
        .env("HTTP_PROXY", proxy.url())
        .env("http_proxy", proxy.url())
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .env(LOCAL, local.host())
        .output()
        .expect("the test runs");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let [asked] = &proxy.requests()[..] else { panic!("{}", proxy.story()) };
    assert_eq!((asked.op, asked.repository.as_str()), (Op::ManifestHead, "app"));
    assert_eq!(local.count(Op::ManifestHead), 1);
}

#[tokio::test]
#[ignore = "the child of the test above"]
async fn child() {
    let Ok(local) = std::env::var(LOCAL) else { return };
    let http = HostConfig { http: Some(true), ..HostConfig::default() };
    let hosts = [("registry.invalid".to_owned(), http)].into();
    let client = anonymous(RegistryConfig { hosts, ..patient() });
    for host in ["registry.invalid", &local] {
        let name: Reference = format!("{host}/app:v1").parse().expect("a reference");
        client.resolve(&nobody(), &name).await.expect("resolved");
    }
}
