//! A chain becomes one file.

use std::fs::File;
use std::path::Path;

use super::error::SnapshotError;
use super::identity::{self, Identity};
use super::memory;
use super::save::write_parts;
use super::tree::{self, SnapshotKey};
use super::{NewFile, Snapshot};

impl Snapshot {
    /// Writes a full snapshot of the same machine to `path`, which needs no other file: it may take the place of any file
    /// of the chain. It is there in full or not at all, as is what [`MachineHandle::snapshot`] writes. All memory is read
    /// and checked. Its id is that of this one: diffs that are based on this one go on it, too. It has the same key, if
    /// any.
    ///
    /// [`MachineHandle::snapshot`]: crate::machine::MachineHandle::snapshot
    pub fn merge(&self, path: impl AsRef<Path>) -> Result<(), SnapshotError> {
        let file = NewFile::create(path.as_ref())?;
        self.merge_to(file.file())?;
        file.commit()
    }

    /// As [`merge`](Self::merge), into an open, empty file.
    pub fn merge_to(&self, file: &File) -> Result<(), SnapshotError> {
        self.merge_with(file, self.key())
    }

    /// As [`merge_to`](Self::merge_to), with a tree of this key, or with none.
    pub(super) fn merge_with(&self, file: &File, key: Option<&SnapshotKey>) -> Result<(), SnapshotError> {
        self.expect_whole()?;
        let identity = match self.identity {
            Some(Identity { id, .. }) => {
                Identity { id, base: None, stands_for: self.stands_for().filter(|_| key.is_some()) }
            }
            None => Identity::new(None)?,
        };
        let own = |id: &str| matches!(id, identity::ID | memory::ID | tree::ID);
        let sections = self.sections.iter().filter(|(id, _)| !own(id));
        let sections = sections.map(|(id, state)| (id.clone(), state.borrowed())).collect();
        // From the full one on, each diff over what is before it.
        let mut layers = self.layers()?;
        layers.reverse();
        write_parts(file, &identity, &sections, self.memory.empty().with_key(key), |table, start| {
            table.write_from(file, start, |index, _, bytes| {
                bytes.fill(0);
                let mut some = false;
                for layer in &layers {
                    some |= layer.memory.read_pages(&mut &*layer.file, layer.start, index, bytes)?.is_some();
                }
                Ok(some)
            })
        })?;
        Ok(())
    }
}
