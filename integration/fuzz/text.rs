//! What registries and clients say in words: manifests, indexes, digests, references, platforms, patterns.
//!
//! # Statements
//!
//! - What was understood is spelled so that it is understood as the same.
//! - A path matches a list of patterns without exceptions the same way whether its directories were looked at before it
//!   or not. (With exceptions BuildKit, and so thunk, makes a difference.)

use thunk::oci::Digest;
use thunk::oci::ManifestOrIndex;
use thunk::oci::Platform;
use thunk::oci::Reference;
use thunk::pattern;
use thunk::pattern::Glob;
use thunk::pattern::Matched;
use thunk::pattern::Patterns;

use crate::Target;
use crate::mutate_bytes;

pub(crate) const TARGET: Target = Target { name: "text", run, mutate: mutate_bytes, seeds };

const MEDIA_TYPES: [&str; 4] = [
    "",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json; charset=utf-8",
];

fn run(data: &[u8]) {
    for media_type in MEDIA_TYPES {
        manifest(media_type, data);
    }
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
    if let Ok(platform) = text.parse::<Platform>() {
        let again = platform.to_string().parse::<Platform>();
        assert_eq!(again.expect("it was spelled by us"), platform);
        assert!(platform.match_rank(&platform).is_some());
    }
    if let Ok(reference) = text.parse::<Reference>() {
        let again = reference.to_string().parse::<Reference>();
        assert_eq!(again.expect("it was spelled by us"), reference);
    }
    patterns(text);
}

fn manifest(media_type: &str, data: &[u8]) {
    match ManifestOrIndex::parse(media_type, data) {
        Ok(ManifestOrIndex::Manifest(manifest)) => {
            let bytes = serde_json::to_vec(&manifest).expect("it is written");
            let again = ManifestOrIndex::parse(&manifest.media_type, &bytes);
            assert_eq!(again.expect("it was written by us"), ManifestOrIndex::Manifest(manifest.clone()));
            let sources = manifest.layers.iter().flat_map(|layer| layer.distribution_sources());
            assert!(sources.into_iter().all(|(_, repository)| !repository.is_empty()));
        }
        Ok(ManifestOrIndex::Index(index)) => {
            let bytes = serde_json::to_vec(&index).expect("it is written");
            let again = ManifestOrIndex::parse(&index.media_type, &bytes);
            assert_eq!(again.expect("it was written by us"), ManifestOrIndex::Index(index.clone()));
            let selected = index.select(&Platform::host());
            assert!(selected.is_none_or(|selected| index.find(&selected.digest).is_some()));
            index.platforms();
        }
        Err(_) => {}
    }
}

/// The last line is a path, and those before it are patterns.
fn patterns(text: &str) {
    let (patterns, path) = text.rsplit_once('\n').unwrap_or(("*", text));
    let clean = pattern::clean(path);
    assert_eq!(pattern::clean(&clean), clean);
    let (literal, rest) = pattern::split_wildcards(path);
    assert!(!pattern::has_wildcards(&literal) && (rest.is_empty() || pattern::has_wildcards(&rest)));
    if let Ok(glob) = Glob::new(patterns)
        && !pattern::has_wildcards(patterns)
        && !patterns.contains('\\')
    {
        assert_eq!(glob.matches(path), patterns == path);
    }
    let Ok(patterns) = Patterns::new(patterns.lines()) else { return };
    if clean.starts_with('/') || clean.starts_with("..") || clean == "." {
        patterns.matches(path);
        return;
    }
    let mut matched = Matched::default();
    let mut stepped = false;
    let ends = clean.match_indices('/').map(|(at, _)| at).chain([clean.len()]);
    for end in ends {
        (stepped, matched) = patterns.matches_in(&clean[..end], &matched);
    }
    assert!(patterns.has_exceptions() || patterns.matches(&clean) == stepped);
}

fn seeds() -> Vec<Vec<u8>> {
    let zeros = "0".repeat(64);
    let texts = [
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{zeros}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:{zeros}","size":3,"urls":["https://a.example"],"annotations":{{"containerd.io/distribution.source.r.example":"a,b"}}}}],"subject":null,"annotations":null}}"#
        ),
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha512:{zeros}{zeros}","size":2,"platform":{{"architecture":"arm","os":"linux","os.version":"1","os.features":["x"],"variant":"v7"}}}},{{"digest":"sha256:{zeros}","size":4,"artifactType":"a"}}],"annotations":{{"a":"b"}}}}"#
        ),
        r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
        format!("sha256:{zeros}"),
        format!("r.example:5000/a/b.c-d__e:tag@sha256:{zeros}"),
        "docker.io/library/busybox:latest".to_owned(),
        "linux/arm/v7".to_owned(),
        "windows(10.0.1+x)/amd64".to_owned(),
        "# comment\n**/*.go\n!a/b?[c-e]\\*\n/x/\n../y\na/b/c.go".to_owned(),
        "**\n!**/keep\nd/keep".to_owned(),
        "a*a*a*a*a*a*b\naaaaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned(),
    ];
    texts.map(String::into_bytes).to_vec()
}
