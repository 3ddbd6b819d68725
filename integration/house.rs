//! Rules of the house about what is linked: licences, bans and sources, as `.deny.toml` states them,
//! without a network.

use std::collections::BTreeSet;
use std::process::Command;

use serde::Deserialize;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

fn rules() -> Rules {
    toml::from_str(include_str!("../.deny.toml")).expect(".deny.toml is valid")
}

/// The packages of others that are built for this platform.
fn dependencies() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("cargo answers in JSON");
    let built: BTreeSet<String> = metadata.resolve.nodes.into_iter().map(|node| node.id).collect();
    let ours = env!("CARGO_PKG_NAME");
    metadata.packages.into_iter().filter(|p| built.contains(&p.id) && p.name != ours).collect()
}

/// Whether an SPDX expression can be met with `allowed` licences. A slash is the `OR` of old
/// manifests, and `AND` binds tighter.
fn permitted(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let met = any(&mut rest, allowed);
    assert!(rest.is_empty(), "licence expression {expression:?} ends in {rest:?}");
    met
}

fn any(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = all(words, allowed);
    while words.first() == Some(&"OR") {
        *words = &words[1..];
        met |= all(words, allowed);
    }
    met
}

fn all(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while words.first() == Some(&"AND") {
        *words = &words[1..];
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    match **words {
        ["(", ..] => {
            *words = &words[1..];
            let met = any(words, allowed);
            assert_eq!(words.first(), Some(&")"), "an open bracket in a licence expression");
            *words = &words[1..];
            met
        }
        [name, "WITH", exception, ..] => {
            *words = &words[3..];
            allowed.contains(&format!("{name} WITH {exception}"))
        }
        [name, ..] => {
            *words = &words[1..];
            allowed.contains(name)
        }
        [] => panic!("a licence expression ends too early"),
    }
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = BTreeSet::from(["MIT".to_owned(), "ISC".to_owned(), "A WITH B".to_owned()]);

    for met in ["MIT", "GPL-3.0 OR MIT", "GPL-3.0/MIT", "MIT AND ISC", "(GPL-3.0 OR MIT) AND ISC", "A WITH B"]
    {
        assert!(permitted(met, &allowed), "{met}");
    }
    for unmet in ["GPL-3.0", "MIT AND GPL-3.0", "GPL-3.0 OR MIT AND A", "(MIT OR ISC) AND A", "A WITH C", "A"]
    {
        assert!(!permitted(unmet, &allowed), "{unmet}");
    }
}

#[test]
fn every_dependency_has_a_licence_that_we_accept() {
    let allowed = rules().licenses.allow;
    let dependencies = dependencies();
    assert!(dependencies.len() > 50, "only {} dependencies were found", dependencies.len());

    let refused: Vec<String> = dependencies
        .iter()
        .filter(|p| !p.license.as_deref().is_some_and(|expression| permitted(expression, &allowed)))
        .map(|p| format!("{} {}: {}", p.name, p.version, p.license.as_deref().unwrap_or("none stated")))
        .collect();

    assert!(refused.is_empty(), "licences that .deny.toml does not allow:\n{}", refused.join("\n"));
}

#[test]
fn nothing_banned_is_linked() {
    let dependencies = dependencies();

    let found: Vec<String> = rules()
        .bans
        .deny
        .into_iter()
        .filter(|ban| dependencies.iter().any(|p| p.name == ban.name))
        .map(|ban| format!("{}: {}", ban.name, ban.reason))
        .collect();

    assert!(found.is_empty(), "banned by .deny.toml:\n{}", found.join("\n"));
}

#[test]
fn every_dependency_comes_from_the_registry() {
    for package in dependencies() {
        let source = package.source.as_deref().unwrap_or("a path");
        assert!(
            source == "registry+https://github.com/rust-lang/crates.io-index",
            "{} {} comes from {source}",
            package.name,
            package.version
        );
    }
}
