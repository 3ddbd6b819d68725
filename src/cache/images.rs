//! [`ImageList`]: the images that this node has under a name.
//!
//! Naming downloads nothing. A name holds what the image consists of, resident or not, as long as the cache has a record
//! of each of its layers: it keeps no layer from being pruned, and goes with the first one that is. So builds that name
//! whatever they make fill no disk.

use jiff::Timestamp;
use redb::ReadableTable;
use redb::TableDefinition;
use serde::Deserialize;
use serde::Serialize;

use crate::db;
use crate::db::Db;
use crate::db::DbError;
use crate::db::WriteTx;
use crate::lease;
use crate::lease::Owner;
use crate::oci::Descriptor;
use crate::oci::Digest;

/// [`NamedImage`]s as JSON by name.
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");

/// The named images of this node. Clones are the same list.
#[derive(Clone, Debug)]
pub struct ImageList {
    db: Db,
}

/// An image of the list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NamedImage {
    pub name: String,
    /// The image's manifest or index.
    pub target: Descriptor,
    /// As the client was told, which may have asked for a certain time.
    pub updated_at: Timestamp,
    /// When the name was set, by this node's clock.
    pub set_at: Timestamp,
    /// Its layers' blobs, of all platforms.
    #[serde(default)]
    pub layers: Vec<Digest>,
}

impl ImageList {
    pub fn new(db: Db) -> ImageList {
        ImageList { db }
    }

    /// Gives `target` the name, in place of what had it. The image consists of `documents`, `target` included, and
    /// `layers`.
    ///
    /// Cancellation safe: the name is set whether or not the answer is awaited.
    pub async fn set(
        &self,
        name: &str,
        target: Descriptor,
        documents: Vec<Digest>,
        layers: Vec<Digest>,
        updated_at: Timestamp,
    ) -> Result<(), DbError> {
        let set_at = Timestamp::now();
        let image = NamedImage { name: name.to_owned(), target, updated_at, set_at, layers };
        self.db
            .write(move |tx| {
                tx.table(IMAGES)?.insert(image.name.as_str(), db::encode(&image)?.as_slice())?;
                let owner = Owner::Image(image.name.clone());
                lease::release_rows(tx, &owner)?;
                lease::hold_rows(tx, &owner, documents.iter().chain(&image.layers))?;
                Ok(())
            })
            .await
    }

    pub fn get(&self, name: &str) -> Result<Option<NamedImage>, DbError> {
        self.db.read(|tx| match tx.table(IMAGES)? {
            Some(table) => table.get(name)?.map(|v| db::decode(name, v.value())).transpose(),
            None => Ok(None),
        })
    }

    /// All images by name.
    pub fn list(&self) -> Result<Vec<NamedImage>, DbError> {
        self.db.read(|tx| {
            let Some(table) = tx.table(IMAGES)? else { return Ok(Vec::new()) };
            let mut all = Vec::new();
            for row in table.iter()? {
                let (name, value) = row?;
                all.push(db::decode(name.value(), value.value())?);
            }
            Ok(all)
        })
    }

    /// Takes the names away that were set before `time`, and returns how many.
    ///
    /// Cancellation safe: the names are gone whether or not the answer is awaited.
    pub async fn expire(&self, time: Timestamp) -> Result<usize, DbError> {
        self.forget(move |_, image| Ok(image.set_at < time)).await
    }

    /// Takes the names away of images of which a layer is in the cache no more, and with `empty` of those without
    /// layers. Returns how many.
    ///
    /// Cancellation safe: the names are gone whether or not the answer is awaited.
    pub async fn sweep(&self, empty: bool) -> Result<usize, DbError> {
        let is_left = move |tx: &WriteTx, image: &NamedImage| {
            for layer in &image.layers {
                if !lease::has_row_but_images(tx, layer)? {
                    return Ok(true);
                }
            }
            Ok(empty && image.layers.is_empty())
        };
        self.forget(is_left).await
    }

    /// Takes away the names of images that are meant. What they held is free for the collector.
    async fn forget(
        &self,
        is_meant: impl Fn(&WriteTx, &NamedImage) -> Result<bool, DbError> + Send + 'static,
    ) -> Result<usize, DbError> {
        if self.list()?.is_empty() {
            return Ok(0);
        }
        let forget = move |tx: &WriteTx| {
            let mut images = Vec::new();
            for row in tx.table(IMAGES)?.iter()? {
                let (name, value) = row?;
                images.push(db::decode::<NamedImage>(name.value(), value.value())?);
            }
            let mut forgotten = 0;
            for image in &images {
                if is_meant(tx, image)? {
                    tx.table(IMAGES)?.remove(image.name.as_str())?;
                    lease::release_rows(tx, &Owner::Image(image.name.clone()))?;
                    forgotten += 1;
                }
            }
            Ok(forgotten)
        };
        self.db.write(forget).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_holds_its_blobs_until_it_names_something_else() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(directory.path().join("db")).unwrap();
        let images = ImageList::new(db.clone());
        let (a, b) = (Descriptor::of("t", b"a"), Descriptor::of("t", b"b"));
        let held = |d: &Descriptor| db.read(|tx| Ok(lease::has_row(tx, &d.digest)?)).unwrap();
        assert_eq!(images.get("x").unwrap(), None);
        assert!(images.list().unwrap().is_empty());
        images.set("x", a.clone(), vec![a.digest], vec![], Timestamp::UNIX_EPOCH).await.unwrap();
        assert!(held(&a) && !held(&b));
        images.set("x", b.clone(), vec![b.digest], vec![], Timestamp::UNIX_EPOCH).await.unwrap();
        assert!(!held(&a) && held(&b));
        assert_eq!(images.list().unwrap().len(), 1);
        assert_eq!(images.get("x").unwrap().unwrap().target, b);
        assert_eq!(images.expire(Timestamp::UNIX_EPOCH).await.unwrap(), 0);
        assert!(held(&b), "whatever time it says of itself");
        images.set("y", a.clone(), vec![a.digest], vec![], Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(images.expire(Timestamp::MAX).await.unwrap(), 2);
        assert!(!held(&a) && !held(&b) && images.list().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_name_goes_with_the_first_of_its_layers() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(directory.path().join("db")).unwrap();
        let images = ImageList::new(db.clone());
        let [manifest, a, b] = ["manifest", "a", "b"].map(Digest::sha256);
        let target = Descriptor::of("t", b"manifest");
        let record = |digest: &Digest| Owner::Record(digest.to_string());
        let hold = move |tx: &WriteTx| {
            for layer in [a, b] {
                lease::hold_rows(tx, &record(&layer), [&layer])?;
            }
            Ok(())
        };
        db.write(hold).await.unwrap();
        for (name, layers) in [("both", vec![a, b]), ("a", vec![a]), ("none", vec![])] {
            images.set(name, target.clone(), vec![manifest], layers, Timestamp::UNIX_EPOCH).await.unwrap();
        }
        let names = || images.list().unwrap().into_iter().map(|image| image.name).collect::<Vec<_>>();
        assert_eq!(images.sweep(false).await.unwrap(), 0);
        db.write(move |tx| Ok(lease::release_rows(tx, &record(&b))?)).await.unwrap();
        assert_eq!(images.sweep(false).await.unwrap(), 1);
        assert_eq!(names(), ["a", "none"]);
        assert!(!db.read(|tx| Ok(lease::has_row(tx, &b)?)).unwrap(), "the name held it");
        assert_eq!(images.sweep(true).await.unwrap(), 1);
        assert_eq!(names(), ["a"]);
    }
}
