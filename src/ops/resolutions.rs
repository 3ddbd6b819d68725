//! [`Resolutions`]: what the sources of one job stand for.
//!
//! A frontend asks what a source is before it decides what to build, and the build then has that very thing:
//! it is not asked for again, and what has changed meanwhile is for the next job to see. Two sources are the
//! same if everything is that decides what is asked for and what is made of it: the address, the checksum, the
//! name of the secret, the headers, the attributes of the file; the name of an image and how it is looked for.
//!
//! # Invariants
//!
//! A failure is not kept: whoever comes next asks again. What is kept goes with the job, and with the vertices
//! that other jobs have of it.
//!
//! # Locking
//!
//! One mutex over the table, held for look-ups and inserts.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::http::HttpFile;
use super::http::address_key;
use super::image::Named;
use super::kept::Kept;
use super::op::HttpSource;
use super::op::ImageSource;
use super::op::Op;
use super::op::ResolveMode;
use crate::oci::Digest;

/// Files, and images, of one job at most. Those beyond are each asked for by themselves.
const MAX_KEPT: usize = 1024;

/// What the sources of a job stand for. Clones share it.
#[derive(Clone, Default)]
pub struct Resolutions(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    /// By what their sources share a download by.
    files: HashMap<Digest, Kept<HttpFile>>,
    /// By repository, tag or digest, and how the image is looked for.
    images: BTreeMap<(String, String, ResolveMode), Kept<Named>>,
}

impl fmt::Debug for Resolutions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table();
        write!(f, "Resolutions({} files, {} images)", table.files.len(), table.images.len())
    }
}

impl Resolutions {
    /// Lets the source share what others of the job found out, and will find out, about the same.
    pub fn share(&self, op: &Op) {
        match op {
            Op::Http(source) => self.table().share_file(source),
            Op::Image(source) => self.table().share_image(source),
            Op::OciLayout(_) | Op::Local(_) | Op::Exec(_) | Op::File(_) | Op::Merge(_) | Op::Diff(_) => {}
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn share_file(&mut self, source: &HttpSource) {
        if source.checksum.is_some() {
            // A file that was found without one may be the one that is pinned then.
            let unpinned = HttpSource { checksum: None, ..source.clone() };
            if let Some(found) = self.files.get(&address_key(&unpinned)) {
                source.unpinned.follow(found);
            }
        }
        let (key, room) = (address_key(source), self.files.len() < MAX_KEPT);
        if room || self.files.contains_key(&key) {
            source.resolved.follow(self.files.entry(key).or_default());
        }
    }

    fn share_image(&mut self, source: &ImageSource) {
        let reference = &source.reference;
        let key = (reference.name(), reference.selector(), source.resolve_mode);
        if let Some(known) = self.images.get(&key) {
            return source.named.follow(known);
        }
        if let Some(digest) = reference.digest
            && let Some(named) = self.found(&key.0, &digest)
        {
            source.named.keep(named);
        }
        if self.images.len() < MAX_KEPT {
            self.images.insert(key, source.named.clone());
        }
    }

    /// What a registry was found to have under a tag of the repository, if that is what the digest names.
    fn found(&self, repository: &str, digest: &Digest) -> Option<Named> {
        let of_repository = self.images.range((repository.to_owned(), String::new(), ResolveMode::Default)..);
        let of_repository = of_repository.take_while(|((name, ..), _)| name == repository);
        let mut named = of_repository.filter_map(|(_, kept)| kept.get());
        named.find(|named| named.root.digest == *digest && named.is_of_registry())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Descriptor;

    /// An HTTP source that shares with those of the job.
    fn file(job: &Resolutions, url: &str, change: impl FnOnce(&mut HttpSource)) -> HttpSource {
        let mut source = HttpSource::new(url);
        change(&mut source);
        job.share(&Op::Http(source.clone()));
        source
    }

    fn image(job: &Resolutions, name: &str, resolve_mode: ResolveMode) -> ImageSource {
        let source = ImageSource { resolve_mode, ..ImageSource::new(name.parse().unwrap()) };
        job.share(&Op::Image(source.clone()));
        source
    }

    fn found(text: &str) -> HttpFile {
        HttpFile { digest: Digest::sha256(text), filename: "a".to_owned(), modified: None, reference: None }
    }

    #[test]
    fn sources_share_a_file_if_everything_is_the_same_that_decides_what_it_is() {
        let job = Resolutions::default();
        let url = "https://h.test/a";
        let place = |url, change: fn(&mut HttpSource)| file(&job, url, change).resolved.place();
        let changes: [fn(&mut HttpSource); 8] = [
            |_| {},
            |source| source.checksum = Some(Digest::sha256("x")),
            |source| source.filename = Some("name".to_owned()),
            |source| source.perm = Some(0o600),
            |source| source.uid = 1,
            |source| source.gid = 1,
            |source| source.auth_header_secret = Some("secret".to_owned()),
            |source| source.headers = vec![("Accept".to_owned(), "text/plain".to_owned())],
        ];
        let mut places: Vec<_> = changes.iter().map(|change| place(url, *change)).collect();
        let again: Vec<_> = changes.iter().map(|change| place(url, *change)).collect();
        assert_eq!(places, again);
        places.push(place("https://h.test/b", |_| {}));
        let elsewhere = file(&Resolutions::default(), url, |_| {});
        places.push(elsewhere.resolved.place());
        for (at, place) in places.iter().enumerate() {
            assert!(!places[..at].contains(place), "{at}");
        }
    }

    #[test]
    fn a_pinned_source_knows_what_was_found_without_the_checksum_and_not_the_other_way_round() {
        let job = Resolutions::default();
        let url = "https://h.test/a";
        let pin = |source: &mut HttpSource| source.checksum = Some(Digest::sha256("x"));
        let early = file(&job, url, pin);
        file(&job, url, |_| {}).resolved.keep(found("x"));
        let pinned = file(&job, url, pin);
        assert!(pinned.unpinned.get().is_some() && pinned.resolved.get().is_none());
        assert!(early.unpinned.get().is_none(), "nobody had looked");
        early.resolved.keep(found("x"));
        assert!(pinned.resolved.get().is_some());
        let other = |source: &mut HttpSource| source.uid = 1;
        file(&job, url, |source| {
            other(source);
            pin(source);
        })
        .resolved
        .keep(found("x"));
        assert!(file(&job, url, other).resolved.get().is_none());
    }

    #[test]
    fn what_a_tag_was_found_to_name_is_known_by_its_digest_in_the_same_repository() {
        let job = Resolutions::default();
        let root = Descriptor::of("application/x", b"root");
        let digest = root.digest;
        image(&job, "r.test/a:v1", ResolveMode::Default).named.keep(Named::of_registry(root));
        let is_known = |name: &str, mode| image(&job, name, mode).named.get().is_some();
        assert!(is_known("r.test/a:v1", ResolveMode::Default));
        assert!(is_known(&format!("r.test/a:v1@{digest}"), ResolveMode::Default));
        assert!(is_known(&format!("r.test/a@{digest}"), ResolveMode::ForcePull));
        assert!(!is_known("r.test/a:v1", ResolveMode::PreferLocal));
        assert!(!is_known("r.test/a:v2", ResolveMode::Default));
        assert!(!is_known(&format!("r.test/b@{digest}"), ResolveMode::Default));
        assert!(!is_known(&format!("r.test/a@{}", Digest::sha256("x")), ResolveMode::Default));
    }

    #[test]
    fn a_job_keeps_so_many_and_asks_for_the_others_by_themselves() {
        let job = Resolutions::default();
        let file = |n: usize| file(&job, &format!("https://h.test/{n}"), |_| {}).resolved;
        let image = |n: usize| image(&job, &format!("r.test/a:{n}"), ResolveMode::Default).named;
        let kept: Vec<_> = (0..=MAX_KEPT).map(|n| (file(n), image(n))).collect();
        let is_shared =
            |n: usize| (kept[n].0.place() == file(n).place(), kept[n].1.place() == image(n).place());
        assert_eq!(is_shared(0), (true, true));
        assert_eq!(is_shared(MAX_KEPT - 1), (true, true));
        assert_eq!(is_shared(MAX_KEPT), (false, false));
    }
}
