//! Secrets, agents and uploads of a client.

use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream;
use futures::stream::BoxStream;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tonic::Code;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;

use crate::proto::secrets;
use crate::proto::secrets::secrets_server::Secrets;
use crate::proto::secrets::secrets_server::SecretsServer;
use crate::proto::sshforward;
use crate::proto::sshforward::ssh_server::Ssh;
use crate::proto::sshforward::ssh_server::SshServer;
use crate::proto::upload;
use crate::proto::upload::upload_server::Upload;
use crate::proto::upload::upload_server::UploadServer;
use crate::session::MAX_SECRET;
use crate::session::SecretBytes;
use crate::session::Session;
use crate::session::SessionError;
use crate::session::Sessions;
use crate::session::testing;
use crate::task::Tasks;

#[derive(Default)]
struct Client {
    asked: Mutex<Vec<String>>,
}

#[tonic::async_trait]
impl Secrets for Client {
    async fn get_secret(
        &self,
        request: Request<secrets::GetSecretRequest>,
    ) -> Result<Response<secrets::GetSecretResponse>, Status> {
        let data = match request.into_inner().id.as_str() {
            "binary" => Bytes::from_static(b"\xff\0secret"),
            "empty" => Bytes::new(),
            "large" => vec![0; MAX_SECRET + 1].into(),
            "locked" => return Err(Status::permission_denied("the store is locked")),
            other => return Err(Status::not_found(format!("secret {other} not found"))),
        };
        Ok(Response::new(secrets::GetSecretResponse { data }))
    }
}

#[tonic::async_trait]
impl Ssh for Client {
    async fn check_agent(
        &self,
        request: Request<sshforward::CheckAgentRequest>,
    ) -> Result<Response<sshforward::CheckAgentResponse>, Status> {
        let id = request.into_inner().id;
        self.asked.lock().unwrap().push(id.clone());
        match id.as_str() {
            "default" => Ok(Response::new(sshforward::CheckAgentResponse {})),
            id => Err(Status::not_found(format!("unset ssh forward key {id}"))),
        }
    }

    type ForwardAgentStream = BoxStream<'static, Result<sshforward::BytesMessage, Status>>;

    /// An agent that answers each message with the same in capitals, and bids farewell.
    async fn forward_agent(
        &self,
        request: Request<Streaming<sshforward::BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = request.metadata().get("buildkit.ssh.id").unwrap().to_str().unwrap().to_owned();
        self.asked.lock().unwrap().push(id);
        let answers = request
            .into_inner()
            .map_ok(|message| sshforward::BytesMessage { data: message.data.to_ascii_uppercase().into() });
        let farewell = sshforward::BytesMessage { data: Bytes::from_static(b"bye") };
        Ok(Response::new(answers.chain(stream::once(async { Ok(farewell) })).boxed()))
    }
}

#[tonic::async_trait]
impl Upload for Client {
    type PullStream = BoxStream<'static, Result<upload::BytesMessage, Status>>;

    async fn pull(
        &self,
        request: Request<Streaming<upload::BytesMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let text = |key: &str| request.metadata().get(key).unwrap().to_str().unwrap().to_owned();
        self.asked.lock().unwrap().push(format!("{} {}", text("urlhost"), text("urlpath")));
        if text("urlpath") != "/there" {
            return Err(Status::unknown("no http response from session"));
        }
        let parts = ["one", "", "two"].map(|part| Ok(upload::BytesMessage { data: part.into() }));
        Ok(Response::new(stream::iter(parts).boxed()))
    }
}

struct Opened {
    session: Session,
    client: Arc<Client>,
    _tasks: Tasks,
}

async fn opened() -> Opened {
    let (tasks, client) = (Tasks::new(), Arc::new(Client::default()));
    let sessions = Sessions::new(&tasks);
    let mut services = testing::services();
    services
        .add_service(SecretsServer::from_arc(client.clone()))
        .add_service(SshServer::from_arc(client.clone()))
        .add_service(UploadServer::from_arc(client.clone()));
    let session = testing::open(&tasks, &sessions, "one", &[], services).await;
    Opened { session, client, _tasks: tasks }
}

#[tokio::test]
async fn a_secret_is_bytes_and_one_that_is_not_there_is_none() {
    let opened = opened().await;
    let session = &opened.session;
    let secret = session.secret("binary").await.unwrap().unwrap();
    assert_eq!(secret.reveal().as_ref(), b"\xff\0secret");
    assert_eq!(format!("{secret:?}"), "SecretBytes(..)");
    assert_eq!(session.secret("empty").await.unwrap(), Some(SecretBytes::new(Bytes::new())));
    assert_eq!(session.secret("none").await.unwrap(), None);
    assert_eq!(session.secret("locked").await.unwrap_err().refusal(), Some(Code::PermissionDenied));
    let large = session.secret("large").await.unwrap_err();
    assert!(matches!(large, SessionError::Protocol { .. }), "{large:?}");
}

#[tokio::test]
async fn a_client_without_secrets_has_no_secret() {
    let tasks = Tasks::new();
    let sessions = Sessions::new(&tasks);
    let session = testing::open(&tasks, &sessions, "one", &[], testing::services()).await;
    assert_eq!(session.secret("any").await.unwrap(), None);
}

#[tokio::test]
async fn an_agent_is_talked_to_until_each_side_has_ended() {
    let opened = opened().await;
    opened.session.ssh_check("").await.unwrap();
    assert_eq!(opened.session.ssh_check("other").await.unwrap_err().refusal(), Some(Code::NotFound));
    let mut agent = opened.session.ssh_forward("").await.unwrap();
    agent.write_all(b"sign this").await.unwrap();
    let mut answer = [0; 9];
    agent.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"SIGN THIS");
    agent.shutdown().await.unwrap();
    let mut rest = Vec::new();
    agent.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"bye");
    assert_eq!(*opened.client.asked.lock().unwrap(), ["default", "other", "default"]);
}

#[tokio::test]
async fn an_upload_is_named_by_its_url_and_comes_whole() {
    let opened = opened().await;
    let bytes = opened.session.upload("buildkit-session", "/there").await.unwrap();
    let parts: Vec<Bytes> = bytes.try_collect().await.unwrap();
    assert_eq!(parts.concat(), b"onetwo");
    let missing = match opened.session.upload("buildkit-session", "/gone").await {
        Ok(bytes) => bytes.try_collect::<Vec<Bytes>>().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(missing.refusal(), Some(Code::Unknown));
    let asked = opened.client.asked.lock().unwrap().clone();
    assert_eq!(asked, ["buildkit-session /there", "buildkit-session /gone"]);
}
