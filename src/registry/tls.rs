//! [`Clients`]: one pool of connections for each set of TLS settings.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use reqwest::Url;
use rustls::ClientConfig;
use rustls::DigitallySignedStruct;
use rustls::RootCertStore;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::ServerName;
use rustls_pki_types::UnixTime;
use rustls_pki_types::pem::PemObject;
use tokio::sync::OnceCell;

use super::HostConfig;
use super::KeyPair;
use super::Patience;
use super::endpoint::is_loopback;
use crate::task::Tasks;

/// The TLS settings of a host can't be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {problem}", path = path.display())]
    File { path: PathBuf, problem: String },
    #[error("{problem}")]
    Client { problem: String },
}

/// Whom we trust and what we show.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct TlsSettings {
    insecure: bool,
    ca: Vec<PathBuf>,
    keypairs: Vec<KeyPair>,
    directories: Vec<PathBuf>,
}

impl TlsSettings {
    pub fn of(config: &HostConfig) -> TlsSettings {
        TlsSettings {
            insecure: config.insecure.unwrap_or(false),
            ca: config.ca.clone(),
            keypairs: config.keypairs.clone(),
            directories: config.tls_config_dirs.clone(),
        }
    }
}

/// What tells one pool from another.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    /// `None` where there is no TLS.
    tls: Option<TlsSettings>,
    /// Past the environment's proxies.
    direct: bool,
}

/// The pools, each made when it is first needed: reading the system's certificates takes a while.
#[derive(Debug)]
pub(super) struct Clients {
    patience: Patience,
    tasks: Tasks,
    pools: Mutex<HashMap<Key, Arc<OnceCell<reqwest::Client>>>>,
}

impl Clients {
    pub fn new(patience: Patience, tasks: Tasks) -> Clients {
        Clients { patience, tasks, pools: Mutex::default() }
    }

    /// The pool for `url`. Cancellation safe.
    pub async fn get(&self, tls: &TlsSettings, url: &Url) -> Result<reqwest::Client, TlsError> {
        let key = Key {
            tls: (url.scheme() == "https").then(|| tls.clone()),
            direct: url.host_str().is_some_and(is_loopback),
        };
        let cell = {
            let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(pools.entry(key.clone()).or_default())
        };
        let patience = self.patience;
        let build = async || {
            let built = self.tasks.spawn_blocking("TLS set-up", move || build(&key, patience)).await;
            built.unwrap_or_else(|failed| Err(TlsError::Client { problem: failed.to_string() }))
        };
        cell.get_or_try_init(build).await.cloned()
    }
}

fn build(key: &Key, patience: Patience) -> Result<reqwest::Client, TlsError> {
    let client = |problem: String| TlsError::Client { problem };
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls_config(key.tls.as_ref())?)
        .user_agent(concat!("thunk/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(patience.connect)
        .pool_idle_timeout(Duration::from_secs(90))
        .tcp_keepalive(Duration::from_secs(60))
        // One blob fills a fast line only if its window holds what is on the way.
        .http2_initial_stream_window_size(4 << 20)
        .http2_initial_connection_window_size(16 << 20);
    if key.direct {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| client(error.to_string()))
}

fn tls_config(settings: Option<&TlsSettings>) -> Result<ClientConfig, TlsError> {
    let client = |error: rustls::Error| TlsError::Client { problem: error.to_string() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(client)?;
    let Some(settings) = settings else {
        let none = RootCertStore::empty();
        return Ok(builder.with_root_certificates(none).with_no_client_auth());
    };
    let (ca, keypairs) = with_directories(settings)?;
    let builder = if settings.insecure {
        let verifier = Arc::new(TakesAny { provider: Arc::clone(&provider) });
        builder.dangerous().with_custom_certificate_verifier(verifier)
    } else {
        builder.with_root_certificates(roots(&ca)?)
    };
    let mut config = if keypairs.is_empty() {
        builder.with_no_client_auth()
    } else {
        let keys = keypairs.iter().map(|pair| certified_key(pair, &provider)).collect::<Result<_, _>>()?;
        builder.with_client_cert_resolver(Arc::new(ShowsFirst { keys }))
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Adds what lies in the directories of Docker's layout. One that is not there is not an error.
fn with_directories(settings: &TlsSettings) -> Result<(Vec<PathBuf>, Vec<KeyPair>), TlsError> {
    let (mut ca, mut keypairs) = (settings.ca.clone(), settings.keypairs.clone());
    for directory in &settings.directories {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                continue;
            }
            Err(error) => return Err(file(directory, error)),
        };
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => ca.push(path),
                Some("cert") => keypairs.push(KeyPair { key: path.with_extension("key"), cert: path }),
                _ => {}
            }
        }
    }
    Ok((ca, keypairs))
}

/// The system's certificates (`SSL_CERT_FILE` and `SSL_CERT_DIR` count), Mozilla's where it has none,
/// and those of `ca`.
fn roots(ca: &[PathBuf]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // A broken certificate among the system's must not take the good ones away.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    for path in ca {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| file(path, error))?;
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if found.is_empty() => Err(file(path, "there is no PEM certificate in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(file(path, error)),
    }
}

fn certified_key(pair: &KeyPair, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates(&pair.cert)?;
    let key = PrivateKeyDer::from_pem_file(&pair.key).map_err(|error| file(&pair.key, error))?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| file(&pair.key, error))?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

fn file(path: &Path, problem: impl std::fmt::Display) -> TlsError {
    TlsError::File { path: path.to_owned(), problem: problem.to_string() }
}

/// Shows the first certificate that the server can verify the signature of.
#[derive(Debug)]
struct ShowsFirst {
    keys: Vec<Arc<CertifiedKey>>,
}

impl ResolvesClientCert for ShowsFirst {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.keys.iter().find(|key| key.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.keys.is_empty()
    }
}

/// Takes any certificate, as `insecure = true` asks for. Signatures are still checked, so that the
/// connection belongs to whoever holds that certificate.
#[derive(Debug)]
struct TakesAny {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for TakesAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(config: HostConfig) -> String {
        let key = Key { tls: Some(TlsSettings::of(&config)), direct: true };
        build(&key, Patience::default()).unwrap_err().to_string()
    }

    #[test]
    fn settings_that_cannot_be_used_name_their_file() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty.pem");
        fs::write(&empty, "no certificate").unwrap();
        let missing = directory.path().join("missing.pem");
        let ca = |path: &Path| HostConfig { ca: vec![path.to_owned()], ..HostConfig::default() };
        assert!(problem(ca(&empty)).contains("empty.pem: there is no PEM certificate"));
        assert!(problem(ca(&missing)).contains("missing.pem"));
        fs::write(directory.path().join("client.cert"), "nothing").unwrap();
        let directories = vec![directory.path().join("not there"), directory.path().to_owned()];
        let config = HostConfig { tls_config_dirs: directories, ..HostConfig::default() };
        assert!(problem(config).contains("client.cert"));
    }

    #[test]
    fn plain_insecure_and_default_clients_can_be_built() {
        let insecure = HostConfig { insecure: Some(true), ..HostConfig::default() };
        let all = [None, Some(TlsSettings::of(&insecure)), Some(TlsSettings::default())];
        for (tls, direct) in all.into_iter().flat_map(|tls| [(tls.clone(), true), (tls, false)]) {
            build(&Key { tls, direct }, Patience::default()).unwrap();
        }
    }
}
