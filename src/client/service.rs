//! The services that a client has for its daemon, inside the session's tunnel.

use std::io;
use std::io::Read as _;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;

use super::Layout;
use super::attach::FileSendService;
use super::session::Attachments;
use super::session::EXPORT;
use super::store::LayoutStore;
use super::store::NewBlob;
use crate::oci::Digest;
use crate::proto::auth;
use crate::proto::content;
use crate::proto::filesync::file_sync_server::FileSyncServer;
use crate::proto::health;
use crate::proto::secrets::secrets_server::SecretsServer;
use crate::proto::sshforward::ssh_server::SshServer;
use crate::session::Credentials;
use crate::session::Secret;
use crate::task::Tasks;

/// Bytes of a blob in one message. Session clients take 4 MiB.
const CHUNK: usize = 1 << 20;
/// Archives come in messages of up to 16 MiB.
pub(super) const MESSAGE_LIMIT: usize = 16 << 20;

/// The calls that the routes serve, as a session announces them. A daemon asks a service that is announced;
/// nobody announces what has nothing to give.
pub(super) fn methods(attachments: &Attachments) -> Vec<&'static str> {
    let mut methods = vec![
        "/grpc.health.v1.Health/Check",
        "/moby.filesync.v1.Auth/Credentials",
        "/moby.filesync.v1.Auth/FetchToken",
        "/moby.filesync.v1.Auth/GetTokenAuthority",
        "/moby.filesync.v1.Auth/VerifyTokenAuthority",
    ];
    if !attachments.stores.is_empty() {
        methods.push("/containerd.services.content.v1.Content/Info");
        methods.push("/containerd.services.content.v1.Content/Read");
    }
    if attachments.export.is_some() {
        methods.push("/containerd.services.content.v1.Content/Write");
    }
    if !attachments.destinations.is_empty() {
        methods.push("/moby.filesync.v1.FileSend/DiffCopy");
    }
    if !attachments.directories.is_empty() {
        methods.push("/moby.filesync.v1.FileSync/DiffCopy");
    }
    if !attachments.secrets.is_empty() {
        methods.push("/moby.buildkit.secrets.v1.Secrets/GetSecret");
    }
    if !attachments.agents.is_empty() {
        methods.push("/moby.sshforward.v1.SSH/CheckAgent");
        methods.push("/moby.sshforward.v1.SSH/ForwardAgent");
    }
    methods
}

pub(super) fn routes(attachments: Attachments) -> Routes {
    let client = Arc::new(Callbacks(Arc::new(attachments)));
    let blobs = content::content_server::ContentServer::from_arc(client.clone());
    let blobs = blobs.max_decoding_message_size(MESSAGE_LIMIT);
    let files = FileSyncServer::from_arc(client.clone()).max_decoding_message_size(MESSAGE_LIMIT);
    Routes::new(health::health_server::HealthServer::from_arc(client.clone()))
        .add_service(auth::auth_server::AuthServer::from_arc(client.clone()))
        .add_service(blobs)
        .add_service(SecretsServer::from_arc(client.clone()))
        .add_service(SshServer::from_arc(client.clone()))
        .add_service(files)
        .add_service(FileSendService(client))
        .prepare()
}

/// What the daemon calls.
#[derive(Debug)]
pub(super) struct Callbacks(pub(super) Arc<Attachments>);

#[async_trait]
impl health::health_server::Health for Callbacks {
    async fn check(
        &self,
        _: Request<health::HealthCheckRequest>,
    ) -> Result<Response<health::HealthCheckResponse>, Status> {
        let status = health::health_check_response::ServingStatus::Serving.into();
        Ok(Response::new(health::HealthCheckResponse { status }))
    }

    async fn list(
        &self,
        _: Request<health::HealthListRequest>,
    ) -> Result<Response<health::HealthListResponse>, Status> {
        Err(Status::unimplemented("a session has one health"))
    }

    type WatchStream = BoxStream<'static, Result<health::HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _: Request<health::HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("the health of a session is checked, not watched"))
    }
}

#[async_trait]
impl auth::auth_server::Auth for Callbacks {
    async fn credentials(
        &self,
        request: Request<auth::CredentialsRequest>,
    ) -> Result<Response<auth::CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let found = self.0.credentials.credentials(&host).await;
        let (username, secret) = match found.map_err(|error| Status::unknown(error.to_string()))? {
            Credentials::Basic { username, password } => (username, reveal(&password)),
            // A secret without a name is an identity token.
            Credentials::IdentityToken(token) => (String::new(), reveal(&token)),
            Credentials::Anonymous => (String::new(), String::new()),
        };
        Ok(Response::new(auth::CredentialsResponse { username, secret }))
    }

    /// Unimplemented: the daemon then asks for credentials and fetches the token itself.
    async fn fetch_token(
        &self,
        _: Request<auth::FetchTokenRequest>,
    ) -> Result<Response<auth::FetchTokenResponse>, Status> {
        Err(Status::unimplemented("this client gives credentials, not tokens"))
    }

    async fn get_token_authority(
        &self,
        _: Request<auth::GetTokenAuthorityRequest>,
    ) -> Result<Response<auth::GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("this client gives credentials, not tokens"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<auth::VerifyTokenAuthorityRequest>,
    ) -> Result<Response<auth::VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("this client gives credentials, not tokens"))
    }
}

fn reveal(secret: &Secret) -> String {
    secret.reveal().to_owned()
}

impl Callbacks {
    fn layout(&self, metadata: &MetadataMap) -> Result<&Layout, Status> {
        let name = store_name(metadata);
        self.0.stores.get(name).ok_or_else(|| {
            let layout = name.strip_prefix("oci:").unwrap_or(name);
            Status::not_found(format!(
                "there is no OCI layout {layout:?}: give it with --oci-layout {layout}=DIR"
            ))
        })
    }
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|error: crate::oci::InvalidDigest| Status::invalid_argument(error.to_string()))
}

fn store_name(metadata: &MetadataMap) -> &str {
    metadata.get("buildkit-attachable-store-id").and_then(|v| v.to_str().ok()).unwrap_or_default()
}

type Answers = mpsc::Sender<Result<content::WriteContentResponse, Status>>;

/// Writes one blob to a layout (containerd's content service, `Write`).
async fn take_blob(
    tasks: &Tasks,
    store: &LayoutStore,
    mut requests: Streaming<content::WriteContentRequest>,
    answers: &Answers,
) -> Result<(), Status> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => Status::failed_precondition(error.to_string()),
        io::ErrorKind::StorageFull => Status::resource_exhausted(error.to_string()),
        _ => Status::unknown(format!("the OCI layout {:?}: {error}", store.root())),
    };
    let mut blob: Option<(NewBlob, Digest)> = None;
    while let Some(request) = requests.message().await? {
        let (mut new, expected) = match blob.take() {
            Some(begun) => begun,
            None => {
                let expected = digest(&request.expected)?;
                if store.has(&expected) {
                    return Err(Status::already_exists(format!("blob {expected} is there")));
                }
                let begin = store.clone();
                let begun = tasks.spawn_blocking("begin blob", move || begin.begin(&expected));
                (begun.await.map_err(io::Error::other).flatten().map_err(failed)?, expected)
            }
        };
        let action = request.action;
        if !request.data.is_empty() {
            if u64::try_from(request.offset) != Ok(new.written()) {
                let (found, next) = (request.offset, new.written());
                return Err(Status::out_of_range(format!("bytes of offset {found} where {next} is next")));
            }
            let writing = tasks.spawn_blocking("write blob", move || {
                new.write(&request.data)?;
                Ok::<_, io::Error>(new)
            });
            new = writing.await.map_err(io::Error::other).flatten().map_err(failed)?;
        }
        let written = i64::try_from(new.written()).unwrap_or(i64::MAX);
        let is_last = action == content::WriteAction::Commit as i32;
        if is_last {
            if request.total > 0 && request.total != written {
                let total = request.total;
                return Err(Status::failed_precondition(format!("{written} bytes came, not {total}")));
            }
            let place = store.clone();
            let committing = tasks.spawn_blocking("commit blob", move || new.commit(&place, &expected));
            committing.await.map_err(io::Error::other).flatten().map_err(failed)?;
        } else {
            blob = Some((new, expected));
        }
        let now = Some(prost_types::Timestamp::from(std::time::SystemTime::now()));
        let answer = content::WriteContentResponse {
            action,
            started_at: now,
            updated_at: now,
            offset: written,
            total: request.total,
            digest: if is_last { expected.to_string() } else { String::new() },
        };
        if is_last || answers.send(Ok(answer.clone())).await.is_err() {
            let _ = answers.send(Ok(answer)).await;
            return Ok(());
        }
    }
    // Given up: what was written goes with the drop.
    Ok(())
}

fn blob_error(layout: &Layout, digest: &Digest, error: &io::Error) -> Status {
    let message = format!("blob {digest} of the OCI layout {:?}: {error}", layout.root());
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(message),
        io::ErrorKind::PermissionDenied => Status::permission_denied(message),
        _ => Status::unknown(message),
    }
}

const READ_ONLY: &str = "an OCI layout is read only here";

#[async_trait]
impl content::content_server::Content for Callbacks {
    async fn info(
        &self,
        request: Request<content::InfoRequest>,
    ) -> Result<Response<content::InfoResponse>, Status> {
        let layout = self.layout(request.metadata())?;
        let digest = digest(&request.get_ref().digest)?;
        let (_, size) = layout.blob(&digest).map_err(|e| blob_error(layout, &digest, &e))?;
        let info = content::Info {
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..content::Info::default()
        };
        Ok(Response::new(content::InfoResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        _: Request<content::UpdateRequest>,
    ) -> Result<Response<content::UpdateResponse>, Status> {
        Err(Status::unimplemented(READ_ONLY))
    }

    type ListStream = BoxStream<'static, Result<content::ListContentResponse, Status>>;

    async fn list(
        &self,
        _: Request<content::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        Err(Status::unimplemented("the blobs of an OCI layout are asked for one by one"))
    }

    async fn delete(&self, _: Request<content::DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(READ_ONLY))
    }

    type ReadStream = BoxStream<'static, Result<content::ReadContentResponse, Status>>;

    /// `size` bytes from `offset`, or all there are after it if `size` is 0.
    async fn read(
        &self,
        request: Request<content::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let layout = self.layout(request.metadata())?.clone();
        let message = request.get_ref();
        let digest = digest(&message.digest)?;
        let offset =
            u64::try_from(message.offset).map_err(|_| Status::out_of_range("the offset is negative"))?;
        let wanted = u64::try_from(message.size).map_err(|_| Status::out_of_range("the size is negative"))?;
        let (mut file, size) = layout.blob(&digest).map_err(|e| blob_error(&layout, &digest, &e))?;
        if offset > size {
            return Err(Status::out_of_range(format!("blob {digest} has {size} bytes, none at {offset}")));
        }
        let length = if wanted == 0 { size - offset } else { wanted.min(size - offset) };
        let (send, receive) = mpsc::channel(2);
        self.0.tasks.spawn_blocking("layout reader", move || {
            let mut read = || -> io::Result<()> {
                file.seek(SeekFrom::Start(offset))?;
                let mut rest = (&mut file).take(length);
                let mut at = offset;
                loop {
                    let mut data = Vec::with_capacity(CHUNK);
                    (&mut rest).take(CHUNK as u64).read_to_end(&mut data)?;
                    if data.is_empty() {
                        return Ok(());
                    }
                    let next = at + data.len() as u64;
                    let offset = i64::try_from(at).map_err(io::Error::other)?;
                    if send.blocking_send(Ok(content::ReadContentResponse { offset, data })).is_err() {
                        return Ok(());
                    }
                    at = next;
                }
            };
            if let Err(error) = read() {
                let _ = send.blocking_send(Err(blob_error(&layout, &digest, &error)));
            }
        });
        Ok(Response::new(ReceiverStream::new(receive).boxed()))
    }

    async fn status(
        &self,
        _: Request<content::StatusRequest>,
    ) -> Result<Response<content::StatusResponse>, Status> {
        Err(Status::unimplemented(READ_ONLY))
    }

    async fn list_statuses(
        &self,
        _: Request<content::ListStatusesRequest>,
    ) -> Result<Response<content::ListStatusesResponse>, Status> {
        Err(Status::unimplemented(READ_ONLY))
    }

    type WriteStream = BoxStream<'static, Result<content::WriteContentResponse, Status>>;

    /// One blob, in requests that are answered one by one. A write that breaks off begins anew.
    async fn write(
        &self,
        request: Request<Streaming<content::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let name = store_name(request.metadata());
        let Some(store) = self.0.export.clone().filter(|_| name == EXPORT) else {
            return Err(Status::unimplemented(READ_ONLY));
        };
        let (answers, answered) = mpsc::channel(1);
        let tasks = self.0.tasks.clone();
        drop(self.0.tasks.spawn("layout writer", async move {
            if let Err(refused) = take_blob(&tasks, &store, request.into_inner(), &answers).await {
                let _ = answers.send(Err(refused)).await;
            }
        }));
        Ok(Response::new(ReceiverStream::new(answered).boxed()))
    }

    async fn abort(&self, _: Request<content::AbortRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(READ_ONLY))
    }
}
