//! Which snapshot a file is, and which one a diff is based on. Its section is `ossature.identity`.

use std::collections::BTreeMap;
use std::fmt;

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::error::SnapshotError;
use super::memory;
use super::tree::{self, HASH, Hash};

/// The section's id.
pub(super) const ID: &str = "ossature.identity";

const KIND: &str = "org.ossature.identity";
/// With the roots of trees; all others have version 1.
const VERSION: u16 = 2;
const OWN: Field = Field::new(1, "id");
const BASE: Field = Field::new(2, "id of the base");
const SEAL: Field = Field::new(3, "checksum of the base");
const BASE_ROOT: Field = Field::new(4, "root of the base");
const STANDS_FOR: Field = Field::new(5, "root of what was merged");

/// Names a snapshot: random bytes. A snapshot that was [merged](super::Snapshot::merge) has the id of the last one of its
/// chain, whose machine it has, so that diffs which are based on that go on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId([u8; 16]);

impl SnapshotId {
    /// One that no other snapshot has.
    fn random() -> Result<Self, SnapshotError> {
        let mut bytes = [0; 16];
        let failed = |error: getrandom::Error| SnapshotError::Io { part: "id", source: error.into() };
        getrandom::fill(&mut bytes).map_err(failed)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a diff says of the snapshot that it is based on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) id: SnapshotId,
    /// See [`seal`].
    pub(super) seal: u32,
    /// The root of its tree, if it has one, or of what it was merged of: the base is that very file, its memory included, or
    /// one that was merged of it.
    pub(super) root: Option<Hash>,
}

/// Which snapshot it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: SnapshotId,
    /// What it is a diff of, if it is one.
    pub(super) base: Option<Base>,
    /// Of a snapshot with a tree that was merged: the root of the last one of its chain. Diffs of that go on it.
    pub(super) stands_for: Option<Hash>,
}

impl Identity {
    /// A new one.
    pub(super) fn new(base: Option<Base>) -> Result<Self, SnapshotError> {
        Ok(Self { id: SnapshotId::random()?, base, stands_for: None })
    }

    pub(super) fn save(&self) -> SavedState<'static> {
        let mut fields = Encoder::new(KIND, if self.has_roots() { VERSION } else { 1 });
        fields.bytes(OWN, &self.id.0);
        if let Some(base) = self.base {
            fields.bytes(BASE, &base.id.0).u32(SEAL, base.seal);
        }
        let roots = [(BASE_ROOT, self.base.and_then(|base| base.root)), (STANDS_FOR, self.stands_for)];
        for (field, root) in roots {
            if let Some(root) = root {
                fields.bytes(field, &root);
            }
        }
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, 1..=VERSION)?;
        let id = id(&mut fields, OWN)?;
        let base = fields.optional(BASE, id_of)?;
        let seal = fields.optional(SEAL, Decoder::u32)?;
        let [root, stands_for] = match state.version {
            1 => [None; 2],
            _ => [fields.optional(BASE_ROOT, hash)?, fields.optional(STANDS_FOR, hash)?],
        };
        fields.finish()?;
        if base.is_some() != seal.is_some() || (root.is_some() && base.is_none()) {
            return Err(StateError::Inconsistent {
                field: "id of the base",
                reason: "it is with its checksum",
            });
        }
        let identity =
            Self { id, base: base.zip(seal).map(|(id, seal)| Base { id, seal, root }), stands_for };
        // What is read is written again as it was.
        if identity.has_roots() != (state.version > 1) {
            return Err(StateError::Inconsistent { field: "root", reason: "there is none" });
        }
        Ok(identity)
    }

    /// Returns true if it says something about trees.
    pub(super) fn has_roots(&self) -> bool {
        self.stands_for.is_some() || self.base.is_some_and(|base| base.root.is_some())
    }
}

fn id_of(fields: &mut Decoder<'_>, field: Field) -> Result<SnapshotId, StateError> {
    id(fields, field)
}

fn id(fields: &mut Decoder<'_>, field: Field) -> Result<SnapshotId, StateError> {
    let bytes = fields.bytes(field, 16)?.try_into();
    let bytes = bytes.map_err(|_| StateError::Inconsistent { field: "id", reason: "not of 16 bytes" })?;
    Ok(SnapshotId(bytes))
}

fn hash(fields: &mut Decoder<'_>, field: Field) -> Result<Hash, StateError> {
    let bytes = fields.bytes(field, HASH)?.try_into();
    bytes.map_err(|_| StateError::Inconsistent { field: "root", reason: "not of 32 bytes" })
}

/// A checksum of what a snapshot has beside memory. It is the same for one that was merged of several files.
pub(super) fn seal(sections: &BTreeMap<String, SavedState<'static>>) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    for (id, state) in sections.iter().filter(|(id, _)| !matches!(id.as_str(), ID | memory::ID | tree::ID)) {
        for part in [id.as_bytes(), state.kind.as_bytes(), &state.version.to_le_bytes(), &state.payload] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hash.finalize()
}
