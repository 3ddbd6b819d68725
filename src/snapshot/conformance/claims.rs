//! The claims of the suite.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::symlink;
use std::pin::Pin;

use futures::future::join_all;

use super::super::MountPoint;
use super::super::Parents;
use super::super::PointKind;
use super::super::SnapshotError;
use super::super::SnapshotKey;
use super::super::SnapshotKind;
use super::super::SnapshotUsage;
use super::Site;
use super::commit;
use super::files;
use super::key;
use super::mount;
use super::on;
use super::seen;
use super::write;

type Claim = for<'a> fn(&'a dyn Site) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

macro_rules! claims {
    ($($(#[$doc:meta])* async fn $name:ident($site:ident) $body:block)*) => {
        pub(super) const ALL: &[(&str, Claim)] = &[$((stringify!($name), |site| Box::pin($name(site))),)*];

        $($(#[$doc])* async fn $name($site: &dyn Site) $body)*
    };
}

claims! {
    async fn a_snapshot_shows_its_parents_and_its_own_changes(site) {
        let s = &*site.open().await;
        commit(s, "a", &[], |root| {
            for file in ["kept", "changed", "gone", "gone-dir/x", "replaced-dir/old", "to-link"] {
                write(root, file, "a");
            }
            symlink("kept", root.join("link")).expect("link");
        })
        .await;
        commit(s, "b", &["a"], |root| {
            write(root, "changed", "b");
            write(root, "new/file", "b");
            fs::remove_file(root.join("gone")).expect("removed");
            fs::remove_dir_all(root.join("gone-dir")).expect("removed");
            fs::remove_dir_all(root.join("replaced-dir")).expect("removed");
            write(root, "replaced-dir/new", "b");
            fs::remove_file(root.join("to-link")).expect("removed");
            symlink("/x", root.join("to-link")).expect("link");
        })
        .await;
        commit(s, "c", &["a", "b"], |root| {
            write(root, "gone", "again");
            fs::rename(root.join("new/file"), root.join("moved")).expect("renamed");
        })
        .await;
        let a = ["changed=a", "gone=a", "gone-dir/", "gone-dir/x=a", "kept=a", "link->kept", "replaced-dir/",
            "replaced-dir/old=a", "to-link=a"];
        let b = ["changed=b", "kept=a", "link->kept", "new/", "new/file=b", "replaced-dir/", "replaced-dir/new=b",
            "to-link->/x"];
        let c = ["changed=b", "gone=again", "kept=a", "link->kept", "moved=b", "new/", "replaced-dir/",
            "replaced-dir/new=b", "to-link->/x"];
        assert_eq!(seen(s, &["a"]).await, a);
        assert_eq!(seen(s, &["a", "b"]).await, b);
        assert_eq!(seen(s, &["a", "b", "c"]).await, c);
        assert_eq!(seen(s, &[]).await, [""; 0]);
    }

    /// Layers are unpacked side by side and put in order later.
    async fn committed_snapshots_stack_in_any_order(site) {
        let s = &*site.open().await;
        if !s.stacks() {
            return;
        }
        commit(s, "base", &[], |root| {
            write(root, "both", "base");
            write(root, "dir/base", "base");
        })
        .await;
        for name in ["x", "y"] {
            commit(s, name, &[], |root| {
                write(root, "both", name);
                write(root, &format!("dir/{name}"), name);
            })
            .await;
        }
        commit(s, "hide", &["base"], |root| {
            fs::remove_dir_all(root.join("dir")).expect("removed");
            write(root, "dir/hide", "hide");
        })
        .await;
        assert_eq!(seen(s, &["x", "y"]).await, ["both=y", "dir/", "dir/x=x", "dir/y=y"]);
        assert_eq!(seen(s, &["y", "x"]).await, ["both=x", "dir/", "dir/x=x", "dir/y=y"]);
        assert_eq!(seen(s, &["x", "hide", "y"]).await, ["both=y", "dir/", "dir/hide=hide", "dir/y=y"]);
        // The lowest one hides what is not there.
        assert_eq!(seen(s, &["hide"]).await, ["dir/", "dir/hide=hide"]);
        commit(s, "delete", &["base"], |root| fs::remove_file(root.join("both")).expect("removed")).await;
        assert_eq!(seen(s, &["delete"]).await, [""; 0]);
        assert_eq!(seen(s, &["delete", "y"]).await, ["both=y", "dir/", "dir/y=y"]);
        assert!(s.upper(&key("x")).is_some_and(|upper| files(&upper) == ["both=x", "dir/", "dir/x=x"]));
    }

    /// An image has the same layer twice, or a merge the same state.
    async fn a_snapshot_may_lie_on_others_twice(site) {
        let s = &*site.open().await;
        if !s.stacks() {
            return;
        }
        commit(s, "x", &[], |root| {
            write(root, "both", "x");
            write(root, "dir/x", "x");
        })
        .await;
        commit(s, "y", &["x"], |root| {
            write(root, "both", "y");
            write(root, "y", "y");
            fs::remove_dir_all(root.join("dir")).expect("removed");
        })
        .await;
        let x = ["both=x", "dir/", "dir/x=x", "y=y"];
        assert_eq!(seen(s, &["x", "x"]).await, ["both=x", "dir/", "dir/x=x"]);
        assert_eq!(seen(s, &["x", "y", "x"]).await, x);
        assert_eq!(seen(s, &["x", "y", "x", "y", "x"]).await, x);
        assert_eq!(seen(s, &["y", "x", "y"]).await, ["both=y", "y=y"]);
        commit(s, "above", &["x", "y", "x"], |root| write(root, "above", "")).await;
        let above = ["above=", "both=x", "dir/", "dir/x=x", "y=y"];
        assert_eq!(seen(s, &["x", "y", "x", "above"]).await, above);
        // More than are mounted one by one.
        let long: Vec<&str> = ["x", "y"].into_iter().cycle().take(601).collect();
        assert_eq!(seen(s, &long).await, x);
    }

    async fn what_is_read_only_is_not_written(site) {
        let s = &*site.open().await;
        commit(s, "a", &[], |root| write(root, "file", "a")).await;
        let chain = on(s, &["a"]);
        s.view(&key("v"), &chain).await.expect("viewed");
        s.view(&key("empty"), &Parents::default()).await.expect("viewed");
        s.prepare(&key("active"), &chain).await.expect("prepared");
        s.prepare(&key("first"), &Parents::default()).await.expect("prepared");
        for (name, read_only) in [("v", true), ("v", false), ("empty", false), ("active", true), ("first", true)] {
            let mounted = s.mount(&key(name), read_only).await.expect("mounted");
            let refused = fs::write(mounted.path().join("new"), "x").expect_err("it is read-only");
            assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem, "{name}");
        }
        // Beside a writer, whose changes are seen.
        let writer = mount(s, "active").await;
        let reader = s.mount(&key("active"), true).await.expect("mounted");
        write(writer.path(), "new", "x");
        assert_eq!(files(reader.path()), ["file=a", "new=x"]);
        drop(writer);
        assert!(fs::write(reader.path().join("more"), "x").is_err());
        let writer = mount(s, "active").await;
        write(writer.path(), "more", "x");
        assert_eq!(files(reader.path()), ["file=a", "more=x", "new=x"]);
    }

    async fn holders_share_a_mount_and_the_last_one_undoes_it(site) {
        let s = &*site.open().await;
        commit(s, "a", &[], |root| write(root, "file", "a")).await;
        s.prepare(&key("n"), &on(s, &["a"])).await.expect("prepared");
        let (one, two) = (mount(s, "n").await, mount(s, "n").await);
        assert_eq!(one.path(), two.path());
        drop(one);
        write(two.path(), "new", "n");
        two.unmount().await.expect("unmounted");
        let again = mount(s, "n").await;
        assert_eq!(files(again.path()), ["file=a", "new=n"]);
        drop(again);
        s.remove(&key("n")).await.expect("removed");
        s.remove(&key("a")).await.expect("removed");
        assert_eq!(site.leftovers(), [""; 0]);
    }

    async fn a_key_names_one_snapshot_of_the_right_kind(site) {
        let s = &*site.open().await;
        commit(s, "a", &[], |_| {}).await;
        s.prepare(&key("active"), &Parents::default()).await.expect("prepared");
        s.view(&key("view"), &Parents::default()).await.expect("viewed");
        for taken in ["a", "active", "view"] {
            let taken = key(taken);
            assert!(matches!(s.prepare(&taken, &Parents::default()).await, Err(SnapshotError::Exists { key }) if key == taken));
            assert!(matches!(s.view(&taken, &Parents::default()).await, Err(SnapshotError::Exists { .. })));
            assert!(matches!(s.commit(&taken, &key("active")).await, Err(SnapshotError::Exists { .. })));
        }
        for wrong in ["active", "view"] {
            let refused = s.prepare(&key("n"), &[key(wrong)].into_iter().collect()).await;
            assert!(matches!(refused, Err(SnapshotError::WrongKind { .. })), "{refused:?}");
        }
        for wrong in ["a", "view"] {
            let refused = s.commit(&key("n"), &key(wrong)).await;
            assert!(matches!(refused, Err(SnapshotError::WrongKind { .. })), "{refused:?}");
        }
        let none = key("none");
        assert!(matches!(s.mount(&key("a"), true).await, Err(SnapshotError::WrongKind { .. })));
        assert!(matches!(s.mounts(&key("a")).await, Err(SnapshotError::WrongKind { .. })));
        assert!(matches!(s.mount(&none, true).await, Err(SnapshotError::NotFound { .. })));
        assert!(matches!(s.mounts(&none).await, Err(SnapshotError::NotFound { .. })));
        assert!(matches!(s.prepare(&key("n"), &[none.clone()].into_iter().collect()).await, Err(SnapshotError::NotFound { .. })));
        assert!(matches!(s.commit(&key("n"), &none).await, Err(SnapshotError::NotFound { .. })));
        assert!(matches!(s.remove(&none).await, Err(SnapshotError::NotFound { .. })));
        assert!(matches!(s.stat(&none).await, Err(SnapshotError::NotFound { .. })));
        assert!(matches!(s.usage(&none).await, Err(SnapshotError::NotFound { .. })));
        assert_eq!(s.upper(&none), None);
        assert_eq!(s.upper(&key("view")), None);
        if !s.stacks() {
            commit(s, "b", &[], |_| {}).await;
            let refused = s.prepare(&key("n"), &[key("a"), key("b")].into_iter().collect()).await;
            assert!(matches!(refused, Err(SnapshotError::TooManyParents { count: 2, .. })), "{refused:?}");
        }
        assert!(matches!(s.stat(&key("n")).await, Err(SnapshotError::NotFound { .. })), "what failed made nothing");
    }

    async fn the_longest_and_the_oddest_keys_work(site) {
        let s = &*site.open().await;
        let longest = "k".repeat(128);
        let names = [longest.as_str(), "sha256:0123", "..a", "a..", "-", "_.:-"];
        for (n, name) in names.iter().enumerate() {
            s.prepare(&key("n"), &on(s, &names[..n])).await.expect("prepared");
            write(mount(s, "n").await.path(), &n.to_string(), name);
            s.commit(&key(name), &key("n")).await.expect("committed");
        }
        let expected: Vec<_> = names.iter().enumerate().map(|(n, name)| format!("{n}={name}")).collect();
        assert_eq!(seen(s, &names).await, expected);
        for wrong in ["", ".", "..", "...", "a/b", "a b", "ä", "a\0", &"k".repeat(129)] {
            assert!(SnapshotKey::new(wrong).is_err(), "{wrong}");
        }
    }

    async fn many_are_removed_in_one_go_and_what_can_not_be_is_told(site) {
        let s = &*site.open().await;
        commit(s, "used", &[], |root| write(root, "file", "used")).await;
        s.view(&key("view"), &on(s, &["used"])).await.expect("viewed");
        let names: Vec<String> = (0..100).map(|n| format!("n{n}")).collect();
        let mut below: Option<&str> = None;
        for name in &names {
            commit(s, name, below.as_slice(), |root| write(root, &format!("dir/{name}"), name)).await;
            below = Some(name);
        }
        let wanted = names.iter().rev().map(String::as_str).chain(["none", "used", "n0"]).map(key).collect();
        let refused = s.remove_all(wanted).await.expect("removed");
        let told: Vec<&SnapshotKey> = refused.iter().map(|(key, _)| key).collect();
        assert_eq!(told, [&key("none"), &key("used"), &key("n0")]);
        for (key, error) in &refused {
            match error {
                SnapshotError::NotFound { key: other } => assert_eq!(key, other),
                SnapshotError::InUse { by, .. } => assert_eq!(by.as_str(), "view"),
                other => panic!("{key}: {other}"),
            }
        }
        // The lowest one first, where it is stood on.
        let left = s.remove_all(vec![key("used"), key("view")]).await.expect("removed");
        assert!(matches!(&left[..], [(used, SnapshotError::InUse { .. })] if *used == key("used")), "{left:?}");
        assert!(s.remove_all(vec![key("used")]).await.expect("removed").is_empty());
        assert_eq!(s.walk().await.expect("walked"), []);
        assert_eq!(site.leftovers(), [""; 0], "their files are gone when it returns");
    }

    async fn what_is_used_is_neither_committed_nor_removed(site) {
        let s = &*site.open().await;
        commit(s, "a", &[], |root| write(root, "file", "a")).await;
        s.prepare(&key("active"), &on(s, &["a"])).await.expect("prepared");
        s.view(&key("view"), &on(s, &["a"])).await.expect("viewed");
        for by in ["active", "view"] {
            let refused = s.remove(&key("a")).await;
            assert!(matches!(refused, Err(SnapshotError::InUse { .. })), "{by}: {refused:?}");
            let mounted = mount(s, by).await;
            assert!(matches!(s.remove(&key(by)).await, Err(SnapshotError::Busy { .. })));
            if by == "active" {
                assert!(matches!(s.commit(&key("b"), &key(by)).await, Err(SnapshotError::Busy { .. })));
            }
            assert_eq!(files(mounted.path()), ["file=a"]);
            drop(mounted);
            s.remove(&key(by)).await.expect("removed");
        }
        commit(s, "b", &["a"], |_| {}).await;
        if s.stacks() {
            s.remove(&key("a")).await.expect("what is committed stands alone");
            assert_eq!(seen(s, &["b"]).await, [""; 0]);
        } else {
            let refused = s.remove(&key("a")).await;
            assert!(matches!(refused, Err(SnapshotError::InUse { by, .. }) if by == key("b")));
        }
        s.remove(&key("b")).await.expect("removed");
        if !s.stacks() {
            s.remove(&key("a")).await.expect("removed");
        }
        assert_eq!(s.walk().await.expect("walked"), []);
        assert_eq!(site.leftovers(), [""; 0]);
    }

    async fn usage_counts_a_file_with_several_names_once(site) {
        let s = &*site.open().await;
        commit(s, "empty", &[], |_| {}).await;
        let empty = s.usage(&key("empty")).await.expect("counted");
        assert_eq!(empty.inodes, 1);
        commit(s, "a", &[], |root| {
            write(root, "dir/file", &"x".repeat(1 << 20));
            for name in ["again", "dir/once-more"] {
                fs::hard_link(root.join("dir/file"), root.join(name)).expect("linked");
            }
            fs::File::create(root.join("sparse")).and_then(|file| file.set_len(1 << 30)).expect("made");
            symlink("x", root.join("link")).expect("linked");
            // Some file systems allocate when they write.
            rustix::fs::syncfs(fs::File::open(root).expect("opened")).expect("synced");
        })
        .await;
        let usage = s.usage(&key("a")).await.expect("counted");
        assert_eq!(usage.inodes, 5, "the root, dir, file, sparse and link");
        let content = usage.bytes - empty.bytes;
        assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&content), "{content} bytes");
        s.prepare(&key("n"), &on(s, &["a"])).await.expect("prepared");
        let own = s.usage(&key("n")).await.expect("counted");
        if s.stacks() {
            assert_eq!(own.inodes, 1, "parents don't count");
        } else {
            assert_eq!(own.inodes, 5, "hard links are kept in a copy");
        }
        s.view(&key("v"), &on(s, &["a"])).await.expect("viewed");
        assert_eq!(s.usage(&key("v")).await.expect("counted"), SnapshotUsage::default());
    }

    async fn attributes_of_the_top_directory_and_of_files_go_along(site) {
        let s = &*site.open().await;
        commit(s, "a", &[], |root| {
            write(root, "file", "a");
            for (path, mode) in [("", 0o2750), ("file", 0o4711)] {
                let path = root.join(path);
                std::os::unix::fs::chown(&path, Some(1234), Some(99_999)).expect("owned");
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("mode");
            }
        })
        .await;
        commit(s, "b", &["a"], |root| write(root, "other", "b")).await;
        s.prepare(&key("n"), &on(s, &["a", "b"])).await.expect("prepared");
        let mounted = mount(s, "n").await;
        for (path, mode) in [("", 0o2750), ("file", 0o4711)] {
            let meta = fs::metadata(mounted.path().join(path)).expect("there");
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (mode, 1234, 99_999), "{path:?}");
        }
    }

    async fn all_snapshots_are_listed_with_their_parents(site) {
        let s = &*site.open().await;
        assert_eq!(s.walk().await.expect("walked"), []);
        commit(s, "z", &[], |_| {}).await;
        commit(s, "m", &["z"], |_| {}).await;
        s.prepare(&key("c"), &on(s, &["z", "m"])).await.expect("prepared");
        s.view(&key("q"), &on(s, &["z"])).await.expect("viewed");
        let all = s.walk().await.expect("walked");
        let listed: Vec<_> = all.iter().map(|i| (i.key.as_str(), i.kind, i.parents.clone())).collect();
        let expected = [
            ("c", SnapshotKind::Active, on(s, &["z", "m"])),
            ("m", SnapshotKind::Committed, if s.stacks() { Parents::default() } else { on(s, &["z"]) }),
            ("q", SnapshotKind::View, on(s, &["z"])),
            ("z", SnapshotKind::Committed, Parents::default()),
        ];
        assert_eq!(listed, expected);
        for info in &all {
            assert_eq!(&s.stat(&info.key).await.expect("there"), info);
        }
    }

    async fn a_restart_loses_nothing_but_mounts(site) {
        let before = {
            let s = &*site.open().await;
            commit(s, "a", &[], |root| write(root, "file", "a")).await;
            s.prepare(&key("active"), &on(s, &["a"])).await.expect("prepared");
            write(mount(s, "active").await.path(), "new", "n");
            s.view(&key("view"), &on(s, &["a"])).await.expect("viewed");
            // As if the process had been killed: nothing is undone.
            std::mem::forget(mount(s, "active").await);
            std::mem::forget(mount(s, "view").await);
            std::mem::forget(s.mount(&key("active"), true).await.expect("mounted"));
            s.walk().await.expect("walked")
        };
        let s = &*site.open().await;
        assert_eq!(s.walk().await.expect("walked"), before);
        let mounted = mount(s, "active").await;
        assert_eq!(files(mounted.path()), ["file=a", "new=n"]);
        write(mounted.path(), "new", "after");
        drop(mounted);
        assert_eq!(files(mount(s, "view").await.path()), ["file=a"]);
        s.commit(&key("b"), &key("active")).await.expect("committed");
        s.sync().await.expect("synced");
        assert_eq!(seen(s, &["a", "b"]).await, ["file=a", "new=after"]);
        let (a, refused) = (key("a"), s.remove(&key("a")).await);
        assert!(matches!(refused, Err(SnapshotError::InUse { key, .. }) if key == a), "who stands on it is known");
        for name in ["view", "b", "a"] {
            s.remove(&key(name)).await.expect("removed");
        }
        assert_eq!(site.leftovers(), [""; 0]);
    }

    async fn many_work_at_once(site) {
        let s = site.open().await;
        commit(&*s, "base", &[], |root| write(root, "file", "base")).await;
        let one = |n: usize| {
            let s = s.clone();
            async move {
                let name = format!("made-{n}");
                for _ in 0..3 {
                    commit(&*s, &name, &["base"], |root| write(root, "own", &name)).await;
                    let view = key(&format!("view-{n}"));
                    s.view(&view, &on(&*s, &["base", &name])).await.expect("viewed");
                    let mounted = s.mount(&view, true).await.expect("mounted");
                    assert_eq!(files(mounted.path()), ["file=base".to_owned(), format!("own={name}")]);
                    drop(mounted);
                    s.remove(&view).await.expect("removed");
                    s.remove(&key(&name)).await.expect("removed");
                }
            }
        };
        join_all((0..16).map(one)).await;
        // All want one key: one gets it.
        let made = join_all((0..16).map(|_| async { s.prepare(&key("same"), &on(&*s, &["base"])).await })).await;
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
        assert!(made.iter().all(|made| matches!(made, Ok(()) | Err(SnapshotError::Exists { .. }))), "{made:?}");
        // Mounted and let go by many: nobody sees it half done.
        join_all((0..16).map(|_| async {
            for _ in 0..4 {
                let mounted = mount(&*s, "same").await;
                assert_eq!(files(mounted.path()), ["file=base"]);
                mounted.unmount().await.expect("unmounted");
            }
        }))
        .await;
        // Removed by all: by one.
        let removed = join_all((0..16).map(|_| async { s.remove(&key("same")).await })).await;
        assert_eq!(removed.iter().filter(|removed| removed.is_ok()).count(), 1, "{removed:?}");
        s.remove(&key("base")).await.expect("removed");
        assert_eq!(site.leftovers(), [""; 0]);
    }

    async fn mount_points_are_no_change_and_bring_no_directory(site) {
        let s = &*site.open().await;
        commit(s, "base", &[], |root| {
            write(root, "etc/conf", "base");
            write(root, "etc/hosts", "base");
        })
        .await;
        s.prepare(&key("new"), &on(s, &["base"])).await.expect("prepared");
        let file = |path: &str| MountPoint { path: path.into(), kind: PointKind::File };
        let points = ["/etc/hosts", "/etc/resolv.conf", "/b", "/missing/deep/x"].map(file);
        let mounted = s.mount_with(&key("new"), &points).await.expect("mounted");
        let mut all = files(mounted.path());
        all.retain(|path| !["etc/resolv.conf=", "b="].contains(&path.as_str()));
        assert_eq!(all, ["etc/", "etc/conf=base", "etc/hosts=base"]);
        write(mounted.path(), "etc/new", "new");
        mounted.unmount().await.expect("unmounted");
        // Mounted again, without.
        let mounted = mount(s, "new").await;
        assert_eq!(files(mounted.path()), ["etc/", "etc/conf=base", "etc/hosts=base", "etc/new=new"]);
        mounted.unmount().await.expect("unmounted");
        s.commit(&key("made"), &key("new")).await.expect("committed");
        assert_eq!(seen(s, &["base", "made"]).await, ["etc/", "etc/conf=base", "etc/hosts=base", "etc/new=new"]);
        s.prepare(&key("alone"), &Parents::default()).await.expect("prepared");
        let mounted = s.mount_with(&key("alone"), &points).await.expect("mounted");
        assert_eq!(files(mounted.path()), [""; 0]);
        mounted.unmount().await.expect("unmounted");
        for name in ["alone", "made", "base"] {
            s.remove(&key(name)).await.expect("removed");
        }
        assert_eq!(site.leftovers(), [""; 0]);
    }

    async fn work_that_nobody_waits_for_leaves_nothing_half_done(site) {
        let s = site.open().await;
        commit(&*s, "a", &[], |root| write(root, "file", "a")).await;
        let parents = on(&*s, &["a"]);
        for n in 0..8 {
            let name = key(&format!("n-{n}"));
            // Polled once, so that it has begun, and dropped.
            let _ = futures::FutureExt::now_or_never(s.prepare(&name, &parents));
            // The key is taken until it is done, then it is there.
            while s.stat(&name).await.is_err() {
                tokio::task::yield_now().await;
            }
            let _ = futures::FutureExt::now_or_never(s.mount(&name, false));
            // The mount is undone as soon as it is made.
            while let Err(error) = s.remove(&name).await {
                assert!(matches!(error, SnapshotError::Busy { .. }), "{error}");
                tokio::task::yield_now().await;
            }
        }
        s.remove(&key("a")).await.expect("removed");
        assert_eq!(site.leftovers(), [""; 0]);
    }
}
