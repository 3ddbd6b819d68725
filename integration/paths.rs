//! Paths of cold images: only the layers that cover them are fetched, counted at the registry.

use std::path::Path;

use thunk::proto::pb;

use crate::builds::assert_no_leak;
use crate::builds::files;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::TestRegistry;
use crate::harness::buildctl::Buildctl;
use crate::harness::daemon::Daemon;
use crate::harness::leaks::prune_files;
use crate::harness::llb;
use crate::harness::llb::State;

const LAYERS: usize = 12;

/// An image of twelve layers. Each has `/etc/file-<n>` of eight bytes, the lowest is 0; besides there is `/usr/lib`
/// in the fifth from the top, and `/lib` leads there in the third.
fn base() -> Image {
    Image::of((0..LAYERS).map(|n| {
        let (name, text) = (format!("etc/file-{n}"), format!("bytes {n:02}"));
        let mut entries = vec![("etc/", ""), (name.as_str(), text.as_str())];
        match LAYERS - n {
            5 => entries.extend([("usr/", ""), ("usr/lib/", ""), ("usr/lib/here", "in /usr/lib")]),
            3 => entries.push(("lib", "-> usr/lib")),
            _ => {}
        }
        Layer::tree(&entries)
    }))
}

struct Fixture {
    image: Image,
    registry: TestRegistry,
    daemon: Daemon,
    client: Buildctl,
}

impl Fixture {
    /// `None` where there is no `buildctl`.
    fn new() -> Option<Fixture> {
        let (image, daemon) = (base(), Daemon::start());
        let client = Buildctl::of(&daemon)?;
        let registry = TestRegistry::open();
        registry.put_image("base", "v1", &image);
        Some(Fixture { image, registry, daemon, client })
    }

    fn base(&self) -> State {
        llb::image(self.registry.reference("base", "v1"))
    }

    /// How often each layer was fetched, the top one first.
    fn gets(&self) -> Vec<usize> {
        self.image.layer_digests().iter().rev().map(|digest| self.registry.gets_of(digest)).collect()
    }

    /// Each of the topmost layers was fetched once, and none below.
    #[track_caller]
    fn assert_fetched(&self, topmost: usize) {
        let expected: Vec<usize> = (0..LAYERS).map(|n| usize::from(n < topmost)).collect();
        assert_eq!(self.gets(), expected, "{}", self.registry.story());
    }

    /// The files of a result.
    async fn files_of(&self, result: &State) -> std::collections::BTreeMap<String, String> {
        let archive = self.daemon.scratch().join("result.tar");
        let output = format!("type=tar,dest={}", archive.display());
        self.client.build(&result.marshal(), &[&output]).await.success();
        files(Path::new(&archive))
    }
}

/// `COPY --from=<source> <from> /out/`.
pub fn copy(source: &State, from: &str, change: impl FnOnce(&mut pb::FileActionCopy)) -> State {
    let mut copy = pb::FileActionCopy {
        src: from.to_owned(),
        dest: "/out/".to_owned(),
        mode: -1,
        create_dest_path: true,
        timestamp: -1,
        ..Default::default()
    };
    change(&mut copy);
    let action = pb::FileAction {
        input: -1,
        secondary_input: 0,
        output: 0,
        action: Some(pb::file_action::Action::Copy(copy)),
    };
    let file = pb::op::Op::File(pb::FileOp { actions: vec![action] });
    State::from_op(pb::Op { op: Some(file), ..pb::Op::default() }, std::slice::from_ref(source))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_the_top_layer_of_a_cold_base_fetches_that_layer() {
    let Some(f) = Fixture::new() else { return };
    let copied = copy(&f.base(), "/etc/file-11", |_| ());
    assert_eq!(f.files_of(&copied).await["out/file-11"], "bytes 11");
    f.assert_fetched(1);
    assert_no_leak(&f.client, &f.daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_further_down_fetches_the_layers_above_it_and_none_below() {
    let Some(f) = Fixture::new() else { return };
    let copied = copy(&f.base(), "/etc/file-7", |_| ());
    assert_eq!(f.files_of(&copied).await["out/file-7"], "bytes 07");
    f.assert_fetched(5);
    // What was opened is not fetched again, and says what it has.
    f.registry.forget();
    assert_eq!(f.files_of(&copy(&f.base(), "/etc/file-9", |_| ())).await["out/file-9"], "bytes 09");
    f.assert_fetched(0);
    assert_no_leak(&f.client, &f.daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_through_a_link_fetches_what_has_the_link_and_what_it_leads_to() {
    let Some(f) = Fixture::new() else { return };
    let copied = copy(&f.base(), "/lib/here", |_| ());
    assert_eq!(f.files_of(&copied).await["out/here"], "in /usr/lib");
    f.assert_fetched(5);
    assert_no_leak(&f.client, &f.daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_fetches_all_layers_that_may_have_what_matches_once() {
    let Some(f) = Fixture::new() else { return };
    let copied = copy(&f.base(), "/etc/file-1*", |copy| copy.allow_wildcard = true);
    let files = f.files_of(&copied).await;
    assert_eq!(files.keys().collect::<Vec<_>>(), ["out/file-1", "out/file-10", "out/file-11"]);
    f.assert_fetched(LAYERS);
    assert_no_leak(&f.client, &f.daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_nowhere_is_an_error_that_names_it() {
    let Some(f) = Fixture::new() else { return };
    let copied = copy(&f.base(), "/etc/none", |_| ());
    let said = f.client.build(&copied.marshal(), &[]).await.failure();
    assert!(said.contains("\"/etc/none\": not found"), "{said}");
    f.assert_fetched(LAYERS);
    assert_no_leak(&f.client, &f.daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_was_pruned_is_still_known_and_fetches_the_layer_that_has_the_file() {
    let Some(f) = Fixture::new() else { return };
    f.files_of(&f.base()).await;
    f.assert_fetched(LAYERS);
    prune_files(&f.client, &f.daemon).await;
    f.registry.forget();
    let copied = copy(&f.base(), "/etc/file-7", |_| ());
    assert_eq!(f.files_of(&copied).await["out/file-7"], "bytes 07");
    let expected: Vec<usize> = (0..LAYERS).map(|n| usize::from(LAYERS - 1 - n == 7)).collect();
    assert_eq!(f.gets(), expected, "{}", f.registry.story());
    assert_no_leak(&f.client, &f.daemon).await;
    let indexes = std::fs::read_dir(f.daemon.root().join("indexes")).expect("the directory of indexes");
    assert_eq!(indexes.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_below_etc_of_a_cold_base_fetches_the_layers_that_cover_its_path() {
    for (name, change, topmost) in [
        ("mkdir", llb::Action::MkDir { path: "/etc" }, 1),
        ("mkfile", llb::Action::MkFile { path: "/etc/file-9", data: b"new\n" }, 3),
        ("copy", llb::Action::Copy { from: "/file-10", to: "/etc/" }, 2),
        ("rm", llb::Action::Rm { path: "/etc/file-8" }, 4),
    ] {
        let Some(f) = Fixture::new() else { return };
        let source = llb::file(None, None, &llb::Action::MkFile { path: "/file-10", data: b"copied\n" });
        let source = matches!(change, llb::Action::Copy { .. }).then_some(source);
        let changed = llb::file(Some(&f.base()), source.as_ref(), &change);
        let output = format!("type=image,name={},push=true", f.registry.reference("base", name));
        f.client.build(&changed.marshal(), &[&output]).await.success();
        f.assert_fetched(topmost);
        let manifest = f.registry.manifest("base", name).expect("the manifest arrived");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
        assert_eq!(manifest["layers"].as_array().unwrap().len(), LAYERS + 1, "{name}");
        let files = f.files_of(&changed).await;
        match name {
            "mkfile" => assert_eq!(files["etc/file-9"], "new\n"),
            "copy" => assert_eq!(files["etc/file-10"], "copied\n"),
            "rm" => assert!(!files.contains_key("etc/file-8")),
            _ => assert_eq!(files["etc/file-0"], "bytes 00"),
        }
        assert_no_leak(&f.client, &f.daemon).await;
    }
}
