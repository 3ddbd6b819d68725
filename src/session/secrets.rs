//! Secrets of a client (`moby.buildkit.secrets.v1.Secrets`).

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use tonic::Code;

use super::call::DECODE_LIMIT;
use super::call::origin;
use crate::proto::secrets::GetSecretRequest;
use crate::proto::secrets::secrets_client::SecretsClient;
use crate::session::Session;
use crate::session::SessionError;

const METHOD: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";

/// A client may have to ask its user, or a store of secrets.
const LIMIT: Duration = Duration::from_secs(60);

/// Bytes of a secret at most. Clients refuse to send more.
pub const MAX_SECRET: usize = 500 << 10;

/// Bytes that stay out of logs.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Bytes);

impl SecretBytes {
    pub fn new(bytes: impl Into<Bytes>) -> SecretBytes {
        SecretBytes(bytes.into())
    }

    /// The secret itself: not for messages.
    pub fn reveal(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

impl Session {
    /// The client's secret of this name; none if it has no such secret, or serves no secrets at all.
    ///
    /// Cancellation safe.
    pub async fn secret(&self, id: &str) -> Result<Option<SecretBytes>, SessionError> {
        let mut client =
            SecretsClient::with_origin(self.wire(), origin()).max_decoding_message_size(DECODE_LIMIT);
        let request = GetSecretRequest { id: id.to_owned(), ..GetSecretRequest::default() };
        match self.call(METHOD, Some(LIMIT), client.get_secret(request)).await {
            Ok(answer) if answer.data.len() > MAX_SECRET => {
                Err(self.nonsense(METHOD, format!("a secret of {} bytes", answer.data.len())))
            }
            Ok(answer) => Ok(Some(SecretBytes(answer.data))),
            Err(error) => match error.refusal() {
                Some(Code::NotFound | Code::Unimplemented) => Ok(None),
                _ => Err(error),
            },
        }
    }
}
