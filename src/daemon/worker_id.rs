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

/// The name in `<root>/workerid`, made if there is none.
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
    let temporary = root.join("workerid.new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(id.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    fs::File::open(root)?.sync_all()?;
    Ok(id)
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
