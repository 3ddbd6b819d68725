//! Transactions, as the modules that own tables see them.
//!
//! Both deref to redb's own, for what isn't wrapped here. Neither can be committed or aborted by a
//! closure: the one who opened it does that.

use std::ops::Deref;

use redb::Database;
use redb::Key;
use redb::MultimapTable;
use redb::MultimapTableDefinition;
use redb::ReadOnlyMultimapTable;
use redb::ReadOnlyTable;
use redb::ReadTransaction;
use redb::ReadableDatabase as _;
use redb::Table;
use redb::TableDefinition;
use redb::TableError;
use redb::Value;
use redb::WriteTransaction;

use super::DbError;

/// A snapshot of the store.
pub struct ReadTx(ReadTransaction);

impl ReadTx {
    pub(super) fn begin(database: &Database) -> Result<ReadTx, DbError> {
        Ok(ReadTx(database.begin_read()?))
    }

    /// The table, or `None` while nothing was ever written to it.
    pub fn table<K: Key + 'static, V: Value + 'static>(
        &self,
        definition: TableDefinition<'_, K, V>,
    ) -> Result<Option<ReadOnlyTable<K, V>>, DbError> {
        existing(self.0.open_table(definition))
    }

    /// As [`ReadTx::table`], for tables with several values a key.
    pub fn multimap<K: Key + 'static, V: Key + 'static>(
        &self,
        definition: MultimapTableDefinition<'_, K, V>,
    ) -> Result<Option<ReadOnlyMultimapTable<K, V>>, DbError> {
        existing(self.0.open_multimap_table(definition))
    }
}

/// The changes of one commit so far. A table may be open once at a time.
pub struct WriteTx(WriteTransaction);

impl WriteTx {
    pub(super) fn begin(database: &Database) -> Result<WriteTx, DbError> {
        Ok(WriteTx(database.begin_write()?))
    }

    pub(super) fn commit(mut self, durability: redb::Durability) -> Result<(), DbError> {
        self.0.set_durability(durability)?;
        Ok(self.0.commit()?)
    }

    /// The table, made if it doesn't exist.
    pub fn table<'t, K: Key + 'static, V: Value + 'static>(
        &'t self,
        definition: TableDefinition<'_, K, V>,
    ) -> Result<Table<'t, K, V>, DbError> {
        Ok(self.0.open_table(definition)?)
    }

    /// As [`WriteTx::table`], for tables with several values a key.
    pub fn multimap<'t, K: Key + 'static, V: Key + 'static>(
        &'t self,
        definition: MultimapTableDefinition<'_, K, V>,
    ) -> Result<MultimapTable<'t, K, V>, DbError> {
        Ok(self.0.open_multimap_table(definition)?)
    }
}

fn existing<T>(opened: Result<T, TableError>) -> Result<Option<T>, DbError> {
    match opened {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Deref for ReadTx {
    type Target = ReadTransaction;

    fn deref(&self) -> &ReadTransaction {
        &self.0
    }
}

impl Deref for WriteTx {
    type Target = WriteTransaction;

    fn deref(&self) -> &WriteTransaction {
        &self.0
    }
}
