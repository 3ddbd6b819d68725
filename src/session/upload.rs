//! Byte streams that a client offers under URLs of the host `buildkit-session` (`moby.upload.v1.Upload`).

use bytes::Bytes;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream;
use futures::stream::BoxStream;
use tonic::metadata::AsciiMetadataValue;

use super::call::DECODE_LIMIT;
use super::call::origin;
use crate::proto::upload::BytesMessage;
use crate::proto::upload::upload_client::UploadClient;
use crate::session::Session;
use crate::session::SessionError;

const METHOD: &str = "/moby.upload.v1.Upload/Pull";

impl Session {
    /// The bytes that the client has under `path` of `host`. A client gives each stream away once.
    ///
    /// Cancellation safe; dropping the stream ends the transfer.
    pub async fn upload(
        &self,
        host: &str,
        path: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, SessionError>>, SessionError> {
        // Nothing is sent to the client, but its end of the stream stays open until it has sent all.
        let mut request = tonic::Request::new(stream::pending::<BytesMessage>());
        for (key, value) in [("urlpath", path), ("urlhost", host)] {
            let value = AsciiMetadataValue::try_from(value).map_err(|_| SessionError::Unsendable {
                method: METHOD,
                problem: format!("the {key} {value:?}"),
            })?;
            request.metadata_mut().insert(key, value);
        }
        let mut client =
            UploadClient::with_origin(self.wire(), origin()).max_decoding_message_size(DECODE_LIMIT);
        let messages = self.call(METHOD, None, client.pull(request)).await?;
        Ok(self.messages(METHOD, messages).map_ok(|message| message.data).boxed())
    }
}
