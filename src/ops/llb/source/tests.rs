use super::*;
use crate::oci::Digest;

fn parse(identifier: &str, attrs: &[(&str, &str)]) -> Result<Op, String> {
    let attrs = attrs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let sent = pb::SourceOp { identifier: identifier.to_owned(), attrs };
    source(&sent, VertexDigest(Digest::sha256(""))).map_err(|error| match error {
        LlbError::Invalid { reason, .. } => reason.to_string(),
        error => error.to_string(),
    })
}

fn local(attrs: &[(&str, &str)]) -> Result<LocalSource, String> {
    match parse("local://context", attrs)? {
        Op::Local(local) => Ok(local),
        op => panic!("{op:?}"),
    }
}

fn http(attrs: &[(&str, &str)]) -> Result<HttpSource, String> {
    match parse("https://example.com/a/b?c=d", attrs)? {
        Op::Http(http) => Ok(http),
        op => panic!("{op:?}"),
    }
}

#[test]
fn every_attribute_of_a_local_source_is_parsed() {
    let parsed = local(&[
        ("local.session", "build:s1"),
        ("local.unique", "u"),
        ("local.includepattern", r#"["a","b"]"#),
        ("local.excludepatterns", r#"["c"]"#),
        ("local.followpaths", r#"["d"]"#),
        ("local.sharedkeyhint", "hint"),
        ("local.differ", "none"),
        ("local.metadatatransfer", "true"),
        ("local.metadatatransferexclude", r#"["e"]"#),
        ("local.of.the.future", "1"),
    ])
    .unwrap();
    let expected = LocalSource {
        name: "build-context".into(),
        session: Some("s1".into()),
        unique: Some("u".into()),
        include: vec!["a".into(), "b".into()],
        exclude: vec!["c".into()],
        follow: vec!["d".into()],
        shared_key_hint: "hint".into(),
        differ: Differ::None,
        metadata_only: Some(MetadataOnly { except: vec!["e".into()] }),
    };
    assert_eq!(parsed, expected);
    let plain = local(&[("local.session", "s1"), ("local.includepattern", "null")]).unwrap();
    assert_eq!((plain.name.as_str(), plain.session.as_deref()), ("context", Some("s1")));
    assert_eq!((plain.differ, plain.metadata_only), (Differ::Metadata, None));
}

#[test]
fn every_attribute_of_a_web_source_is_parsed() {
    let digest = Digest::sha256("x");
    let parsed = http(&[
        ("http.checksum", &digest.to_string()),
        ("http.filename", "f"),
        ("http.perm", "0644"),
        ("http.uid", "7"),
        ("http.gid", "0x8"),
        ("http.authheadersecret", "token"),
        ("http.header.user-agent", "me"),
        ("http.header.accept", "*/*"),
        ("http.header.cookie", "no"),
        ("http.sig.pubkey", "key"),
        ("http.sig.signature", "sig"),
    ])
    .unwrap();
    let expected = HttpSource {
        checksum: Some(digest),
        filename: Some("f".into()),
        perm: Some(0o644),
        uid: 7,
        gid: 8,
        auth_header_secret: Some("token".into()),
        headers: vec![("Accept".into(), "*/*".into()), ("User-Agent".into(), "me".into())],
        signature: Some(HttpSignature { public_key: "key".into(), signature: "sig".into() }),
        ..HttpSource::new("https://example.com/a/b?c=d")
    };
    assert_eq!(parsed, expected);
    assert_eq!(http(&[("http.perm", "0")]).unwrap().perm, None);
}

#[test]
fn what_is_wrong_is_named() {
    let of_http = |key: &str, value: &str| http(&[(key, value)]).unwrap_err();
    let of_local = |key: &str, value: &str| local(&[(key, value)]).unwrap_err();
    for (found, expected) in [
        (of_local("local.includepattern", "a"), r#"local.includepattern "a" is not a list of texts in JSON"#),
        (of_local("local.differ", "x"), r#"local.differ "x" is not metadata or none"#),
        (of_local("local.metadatatransfer", ""), r#"local.metadatatransfer "" is not true or false"#),
        (of_http("http.checksum", "md5:1"), r#"http.checksum "md5:1" is not a digest"#),
        (of_http("http.filename", "../x"), r#"http.filename "../x" is not the name of a file"#),
        (of_http("http.filename", ".."), r#"http.filename ".." is not the name of a file"#),
        (of_http("http.perm", "10000"), r#"http.perm "10000" is not permission bits"#),
        (of_http("http.perm", "-1"), r#"http.perm "-1" is not a number that is not negative"#),
        (of_http("http.uid", "4294967296"), r#"http.uid "4294967296" is not a number that is not negative"#),
        (of_http("http.gid", "root"), r#"http.gid "root" is not a number that is not negative"#),
        (of_http("http.gid", "0x+1"), r#"http.gid "0x+1" is not a number that is not negative"#),
        (of_http("http.header.accept", "a\nb"), r#"http.header.accept "a\nb" is not the value of a header"#),
        (of_http("http.sig.signature", "s"), "there is no http.sig.pubkey"),
        (of_http("http.sig.pubkey", "s"), "there is no http.sig.signature"),
        (parse("http://", &[]).unwrap_err(), r#"identifier "http://" is not an address of a server"#),
        (parse("nothing", &[]).unwrap_err(), r#"source "nothing" has no scheme"#),
    ] {
        assert_eq!(found, expected);
    }
}
