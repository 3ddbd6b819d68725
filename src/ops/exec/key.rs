//! How an exec op and its inputs enter the cache key, as with BuildKit.
//!
//! An input counts by the paths of it that are mounted. Where the process can't carry anything else of it into a
//! result, its content may stand for it.

use super::super::cache_map::CacheMap;
use super::super::cache_map::CacheOpts;
use super::super::cache_map::ContentDigest;
use super::super::cache_map::InputKey;
use super::super::op::ContentCache;
use super::super::op::ExecMount;
use super::super::op::ExecOp;
use super::super::op::MountKind;
use super::super::op::ROOT;
use crate::cache::ImmutableRef;
use crate::oci::Digest;

/// What of one input counts.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Dependency {
    /// Clean absolute paths, one per mount of the input.
    selectors: Vec<String>,
    by_content: bool,
}

/// `content` hashes what paths of an input (by its number) hold, links at their ends followed; of no path, all of it.
pub fn cache_map(
    op: &ExecOp,
    inputs: usize,
    content: impl Fn(usize, Vec<String>) -> Option<ContentDigest<ImmutableRef>>,
) -> CacheMap<ImmutableRef> {
    let key = |(input, dependency): (usize, Dependency)| {
        let Dependency { selectors, by_content } = dependency;
        if selectors.is_empty() {
            return InputKey::default();
        }
        let content = by_content.then(|| content(input, content_paths(&selectors))).flatten();
        InputKey { selector: Some(Digest::sha256(selectors.join("\0"))), content }
    };
    let inputs = dependencies(op, inputs).into_iter().enumerate().map(key).collect();
    CacheMap { digest: op.key, inputs, opts: CacheOpts::new(), complete: true }
}

fn dependencies(op: &ExecOp, inputs: usize) -> Vec<Dependency> {
    let mut found = vec![Dependency::default(); inputs];
    for mount in &op.mounts {
        let Some(dependency) = mount.input.and_then(|input| found.get_mut(input)) else { continue };
        if !matches!(mount.kind, MountKind::Bind | MountKind::Cache { .. }) {
            continue;
        }
        let selector = clean(&mount.selector);
        dependency.by_content = is_by_content(mount, &selector);
        dependency.selectors.push(selector);
    }
    found
}

/// A process that writes to a part of an input passes the rest on unseen: then its content doesn't tell all.
fn is_by_content(mount: &ExecMount, selector: &str) -> bool {
    let is_safe = !mount.output || mount.read_only || selector == ROOT;
    match mount.content_cache {
        ContentCache::Off => false,
        ContentCache::On => is_safe,
        // To hash a whole root costs more than it is worth.
        ContentCache::Default => is_safe && mount.dest != ROOT,
    }
}

/// Without those that lie in another one; none for everything.
fn content_paths(paths: &[String]) -> Vec<String> {
    let mut paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    paths.sort_unstable();
    paths.dedup();
    if paths.contains(&ROOT) {
        return Vec::new();
    }
    let is_below =
        |path: &str, above: &str| path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
    let kept = paths.iter().filter(|path| !paths.iter().any(|above| is_below(path, above)));
    kept.map(|path| (*path).to_owned()).collect()
}

/// The path from the root, without `.`, `..` and doubled slashes.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(dest: &str, selector: &str) -> ExecMount {
        ExecMount {
            dest: dest.to_owned(),
            input: Some(0),
            selector: selector.to_owned(),
            output: false,
            read_only: false,
            kind: MountKind::Bind,
            content_cache: ContentCache::Default,
        }
    }

    fn op(mounts: Vec<ExecMount>) -> ExecOp {
        ExecOp {
            args: vec!["true".to_owned()],
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            hostname: String::new(),
            extra_hosts: Vec::new(),
            proxy: None,
            ulimits: Vec::new(),
            cgroup_parent: String::new(),
            remove_mount_stubs_recursive: false,
            valid_exit_codes: vec![0],
            mounts,
            network: Default::default(),
            security: Default::default(),
            secret_env: Vec::new(),
            devices: Vec::new(),
            key: Digest::sha256("op"),
        }
    }

    #[test]
    fn content_counts_where_nothing_else_can_get_into_a_result() {
        let output = |mount| ExecMount { output: true, ..mount };
        let read_only = |mount| ExecMount { read_only: true, ..mount };
        for (mount, expected) in [
            (mount("/", ""), false),
            (mount("/in", ""), true),
            (mount("/in", "sub"), true),
            (output(mount("/in", "")), true),
            (output(mount("/in", "sub")), false),
            (output(read_only(mount("/in", "sub"))), true),
            (ExecMount { content_cache: ContentCache::Off, ..mount("/in", "") }, false),
            (ExecMount { content_cache: ContentCache::On, ..mount("/", "") }, true),
        ] {
            let found = dependencies(&op(vec![mount.clone()]), 1);
            assert_eq!(found[0].by_content, expected, "{mount:?}");
        }
    }

    #[test]
    fn the_selector_is_the_digest_of_every_path_that_is_mounted() {
        let mounts = vec![
            mount("/", "/"),
            ExecMount { input: Some(1), ..mount("/a", "x//y/../z") },
            ExecMount { input: Some(1), ..mount("/b", "/w") },
            ExecMount { input: None, ..mount("/c", "") },
            ExecMount { input: Some(1), kind: MountKind::Tmpfs { size: None }, ..mount("/d", "") },
        ];
        let found = dependencies(&op(mounts), 3);
        assert_eq!(found[0].selectors, ["/"]);
        assert_eq!(found[1].selectors, ["/x/z", "/w"]);
        assert!(found[2].selectors.is_empty());
    }

    #[test]
    fn a_path_below_another_one_is_hashed_with_it() {
        let paths = |selectors: &[&str]| {
            let selectors: Vec<String> = selectors.iter().map(|s| (*s).to_owned()).collect();
            content_paths(&selectors)
        };
        assert_eq!(paths(&["/foobar", "/foo/x", "/foo", "/foo"]), ["/foo", "/foobar"]);
        assert!(paths(&["/", "/a"]).is_empty());
    }

    #[test]
    fn paths_are_cleaned_from_the_root() {
        for (path, expected) in
            [("", "/"), ("/", "/"), ("a/./b/", "/a/b"), ("../../x", "/x"), ("/a//../b", "/b")]
        {
            assert_eq!(clean(path), expected);
        }
    }
}
