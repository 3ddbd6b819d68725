//! `thunk` as people use it, on the definitions in `testdata/`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read as _;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::Containerd;
use crate::harness::Daemon;
use crate::harness::sha256;
use crate::harness::tool;

/// What a run of `thunk` said.
struct Run {
    success: bool,
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

/// `thunk` with a home of its own.
struct Thunk {
    home: TempDir,
    daemon: Option<String>,
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

impl Thunk {
    /// It works without a daemon.
    fn alone() -> Thunk {
        Thunk { home: TempDir::new().unwrap(), daemon: None }
    }

    fn with(daemon: &Daemon) -> Thunk {
        Thunk { daemon: Some(daemon.address().into_string().unwrap()), ..Thunk::alone() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thunk"));
        command.args(arguments).current_dir(testdata());
        for name in ["BUILDKIT_HOST", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DOCKER_CONFIG"]
        {
            command.env_remove(name);
        }
        command.env("HOME", self.home.path()).env("XDG_CACHE_HOME", self.path("cache"));
        if let Some(address) = &self.daemon {
            command.env("BUILDKIT_HOST", address);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run_with<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>, input: &[u8]) -> Run {
        let mut child = self.command(arguments).spawn().expect("run thunk");
        // It may end without reading; its status says why.
        let _ = child.stdin.take().expect("a pipe").write_all(input);
        let output = child.wait_with_output().expect("wait for thunk");
        Run {
            success: output.status.success(),
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn run(&self, arguments: &[&str]) -> Run {
        self.run_with(arguments, b"")
    }

    /// Builds a definition with both layouts into an archive of that type, and reads it.
    #[track_caller]
    fn build(&self, definition: &str, input: &[u8], exporter: &str) -> BTreeMap<String, Vec<u8>> {
        let path = self.path("out.tar");
        let output = format!("type={exporter},dest={}", path.display());
        let layouts = ["--oci-layout", "base=base", "--oci-layout", "extra=extra"];
        let arguments = [&["build", "--progress=plain", "-o", &output][..], &layouts, &[definition]].concat();
        let run = self.run_with(arguments, input);
        assert!(run.success, "{}", run.stderr);
        read_tar(&std::fs::read(&path).unwrap())
    }
}

fn read_tar(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("a file");
        files.insert(entry.path().expect("a path").display().to_string(), content);
    }
    files
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

fn blob<'a>(archive: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().expect("a digest");
    let bytes = &archive[&format!("blobs/{}", digest.replace(':', "/"))];
    assert_eq!(sha256(bytes), digest);
    assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().unwrap());
    bytes
}

/// The digests of the layers of the one image of an archive, each verified.
fn layers(archive: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let index = json(&archive["index.json"]);
    let manifest = json(blob(archive, &index["manifests"][0]));
    blob(archive, &manifest["config"]);
    let layers = manifest["layers"].as_array().expect("layers");
    layers
        .iter()
        .map(|layer| {
            blob(archive, layer);
            layer["digest"].as_str().unwrap().to_owned()
        })
        .collect()
}

/// The layers of a layout in `testdata/`.
fn layers_of(layout: &str) -> Vec<String> {
    let read = |path: &str| std::fs::read(testdata().join(layout).join(path)).unwrap();
    let index = json(&read("index.json"));
    let digest = index["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
    let manifest = json(&read(&format!("blobs/{digest}")));
    let layers = manifest["layers"].as_array().unwrap().clone();
    layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_layouts_are_what_their_names_say() {
    for layout in ["base", "extra"] {
        let blobs = std::fs::read_dir(testdata().join(layout).join("blobs/sha256")).unwrap();
        for blob in blobs {
            let path = blob.unwrap().path();
            let digest = format!("sha256:{}", path.file_name().unwrap().to_str().unwrap());
            assert_eq!(sha256(std::fs::read(&path).unwrap()), digest);
        }
    }
}

#[test]
fn a_definition_becomes_an_archive_without_a_daemon() {
    let thunk = Thunk::alone();
    let archive = thunk.build("hello.json", b"", "oci");
    assert_eq!(layers(&archive), layers_of("base"));
    assert_eq!(json(&archive["oci-layout"])["imageLayoutVersion"], "1.0.0");
    assert!(thunk.path("cache/thunk").is_dir(), "the cache is the user's");
}

#[test]
fn an_archive_is_what_skopeo_reads() {
    let Some(skopeo) = tool("skopeo") else { return };
    let thunk = Thunk::alone();
    for (exporter, transport) in [("oci", "oci-archive"), ("docker", "docker-archive")] {
        thunk.build("hello.json", b"", exporter);
        let image = format!("{transport}:{}", thunk.path("out.tar").display());
        let output = Command::new(&skopeo).args(["inspect", "--config", &image]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(json(&output.stdout)["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    }
}

/// The readable definition with a copy and a command, built to an archive.
fn build_steps(thunk: &Thunk, busybox: &Path, output: &str) {
    let tools = format!("tools={}", busybox.parent().unwrap().display());
    let arguments =
        ["build", "--oci-layout", "base=base", "--local", &tools, "--output", output, "steps.json"];
    let run = thunk.run(&arguments);
    assert!(run.success, "{}", run.stderr);
}

/// What the command of that definition has written and counted.
fn assert_counted(root: &Path) {
    let text = std::fs::read_to_string(root.join("hello.txt")).unwrap();
    let counted = std::fs::read_to_string(root.join("counted.txt")).unwrap();
    assert_eq!(counted, format!("{} /hello.txt\n", text.len()));
}

#[test]
fn a_copy_and_a_command_make_an_image_that_skopeo_reads() {
    let (Some(skopeo), Some(busybox), Some(_)) = (tool("skopeo"), tool("busybox"), tool("runc")) else {
        return;
    };
    let thunk = Thunk::alone();
    build_steps(&thunk, &busybox, &format!("type=oci,dest={}", thunk.path("out.tar").display()));
    let archive = read_tar(&std::fs::read(thunk.path("out.tar")).unwrap());
    let layers = layers(&archive);
    assert_eq!(layers[..2], layers_of("base"));
    assert_eq!(layers.len(), 4);
    let image = format!("oci-archive:{}", thunk.path("out.tar").display());
    let directory = format!("dir:{}", thunk.path("copy").display());
    // It reads every byte, and checks the digests.
    let policy = ["--insecure-policy", "copy", &image, &directory];
    let output = Command::new(&skopeo).args(policy).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    build_steps(&thunk, &busybox, &format!("type=local,dest={}", thunk.path("files").display()));
    assert_counted(&thunk.path("files"));
}

#[test]
fn a_copy_and_a_command_make_an_image_that_containerd_unpacks() {
    let (Some(busybox), Some(_), Some(containerd)) = (tool("busybox"), tool("runc"), Containerd::start())
    else {
        return;
    };
    let thunk = Thunk::alone();
    for exporter in ["oci", "docker"] {
        let name = format!("r.example/steps:{exporter}");
        let file = thunk.path("out.tar").display().to_string();
        build_steps(&thunk, &busybox, &format!("type={exporter},name={name},dest={file}"));
        containerd.succeed(&["images", "import", "--snapshotter", "native", &file]);
        let checked = containerd.succeed(&["images", "check", &format!("name=={name}")]);
        assert!(checked.contains("complete"), "{checked}");
        let target = containerd.directory().join(exporter);
        std::fs::create_dir(&target).unwrap();
        let target_text = target.to_str().unwrap();
        containerd.succeed(&["images", "mount", "--snapshotter", "native", &name, target_text]);
        assert_counted(&target);
        containerd.succeed(&["images", "unmount", target_text]);
    }
}

#[test]
fn an_image_becomes_a_layout_beside_those_that_are_there() {
    let thunk = Thunk::alone();
    let directory = thunk.path("layout");
    for name in ["example.com/one:v1", "example.com/two:v2", "example.com/one:v1"] {
        let output = format!("type=oci,tar=false,name={name},dest={}", directory.display());
        let run = thunk.run(&["build", "--oci-layout", "base=base", "--output", &output, "hello.json"]);
        assert!(run.success, "{}", run.stderr);
    }
    let read = |path: &str| -> Value {
        serde_json::from_slice(&std::fs::read(directory.join(path)).unwrap()).unwrap()
    };
    assert_eq!(read("oci-layout")["imageLayoutVersion"], "1.0.0");
    let index = read("index.json");
    let manifests = index["manifests"].as_array().unwrap();
    let names: Vec<_> =
        manifests.iter().map(|m| m["annotations"]["org.opencontainers.image.ref.name"].clone()).collect();
    assert_eq!(names, ["v2", "v1"]);
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        let bytes = std::fs::read(directory.join("blobs").join(digest.replace(':', "/"))).unwrap();
        assert_eq!(sha256(&bytes), digest);
        bytes
    };
    for image in manifests {
        let manifest: Value = serde_json::from_slice(&blob(image)).unwrap();
        blob(&manifest["config"]);
        let layers = manifest["layers"].as_array().unwrap();
        assert!(!layers.is_empty());
        layers.iter().for_each(|layer| drop(blob(layer)));
    }
    let Some(skopeo) = tool("skopeo") else { return };
    let (image, copy) =
        (format!("oci:{}:v2", directory.display()), format!("dir:{}", thunk.path("copy").display()));
    let output = Command::new(&skopeo).args(["--insecure-policy", "copy", &image, &copy]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_merge_has_the_layers_of_its_inputs_in_order() {
    let archive = Thunk::alone().build("merge.json", b"", "oci");
    assert_eq!(layers(&archive), [layers_of("base"), layers_of("extra")].concat());
}

#[test]
fn a_definition_comes_on_standard_input_in_each_form() {
    let thunk = Thunk::alone();
    let readable = std::fs::read(testdata().join("hello.json")).unwrap();
    assert_eq!(layers(&thunk.build("-", &readable, "oci")), layers_of("base"));

    let index = json(&std::fs::read(testdata().join("base/index.json")).unwrap());
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let definition = crate::harness::llb::oci_layout("base", digest, "base", &[]).marshal();
    assert_eq!(layers(&thunk.build("-", &definition, "oci")), layers_of("base"));
}

#[test]
fn a_definition_is_encoded_for_other_clients() {
    let thunk = Thunk::alone();
    let run = thunk.run(&["debug", "encode", "hello.json"]);
    assert!(run.success, "{}", run.stderr);
    assert_eq!(layers(&thunk.build("-", &run.stdout, "oci")), layers_of("base"));
}

#[test]
fn a_daemon_that_runs_is_used() {
    let daemon = Daemon::start();
    let thunk = Thunk::with(&daemon);
    assert_eq!(layers(&thunk.build("hello.json", b"", "oci")), layers_of("base"));
    assert!(!thunk.path("cache").exists(), "a second daemon was started");
    assert!(thunk.run(&["du"]).success);
}

#[test]
fn an_archive_goes_to_standard_output() {
    let thunk = Thunk::alone();
    let run = thunk.run(&["build", "--oci-layout", "base=base", "-o", "type=oci", "hello.json"]);
    assert!(run.success, "{}", run.stderr);
    assert_eq!(layers(&read_tar(&run.stdout)), layers_of("base"));
}

#[test]
fn what_the_exporters_say_is_written_as_json() {
    let thunk = Thunk::alone();
    let (metadata, out) = (thunk.path("metadata.json"), thunk.path("out.tar"));
    let run = thunk.run(&[
        "build",
        "--progress=quiet",
        "--metadata-file",
        metadata.to_str().unwrap(),
        "--oci-layout=base=base",
        &format!("--output=type=oci,dest={}", out.display()),
        "hello.json",
    ]);
    assert!(run.success, "{}", run.stderr);
    assert_eq!(run.stderr, "");
    let metadata = json(&std::fs::read(metadata).unwrap());
    let archive = read_tar(&std::fs::read(out).unwrap());
    assert_eq!(metadata["containerimage.digest"], json(&archive["index.json"])["manifests"][0]["digest"]);
    assert_eq!(metadata["containerimage.descriptor"]["digest"], metadata["containerimage.digest"]);
}

#[test]
fn progress_is_told_in_the_style_that_was_asked_for() {
    let thunk = Thunk::alone();
    let stderr = |style: &str| {
        let run = thunk.run(&["build", style, "--oci-layout=base=base", "-o", "type=oci", "hello.json"]);
        assert!(run.success, "{}", run.stderr);
        run.stderr
    };
    let plain = stderr("--progress=plain");
    assert!(plain.contains("the base image\n"), "{plain}");
    assert!(plain.contains("-> standard output\n"), "{plain}");
    let lines = stderr("--progress=rawjson");
    let names: Vec<Value> = lines
        .lines()
        .filter(|line| line.starts_with('{'))
        .flat_map(|line| json(line.as_bytes())["vertexes"].as_array().cloned().unwrap_or_default())
        .map(|vertex| vertex["name"].clone())
        .collect();
    assert!(names.contains(&Value::from("the base image")), "{names:?}");
}

#[test]
fn a_build_without_an_output_says_that_nothing_was_exported() {
    let thunk = Thunk::alone();
    let run = thunk.run(&["build", "--progress=plain", "--oci-layout=base=base", "hello.json"]);
    assert!(run.success, "{}", run.stderr);
    let last = run.stderr.lines().last();
    assert_eq!(
        last,
        Some("WARNING: there is no --output: the result is in the daemon's cache and nowhere else")
    );
}

#[test]
fn an_output_that_has_no_directory_is_refused_before_the_build() {
    let thunk = Thunk::alone();
    let out = thunk.path("no/x.tar");
    let output = format!("--output=type=oci,dest={}", out.display());
    let run = thunk.run(&["build", "--progress=plain", "--oci-layout=base=base", &output, "hello.json"]);
    assert!(!run.success && run.stderr.contains(&out.display().to_string()), "{}", run.stderr);
    assert!(!run.stderr.contains("#1"), "it built: {}", run.stderr);
}

#[test]
fn the_cache_is_shown_and_pruned() {
    let thunk = Thunk::alone();
    thunk.build("merge.json", b"", "oci");
    let du = String::from_utf8(thunk.run(&["du"]).stdout).unwrap();
    assert!(du.lines().count() >= 4, "{du}");
    let pruned = String::from_utf8(thunk.run(&["prune", "--all"]).stdout).unwrap();
    assert!(pruned.contains("Deleted: "), "{pruned}");
    let du = String::from_utf8(thunk.run(&["du"]).stdout).unwrap();
    assert_eq!(du, "Total: 0 B in 0 records\n");
    // What was pruned is made again.
    assert_eq!(layers(&thunk.build("hello.json", b"", "oci")), layers_of("base"));
}

#[test]
fn a_failed_build_leaves_what_was_there_before() {
    let thunk = Thunk::alone();
    let out = thunk.path("out.tar");
    std::fs::write(&out, "before").unwrap();
    let empty = thunk.path("empty");
    std::fs::create_dir_all(&empty).unwrap();
    std::fs::write(empty.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    let run = thunk.run(&[
        "build",
        "--progress=quiet",
        &format!("--oci-layout=base={}", empty.display()),
        &format!("--output=type=oci,dest={}", out.display()),
        "hello.json",
    ]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("the build failed: "), "{}", run.stderr);
    assert!(run.stderr.contains(&layers_manifest("base")), "no digest: {}", run.stderr);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "before");
    let names: Vec<_> =
        std::fs::read_dir(thunk.home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("partial")), "{names:?}");
}

fn layers_manifest(layout: &str) -> String {
    let index = json(&std::fs::read(testdata().join(layout).join("index.json")).unwrap());
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn bad_input_is_refused_with_what_to_do() {
    let thunk = Thunk::alone();
    let bad = thunk.path("bad.json");
    std::fs::write(&bad, r#"{"def": [{"Op": {"sauce": {}}}]}"#).unwrap();
    let bad = bad.display().to_string();
    let cases: &[&[&str]] = &[
        &["build", "no-such-file"],
        &["build", &bad],
        &["build", "make-layouts"],
        &["build", "hello.json"],
        &["build", "--oci-layout=base=no-such-directory", "hello.json"],
        &["build", "--oci-layout=base", "hello.json"],
        &["build", "--output=type=floppy", "hello.json"],
        &["build", "--output=type=oci", "--output=type=docker", "hello.json"],
        &["build", "--addr=buildkitd.sock", "--oci-layout=base=base", "hello.json"],
        &["build", "--addr=unix:///no/such.sock", "--oci-layout=base=base", "hello.json"],
        &["build", "--root=/dev/null/x", "--oci-layout=base=base", "hello.json"],
        &["prune", "--keep-storage=lots"],
    ];
    let mut said = String::new();
    for case in cases {
        let run = thunk.run(case);
        assert!(!run.success, "{case:?} succeeded");
        said += &format!("thunk {}\n{}\n", case.join(" "), run.stderr.trim_end());
    }
    let said = said.replace(thunk.home.path().to_str().unwrap(), "HOME");
    insta::with_settings!({ omit_expression => true }, {
        insta::assert_snapshot!(said);
    });
}

#[test]
fn the_empty_standard_input_is_refused() {
    let run = Thunk::alone().run(&["build"]);
    assert_eq!(run.stderr, "thunk: standard input: the definition is empty: it has no op\n");
}

/// A definition whose result is the directory `context` without its logs.
const LOCAL: &[u8] = br##"{
  "def": [
    {"Op": {"source": {"identifier": "local://context", "attrs": {"local.excludepatterns": "[\"**/*.log\"]"}}},
     "platform": {"OS": "linux", "Architecture": "amd64"}},
    {"inputs": [{"digest": "#0"}]}
  ]
}"##;

#[test]
fn a_directory_goes_into_a_build_and_its_files_come_out() {
    let thunk = Thunk::alone();
    let context = thunk.path("context");
    std::fs::create_dir_all(context.join("src")).unwrap();
    for (path, text) in [("src/kept", "kept"), ("src/left.log", "left"), ("top", "top")] {
        std::fs::write(context.join(path), text).unwrap();
    }
    std::os::unix::fs::symlink("../top", context.join("src/link")).unwrap();
    let local = format!("context={}", context.display());
    let build = |output: String| {
        let run = thunk.run_with(["build", "--progress=plain", "--local", &local, "-o", &output], LOCAL);
        assert!(run.success, "{}", run.stderr);
        run.stderr
    };
    let out = thunk.path("out");
    let said = build(format!("type=local,dest={}", out.display()));
    assert!(said.contains("transferring context:"), "{said}");
    assert_eq!(std::fs::read_to_string(out.join("src/kept")).unwrap(), "kept");
    assert_eq!(std::fs::read_link(out.join("src/link")).unwrap(), Path::new("../top"));
    assert!(!out.join("src/left.log").exists());

    std::fs::write(out.join("stale"), "stale").unwrap();
    build(format!("type=local,dest={}", out.display()));
    assert!(out.join("stale").exists(), "a copy leaves what is there");
    build(format!("type=local,dest={},mode=delete", out.display()));
    assert!(!out.join("stale").exists() && out.join("top").exists());

    let archive = thunk.path("out.tar");
    build(format!("type=tar,dest={}", archive.display()));
    let files = read_tar(&std::fs::read(&archive).unwrap());
    assert_eq!(files.keys().collect::<Vec<_>>(), ["src/", "src/kept", "src/link", "top"]);
    assert_eq!(files["top"], b"top");

    let run = thunk.run_with(["build", "--local", "other=.", "-o", "type=local,dest=x"], LOCAL);
    assert!(!run.success && run.stderr.contains("--local context=DIR"), "{}", run.stderr);
}
