//! What a snapshot is checked against that was saved with a key: a tree of keyed BLAKE3 hashes.
//!
//! Its leaves are the hashes of the chunks of memory, of those that are not zero, or in a diff of the pages of each that it
//! has. They are in the section `ossature.tree`. Its root is the hash of the header and the state, the leaves included, and
//! is between these two. So what the state says, all lengths and addresses included, is known to be what was saved before
//! any of it is decoded, and a chunk before anybody sees it.
//!
//! Leaves and root have keys of their own, derived from the caller's: a guest that fills its memory with what a state
//! looks like gets no root for it.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::error::SnapshotError;
use super::memory::MAX_CHUNKS;
use super::source::SnapshotSource;
use super::{Snapshot, header};

/// The id of the section that has the leaves.
pub(super) const ID: &str = "ossature.tree";

const KIND: &str = "org.ossature.tree";
const VERSION: u16 = 1;
const LEAVES: Field = Field::new(1, "leaves");

/// Bytes of the caller's key.
const SECRET: usize = 32;
/// Bytes between header and state: the key's id, and the root.
pub(super) const SEAL: usize = 16 + HASH;
/// Bytes of a hash.
pub(super) const HASH: usize = 32;

/// A keyed hash. Hashes are compared in constant time where somebody could learn from it.
pub(super) type Hash = [u8; HASH];

/// 32 secret bytes, with which snapshots are saved and opened: what was not saved by somebody who has them, or was changed
/// since, is refused before a machine sees it. A [machine that has one](super::super::MachineBuilder::snapshot_key) writes
/// no snapshot without it.
///
/// Nothing of the machine is used before it was checked. The state is checked when the snapshot is opened, and each 2 MiB
/// of memory when the machine is built, or, [on demand](Snapshot::on_demand), when they are first touched: one that is not
/// what was saved ends the machine. A device that is reading it then gets zeros, and may write them to a disk before it
/// stops. Either way memory is copied first and checked then, so the file cannot change in
/// between, and is not mapped.
///
/// What a key does not say is when: an older snapshot that was saved with the same key is a good one. Compare
/// [`Snapshot::id`] if it has to be a certain one. Nothing is encrypted.
///
/// ```
/// use ossature_core::machine::{Machine, SnapshotError, SnapshotKey};
/// use ossature_core::scripted::{Script, Scripted};
/// use ossature_memory::vm_memory::GuestAddress;
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("guest.snap");
/// # let secret = [7; 32];
/// let key = SnapshotKey::new(secret); // from wherever secrets are kept
/// let machine = Machine::builder("first").snapshot_key(key.clone()).build(&Scripted::new([Script::new()]))?;
/// # machine.ram().dma().write(GuestAddress(0x1000), b"kept")?;
/// machine.snapshot(&path)?;
///
/// let again = Machine::builder("again").restore(key.open(&path)?).build(&Scripted::new([Script::new()]))?;
/// assert_eq!(again.ram().dma().read_obj::<[u8; 4]>(GuestAddress(0x1000))?, *b"kept");
///
/// let other = SnapshotKey::new([8; 32]);
/// let error = other.open(&path).unwrap_err();
/// assert!(matches!(error.reason(), SnapshotError::OtherKey { .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SnapshotKey {
    id: KeyId,
    root: Hash,
    leaf: Hash,
}

/// Names a [`SnapshotKey`], and says nothing else about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 16]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl PartialEq for SnapshotKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for SnapshotKey {}

impl SnapshotKey {
    /// Takes 32 random bytes that nobody else knows.
    pub fn new(secret: [u8; SECRET]) -> Self {
        let derived = |context| blake3::derive_key(context, &secret);
        let id = derived("ossature 2026 snapshot key id");
        let id = KeyId(id.first_chunk().copied().unwrap_or_default());
        Self {
            id,
            root: derived("ossature 2026 snapshot root"),
            leaf: derived("ossature 2026 snapshot leaf"),
        }
    }

    /// Reads the 32 bytes: all that there are, or it is no key.
    pub fn read(from: impl Read) -> io::Result<Self> {
        let mut bytes = Vec::with_capacity(SECRET + 1);
        from.take(SECRET as u64 + 1).read_to_end(&mut bytes)?;
        let found = bytes.len();
        let wrong = || {
            let found = if found > SECRET { "more".to_owned() } else { format!("{found} bytes") };
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a key has {SECRET} bytes, and this is {found}"),
            )
        };
        Ok(Self::new(bytes.try_into().map_err(|_| wrong())?))
    }

    /// What names it.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// As [`Snapshot::open`], of a snapshot that was saved with this key. Any other one is refused.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Snapshot, SnapshotError> {
        Snapshot::open_path(path.as_ref(), Some(self))
    }

    /// As [`Snapshot::from_file`], of a snapshot that was saved with this key. Any other one is refused.
    pub fn open_file(&self, file: impl Into<OwnedFd>) -> Result<Snapshot, SnapshotError> {
        Snapshot::open_fd(file.into(), Some(self))
    }

    /// As [`Snapshot::from_source`], of a snapshot that was saved with this key. Any other one is refused.
    pub fn open_source(&self, source: impl SnapshotSource + 'static) -> Result<Snapshot, SnapshotError> {
        Snapshot::open_source(Box::new(source), Some(self))
    }

    /// As [`Snapshot::open_chain`], of snapshots that were all saved with this key. Each diff goes on the very snapshot that
    /// it was made of, and on what that was [merged](Snapshot::merge) into.
    pub fn open_chain<P: AsRef<Path>>(
        &self,
        paths: impl IntoIterator<Item = P>,
    ) -> Result<Snapshot, SnapshotError> {
        Snapshot::open_paths(paths, Some(self))
    }

    /// The root of a header and the state that belongs to it.
    pub(super) fn root(&self, header: &[u8; header::LEN], state: &[u8]) -> Hash {
        *blake3::Hasher::new_keyed(&self.root).update(header).update(state).finalize().as_bytes()
    }

    /// Begins the leaf of a chunk.
    pub(super) fn leaf(&self) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&self.leaf)
    }
}

/// Who has saved a snapshot, and what it then was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) key: KeyId,
    pub(super) root: Hash,
}

impl Seal {
    pub(super) fn of(key: &SnapshotKey, header: &[u8; header::LEN], state: &[u8]) -> Self {
        Self { key: key.id, root: key.root(header, state) }
    }

    pub(super) fn to_bytes(self) -> [u8; SEAL] {
        let mut bytes = [0; SEAL];
        bytes.iter_mut().zip(self.key.0.into_iter().chain(self.root)).for_each(|(to, byte)| *to = byte);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; SEAL]) -> Self {
        let (mut key, mut root) = (KeyId([0; 16]), [0; HASH]);
        key.0.iter_mut().chain(&mut root).zip(bytes).for_each(|(to, byte)| *to = *byte);
        Self { key, root }
    }

    /// Fails if what was read is not what was saved with this key.
    pub(super) fn check(
        &self,
        key: &SnapshotKey,
        header: &[u8; header::LEN],
        state: &[u8],
    ) -> Result<(), SnapshotError> {
        if self.key != key.id {
            return Err(SnapshotError::OtherKey { found: self.key, given: key.id });
        }
        let root = blake3::Hash::from_bytes(key.root(header, state));
        if root == self.root { Ok(()) } else { Err(SnapshotError::Tampered) }
    }
}

/// The leaves of a tree, and the key that they are made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaves {
    pub(super) key: SnapshotKey,
    /// One for each chunk. What has no checksum has no leaf: it is zero.
    pub(super) hashes: Vec<Hash>,
}

impl Leaves {
    pub(super) fn save<'a>(hashes: impl Iterator<Item = &'a Hash>) -> SavedState<'static> {
        let mut fields = Encoder::new(KIND, VERSION);
        fields.bytes(LEAVES, &hashes.flatten().copied().collect::<Vec<u8>>());
        fields.finish()
    }

    /// Reads the leaves of `present` chunks.
    pub(super) fn load(state: &SavedState<'_>, present: usize) -> Result<Vec<Hash>, StateError> {
        let mut fields = Decoder::new(state, KIND, 1..=VERSION)?;
        let leaves = fields.bytes(LEAVES, MAX_CHUNKS * HASH)?;
        fields.finish()?;
        if leaves.len() != present * HASH {
            return Err(StateError::Inconsistent { field: "leaves", reason: "not one for each checksum" });
        }
        Ok(leaves.chunks_exact(HASH).filter_map(|leaf| leaf.try_into().ok()).collect())
    }
}

#[cfg(test)]
mod tests;
