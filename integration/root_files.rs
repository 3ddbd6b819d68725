//! Files that are made in, or copied to, the root directory of an image, by what is there: beside the real `buildkitd`
//! where the image was here once, and as documented where nobody has seen it.

use std::collections::BTreeMap;
use std::path::Path;

use tar::EntryType;
use thunk::proto::pb;

use crate::builds::assert_no_leak;
use crate::harness::Buildkitd;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::TestRegistry;
use crate::harness::buildctl::Buildctl;
use crate::harness::daemon::Daemon;
use crate::harness::leaks::prune_files;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::harness::llb::State;

/// What is at `/f`.
const THERE: [&str; 6] = ["nothing", "file", "link", "dangling", "dirlink", "dir"];

/// What is done there.
const DONE: [&str; 3] = ["mkfile", "copy of a file", "copy of a directory"];

/// Kind, mode, owner and what is in it.
type Listing = BTreeMap<String, String>;

fn base(there: &str) -> Image {
    let mut builder = tar::Builder::new(Vec::new());
    let mut put = |path: &str, kind: EntryType, mode: u32, data: &str| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_600_000_000);
        header.set_mode(mode);
        if kind == EntryType::Symlink {
            header.set_size(0);
            builder.append_link(&mut header, path, data).expect("tar to memory");
        } else {
            header.set_size(data.len() as u64);
            builder.append_data(&mut header, path, data.as_bytes()).expect("tar to memory");
        }
    };
    put("d/", EntryType::Directory, 0o751, "");
    put("d/in", EntryType::Regular, 0o604, "in d");
    put("real", EntryType::Regular, 0o604, "real");
    match there {
        "file" => put("f", EntryType::Regular, 0o640, "a file that is longer than what is written"),
        "link" => put("f", EntryType::Symlink, 0o777, "real"),
        "dangling" => put("f", EntryType::Symlink, 0o777, "d/new"),
        "dirlink" => put("f", EntryType::Symlink, 0o777, "d"),
        "dir" => put("f/", EntryType::Directory, 0o750, ""),
        _ => {}
    }
    let lowest = Layer::gzip(builder.into_inner().expect("tar to memory"));
    Image::of([lowest, Layer::tree(&[("top", there)])])
}

fn change(base: &State, done: &str) -> State {
    let file = Action::MkFile { path: "/f", data: b"new" };
    match done {
        "mkfile" => llb::file(Some(base), None, &file),
        "copy of a file" => {
            let source = llb::file(None, None, &file);
            llb::file(Some(base), Some(&source), &Action::Copy { from: "/f", to: "/" })
        }
        _ => {
            let source = llb::file(None, None, &Action::MkDir { path: "/f" });
            let source = llb::file(Some(&source), None, &Action::MkFile { path: "/f/new", data: b"new" });
            let copy = pb::FileActionCopy {
                src: "/f".to_owned(),
                dest: "/f".to_owned(),
                dir_copy_contents: true,
                mode: -1,
                create_dest_path: true,
                timestamp: -1,
                ..Default::default()
            };
            let action = pb::FileAction {
                input: 0,
                secondary_input: 1,
                output: 0,
                action: Some(pb::file_action::Action::Copy(copy)),
            };
            let op = pb::op::Op::File(pb::FileOp { actions: vec![action] });
            State::from_op(pb::Op { op: Some(op), ..pb::Op::default() }, &[base.clone(), source])
        }
    }
}

fn list(archive: &Path) -> Listing {
    let archive = std::fs::File::open(archive).expect("an archive");
    let mut listing = Listing::new();
    for entry in tar::Archive::new(archive).entries().expect("entries") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        let link = entry.link_name().expect("a link").map(|link| link.display().to_string());
        let mut text = String::new();
        std::io::Read::read_to_string(&mut entry, &mut text).expect("its bytes");
        let header = entry.header();
        let (kind, mode) = (header.entry_type(), header.mode().expect("a mode") & 0o7777);
        let (uid, gid) = (header.uid().expect("an owner"), header.gid().expect("a group"));
        let path = path.trim_end_matches('/').to_owned();
        listing.insert(path, format!("{kind:?} {mode:o} {uid}:{gid} {}{text}", link.unwrap_or_default()));
    }
    listing
}

/// The files of a build, or nothing if it fails.
async fn files_of(client: &Buildctl, state: &State) -> Option<Listing> {
    let archive = client.home().join("result.tar");
    let output = format!("type=tar,dest={}", archive.display());
    let run = client.build(&state.marshal(), &[&output]).await;
    run.status.success().then(|| list(&archive))
}

fn layer_gets(registry: &TestRegistry, image: &Image) -> usize {
    image.layer_digests().iter().map(|digest| registry.gets_of(digest)).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_base_that_was_here_once_they_are_what_buildkitd_makes_of_them() {
    let Some(buildkitd) = Buildkitd::start("") else { return };
    let daemon = Daemon::start();
    let (Some(theirs), Some(ours)) = (Buildctl::at(buildkitd.address()), Buildctl::of(&daemon)) else {
        return;
    };
    let registry = TestRegistry::open();
    for there in THERE {
        let image = base(there);
        registry.put_image(there, "v1", &image);
        let base = llb::image(registry.reference(there, "v1"));
        files_of(&ours, &base).await.expect("the base has files");
        for done in DONE {
            prune_files(&ours, &daemon).await;
            registry.forget();
            let changed = change(&base, done);
            // Its layer is made before anybody looks at the others.
            let name = registry.reference(there, "changed");
            let output = format!("type=image,name={name},push=true,store=false");
            let push = ours.build(&changed.marshal(), &[&output]).await;
            let moved = layer_gets(&registry, &image);
            let (theirs, ours) = (files_of(&theirs, &changed).await, files_of(&ours, &changed).await);
            assert_eq!(ours, theirs, "{done} where there is {there}");
            assert_eq!(push.status.success(), theirs.is_some(), "{done} where there is {there}");
            // What is there is known. Only a file that is written to, or may be, has to be here.
            let most = match (there, done) {
                ("file" | "link", "mkfile" | "copy of a directory") => 1,
                _ => 0,
            };
            assert!(moved <= most, "{done} where there is {there}: {moved}\n{}", registry.story());
        }
    }
    assert_no_leak(&ours, &daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_base_that_nobody_has_seen_a_file_replaces_what_is_there_and_moves_no_layer() {
    let daemon = Daemon::start();
    let Some(client) = Buildctl::of(&daemon) else { return };
    let registry = TestRegistry::open();
    for there in THERE {
        let image = base(there);
        registry.put_image(there, "v1", &image);
        let base = llb::image(registry.reference(there, "v1"));
        for done in &DONE[..2] {
            registry.forget();
            let changed = change(&base, done);
            let name = registry.reference(there, "changed");
            let output = format!("type=image,name={name},push=true,store=false");
            client.build(&changed.marshal(), &[&output]).await.success();
            assert_eq!(layer_gets(&registry, &image), 0, "{}", registry.story());
            let files = files_of(&client, &changed).await.expect("the same build again");
            assert_eq!(files["f"], "Regular 644 0:0 new", "{done} where there is {there}");
            // Nobody knows the layers any more.
            assert_no_leak(&client, &daemon).await;
        }
    }
}
