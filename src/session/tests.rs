//! A client in memory: real gRPC services on the far end of a tunnel.

mod attachables;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream;
use ring::signature::Ed25519KeyPair;
use ring::signature::KeyPair as _;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::ReaderStream;
use tonic::Code;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;

use super::*;
use crate::oci::Digest;
use crate::proto::auth as auth_proto;
use crate::proto::auth::auth_server::Auth;
use crate::proto::auth::auth_server::AuthServer;
use crate::proto::content as content_proto;
use crate::proto::content::content_server::Content;
use crate::proto::content::content_server::ContentServer;
use crate::proto::filesync::BytesMessage;
use crate::proto::filesync::file_send_server::FileSend as FileSendService;
use crate::proto::filesync::file_send_server::FileSendServer;
use crate::proto::health::HealthCheckRequest;
use crate::proto::health::HealthCheckResponse;
use crate::proto::health::HealthListRequest;
use crate::proto::health::HealthListResponse;
use crate::proto::health::health_server::Health;
use crate::proto::health::health_server::HealthServer;
use crate::task::Tasks;

/// What the client does when it is asked, and what it saw.
#[derive(Default)]
struct Client {
    credentials: Mutex<Option<Result<(String, String), Status>>>,
    key: Option<Ed25519KeyPair>,
    /// Blobs of the store `oci:s`.
    blobs: BTreeMap<String, Bytes>,
    /// Parts of a write that were there before.
    partial: Bytes,
    largest: Mutex<usize>,
    file: Mutex<Vec<u8>>,
    file_metadata: Mutex<BTreeMap<String, String>>,
    file_refused: bool,
    /// How the file's stream ended: `Ok` at a half-close.
    file_end: Mutex<Option<Result<(), Code>>>,
    file_ended: Notify,
    /// Never answers for credentials.
    silent: bool,
}

type Answers<T> = stream::BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Health for Client {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    type WatchStream = Answers<HealthCheckResponse>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watch"))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("list"))
    }
}

#[tonic::async_trait]
impl Auth for Client {
    async fn credentials(
        &self,
        request: Request<auth_proto::CredentialsRequest>,
    ) -> Result<Response<auth_proto::CredentialsResponse>, Status> {
        if self.silent {
            std::future::pending::<()>().await;
        }
        assert_eq!(request.into_inner().host, "registry.test");
        match self.credentials.lock().unwrap().clone() {
            Some(Ok((username, secret))) => {
                Ok(Response::new(auth_proto::CredentialsResponse { username, secret }))
            }
            Some(Err(status)) => Err(status),
            None => Err(Status::unimplemented("no credentials here")),
        }
    }

    async fn fetch_token(
        &self,
        request: Request<auth_proto::FetchTokenRequest>,
    ) -> Result<Response<auth_proto::FetchTokenResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.client_id, "buildkit-client");
        let token = format!("{}|{}|{}", request.realm, request.service, request.scopes.join(","));
        Ok(Response::new(auth_proto::FetchTokenResponse { token, expires_in: 0, issued_at: 7 }))
    }

    async fn get_token_authority(
        &self,
        request: Request<auth_proto::GetTokenAuthorityRequest>,
    ) -> Result<Response<auth_proto::GetTokenAuthorityResponse>, Status> {
        assert_eq!(request.into_inner().salt.len(), 32);
        match &self.key {
            Some(key) => Ok(Response::new(auth_proto::GetTokenAuthorityResponse {
                public_key: Bytes::copy_from_slice(key.public_key().as_ref()),
            })),
            None => Err(Status::unavailable("client side tokens disabled")),
        }
    }

    async fn verify_token_authority(
        &self,
        request: Request<auth_proto::VerifyTokenAuthorityRequest>,
    ) -> Result<Response<auth_proto::VerifyTokenAuthorityResponse>, Status> {
        let payload = request.into_inner().payload;
        let key = self.key.as_ref().ok_or_else(|| Status::unimplemented("no key"))?;
        let signed = [key.sign(&payload).as_ref(), &payload].concat().into();
        Ok(Response::new(auth_proto::VerifyTokenAuthorityResponse { signed }))
    }
}

#[tonic::async_trait]
impl FileSendService for Client {
    type DiffCopyStream = Answers<BytesMessage>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        for entry in request.metadata().iter() {
            if let tonic::metadata::KeyAndValueRef::Ascii(key, value) = entry
                && (key.as_str().starts_with("exporter-md-") || key.as_str().starts_with("buildkit-"))
            {
                let value = String::from_utf8(value.as_bytes().to_vec()).unwrap();
                self.file_metadata.lock().unwrap().insert(key.as_str().to_owned(), value);
            }
        }
        if self.file_refused {
            return Err(Status::already_exists("target already exists"));
        }
        let mut messages = request.into_inner();
        let end = loop {
            match messages.message().await {
                Ok(Some(message)) => {
                    let mut largest = self.largest.lock().unwrap();
                    *largest = largest.max(message.data.len());
                    self.file.lock().unwrap().extend_from_slice(&message.data);
                }
                Ok(None) => break Ok(()),
                Err(status) => break Err(status.code()),
            }
        };
        *self.file_end.lock().unwrap() = Some(end);
        self.file_ended.notify_one();
        Ok(Response::new(stream::empty().boxed()))
    }
}

fn store(metadata: &tonic::metadata::MetadataMap) -> Result<(), Status> {
    match metadata.get("buildkit-attachable-store-id").map(|id| id.to_str().unwrap()) {
        Some("oci:s") => Ok(()),
        other => Err(Status::not_found(format!("unknown store {other:?}"))),
    }
}

#[tonic::async_trait]
impl Content for Client {
    async fn info(
        &self,
        request: Request<content_proto::InfoRequest>,
    ) -> Result<Response<content_proto::InfoResponse>, Status> {
        store(request.metadata())?;
        let digest = request.into_inner().digest;
        let blob = self.blobs.get(&digest).ok_or_else(|| Status::not_found("no blob"))?;
        let info = content_proto::Info { digest, size: blob.len() as i64, ..Default::default() };
        Ok(Response::new(content_proto::InfoResponse { info: Some(info) }))
    }

    type ReadStream = Answers<content_proto::ReadContentResponse>;

    async fn read(
        &self,
        request: Request<content_proto::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        store(request.metadata())?;
        let request = request.into_inner();
        let blob = self.blobs.get(&request.digest).ok_or_else(|| Status::not_found("no blob"))?;
        let mut offset = request.offset;
        let chunks: Vec<Bytes> =
            blob[offset as usize..].chunks(1 << 20).map(Bytes::copy_from_slice).collect();
        let messages = chunks.into_iter().map(move |data| {
            let message = content_proto::ReadContentResponse { offset, data: data.to_vec() };
            offset += data.len() as i64;
            Ok(message)
        });
        Ok(Response::new(stream::iter(messages.collect::<Vec<_>>()).boxed()))
    }

    async fn list_statuses(
        &self,
        _: Request<content_proto::ListStatusesRequest>,
    ) -> Result<Response<content_proto::ListStatusesResponse>, Status> {
        let status = content_proto::Status { r#ref: "r".into(), offset: 1, total: 2, ..Default::default() };
        Ok(Response::new(content_proto::ListStatusesResponse { statuses: vec![status] }))
    }

    type WriteStream = Answers<content_proto::WriteContentResponse>;

    async fn write(
        &self,
        request: Request<Streaming<content_proto::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        store(request.metadata())?;
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap();
        if self.blobs.contains_key(&first.expected) {
            return Err(Status::already_exists("blob exists"));
        }
        let stat = |offset: usize| content_proto::WriteContentResponse {
            offset: offset as i64,
            ..Default::default()
        };
        let mut all = self.partial.to_vec();
        let (sender, receiver) = mpsc::channel(1);
        sender.send(Ok(stat(all.len()))).await.unwrap();
        // The responses must flow while requests are read, so the exchange is the stream itself.
        let exchange = stream::unfold((requests, sender), |(mut requests, sender)| async move {
            let request = requests.message().await.ok()??;
            Some((request, (requests, sender)))
        });
        let expected = first.expected;
        let answers = exchange.map(move |request| {
            all.extend_from_slice(&request.data);
            if request.data.len() > MESSAGE_LIMIT {
                return Err(Status::resource_exhausted("message too large"));
            }
            let commits = request.action == content_proto::WriteAction::Commit as i32;
            if commits && Digest::sha256(&all).to_string() != expected {
                return Err(Status::failed_precondition("unexpected commit digest"));
            }
            Ok(content_proto::WriteContentResponse { offset: all.len() as i64, ..Default::default() })
        });
        Ok(Response::new(ReceiverStream::new(receiver).take(1).chain(answers).boxed()))
    }

    async fn update(
        &self,
        _: Request<content_proto::UpdateRequest>,
    ) -> Result<Response<content_proto::UpdateResponse>, Status> {
        Err(Status::unimplemented("update"))
    }

    type ListStream = Answers<content_proto::ListContentResponse>;

    async fn list(
        &self,
        _: Request<content_proto::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        Err(Status::unimplemented("list"))
    }

    async fn delete(&self, _: Request<content_proto::DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("delete"))
    }

    async fn status(
        &self,
        _: Request<content_proto::StatusRequest>,
    ) -> Result<Response<content_proto::StatusResponse>, Status> {
        Err(Status::unimplemented("status"))
    }

    async fn abort(&self, _: Request<content_proto::AbortRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("abort"))
    }
}

/// The daemon's side of one tunnel, and the means to end it as a client does.
struct Tunnel {
    sessions: Sessions,
    session: Session,
    client: Arc<Client>,
    tasks: Tasks,
    /// Dropped at the client's half-close.
    hold: Option<mpsc::Sender<()>>,
    outer: Option<crate::task::Task<()>>,
}

fn opening(id: &str) -> Opening {
    Opening {
        id: SessionId::new(id),
        name: "test".into(),
        shared_key: "key".into(),
        methods: vec!["/moby.filesync.v1.FileSend/diffcopy".into()],
        health: None,
    }
}

/// Opens a session of `client` in `sessions`: the daemon is told before the client reads a byte.
async fn connect(tasks: &Tasks, sessions: &Sessions, id: &str, client: Client) -> Tunnel {
    let client = Arc::new(client);
    let (near, far) = tokio::io::duplex(64 << 10);
    let (read, mut write) = tokio::io::split(near);
    let (hold, mut released) = mpsc::channel::<()>(1);
    let half_close = async move {
        released.recv().await;
    };
    let inbound = ReaderStream::new(read).take_until(Box::pin(half_close)).boxed();
    let mut outbound = sessions.open(opening(id), inbound).await.unwrap();
    let outer = tasks.spawn("outer", async move {
        while let Some(bytes) = outbound.next().await {
            if write.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
    let services = tonic::transport::Server::builder()
        .add_service(HealthServer::from_arc(client.clone()))
        .add_service(AuthServer::from_arc(client.clone()))
        .add_service(ContentServer::from_arc(client.clone()))
        .add_service(FileSendServer::from_arc(client.clone()));
    let incoming = stream::once(async { Ok::<_, io::Error>(far) }).chain(stream::pending());
    drop(tasks.spawn("client", async move {
        services.serve_with_incoming(incoming).await.unwrap();
    }));
    let session = sessions.find(&SessionId::new(id)).await.unwrap();
    Tunnel {
        sessions: sessions.clone(),
        session,
        client,
        tasks: tasks.clone(),
        hold: Some(hold),
        outer: Some(outer),
    }
}

async fn tunnel(client: Client) -> Tunnel {
    let tasks = Tasks::new();
    let sessions = Sessions::new(&tasks);
    connect(&tasks, &sessions, "one", client).await
}

fn with_credentials(answer: Result<(&str, &str), Status>) -> Client {
    let answer = answer.map(|(username, secret)| (username.to_owned(), secret.to_owned()));
    Client { credentials: Mutex::new(Some(answer)), ..Client::default() }
}

fn key(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

#[tokio::test]
async fn a_client_answers_inside_its_tunnel() {
    let tunnel = tunnel(with_credentials(Ok(("user", "secret")))).await;
    let session = &tunnel.session;
    let known = session.credentials("registry.test").await.unwrap();
    assert_eq!(known, Credentials::Basic { username: "user".into(), password: Secret::new("secret") });
    assert!(!format!("{known:?}").contains("secret\""), "{known:?}");
    assert!(session.supports("/MOBY.filesync.v1.FileSend/DiffCopy"));
    assert!(!session.supports("/moby.filesync.v1.FileSync/DiffCopy"));
    assert_eq!((session.shared_key(), session.name()), ("key", "test"));
}

#[tokio::test]
async fn a_secret_without_a_user_is_an_identity_token_and_no_secret_is_anonymous() {
    let identity = tunnel(with_credentials(Ok(("", "refresh")))).await;
    let known = identity.session.credentials("registry.test").await.unwrap();
    assert_eq!(known, Credentials::IdentityToken(Secret::new("refresh")));
    for client in [with_credentials(Ok(("user", ""))), Client::default()] {
        let known = tunnel(client).await.session.credentials("registry.test").await.unwrap();
        assert_eq!(known, Credentials::Anonymous);
    }
}

#[tokio::test]
async fn a_refusal_keeps_the_clients_code_and_message() {
    let tunnel = tunnel(with_credentials(Err(Status::permission_denied("not for you")))).await;
    let error = tunnel.session.credentials("registry.test").await.unwrap_err();
    assert_eq!(error.refusal(), Some(Code::PermissionDenied));
    assert_eq!(error.to_string(), "not for you");
}

#[tokio::test]
async fn a_fetched_token_without_a_life_lives_a_minute() {
    let tunnel = tunnel(Client::default()).await;
    let request = TokenRequest {
        host: "registry.test".into(),
        realm: "realm".into(),
        service: "service".into(),
        scopes: vec!["a".into(), "b".into()],
    };
    let token = tunnel.session.fetch_token(&request).await.unwrap();
    assert_eq!(token.token.reveal(), "realm|service|a,b");
    assert_eq!(token.expires_in, Duration::from_secs(60));
    assert_eq!(token.issued_at, Some(std::time::UNIX_EPOCH + Duration::from_secs(7)));
}

#[tokio::test]
async fn only_the_holder_of_a_token_authority_proves_it() {
    let none = tunnel(Client::default()).await;
    assert_eq!(none.session.token_authority("h").await.unwrap(), None);
    let one = tunnel(Client { key: Some(key(1)), ..Client::default() }).await;
    let two = tunnel(Client { key: Some(key(2)), ..Client::default() }).await;
    let authority = one.session.token_authority("h").await.unwrap().unwrap();
    assert!(one.session.verify_token_authority("h", &authority).await.unwrap());
    assert!(!two.session.verify_token_authority("h", &authority).await.unwrap());
    assert!(!none.session.verify_token_authority("h", &authority).await.unwrap());
}

#[tokio::test]
async fn a_blob_larger_than_the_windows_is_read_from_an_offset() {
    let blob = Bytes::from((0..12 << 20).map(|n: u32| (n % 251) as u8).collect::<Vec<_>>());
    let digest = Digest::sha256(&blob);
    let blobs = BTreeMap::from([(digest.to_string(), blob.clone())]);
    let tunnel = tunnel(Client { blobs, ..Client::default() }).await;
    let store = tunnel.session.content("oci:s");
    let there = ClientBlob { digest, size: 12 << 20 };
    assert_eq!(store.info(&digest).await.unwrap(), Some(there));
    assert_eq!(store.info(&Digest::sha256("x")).await.unwrap(), None);
    let read = store.read(&digest, 5).await.unwrap();
    let read = read.try_fold(Vec::new(), |mut all, bytes| async move {
        all.extend_from_slice(&bytes);
        Ok(all)
    });
    assert_eq!(read.await.unwrap(), blob.slice(5..));
    let error = store.read(&Digest::sha256("x"), 0).await.map(drop).unwrap_err();
    assert_eq!(error.refusal(), Some(Code::NotFound));
    assert_eq!(store.statuses().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_write_goes_on_where_it_was_and_is_verified_by_the_client() {
    let whole = vec![7; 7 << 20];
    let digest = Digest::sha256(&whole);
    let partial = Bytes::copy_from_slice(&whole[..10]);
    let tunnel = tunnel(Client { partial, ..Client::default() }).await;
    let store = tunnel.session.content("oci:s");
    let mut ingest = store.write("ref", &digest, whole.len() as u64).await.unwrap().unwrap();
    assert_eq!(ingest.offset(), 10);
    ingest.append(Bytes::copy_from_slice(&whole[10..])).await.unwrap();
    assert_eq!(ingest.offset(), whole.len() as u64);
    assert_eq!(ingest.commit().await.unwrap(), Ingested::Written);

    let mut wrong = store.write("ref", &digest, whole.len() as u64).await.unwrap().unwrap();
    wrong.append(Bytes::from_static(b"wrong")).await.unwrap();
    assert_eq!(wrong.commit().await.unwrap_err().refusal(), Some(Code::FailedPrecondition));
}

#[tokio::test]
async fn a_write_of_a_blob_that_is_there_is_no_write() {
    let blobs = BTreeMap::from([(Digest::sha256("b").to_string(), Bytes::from_static(b"b"))]);
    let tunnel = tunnel(Client { blobs, ..Client::default() }).await;
    let store = tunnel.session.content("oci:s");
    assert!(store.write("ref", &Digest::sha256("b"), 1).await.unwrap().is_none());
}

#[tokio::test]
async fn a_file_arrives_whole_in_messages_that_a_client_accepts() {
    let tunnel = tunnel(Client::default()).await;
    let metadata = BTreeMap::from([("containerimage.Digest".to_owned(), "sha256:1".to_owned())]);
    let mut file = tunnel.session.file_send(3, &metadata).await.unwrap();
    let bytes = Bytes::from((0..10 << 20).map(|n: u32| (n % 241) as u8).collect::<Vec<_>>());
    assert!(file.append(bytes.clone()).await.unwrap());
    assert!(file.append(Bytes::from_static(b"end")).await.unwrap());
    assert_eq!(file.finish().await.unwrap(), Sent::Written);
    let client = &tunnel.client;
    assert_eq!(*client.file.lock().unwrap(), [&bytes[..], b"end"].concat());
    assert_eq!(*client.largest.lock().unwrap(), MESSAGE_LIMIT);
    let expected = BTreeMap::from([
        ("buildkit-attachable-exporter-id".to_owned(), "3".to_owned()),
        ("exporter-md-containerimage.digest".to_owned(), "sha256:1".to_owned()),
    ]);
    assert_eq!(*client.file_metadata.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_file_given_up_does_not_look_whole() {
    let tunnel = tunnel(Client::default()).await;
    let mut file = tunnel.session.file_send(0, &BTreeMap::new()).await.unwrap();
    assert!(file.append(Bytes::from_static(b"half")).await.unwrap());
    // The next message is accepted only after the first one left the channel.
    assert!(file.append(Bytes::from_static(b"half")).await.unwrap());
    drop(file);
    tunnel.client.file_ended.notified().await;
    let end = tunnel.client.file_end.lock().unwrap().unwrap();
    assert!(end.is_err(), "{end:?}");
}

#[tokio::test]
async fn a_client_that_has_the_target_takes_nothing_and_that_is_success() {
    let tunnel = tunnel(Client { file_refused: true, ..Client::default() }).await;
    let mut file = tunnel.session.file_send(0, &BTreeMap::new()).await.unwrap();
    while file.append(Bytes::from(vec![0; 1 << 20])).await.unwrap() {}
    assert_eq!(file.finish().await.unwrap(), Sent::AlreadyThere);
}

#[tokio::test]
async fn half_closing_ends_the_outer_stream_the_session_and_its_calls() {
    let mut tunnel = tunnel(Client { silent: true, ..Client::default() }).await;
    let mut call = Box::pin(tunnel.session.credentials("registry.test"));
    assert!(futures::poll!(&mut call).is_pending());
    drop(tunnel.hold.take());
    let error = call.await.unwrap_err();
    assert!(matches!(error, SessionError::Lost { .. }), "{error:?}");
    tunnel.session.ended().await;
    assert!(tunnel.sessions.get(tunnel.session.id()).is_none());
    tunnel.outer.take().unwrap().await.unwrap();
    let late = tunnel.session.credentials("registry.test").await.unwrap_err();
    assert!(matches!(late, SessionError::Lost { .. }), "{late:?}");
}

#[tokio::test]
async fn shutdown_ends_every_session() {
    let tunnel = tunnel(Client { silent: true, ..Client::default() }).await;
    let call = tunnel.session.credentials("registry.test");
    tunnel.tasks.token().cancel();
    assert!(matches!(call.await.unwrap_err(), SessionError::Lost { .. }));
}

#[tokio::test]
async fn an_id_is_taken_while_its_session_is_open() {
    let mut tunnel = tunnel(Client::default()).await;
    let again = tunnel.sessions.open(opening("one"), stream::pending().boxed()).await;
    assert_eq!(again.map(drop).unwrap_err(), OpenError::AlreadyOpen { session: SessionId::new("one") });
    assert!(tunnel.session.is_open(), "the first one is not harmed");
    let none = tunnel.sessions.open(opening(""), stream::pending().boxed()).await;
    assert_eq!(none.map(drop).unwrap_err(), OpenError::NoId);
    drop(tunnel.hold.take());
    tunnel.session.ended().await;
    let tasks = tunnel.tasks.clone();
    connect(&tasks, &tunnel.sessions, "one", Client::default()).await;
}

#[tokio::test(start_paused = true)]
async fn a_lookup_waits_five_seconds_for_a_session() {
    let sessions = Sessions::new(&Tasks::new());
    let begun = tokio::time::Instant::now();
    let error = sessions.find(&SessionId::new("context:gone")).await.unwrap_err();
    assert_eq!(
        error,
        SessionError::NotFound { session: SessionId::new("gone"), waited: Duration::from_secs(5) }
    );
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
}

#[tokio::test]
async fn a_lookup_finds_a_session_that_is_opened_meanwhile() {
    let tasks = Tasks::new();
    let sessions = Sessions::new(&tasks);
    let id = SessionId::new("name:late");
    let mut find = Box::pin(sessions.find(&id));
    assert!(futures::poll!(&mut find).is_pending());
    let tunnel = connect(&tasks, &sessions, "late", Client::default()).await;
    assert_eq!(find.await.unwrap().id(), tunnel.session.id());
}

async fn ask(group: &SessionGroup) -> Result<Credentials, SessionError> {
    group.any(|session| async move { session.credentials("registry.test").await }).await
}

#[tokio::test]
async fn a_group_asks_in_order_and_the_last_error_wins() {
    let tasks = Tasks::new();
    let sessions = Sessions::new(&tasks);
    let refusing = with_credentials(Err(Status::internal("first")));
    let broken = with_credentials(Err(Status::internal("second")));
    let willing = with_credentials(Ok(("user", "secret")));
    let _one = connect(&tasks, &sessions, "1", refusing).await;
    let _two = connect(&tasks, &sessions, "2", broken).await;
    let _three = connect(&tasks, &sessions, "3", willing).await;
    let group = SessionGroup::new(&sessions, ["1", "2"].map(SessionId::new));
    assert_eq!(ask(&group).await.unwrap_err().to_string(), "second");
    group.clone().add(SessionId::new("3"));
    assert!(ask(&group).await.is_ok(), "clones share the set");
    group.remove(&SessionId::new("3"));
    group.remove(&SessionId::new("2"));
    assert_eq!(ask(&group).await.unwrap_err().to_string(), "first");
    group.remove(&SessionId::new("1"));
    assert_eq!(ask(&group).await.unwrap_err(), SessionError::NoActiveSessions);
    assert_eq!(ask(&SessionGroup::empty()).await.unwrap_err(), SessionError::NoActiveSessions);
}
