//! [`ImageList`]: the images that this node has under a name.
//!
//! A named image holds its manifests, configs and layers, resident or not: naming downloads nothing,
//! and a named image can be pushed and pulled from after everything else was pruned.

use jiff::Timestamp;
use redb::ReadableTable;
use redb::TableDefinition;
use serde::Deserialize;
use serde::Serialize;

use crate::db;
use crate::db::Db;
use crate::db::DbError;
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
}

impl ImageList {
    pub fn new(db: Db) -> ImageList {
        ImageList { db }
    }

    /// Gives `target` the name, in place of what had it. `blobs` is everything that the image consists
    /// of, `target` included.
    ///
    /// Cancellation safe: the name is set whether or not the answer is awaited.
    pub async fn set(
        &self,
        name: &str,
        target: Descriptor,
        blobs: Vec<Digest>,
        updated_at: Timestamp,
    ) -> Result<(), DbError> {
        let set_at = Timestamp::now();
        let image = NamedImage { name: name.to_owned(), target, updated_at, set_at };
        self.db
            .write(move |tx| {
                tx.table(IMAGES)?.insert(image.name.as_str(), db::encode(&image)?.as_slice())?;
                let owner = Owner::Image(image.name.clone());
                lease::release_rows(tx, &owner)?;
                lease::hold_rows(tx, &owner, &blobs)?;
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
        if self.list()?.iter().all(|image| image.set_at >= time) {
            return Ok(0);
        }
        self.db
            .write(move |tx| {
                let mut table = tx.table(IMAGES)?;
                let mut old = Vec::new();
                for row in table.iter()? {
                    let (name, value) = row?;
                    let image: NamedImage = db::decode(name.value(), value.value())?;
                    if image.set_at < time {
                        old.push(image.name);
                    }
                }
                for name in &old {
                    table.remove(name.as_str())?;
                    lease::release_rows(tx, &Owner::Image(name.clone()))?;
                }
                Ok(old.len())
            })
            .await
    }

    /// Takes the name away; true if something had it. What it held is free for the collector.
    ///
    /// Cancellation safe: the name is gone whether or not the answer is awaited.
    pub async fn remove(&self, name: &str) -> Result<bool, DbError> {
        let name = name.to_owned();
        self.db
            .write(move |tx| {
                let existed = tx.table(IMAGES)?.remove(name.as_str())?.is_some();
                lease::release_rows(tx, &Owner::Image(name.clone()))?;
                Ok(existed)
            })
            .await
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
        images.set("x", a.clone(), vec![a.digest], Timestamp::UNIX_EPOCH).await.unwrap();
        assert!(held(&a) && !held(&b));
        images.set("x", b.clone(), vec![b.digest], Timestamp::UNIX_EPOCH).await.unwrap();
        assert!(!held(&a) && held(&b));
        assert_eq!(images.list().unwrap().len(), 1);
        assert_eq!(images.get("x").unwrap().unwrap().target, b);
        assert_eq!(images.expire(Timestamp::UNIX_EPOCH).await.unwrap(), 0);
        assert!(held(&b), "whatever time it says of itself");
        images.set("y", a.clone(), vec![a.digest], Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(images.expire(Timestamp::MAX).await.unwrap(), 2);
        assert!(!held(&a) && !held(&b) && images.list().unwrap().is_empty());
        images.set("x", b.clone(), vec![b.digest], Timestamp::UNIX_EPOCH).await.unwrap();
        assert!(images.remove("x").await.unwrap() && !images.remove("x").await.unwrap());
        assert!(!held(&b));
    }
}
