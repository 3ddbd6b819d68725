//! [`Plan`]: records that are to exist, from the lowest to the one that is wanted.

use std::sync::Arc;

use jiff::Timestamp;

use super::ImmutableRef;
use super::MAX_COMPANIONS;
use super::RefOptions;
use super::record::BlobChainId;
use super::record::ChangeSet;
use super::record::Kind;
use super::record::Layer;
use super::record::Part;
use super::record::RecordId;
use super::record::RecordType;
use super::record::Row;
use crate::db::DbError;
use crate::db::ReadTx;
use crate::db::WriteTx;
use crate::lease;
use crate::lease::Owner;
use crate::oci::ChainId;
use crate::oci::Digest;

#[derive(Clone)]
pub(super) struct Plan {
    /// Each stands on the one before. Not empty.
    steps: Vec<Step>,
    options: RefOptions,
}

#[derive(Clone)]
struct Step {
    id: RecordId,
    blob_chain: BlobChainId,
    chain: ChainId,
    kind: Kind,
}

impl Plan {
    /// `None` for no layer.
    pub(super) fn of_layers(
        layers: Vec<Layer>,
        parent: Option<&ImmutableRef>,
        options: RefOptions,
    ) -> Option<Plan> {
        let mut below = parent.map(|p| (p.id(), p.blob_chain(), p.chain()));
        let mut steps = Vec::with_capacity(layers.len());
        for layer in layers {
            let blob_chain = BlobChainId::then(below.map(|(_, blobs, _)| blobs), &layer);
            let chain = below.map_or(ChainId::of(layer.diff_id), |(_, _, chain)| chain.then(layer.diff_id));
            let id = blob_chain.record();
            let kind = Kind::Layer { layer: Box::new(layer), parent: below.map(|(id, ..)| id) };
            steps.push(Step { id, blob_chain, chain, kind });
            below = Some((id, blob_chain, chain));
        }
        if steps.is_empty() { None } else { Some(Plan { steps, options }) }
    }

    /// `None` for no parent.
    pub(super) fn of_merge(parents: &[ImmutableRef], options: RefOptions) -> Option<Plan> {
        let (lowest, others) = parents.split_first()?;
        let chains: Vec<BlobChainId> = parents.iter().map(ImmutableRef::blob_chain).collect();
        let kind = Kind::Merge { parents: parents.iter().map(ImmutableRef::id).collect() };
        // The lowest one's change sets are not looked at: merges that stand on each other take time for what each adds.
        let added = others.iter().flat_map(|parent| parent.parts());
        let chain = added.fold(lowest.chain(), |chain, part| chain.then(part.identity()));
        Some(Plan::of_one(BlobChainId::merged(&chains), chain, kind, options))
    }

    /// `parts` are change sets that stand on each other; `None` for no part.
    pub(super) fn of_slice(parts: &[Part], options: RefOptions) -> Option<Plan> {
        let of: Vec<RecordId> = parts.iter().map(|p| p.record).collect();
        let chain = ChainId::of_all(parts.iter().map(Part::identity))?;
        Some(Plan::of_one(BlobChainId::sliced(&of), chain, Kind::Slice { of }, options))
    }

    fn of_one(blob_chain: BlobChainId, chain: ChainId, kind: Kind, options: RefOptions) -> Plan {
        Plan { steps: vec![Step { id: blob_chain.record(), blob_chain, chain, kind }], options }
    }

    /// The record that is wanted.
    pub(super) fn top(&self) -> RecordId {
        self.steps[self.steps.len() - 1].id
    }

    /// The change sets that the planned records add.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> {
        self.steps.iter().filter_map(|step| match &step.kind {
            Kind::Layer { layer, .. } => {
                Some(Part { record: step.id, set: ChangeSet::Blob(Arc::new(Layer::clone(layer))) })
            }
            _ => None,
        })
    }

    /// The wanted record, if it exists and there is nothing to add to it. What it stands on exists
    /// then, too.
    pub(super) fn existing(&self, tx: &ReadTx) -> Result<Option<Row>, DbError> {
        let blob_chain = self.steps[self.steps.len() - 1].blob_chain;
        let row = Row::read(tx, &self.top())?;
        Ok(row.filter(|row| row.blob_chain == blob_chain && !self.amend(&mut row.clone())))
    }

    /// Writes the rows that are missing, bottom first, and returns the topmost one.
    pub(super) fn write(&self, tx: &WriteTx) -> Result<Row, DbError> {
        let now = Timestamp::now();
        let (top, below) = match self.steps.split_last() {
            Some(split) => split,
            None => return Err(DbError::Row { key: String::new(), reason: "a plan has no step".to_owned() }),
        };
        for step in below {
            if step.read(tx)?.is_none() {
                let mut row = step.row(now);
                row.description.clone_from(&self.options.description);
                row.insert(tx, &step.id)?;
                hold(tx, &step.id, &row)?;
            }
        }
        let existing = top.read(tx)?;
        let is_new = existing.is_none();
        let mut row = existing.unwrap_or_else(|| top.row(now));
        if self.amend(&mut row) || is_new {
            row.insert(tx, &top.id)?;
            hold(tx, &top.id, &row)?;
        }
        Ok(row)
    }

    /// Brings what the options say into `row`; true if that changed it.
    fn amend(&self, row: &mut Row) -> bool {
        let before = row.clone();
        if row.description.is_empty() {
            row.description.clone_from(&self.options.description);
        }
        if row.record_type == RecordType::Regular {
            row.record_type = self.options.record_type;
        }
        for digest in &self.options.companions {
            if !row.companions.contains(digest) {
                row.companions.push(*digest);
            }
        }
        let over = row.companions.len().saturating_sub(MAX_COMPANIONS);
        row.companions.drain(..over);
        *row != before
    }
}

impl Step {
    fn row(&self, created_at: Timestamp) -> Row {
        Row {
            kind: self.kind.clone(),
            blob_chain: self.blob_chain,
            chain: self.chain,
            created_at,
            description: String::new(),
            record_type: RecordType::Regular,
            companions: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// The row of this step, which must be of the same blobs: an ID is shorter than what it stands for.
    fn read(&self, tx: &WriteTx) -> Result<Option<Row>, DbError> {
        let row = Row::read_within(tx, &self.id)?;
        match row {
            Some(row) if row.blob_chain != self.blob_chain => Err(DbError::Row {
                key: self.id.to_string(),
                reason: "it is of other blobs than those that have its ID".to_owned(),
            }),
            row => Ok(row),
        }
    }
}

/// Makes the lease rows of a record those that it needs.
fn hold(tx: &WriteTx, id: &RecordId, row: &Row) -> Result<(), DbError> {
    let owner = Owner::Record(id.to_string());
    let own: Option<&Digest> = match &row.kind {
        Kind::Layer { layer, .. } => Some(&layer.blob.digest),
        _ => None,
    };
    lease::release_rows(tx, &owner)?;
    lease::hold_rows(tx, &owner, own.into_iter().chain(&row.companions))?;
    Ok(())
}
