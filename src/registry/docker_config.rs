//! [`DockerConfig`]: the credentials that `docker login` keeps, helpers included.
//!
//! A helper is a program `docker-credential-<name>` that is given a server on its standard input and
//! answers in JSON. Precedence is Docker's: the helper of the host, the default helper, the file.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::Instant;

use super::CredentialError;
use super::CredentialSource;
use super::Identity;
use super::IdentityId;
use super::Wanted;
use crate::ctx::Ctx;
use crate::session::Credentials;
use crate::session::Secret;

/// The key that Docker keeps its own registry under.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A helper may ask its user for a fingerprint or a PIN.
const HELPER_PATIENCE: Duration = Duration::from_secs(60);

const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// How long a helper's answer is used: short-lived passwords (cloud registries) live for five minutes.
const FRESH_FOR: Duration = Duration::from_secs(240);

/// What a helper calls the user of an identity token.
const TOKEN_USER: &str = "<token>";

/// Docker's `config.json`, as far as it is about registries.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DockerConfig {
    #[serde(deserialize_with = "null_is_default")]
    auths: BTreeMap<String, Entry>,
    creds_store: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    cred_helpers: BTreeMap<String, String>,
    /// What helpers answered, until when it counts. Shared by clones.
    #[serde(skip)]
    known: Arc<Mutex<Known>>,
}

type Known = BTreeMap<String, (Credentials, Instant)>;

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "lowercase", default)]
struct Entry {
    /// base64 of `user:password`.
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.auths.keys().collect();
        write!(
            f,
            "DockerConfig(auths: {hosts:?}, helper: {:?}, helpers: {:?})",
            self.creds_store, self.cred_helpers
        )
    }
}

impl DockerConfig {
    /// The configuration of the user: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. A file
    /// that is not there is an empty one. Blocks on a small file.
    pub fn load() -> Result<DockerConfig, CredentialError> {
        let directory = match env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty()) {
            Some(directory) => PathBuf::from(directory),
            None => match env::var_os("HOME").filter(|home| !home.is_empty()) {
                Some(home) => PathBuf::from(home).join(".docker"),
                None => return Ok(DockerConfig::default()),
            },
        };
        DockerConfig::read(&directory.join("config.json"))
    }

    /// The configuration in one file.
    pub fn read(path: &Path) -> Result<DockerConfig, CredentialError> {
        let broken =
            |problem: String| CredentialError::DockerConfig { path: path.display().to_string(), problem };
        let size = match fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(DockerConfig::default()),
            Err(error) => return Err(broken(error.to_string())),
        };
        if size > MAX_CONFIG_BYTES {
            return Err(broken(format!("it has {size} bytes, more than the limit of {MAX_CONFIG_BYTES}")));
        }
        let bytes = fs::read(path).map_err(|error| broken(error.to_string()))?;
        // The message of a parser may quote what it read: only the place is told.
        serde_json::from_slice(&bytes).map_err(|error| {
            broken(format!("it is not valid at line {} column {}", error.line(), error.column()))
        })
    }

    /// What the user has for `host`, as addressed or as image names spell it.
    ///
    /// Cancellation safe: a helper that runs is killed.
    pub async fn credentials(&self, host: &str) -> Result<Credentials, CredentialError> {
        let server = server(host);
        let helper = self.cred_helpers.get(server).or_else(|| self.cred_helpers.get(host));
        let helper = helper.or(self.creds_store.as_ref()).filter(|helper| !helper.is_empty());
        if let Some(helper) = helper {
            let known = self.known().get(server).cloned().filter(|(_, until)| *until > Instant::now());
            let found = match known {
                Some((credentials, _)) => credentials,
                None => {
                    let found = ask_helper(helper, server).await?;
                    self.known().insert(server.to_owned(), (found.clone(), Instant::now() + FRESH_FOR));
                    found
                }
            };
            if found != Credentials::Anonymous {
                return Ok(found);
            }
        }
        let path = || "config.json".to_owned();
        match self.entry(host).map(Entry::credentials) {
            None => Ok(Credentials::Anonymous),
            Some(Some(credentials)) => Ok(credentials),
            Some(None) => {
                let problem = format!("the entry of {host} is not base64 of user:password");
                Err(CredentialError::DockerConfig { path: path(), problem })
            }
        }
    }

    /// The bearer token that the file has for `host`, to be used as it is.
    pub fn registry_token(&self, host: &str) -> Option<Secret> {
        let token = self.entry(host)?.registrytoken.as_ref()?;
        (!token.is_empty()).then(|| Secret::new(token.clone()))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, host: &str) -> Option<&Entry> {
        let server = server(host);
        let exact = self.auths.get(server).or_else(|| self.auths.get(host));
        exact.or_else(|| self.auths.iter().find(|(key, _)| bare_host(key) == host).map(|(_, entry)| entry))
    }
}

impl Entry {
    /// `None` if there is something that can't be read.
    fn credentials(&self) -> Option<Credentials> {
        let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = some(&self.identitytoken) {
            return Some(Credentials::IdentityToken(Secret::new(token)));
        }
        let (username, password) = match some(&self.auth) {
            Some(auth) => {
                let auth = auth.trim();
                let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).ok()?;
                let text = String::from_utf8(bytes).ok()?;
                let (username, password) = text.split_once(':')?;
                (username.to_owned(), password.trim_end_matches('\0').to_owned())
            }
            None => (some(&self.username).unwrap_or_default(), some(&self.password).unwrap_or_default()),
        };
        if password.is_empty() {
            return Some(Credentials::Anonymous);
        }
        Some(Credentials::Basic { username, password: Secret::new(password) })
    }
}

/// The name that Docker keeps a host under.
fn server(host: &str) -> &str {
    match host {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        host => host,
    }
}

/// The host in a key, which old clients wrote as a URL.
fn bare_host(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    key.split('/').next().unwrap_or_default()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

async fn ask_helper(helper: &str, server: &str) -> Result<Credentials, CredentialError> {
    if helper.contains(['/', '\0']) {
        let (helper, host) = (helper.to_owned(), server.to_owned());
        return Err(CredentialError::Helper { helper, host, problem: "its name is a path".to_owned() });
    }
    run_helper(&format!("docker-credential-{helper}"), server).await
}

async fn run_helper(program: &str, server: &str) -> Result<Credentials, CredentialError> {
    let failed = |problem: String| CredentialError::Helper {
        helper: program.to_owned(),
        host: server.to_owned(),
        problem,
    };
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("it can't be run: {error}")))?;
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read its input may still answer.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(HELPER_PATIENCE, talk).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed(format!("it did not answer within {} s", HELPER_PATIENCE.as_secs()))),
    };
    if !output.status.success() {
        // Helpers report on standard output; older ones on the other.
        let all = [output.stdout, output.stderr].concat();
        let message: String = String::from_utf8_lossy(&all).trim().chars().take(300).collect();
        let lower = message.to_ascii_lowercase();
        if lower.contains("credentials not found") || lower.contains("no credentials") {
            return Ok(Credentials::Anonymous);
        }
        return Err(failed(format!("it ended with {}: {message}", output.status)));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout)
        .map_err(|_| failed("its answer is not JSON with Username and Secret".to_owned()))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.is_empty() => Credentials::Anonymous,
        (TOKEN_USER, secret) => Credentials::IdentityToken(Secret::new(secret)),
        (username, secret) => {
            Credentials::Basic { username: username.to_owned(), password: Secret::new(secret) }
        }
    })
}

#[async_trait]
impl CredentialSource for DockerConfig {
    async fn identity(
        &self,
        _ctx: &Ctx,
        host: &str,
        wanted: Wanted,
        refused: &[IdentityId],
    ) -> Result<Option<Identity>, CredentialError> {
        let identity = match (wanted, self.registry_token(host)) {
            (Wanted::Token, Some(token)) => Identity::access_token(&token),
            _ => match self.credentials(host).await? {
                Credentials::Anonymous => Identity::anonymous(),
                Credentials::Basic { username, password } => Identity::password(&username, &password),
                Credentials::IdentityToken(token) => Identity::refresh_token(&token),
            },
        };
        Ok(Some(identity).filter(|identity| !refused.contains(&identity.id)))
    }

    fn forget(&self, host: &str, _identity: &IdentityId) {
        self.known().remove(server(host));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic { username: username.to_owned(), password: Secret::new(password) }
    }

    fn parse(text: &str) -> DockerConfig {
        serde_json::from_str(text).unwrap()
    }

    #[tokio::test]
    async fn entries_are_found_under_every_name_that_docker_gave_them() {
        let config = parse(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnBhOnNz"},
                "r.example:5000": {"auth": "YTpi", "email": "x"},
                "https://old.example/v1/": {"username": "u", "password": "p"},
                "token.example": {"auth": "YTpi", "identitytoken": "t"},
                "empty.example": {},
                "bad.example": {"auth": "%%%"}
            }, "credHelpers": null, "HttpHeaders": {"a": "b"}}"#,
        );
        for (host, credentials) in [
            ("docker.io", basic("hub", "pa:ss")),
            ("registry-1.docker.io", basic("hub", "pa:ss")),
            ("r.example:5000", basic("a", "b")),
            ("r.example", Credentials::Anonymous),
            ("old.example", basic("u", "p")),
            ("token.example", Credentials::IdentityToken(Secret::new("t"))),
            ("empty.example", Credentials::Anonymous),
        ] {
            assert_eq!(config.credentials(host).await.unwrap(), credentials, "{host}");
        }
        let error = config.credentials("bad.example").await.unwrap_err().to_string();
        assert!(error.contains("bad.example") && !error.contains("%%%"), "{error}");
    }

    #[test]
    fn a_file_that_is_missing_is_empty_and_a_broken_one_says_where_without_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        assert!(DockerConfig::read(&path).unwrap().auths.is_empty());
        fs::write(&path, "{\"auths\": {\n \"r\": {\"auth\": 5secret}}}").unwrap();
        let error = DockerConfig::read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
    }

    /// Runs a helper of this script for the server `r.example`.
    async fn run(script: &str) -> Result<Credentials, CredentialError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker-credential-test");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        run_helper(path.to_str().unwrap(), "r.example").await
    }

    #[tokio::test]
    async fn a_helper_is_asked_by_the_name_of_the_server_and_believed() {
        let echo = r#"read server; printf '{"ServerURL":"x","Username":"%s","Secret":"s"}' "$1-$server""#;
        assert_eq!(run(echo).await.unwrap(), basic("get-r.example", "s"));
        let token = r#"cat >/dev/null; echo '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(run(token).await.unwrap(), Credentials::IdentityToken(Secret::new("t")));
        let unread = r#"echo '{"Username":"u","Secret":"s"}'"#;
        assert_eq!(run(unread).await.unwrap(), basic("u", "s"), "it need not read");
        let none = "echo credentials not found in native keychain; exit 1";
        assert_eq!(run(none).await.unwrap(), Credentials::Anonymous);
    }

    #[tokio::test]
    async fn a_helper_that_fails_is_an_error_that_tells_what_it_said() {
        let locked = run("echo the keychain is locked >&2; exit 3").await.unwrap_err().to_string();
        assert!(locked.contains("the keychain is locked") && locked.contains("r.example"), "{locked}");
        let garbage = run("echo secret").await.unwrap_err().to_string();
        assert!(garbage.contains("not JSON") && !garbage.contains("secret"), "{garbage}");
    }

    #[tokio::test]
    async fn a_helper_whose_name_is_a_path_is_not_run() {
        let config = DockerConfig { creds_store: Some("../bin/x".to_owned()), ..DockerConfig::default() };
        let error = config.credentials("r").await.unwrap_err();
        assert!(matches!(error, CredentialError::Helper { .. }));
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_an_error_that_names_it() {
        let config = parse(r#"{"credHelpers": {"r": "no-such-helper"}, "auths": {"s": {"auth": "YTpi"}}}"#);
        let error = config.credentials("r").await.unwrap_err().to_string();
        assert!(error.contains("docker-credential-no-such-helper"), "{error}");
        assert_eq!(config.credentials("s").await.unwrap(), basic("a", "b"), "other hosts don't need it");
    }
}
