//! Ways to a daemon.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::InvalidDnsNameError;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::ServerName;
use rustls_pki_types::pem;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;
use tower::service_fn;

/// Windows as large as the daemon's: archives come through.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Bytes of headers: an error brings the file that it comes from.
const HEADER_LIMIT: u32 = 4 << 20;

/// Where a daemon is.
#[derive(Clone)]
pub enum Endpoint {
    Unix(PathBuf),
    /// `host:port`
    Tcp {
        host: String,
        tls: Option<TlsFiles>,
    },
    /// In this process: opens a connection each time it is called.
    Inside(Opener),
}

/// Opens a connection.
pub type Opener = Arc<dyn Fn() -> BoxFuture<'static, io::Result<UnixStream>> + Send + Sync>;

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
            Endpoint::Tcp { host, .. } => write!(f, "tcp://{host}"),
            Endpoint::Inside(_) => f.write_str("the daemon in this process"),
        }
    }
}

/// PEM files for TLS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Who signed the daemon's certificate.
    pub ca: PathBuf,
    /// The certificate that we show, and its key.
    pub keypair: Option<(PathBuf, PathBuf)>,
    /// The name in the daemon's certificate, if it is not the host's.
    pub server_name: Option<String>,
}

/// No daemon was reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the address {text:?} is not one of a daemon: expected unix:///path or tcp://host:port")]
    Address { text: String },
    #[error("could not read {path:?}")]
    Read { path: PathBuf, source: io::Error },
    #[error("there is no {what} in the PEM file {path:?}")]
    Pem { what: &'static str, path: PathBuf, source: Option<pem::Error> },
    #[error("the TLS files can't be used")]
    Tls(#[source] rustls::Error),
    #[error("{name:?} can't be the name in a certificate")]
    ServerName { name: String, source: InvalidDnsNameError },
    #[error("no daemon answers at {endpoint}")]
    Unreachable { endpoint: String, source: tonic::transport::Error },
}

impl Endpoint {
    /// Reads `unix:///path` or `tcp://host:port`. TLS is for the latter only.
    pub fn parse(text: &str, tls: Option<TlsFiles>) -> Result<Endpoint, ConnectError> {
        match text.split_once("://") {
            Some(("unix", path)) if !path.is_empty() => Ok(Endpoint::Unix(path.into())),
            Some(("tcp", host)) if host.contains(':') => Ok(Endpoint::Tcp { host: host.to_owned(), tls }),
            _ => Err(ConnectError::Address { text: text.to_owned() }),
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(super) async fn channel(endpoint: &Endpoint) -> Result<Channel, ConnectError> {
    let tls = match endpoint {
        Endpoint::Tcp { host, tls: Some(files) } => Some(tls(host, files)?),
        _ => None,
    };
    let to = endpoint.clone();
    let connector = service_fn(move |_| {
        let (to, tls) = (to.clone(), tls.clone());
        async move {
            let io: Box<dyn Io> = match to {
                Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await?),
                Endpoint::Inside(open) => Box::new(open().await?),
                Endpoint::Tcp { host, .. } => {
                    let stream = TcpStream::connect(&host).await?;
                    stream.set_nodelay(true)?;
                    match tls {
                        None => Box::new(stream),
                        Some((connector, name)) => Box::new(connector.connect(name, stream).await?),
                    }
                }
            };
            Ok::<_, io::Error>(TokioIo::new(io))
        }
    });
    // The name stands in requests only; the connector knows the way.
    tonic::transport::Endpoint::from_static("http://localhost")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(HEADER_LIMIT)
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError::Unreachable { endpoint: endpoint.to_string(), source })
}

fn tls(host: &str, files: &TlsFiles) -> Result<(TlsConnector, ServerName<'static>), ConnectError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&files.ca)?);
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(ConnectError::Tls)?
        .with_root_certificates(roots);
    let mut config = match &files.keypair {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| ConnectError::Pem {
                what: "private key",
                path: key.clone(),
                source: Some(e),
            })?;
            builder.with_client_auth_cert(certificates(cert)?, private).map_err(ConnectError::Tls)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = match &files.server_name {
        Some(name) => name.clone(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']).to_owned(),
    };
    let server =
        ServerName::try_from(name.clone()).map_err(|source| ConnectError::ServerName { name, source })?;
    Ok((TlsConnector::from(Arc::new(config)), server))
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let pem = |source| ConnectError::Pem { what: "certificate", path: path.clone(), source };
    let certificates = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| pem(Some(e)))?;
    if certificates.is_empty() { Err(pem(None)) } else { Ok(certificates) }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path).map_err(|source| ConnectError::Read { path: path.clone(), source })
}
