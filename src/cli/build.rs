//! `thunk build`.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::Value;
use tokio::sync::mpsc;

use super::host::Host;
use super::host::HostArgs;
use super::output::OutputFlag;
use super::progress;
use super::progress::Style;
use super::report::CliError;
use crate::client::Build;
use crate::client::Definition;
use crate::client::Destination;
use crate::client::Layout;
use crate::client::Lent;
use crate::client::Output;
use crate::client::SecretSource;
use crate::registry::DockerConfig;
use crate::task::Tasks;

/// Batches of progress under way to the display.
const AHEAD: usize = 16;
const DIGEST_KEY: &str = "containerimage.digest";

#[derive(Clone, Debug, Args)]
pub(super) struct BuildArgs {
    /// LLB definition, as protobuf or JSON; - or nothing for standard input
    definition: Option<PathBuf>,
    /// What to do with the result: type=oci|docker|tar,dest=FILE, type=local,dest=DIR or type=image,name=NAME,push=true (repeatable)
    #[arg(short, long, value_name = "OUTPUT")]
    output: Vec<OutputFlag>,
    /// OCI layout that the definition reads by that name (repeatable)
    #[arg(long, value_name = "NAME=DIR", value_parser = layout_flag)]
    oci_layout: Vec<(String, PathBuf)>,
    /// Directory that the definition reads by that name (repeatable)
    #[arg(long, value_name = "NAME=DIR", value_parser = layout_flag)]
    local: Vec<(String, PathBuf)>,
    /// Secret for the build: id=ID,src=FILE or id=ID,env=VARIABLE (repeatable)
    #[arg(long, value_name = "SECRET", value_parser = secret_flag)]
    secret: Vec<(String, SecretSource)>,
    /// SSH agent for the build: default, or ID=SOCKET (repeatable)
    #[arg(long, value_name = "AGENT", value_parser = agent_flag)]
    ssh: Vec<(String, PathBuf)>,
    /// How to show progress
    #[arg(long, value_enum, default_value_t)]
    progress: Style,
    /// File to write what the exporters say to, as JSON
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    #[command(flatten)]
    host: HostArgs,
}

fn layout_flag(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, directory)) if !name.is_empty() && !directory.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(directory)))
        }
        _ => Err(format!("expected NAME=DIR, found {text:?}")),
    }
}

/// As `buildctl` spells it. Without a place it is the variable, or else the file, of that name.
fn secret_flag(text: &str) -> Result<(String, SecretSource), String> {
    let (mut id, mut source) = (None, None);
    for field in text.split(',') {
        let (key, value) =
            field.split_once('=').ok_or_else(|| format!("expected key=value, found {field:?}"))?;
        match key.trim() {
            "id" => id = Some(value.to_owned()),
            "src" | "source" => source = Some(SecretSource::File(PathBuf::from(value))),
            "env" => source = Some(SecretSource::Variable(value.to_owned())),
            "type" if value == "file" || value == "env" => {}
            key => return Err(format!("there is no key {key}: expected id, src or env")),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or("expected id=ID")?;
    let source = source.unwrap_or_else(|| match std::env::var_os(&id) {
        Some(_) => SecretSource::Variable(id.clone()),
        None => SecretSource::File(PathBuf::from(&id)),
    });
    Ok((id, source))
}

fn agent_flag(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((id, socket)) if !id.is_empty() && !socket.is_empty() => {
            Ok((id.to_owned(), PathBuf::from(socket)))
        }
        Some(_) => Err(format!("expected ID=SOCKET, found {text:?}")),
        None => match std::env::var_os("SSH_AUTH_SOCK") {
            Some(socket) => Ok((text.to_owned(), PathBuf::from(socket))),
            None => Err("there is no SSH agent: $SSH_AUTH_SOCK is not set".to_owned()),
        },
    }
}

pub(super) async fn build(args: BuildArgs) -> Result<(), CliError> {
    let outputs = args.output.into_iter().map(OutputFlag::output).collect::<Result<Vec<Output>, _>>();
    let outputs = outputs.map_err(CliError::Argument)?;
    if outputs.iter().filter(|output| output.destination == Destination::Stdout).count() > 1 {
        return Err(CliError::Argument("only one output can go to standard output".to_owned()));
    }
    if outputs.iter().filter(|output| matches!(output.destination, Destination::Layout(_))).count() > 1 {
        return Err(CliError::Argument("only one output can be a layout (tar=false)".to_owned()));
    }
    let mut layouts = BTreeMap::new();
    for (name, directory) in args.oci_layout {
        let layout = Layout::open(directory);
        let layout = layout.map_err(|source| CliError::Layout { name: name.clone(), source })?;
        layouts.insert(name, layout);
    }
    let definition = super::unless_interrupted(definition(args.definition)).await?;
    if let Some(name) = definition.layouts().into_iter().find(|name| !layouts.contains_key(name)) {
        return Err(CliError::LayoutIsMissing { name });
    }

    let credentials = DockerConfig::load()?;
    let host = super::unless_interrupted(Host::find(args.host)).await?;
    let tasks = Tasks::new();
    let (send, receive) = mpsc::channel(AHEAD);
    let display = tasks.spawn("progress", progress::show(args.progress, receive));
    let lent = Lent {
        directories: args.local.into_iter().collect(),
        secrets: args.secret.into_iter().collect(),
        agents: args.ssh.into_iter().collect(),
    };
    let build = Build { definition, outputs: outputs.clone(), layouts, lent, credentials };
    let building = Box::pin(host.client.build(build, send));
    let built = super::unless_interrupted(async { Ok(building.await?) }).await;
    // The build is gone, and with it the sender: the display ends once it has shown everything.
    let _ = display.await;
    host.leave().await;
    let response = built?;

    if let Some(path) = args.metadata_file {
        let text = format!("{:#}\n", metadata(&response));
        std::fs::write(&path, text).map_err(|source| CliError::Write { path, source })?;
    }
    if args.progress != Style::Quiet {
        tell(&outputs, &response);
    }
    Ok(())
}

/// The definition in a file or on standard input.
pub(super) async fn definition(path: Option<PathBuf>) -> Result<Definition, CliError> {
    let path = path.filter(|path| path.as_os_str() != "-");
    let what = path.as_ref().map_or_else(|| "standard input".to_owned(), |p| p.display().to_string());
    let read = move || match path {
        Some(path) => std::fs::read(path),
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
        }
    };
    let tasks = Tasks::new();
    let bytes = tasks.spawn_blocking("definition", read).await.map_err(std::io::Error::other).flatten();
    let bytes = bytes.map_err(|source| CliError::Read { what: what.clone(), source })?;
    Definition::parse(&bytes).map_err(|source| CliError::Definition { what, source })
}

/// The keys of the exporters. A value that is JSON in base64 stands there as JSON, as from `buildctl`.
fn metadata(response: &BTreeMap<String, String>) -> Value {
    response
        .iter()
        .map(|(key, text)| {
            let json = STANDARD.decode(text).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let value = json.filter(|value: &Value| value.is_object() || value.is_array());
            (key.clone(), value.unwrap_or_else(|| Value::from(text.as_str())))
        })
        .collect()
}

/// Says what was made, where people look for it.
fn tell(outputs: &[Output], response: &BTreeMap<String, String>) {
    if outputs.is_empty() {
        eprintln!("WARNING: there is no --output: the result is in the daemon's cache and nowhere else");
    }
    let digest = response.get(DIGEST_KEY).map_or("done", String::as_str);
    for output in outputs {
        match &output.destination {
            Destination::File(path) => eprintln!("{digest} -> {}", path.display()),
            Destination::Directory { path, .. } | Destination::Layout(path) => {
                eprintln!("{digest} -> {}", path.display());
            }
            Destination::Stdout => eprintln!("{digest} -> standard output"),
            Destination::Daemon => {
                let name = response.get("image.name").or_else(|| output.attributes.get("name"));
                eprintln!("{digest} -> {}", name.map_or("the daemon", String::as_str));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_stand_in_the_metadata_as_json() {
        let response = BTreeMap::from([
            ("containerimage.descriptor".to_owned(), STANDARD.encode(r#"{"size":3}"#)),
            ("containerimage.digest".to_owned(), "sha256:00".to_owned()),
            // Base64 of a number, and yet a name.
            ("image.name".to_owned(), "MTIz".to_owned()),
        ]);
        assert_eq!(
            metadata(&response),
            serde_json::json!({
                "containerimage.descriptor": {"size": 3},
                "containerimage.digest": "sha256:00",
                "image.name": "MTIz",
            })
        );
    }
}
