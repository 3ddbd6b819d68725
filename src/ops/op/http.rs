//! [`HttpSource`]: a file of a web server.

use crate::oci::Digest;
use crate::ops::http::HttpFile;
use crate::ops::kept::Kept;

/// `http://` and `https://`: what stands at an address, as one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpSource {
    /// With its scheme.
    pub url: String,
    /// What the bytes must hash to.
    pub checksum: Option<Digest>,
    /// Name of the file; none for what the server or the address says.
    pub filename: Option<String>,
    /// Bits of 07777; none for the default.
    pub perm: Option<u32>,
    pub uid: u32,
    pub gid: u32,
    /// Secret of the client whose value is the header `Authorization`.
    pub auth_header_secret: Option<String>,
    /// Headers of the request, canonical names, sorted.
    pub headers: Vec<(String, String)>,
    pub signature: Option<HttpSignature>,
    /// What it did resolve to, for all sources of the job with the same attributes.
    pub resolved: Kept<HttpFile>,
    /// What those resolved to that pin no checksum and are the same otherwise.
    pub unpinned: Kept<HttpFile>,
}

impl HttpSource {
    /// What stands at an address, whatever it is.
    pub fn new(url: &str) -> HttpSource {
        HttpSource {
            url: url.to_owned(),
            checksum: None,
            filename: None,
            perm: None,
            uid: 0,
            gid: 0,
            auth_header_secret: None,
            headers: Vec::new(),
            signature: None,
            resolved: Kept::default(),
            unpinned: Kept::default(),
        }
    }
}

/// A detached PGP signature that the bytes must have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpSignature {
    pub public_key: String,
    pub signature: String,
}
