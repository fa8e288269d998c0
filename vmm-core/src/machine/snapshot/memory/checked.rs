//! What chunks of memory are checked against: checksums, or with a key the leaves of a tree.

use ossature_bus::state::{SavedState, StateError};

use super::MemoryTable;
use crate::machine::snapshot::error::SnapshotError;
use crate::machine::snapshot::tree::{HASH, Leaves, SnapshotKey};

impl MemoryTable {
    /// With a tree, if there is a key.
    pub(in crate::machine::snapshot) fn with_key(self, key: Option<&SnapshotKey>) -> Self {
        let hashes = || vec![[0; HASH]; self.chunks.len()];
        let leaves = key.map(|key| Leaves { key: key.clone(), hashes: hashes() });
        Self { leaves, ..self }
    }

    /// The key that it is saved with, or was opened with.
    pub(in crate::machine::snapshot) fn key(&self) -> Option<&SnapshotKey> {
        self.leaves.as_ref().map(|leaves| &leaves.key)
    }

    /// The section of the leaves, if there is to be a tree.
    pub(in crate::machine::snapshot) fn save_leaves(&self) -> Option<SavedState<'static>> {
        let hashes = &self.leaves.as_ref()?.hashes;
        let present = hashes.iter().zip(&self.chunks).filter(|(_, chunk)| chunk.is_some());
        Some(Leaves::save(present.map(|(hash, _)| hash)))
    }

    /// Takes the leaves over. They are checked against if there is a key, to which they belong.
    pub(in crate::machine::snapshot) fn load_leaves(
        &mut self,
        state: &SavedState<'_>,
        key: Option<&SnapshotKey>,
    ) -> Result<(), StateError> {
        let mut leaves = Leaves::load(state, self.chunks.iter().flatten().count())?.into_iter();
        let Some(key) = key else { return Ok(()) };
        let hash = |chunk: &Option<u32>| chunk.and_then(|_| leaves.next()).unwrap_or_default();
        self.leaves = Some(Leaves { key: key.clone(), hashes: self.chunks.iter().map(hash).collect() });
        Ok(())
    }

    /// Notes what chunk `index` is, which consists of these pieces, and that there is something of it.
    pub(in crate::machine::snapshot) fn note<'a>(
        &mut self,
        index: usize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) {
        let (mut crc, mut leaf) = (crc32fast::Hasher::new(), self.key().map(SnapshotKey::leaf));
        for bytes in pieces {
            crc.update(bytes);
            if let Some(leaf) = &mut leaf {
                leaf.update(bytes);
            }
        }
        self.chunks.get_mut(index).into_iter().for_each(|chunk| *chunk = Some(crc.clone().finalize()));
        let hash = self.leaves.as_mut().and_then(|leaves| leaves.hashes.get_mut(index));
        if let Some((hash, leaf)) = hash.zip(leaf) {
            *hash = *leaf.finalize().as_bytes();
        }
    }

    /// Fails unless chunk `index`, of which there is something, consists of these pieces.
    pub(in crate::machine::snapshot) fn check<'a>(
        &self,
        index: usize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), SnapshotError> {
        let addr = || self.chunk(index).map_or(0, |(chunk, _)| chunk.addr);
        if let Some(Leaves { key, hashes }) = &self.leaves {
            // Compared as hashes are: in a time that says nothing.
            let same = hashes.get(index).is_some_and(|hash| leaf(key, pieces) == *hash);
            return if same { Ok(()) } else { Err(SnapshotError::TamperedMemory { addr: addr() }) };
        }
        let mut crc = crc32fast::Hasher::new();
        pieces.for_each(|bytes| crc.update(bytes));
        let same = self.chunks.get(index).copied().flatten() == Some(crc.finalize());
        if same { Ok(()) } else { Err(SnapshotError::MemoryChecksum { addr: addr() }) }
    }
}

/// The leaf of a chunk that consists of these pieces.
fn leaf<'a>(key: &SnapshotKey, pieces: impl Iterator<Item = &'a [u8]>) -> blake3::Hash {
    let mut hash = key.leaf();
    pieces.for_each(|bytes| {
        hash.update(bytes);
    });
    hash.finalize()
}
