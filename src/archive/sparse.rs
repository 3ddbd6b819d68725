//! Where the bytes of sparse files stand, in the four ways that GNU tar notes it: in blocks of its own
//! (`S`), in repeated pax records (0.0), in one pax record (0.1), in front of the data (1.0).

use super::Extent;
use super::pax;
use super::pax::Records;

/// What an entry's pax records say of holes.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Sparse {
    No,
    /// Formats 0.0 and 0.1.
    Runs {
        size: u64,
        runs: Vec<Extent>,
    },
    /// Format 1.0: the data begin with the runs.
    InData {
        size: u64,
    },
}

/// Reads what the records say; the error says what is wrong.
pub(super) fn noted(records: &Records) -> Result<Sparse, &'static str> {
    let number = |key: &[u8]| match records.get(key) {
        Some(value) => pax::decimal(value).map(Some).ok_or("a sparse file's size is no number"),
        None => Ok(None),
    };
    let version = (number(b"GNU.sparse.major")?, number(b"GNU.sparse.minor")?);
    if version == (Some(1), Some(0)) {
        let size = number(b"GNU.sparse.realsize")?.or(number(b"GNU.sparse.size")?);
        return Ok(Sparse::InData { size: size.ok_or("a sparse file has no size")? });
    }
    let runs = match records.get(b"GNU.sparse.map") {
        Some(map) => listed(map)?,
        None if records.runs().is_empty() => return Ok(Sparse::No),
        None => records.runs().to_vec(),
    };
    if !matches!(version, (None, None) | (Some(0), Some(0 | 1))) {
        return Err("a sparse file of an unknown version");
    }
    let size = number(b"GNU.sparse.size")?.or(number(b"GNU.sparse.realsize")?);
    Ok(Sparse::Runs { size: size.ok_or("a sparse file has no size")?, runs })
}

/// `offset,length,offset,length`.
fn listed(map: &[u8]) -> Result<Vec<Extent>, &'static str> {
    let numbers = map.split(|&b| b == b',').map(pax::decimal);
    let numbers: Vec<u64> = numbers.collect::<Option<_>>().ok_or("a sparse run is no number")?;
    let pairs = numbers.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err("a sparse run has no length");
    }
    Ok(pairs.map(|pair| Extent { offset: pair[0], length: pair[1] }).collect())
}

/// The runs as a reader hands them out: in order, apart, none empty, within `size`, and together as
/// long as the `stored` bytes.
pub(super) fn checked(runs: Vec<Extent>, size: u64, stored: u64) -> Result<Vec<Extent>, &'static str> {
    let mut kept: Vec<Extent> = Vec::with_capacity(runs.len());
    let (mut end, mut total) = (0, 0u64);
    for run in runs {
        let run_end = run.offset.checked_add(run.length).ok_or("a sparse run is too long")?;
        if run.offset < end || run_end > size {
            return Err("sparse runs overlap or pass the file's end");
        }
        total += run.length;
        match kept.last_mut() {
            Some(last) if last.end() == run.offset => last.length += run.length,
            _ if run.length == 0 => {}
            _ => kept.push(run),
        }
        end = run_end;
    }
    if total != stored { Err("sparse runs and data differ in length") } else { Ok(kept) }
}
