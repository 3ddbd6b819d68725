//! The server's side of TLS, from PEM files.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::server::VerifierBuilderError;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem;
use rustls_pki_types::pem::PemObject as _;
use tokio_rustls::TlsAcceptor;

use super::config::TlsConfig;

/// The TLS settings are of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("could not read {path:?}")]
    Read { path: PathBuf, source: io::Error },
    #[error("there is no {what} in the PEM file {path:?}")]
    Pem { what: &'static str, path: PathBuf, source: Option<pem::Error> },
    #[error("the certificate {cert:?} and the key {key:?} don't fit")]
    KeyPair { cert: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("the client CA {path:?} can't be used")]
    ClientCa { path: PathBuf, source: VerifierBuilderError },
}

/// Takes HTTP/2 connections; with a client CA, only from who shows a certificate of it.
pub(super) fn acceptor(config: &TlsConfig) -> Result<TlsAcceptor, TlsError> {
    let chain = certificates(&config.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&config.key)?).map_err(|e| TlsError::Pem {
        what: "private key",
        path: config.key.clone(),
        source: Some(e),
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let fits = |source| TlsError::KeyPair { cert: config.cert.clone(), key: config.key.clone(), source };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(fits)?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(certificates(path)?);
            if added == 0 {
                return Err(TlsError::Pem { what: "usable authority", path: path.clone(), source: None });
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|source| TlsError::ClientCa { path: path.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder.with_single_cert(chain, key).map_err(fits)?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { what: "certificate", path: path.to_owned(), source };
    let certificates = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| pem(Some(e)))?;
    if certificates.is_empty() { Err(pem(None)) } else { Ok(certificates) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}
