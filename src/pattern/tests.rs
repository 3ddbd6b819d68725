use proptest::prelude::*;

use super::*;

fn glob(pattern: &str, path: &str) -> bool {
    Glob::new(pattern).unwrap().matches(path)
}

fn one(pattern: &str, path: &str) -> bool {
    Patterns::new([pattern]).unwrap().matches(path)
}

#[test]
fn a_glob_matches_as_gos_filepath_match() {
    for (pattern, path, matches) in [
        ("abc", "abc", true),
        ("*", "abc", true),
        ("*", "", true),
        ("*c", "abc", true),
        ("a*", "a", true),
        ("a*", "abc", true),
        ("a*", "ab/c", false),
        ("a*/b", "abc/b", true),
        ("a*/b", "a/c/b", false),
        ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
        ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
        ("a*b?c*x", "abxbbxdbxebxczzx", true),
        ("a*b?c*x", "abxbbxdbxebxczzy", false),
        ("ab[c]", "abc", true),
        ("ab[b-d]", "abc", true),
        ("ab[e-g]", "abc", false),
        ("ab[^c]", "abc", false),
        ("ab[^e-g]", "abc", true),
        ("a\\*b", "a*b", true),
        ("a\\*b", "ab", false),
        ("a?b", "a☺b", true),
        ("a[^a]b", "a☺b", true),
        ("a???b", "a☺b", false),
        ("[a-ζ]*", "α", true),
        ("*[a-ζ]", "A", false),
        ("a?b", "a/b", false),
        ("a*b", "a/b", false),
        ("[\\]a]", "]", true),
        ("[\\-]", "-", true),
        ("[x\\-]", "-", true),
        ("[\\-x]", "a", false),
        ("*x", "xxx", true),
        ("a**b", "axb", true),
        ("a**b", "a/b", false),
    ] {
        assert_eq!(glob(pattern, path), matches, "{pattern} {path}");
    }
}

#[test]
fn what_go_calls_a_bad_pattern_is_refused() {
    for pattern in ["[]a]", "[-]", "[x-]", "[-x]", "a[", "[", "[^", "[^bc", "[a-b-c]", "\\", "a\\", "[\\"] {
        assert!(Glob::new(pattern).is_err(), "{pattern}");
        assert!(Patterns::new([pattern]).is_err(), "{pattern}");
    }
    assert_eq!(Patterns::new(["!"]).unwrap_err(), InvalidPattern { pattern: "!".into() });
    assert_eq!(Glob::new("[").unwrap_err().to_string(), "syntax error in pattern \"[\"");
}

#[test]
fn two_stars_are_any_number_of_directories() {
    for (pattern, path, matches) in [
        ("**", "file", true),
        ("**", "a/b/c", true),
        ("**/", "file", true),
        ("**/**", "dir/file", true),
        ("dir/**", "dir/file", true),
        ("dir/**", "dir/dir2/file", true),
        ("dir/**", "dir", false),
        ("dir/**/*", "dir/a/b", true),
        ("**/dir", "dir", true),
        ("**/dir", "a/b/dir", true),
        ("**/dir", "adir", false),
        ("**/dir2/*", "dir/dir2/file", true),
        ("**/dir2/*", "dir/dir2/dir2/file", true),
        ("a/**/b", "a/b", true),
        ("a/**/b", "a/x/y/b", true),
        ("a/**/b", "ab", false),
        ("a/**/b", "a/xb", false),
        ("**.go", "main.go", true),
        ("**.go", "a/b/main.go", true),
        ("**a*c", "xabc", false),
        ("**a*c", "x/abc", true),
        ("abc**", "abcd/e", true),
        ("a**/*.txt", "a/b/c.txt", true),
    ] {
        assert_eq!(one(pattern, path), matches, "{pattern} {path}");
    }
}

#[test]
fn what_is_in_a_directory_that_matches_matches() {
    assert!(one("docs", "docs/README.md"));
    assert!(one("*/docs", "a/docs/b/c"));
    assert!(!one("docs", "documents/x"));
    assert!(one("a/b", "a/b/c/d"));
    assert!(!one("a/b", "a"));
}

#[test]
fn the_last_pattern_that_matches_counts() {
    let matches =
        |patterns: &[&str], path: &str| Patterns::new(patterns.iter().copied()).unwrap().matches(path);
    assert!(!matches(&["docs", "!docs/README.md"], "docs/README.md"));
    assert!(matches(&["docs", "!docs/README.md"], "docs/other.md"));
    assert!(matches(&["*.md", "!README*.md", "README-secret.md"], "README-secret.md"));
    assert!(!matches(&["*.md", "README-secret.md", "!README*.md"], "README-secret.md"));
    assert!(!matches(&["!docs"], "docs"));
    assert!(matches(&["**", "!a"], "b"));
    assert!(!matches(&["**", "!a"], "a/b"));
    assert!(matches(&["a", "!a/b", "a/b/c"], "a/b/c"));
}

#[test]
fn patterns_are_cleaned() {
    for pattern in [" docs ", "docs/", "./docs", "x/../docs", "docs//"] {
        assert!(one(pattern, "docs"), "{pattern:?}");
    }
    assert!(!one("/docs", "docs"), "paths are relative");
    assert!(Patterns::new(["", "  "]).unwrap().is_empty());
    assert!(
        Patterns::new(["a", "!./a/b/"]).unwrap().matches("a/b"),
        "the mark belongs to the first component"
    );
    for (path, cleaned) in [
        ("", "."),
        ("/", "/"),
        ("/..", "/"),
        ("a/..", "."),
        ("../a", "../a"),
        ("//a//b/.", "/a/b"),
        ("a/../..", ".."),
    ] {
        assert_eq!(clean(path), cleaned, "{path:?}");
    }
}

#[test]
fn bytes_that_are_no_text_match_wildcards_and_nothing_else() {
    assert!(Glob::new("a?").unwrap().matches(b"a\xff"));
    assert!(Glob::new("a*z").unwrap().matches(b"a\xff\xfez"));
    assert!(Glob::new("a[^b]").unwrap().matches(b"a\xff"));
    assert!(!Glob::new("a\u{fffd}").unwrap().matches(b"a\xff"));
}

#[test]
fn a_path_is_split_before_its_first_wildcard() {
    for (path, before, rest) in [
        ("/a/b", "/a/b", ""),
        ("/a/b*/c", "/a", "b*/c"),
        ("/*", "/", "*"),
        ("*", "", "*"),
        ("/a\\*/b", "/a\\*/b", ""),
        ("/a/[x]/..", "/a", ""),
        ("a/?", "a", "?"),
    ] {
        assert_eq!(split_wildcards(path), (before.to_owned(), rest.to_owned()), "{path}");
    }
}

#[test]
fn a_pattern_of_stars_takes_no_time() {
    let pattern = "*a".repeat(500);
    assert!(!Glob::new(&pattern).unwrap().matches("a".repeat(499) + "b"));
    let pattern = "**/".repeat(200) + "x*";
    assert!(!one(&pattern, &"a/".repeat(300)));
}

/// Go's rules, as they are written down, without regard to time.
fn naive(pattern: &[char], path: &[char]) -> bool {
    match pattern {
        [] => path.is_empty(),
        ['*', rest @ ..] => {
            (0..=path.len()).take_while(|n| !path[..*n].contains(&'/')).any(|n| naive(rest, &path[n..]))
        }
        ['?', rest @ ..] => path.first().is_some_and(|c| *c != '/') && naive(rest, &path[1..]),
        [c, rest @ ..] => path.first() == Some(c) && naive(rest, &path[1..]),
    }
}

proptest! {
    #[test]
    fn a_glob_does_what_its_rules_say(pattern in "[ab/*?]{0,8}", path in "[ab/]{0,8}") {
        let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), path.chars().collect());
        prop_assert_eq!(glob(&pattern, &path), naive(&p, &t));
    }

    #[test]
    fn what_a_parent_gave_changes_no_answer(
        patterns in proptest::collection::vec("!?[ab*/]{1,5}", 0..5),
        path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
    ) {
        if let Ok(patterns) = Patterns::new(&patterns) {
            let mut parent = Matched::default();
            for dir in parents(path.as_bytes()) {
                parent = patterns.matches_in(dir, &parent).1;
            }
            let alone = patterns.matches(&path);
            // A directory that an exception took back hides what a parent gave to the later patterns.
            if !patterns.has_exceptions() {
                prop_assert_eq!(patterns.matches_in(&path, &parent).0, alone);
            }
        }
    }

    #[test]
    fn no_text_makes_a_pattern_panic(pattern in "\\PC{0,20}", path in proptest::collection::vec(any::<u8>(), 0..30)) {
        if let Ok(patterns) = Patterns::new([&pattern]) {
            patterns.matches(&path);
        }
        if let Ok(glob) = Glob::new(&pattern) {
            glob.matches(&path);
        }
    }
}
