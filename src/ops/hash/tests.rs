use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::fs::FileTime;
use crate::fs::Last;
use crate::fs::MetaChange;
use crate::fs::Owner;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    /// Files whose contents are their names, modes 0644 and 0755; an arrow makes a link.
    fn new(names: &[&str]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let fixture = Fixture { dir };
        for name in names {
            match name.split_once(" -> ") {
                Some((name, target)) => {
                    fixture.parents(name);
                    symlink(target, fixture.at(name)).unwrap();
                }
                None => fixture.write(name, name),
            }
        }
        fixture
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn parents(&self, path: &str) {
        let mut made = self.dir.path().to_path_buf();
        for part in path.split('/').rev().skip(1).collect::<Vec<_>>().into_iter().rev() {
            made.push(part);
            if fs::create_dir(&made).is_ok() {
                fs::set_permissions(&made, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
    }

    fn write(&self, path: &str, text: &str) {
        self.parents(path);
        fs::write(self.at(path), text).unwrap();
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn root(&self) -> Root {
        Root::open(self.dir.path()).unwrap()
    }

    fn of(&self, selector: &Selector) -> Result<Digest, HashError> {
        select::checksum(&self.root(), selector, &CancellationToken::new())
    }

    fn path(&self, path: &str) -> String {
        self.of(&Selector { path: path.into(), ..Selector::default() }).unwrap().to_string()
    }

    fn wild(&self, path: &str) -> String {
        let selector = Selector { path: path.into(), wildcard: true, ..Selector::default() };
        self.of(&selector).unwrap().to_string()
    }

    fn chosen(&self, path: &str, include: &[&str], exclude: &[&str]) -> String {
        let texts = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        let (include, exclude) = (texts(include), texts(exclude));
        self.of(&Selector { path: path.into(), include, exclude, ..Selector::default() }).unwrap().to_string()
    }
}

/// The header of a file or directory of root, as the format says it.
fn header_of(mode: u32, size: usize, flag: &str, link: &str) -> String {
    format!("namemode{mode}uid0gid0size{size}typeflag{flag}linkname{link}unamegnamedevmajor0devminor0")
}

fn sha(text: impl AsRef<[u8]>) -> String {
    Digest::sha256(text).to_string()
}

fn file(text: &str) -> String {
    sha(header_of(0o644, text.len(), "0", "") + text)
}

fn dir(entries: &[(&str, String)]) -> String {
    let mut whole = format!("\0{}", sha(header_of(0o755, 0, "5", "")));
    for (name, digest) in entries {
        whole += &format!("\0{name}{digest}");
    }
    sha(whole)
}

#[test]
fn the_format_is_the_documented_one() {
    let f = Fixture::new(&["a", "d/b", "d/l -> ../a", "d-e", "d/s/c"]);
    let link = sha(header_of(0o777, 0, "2", "../a"));
    let sub = dir(&[("c", file("d/s/c"))]);
    let d = dir(&[("b", file("d/b")), ("l", link.clone()), ("s", sub)]);
    assert_eq!(f.path("/a"), file("a"));
    assert_eq!(f.path("d/l"), link);
    assert_eq!(f.path("/d"), d);
    assert_eq!(f.path("/d/"), d);
    // By component: `d-e` comes after everything in `d`.
    assert_eq!(f.path("/"), dir(&[("a", file("a")), ("d", d), ("d-e", file("d-e"))]));
    assert_eq!(f.path(""), f.path("/"));
}

/// The numbers of trees that BuildKit's `cache/contenthash` promises to keep.
#[test]
fn the_digests_are_those_of_buildkit() {
    const DATA0: &str = "sha256:cd8e75bca50f2d695f220d0cb0997d8ead387e4f926e8669a92d7f104cc9885b";
    const DATA1: &str = "sha256:c2b5e234f5f38fc5864da7def04782f82501a40d46192e4207d5b3f0c3c4732b";
    const D0: &str = "sha256:d47454417d2c554067fbefe5f5719edc49f3cfe969c36b62e34a187a4da0cc9a";
    const ROOT: &str = "sha256:427c9cf9ae98c0f81fb57a3076b965c7c149b6b0a85625ad4e884236649a42c6";
    let f = Fixture::new(&["d0/def -> abc", "d0/ghi -> nosuchfile"]);
    f.write("foo", "data0");
    f.write("bar", "data1");
    f.write("d0/abc", "data0");
    let followed = |path: &str| f.of(&Selector::file(path)).unwrap().to_string();
    assert_eq!(followed("foo"), DATA0);
    assert_eq!(followed("bar"), DATA1);
    assert_eq!(followed("d0/def"), DATA0);
    assert_eq!(followed("d0"), D0);
    assert!(f.of(&Selector::file("d0/ghi")).is_err());
    assert_eq!(followed("/"), ROOT);

    const FILES_OF_D0: &str = "sha256:6b612ad5c13159112ae26357ef7bd34df29916941ba40ec2ce38dfb70c6c60c3";
    const FOOS: &str = "sha256:0b6731924f0a32a812bf8a729202e55e54ded331f9e4ff2397f681e43694e086";
    const LINKED_FOOS: &str = "sha256:982153600b9653a1decb0f961e09e2bc1be335cfcaac9b39dbd1120b65fdf92c";
    let f = Fixture::new(&["x/d0/def -> abc", "x/d0/ghi -> nosuchfile", "y1 -> foo", "y2 -> fox"]);
    for (path, data) in [("bar", "data1"), ("foo", "data0"), ("fox", "data2"), ("x/d0/abc", "data0")] {
        f.write(path, data);
    }
    let followed =
        |path: &str| f.of(&Selector { wildcard: true, ..Selector::file(path) }).unwrap().to_string();
    assert_eq!(f.wild("f*o"), sha(format!("\0foo{DATA0}")));
    assert_eq!(f.wild("f*"), FOOS);
    assert_eq!(f.wild("x/d?"), FILES_OF_D0);
    assert_eq!(followed("x/d?/def"), DATA0);
    assert_eq!(followed("y*"), LINKED_FOOS);
}

#[test]
fn times_do_not_count_and_everything_else_does() {
    let f = Fixture::new(&["d/a"]);
    let root = f.root();
    let first = f.path("/d");
    let change = |change: MetaChange<'_>| {
        root.set_meta("d/a", &change, Last::Keep).unwrap();
        f.path("/d")
    };
    let mtime = Some(FileTime { seconds: 1, nanos: 2 });
    assert_eq!(change(MetaChange { mtime, ..MetaChange::default() }), first);
    let mut seen = vec![first];
    let mut is_new = |digest: String| {
        assert!(!seen.contains(&digest));
        seen.push(digest);
    };
    is_new(change(MetaChange { mode: Some(0o600), ..MetaChange::default() }));
    is_new(change(MetaChange { owner: Some(Owner { uid: 1, gid: 0 }), ..MetaChange::default() }));
    is_new(change(MetaChange { owner: Some(Owner { uid: 1, gid: 2 }), ..MetaChange::default() }));
    root.set_xattr("d/a", "user.note", b"x", Last::Keep).unwrap();
    is_new(f.path("/d"));
    fs::write(f.at("d/a"), "other").unwrap();
    is_new(f.path("/d"));
    fs::rename(f.at("d/a"), f.at("d/b")).unwrap();
    is_new(f.path("/d"));
}

#[test]
fn links_are_followed_in_the_root() {
    let f =
        Fixture::new(&["real/f", "abs -> /real", "up -> ../../../real", "last -> real/f", "loop -> loop"]);
    assert_eq!(f.path("/abs/f"), f.path("/real/f"));
    assert_eq!(f.path("/up/f"), f.path("/real/f"));
    let followed = f.of(&Selector::file("/last")).unwrap().to_string();
    assert_eq!(followed, f.path("/real/f"));
    assert_ne!(f.path("/last"), followed, "by itself it is a link");
    assert!(f.of(&Selector::file("/loop")).is_err());
}

#[test]
fn what_is_not_there_is_said_as_clients_know_it() {
    let f = Fixture::new(&["file"]);
    for path in ["/nothing", "/file/x", "/a/b/c"] {
        let error = f.of(&Selector::file(path)).unwrap_err();
        assert_eq!(error.to_string(), format!("{path:?}: not found"));
    }
    let required = Selector { include: vec!["x".into()], required: vec!["/x".into()], ..Selector::default() };
    assert_eq!(f.of(&required).unwrap_err().to_string(), "\"/x\": not found");
    let there =
        Selector { include: vec!["file".into()], required: vec!["/file".into()], ..Selector::default() };
    f.of(&there).unwrap();
}

#[test]
fn wildcards_and_patterns_hash_what_they_choose() {
    let f = Fixture::new(&["d/a.txt", "d/b.txt", "d/c.md", "d/sub/x.txt", "e/a.txt"]);
    let list = |entries: &[(&str, &str)]| {
        sha(entries.iter().map(|(path, digest)| format!("{path}{digest}")).collect::<String>())
    };
    let header = sha(header_of(0o755, 0, "5", ""));
    let (a, b) = (file("d/a.txt"), file("d/b.txt"));
    assert_eq!(f.wild("/d/*.txt"), list(&[("\0a.txt", &a), ("\0b.txt", &b)]));
    assert_eq!(f.wild("/d/a.*"), list(&[("\0a.txt", &a)]), "its name is another one");
    assert_eq!(f.wild("/*/c.md"), file("d/c.md"), "one of the pattern's own name is what it is");
    assert_eq!(f.wild("/d/*.none"), sha(""));
    assert_eq!(f.wild("/none/*"), sha(""));
    assert_eq!(f.wild("/d/a.txt"), a, "without a wildcard it is a path");
    let sub = file("d/sub/x.txt");
    assert_eq!(f.wild("/d/s*"), list(&[("\0sub", &header), ("\0sub\0x.txt", &sub)]));
    assert_eq!(f.chosen("/d", &["a.txt"], &[]), list(&[("\0", &header), ("\0a.txt", &a)]));
    let expected = list(&[("\0", &header), ("\0sub", &header), ("\0sub\0x.txt", &sub)]);
    assert_eq!(f.chosen("/d", &["sub/*.txt"], &[]), expected);
    let expected = list(&[("\0", &header), ("\0a.txt", &a), ("\0b.txt", &b)]);
    assert_eq!(f.chosen("/d", &[], &["c.md", "sub"]), expected);
    assert_eq!(f.chosen("/", &["e/a.txt"], &[]), list(&[("\0e", &header), ("\0e\0a.txt", &file("e/a.txt"))]));
    assert_eq!(f.chosen("/none", &["a"], &[]), sha(""));
}

#[test]
fn a_file_outside_of_what_is_chosen_does_not_count() {
    let f = Fixture::new(&["d/a.txt", "d/other", "x/y"]);
    let before = (f.wild("/d/*.txt"), f.chosen("/d", &["*.txt"], &[]));
    f.write("d/other", "changed");
    f.write("d/new", "new");
    assert_eq!((f.wild("/d/*.txt"), f.chosen("/d", &["*.txt"], &[])), before);
    f.write("d/b.txt", "");
    assert_ne!((f.wild("/d/*.txt"), f.chosen("/d", &["*.txt"], &[])), before);
}

#[test]
fn many_bytes_have_the_digest_of_few_threads() {
    let f = Fixture::new(&[]);
    let texts: Vec<String> = (0..40).map(|n| format!("{n:04}").repeat(20_000)).collect();
    for (n, text) in texts.iter().enumerate() {
        f.write(&format!("d/{n:02}"), text);
    }
    let names: Vec<String> = (0..40).map(|n| format!("{n:02}")).collect();
    let entries: Vec<(&str, String)> =
        names.iter().zip(&texts).map(|(name, text)| (name.as_str(), file(text))).collect();
    assert_eq!(f.path("/d"), dir(&entries));
}

#[test]
fn selectors_that_others_cover_go() {
    let plain = |path: &str, follow| Selector { path: path.into(), follow, ..Selector::default() };
    let wild = Selector { path: "/a/*".into(), wildcard: true, ..Selector::default() };
    let kept = deduplicated(vec![
        plain("/b/c", true),
        plain("/b", true),
        plain("/b/c", false),
        plain("/bc", true),
        wild.clone(),
        plain("/b", true),
    ]);
    assert_eq!(kept, [wild, plain("/b", true), plain("/b/c", false), plain("/bc", true)]);
    assert_eq!(outermost(vec!["/".into(), "/x".into()]), ["/"]);
}

#[test]
fn the_empty_file_system_has_a_root_and_nothing_else() {
    assert_eq!(of_nothing(&[Selector::default()]).unwrap().to_string(), sha(sha("")));
    let error = of_nothing(&[Selector::file("/x")]).unwrap_err();
    assert!(matches!(error, HashError::NotFound { .. }));
}

#[test]
fn the_selector_of_an_input_is_that_of_buildkit() {
    let hasher = ContentHasher::new(Tasks::new());
    let key = hasher.input_key(0, vec![Selector::file("/a"), Selector::file("/b")]);
    assert_eq!(key.selector, Some(Digest::sha256("/b\0/a")));
    assert!(key.content.is_some());
    let whole = hasher.input_key(0, Vec::new());
    assert!(whole.selector.is_none() && whole.content.is_none());
}
