//! A file that is there in full or not at all, whatever happens.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::error::SnapshotError;
use super::header::MAGIC;

/// A file that is written beside the one whose place it takes in the end. Dropped before that, it is removed.
#[derive(Debug)]
pub(in crate::machine) struct NewFile {
    file: File,
    /// Where it is until it has its place.
    beside: PathBuf,
    placed: bool,
    path: PathBuf,
}

/// How many files that were left beside a snapshot, by VMMs that were killed, are passed over.
const MAX_LEFT: u32 = 128;

impl NewFile {
    /// An empty file for what is to be at `path`, which only its owner may read: it has all that the guest knows. What
    /// is there already is left alone until [`commit`](Self::commit); if that is no snapshot, it is refused.
    pub(in crate::machine) fn create(path: &Path) -> Result<Self, SnapshotError> {
        Self::with_magic(path, MAGIC)
    }

    /// The same for another kind of file, which begins with `magic`.
    pub(super) fn with_magic(path: &Path, magic: [u8; 8]) -> Result<Self, SnapshotError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let failed = |call| move |source| SnapshotError::File { path: path.to_owned(), call, source };
        let Some(name) = path.file_name() else {
            return Err(failed("create")(io::ErrorKind::IsADirectory.into()));
        };
        match replaceable(path, magic) {
            Ok(true) => {}
            Ok(false) => return Err(SnapshotError::Taken { path: path.to_owned() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("open")(source)),
        }
        let (file, beside) = create_beside(path, name, &NUMBER).map_err(failed("create"))?;
        Ok(Self { file, beside, placed: false, path: path.to_owned() })
    }

    pub(in crate::machine) fn file(&self) -> &File {
        &self.file
    }

    /// Makes what was written last, and puts it in its place.
    pub(in crate::machine) fn commit(mut self) -> Result<(), SnapshotError> {
        let failed = |call| {
            let path = self.path.clone();
            move |source| SnapshotError::File { path, call, source }
        };
        self.file.sync_all().map_err(failed("sync"))?;
        let folder = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let folder = File::open(folder).map_err(failed("open its folder"))?;
        fs::rename(&self.beside, &self.path).map_err(failed("rename"))?;
        self.placed = true;
        folder.sync_all().map_err(failed("sync its folder"))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.placed {
            // The error that brought us here is the one to tell.
            let _ = fs::remove_file(&self.beside);
        }
    }
}

/// Creates a file beside `path`, with the first of the `numbers` that is free. A process that was killed may have had the
/// same id.
fn create_beside(path: &Path, name: &OsStr, numbers: &AtomicU32) -> io::Result<(File, PathBuf)> {
    let mut left = MAX_LEFT;
    loop {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let mut beside = OsString::from(".");
        beside.push(name);
        beside.push(format!(".{}-{number}.part", std::process::id()));
        let beside = path.with_file_name(beside);
        match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&beside) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && left > 0 => left -= 1,
            created => return Ok((created?, beside)),
        }
    }
}

/// Returns true if there is a file of this kind at `path`, which another one may replace.
fn replaceable(path: &Path, expected: [u8; 8]) -> io::Result<bool> {
    let about = fs::symlink_metadata(path)?;
    if !about.is_file() {
        return Ok(false);
    }
    let mut magic = [0; 8];
    match File::open(path)?.read_exact(&mut magic) {
        Ok(()) => Ok(magic == expected),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_were_left_are_passed_over_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.snap");
        let left =
            |number: u32| folder.path().join(format!(".guest.snap.{}-{number}.part", std::process::id()));
        for number in 1..=MAX_LEFT {
            fs::write(left(number), b"left").unwrap();
        }
        let create = |first: u32| create_beside(&path, OsStr::new("guest.snap"), &AtomicU32::new(first));
        assert_eq!(create(0).unwrap().1, left(0));
        assert_eq!(create(1).unwrap().1, left(MAX_LEFT + 1));
        // Not for ever.
        assert_eq!(create(0).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(left(1)).unwrap(), b"left");
    }
}
