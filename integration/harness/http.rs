//! A plain HTTP client for tests that look at a registry without the code under test.

use reqwest::Certificate;
use reqwest::Client;
use rustls::crypto::ring;

/// Follows no redirects, uses no proxy, and trusts `ca_pem` besides nothing.
pub fn http_client(ca_pem: Option<&str>) -> Client {
    // Fails if a test was here before.
    let _ = ring::default_provider().install_default();
    let authorities = ca_pem.map(|pem| Certificate::from_pem(pem.as_bytes()).expect("a certificate"));
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_certs_only(authorities)
        .build()
        .expect("a client")
}
