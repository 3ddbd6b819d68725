//! The name of the worker, which is the root's: it stays across restarts.
//!
//! # Crash consistency
//!
//! The file is renamed into its place whole. A crash before that leaves a new name for the next start, which
//! nobody has seen the old one of.

use std::fs;
use std::io;
use std::io::Write as _;
use std::path::Path;

use super::lock::is_no_space;

const NEW: &str = "workerid.new";

/// The name in `<root>/workerid`, made if there is none. On a full disk one that is made is for this run.
pub(super) fn worker_id(root: &Path) -> io::Result<String> {
    let path = root.join("workerid");
    match fs::read_to_string(&path) {
        Ok(text) if is_id(text.trim()) => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let letters = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let id: String = (0..25).map(|_| char::from(letters[rand::random_range(0..letters.len())])).collect();
    match keep(root, &path, &id) {
        Err(e) if is_no_space(&e) => {
            tracing::warn!(path = %path.display(), "no space for the name of the worker: the next start takes another");
            // What was begun would be in the way of nothing, but for its block.
            let _ = fs::remove_file(root.join(NEW));
        }
        kept => kept?,
    }
    Ok(id)
}

fn keep(root: &Path, path: &Path, id: &str) -> io::Result<()> {
    let temporary = root.join(NEW);
    let mut file = fs::File::create(&temporary)?;
    file.write_all(id.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(root)?.sync_all()
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_keeps_its_name_and_a_broken_one_gets_another() {
        let dir = tempfile::tempdir().unwrap();
        let id = worker_id(dir.path()).unwrap();
        assert!(is_id(&id));
        assert_eq!(worker_id(dir.path()).unwrap(), id);
        fs::write(dir.path().join("workerid"), "\0").unwrap();
        assert!(is_id(&worker_id(dir.path()).unwrap()));
        assert_ne!(worker_id(dir.path()).unwrap(), id);
    }
}
