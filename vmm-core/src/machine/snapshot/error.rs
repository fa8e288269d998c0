//! Why there is no snapshot, or why one cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use ossature_bus::state::StateError;
use ossature_bus::state_file::{Architecture, FormatError};
use ossature_memory::{DmaError, MapFileError, RamError, UserfaultError};

use super::identity::SnapshotId;
use super::tree::KeyId;
use crate::VmError;
use crate::machine::error::LifecycleError;

/// Why a snapshot cannot be written, read or restored. One that cannot be written leaves no file behind, with two
/// exceptions. If only its folder cannot be synced, the snapshot is in its place, but may be gone after a power cut. And
/// [`snapshot_to`](crate::machine::Paused::snapshot_to) leaves what it has written in the caller's file, which is no
/// snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file cannot be opened, made, or put in its place.
    #[error("{}: {call}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        call: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// What was opened by a path cannot be used.
    #[error("{}: {source}", path.display())]
    Opened {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<SnapshotError>,
    },
    /// There is something else where the snapshot is to be, which is left alone.
    #[error("{}: it exists and is something else; name another file, or remove it", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// A snapshot is written into an empty file.
    #[error("a snapshot is written into an empty file, and this one has {len} bytes")]
    NotEmpty {
        /// Its length.
        len: u64,
    },
    /// The file cannot be read or written.
    #[error("its {part}: {source}")]
    Io {
        /// The part of the file.
        part: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// The machine has too much memory or state for any file.
    #[error("the machine has more state or memory than a snapshot takes")]
    TooLarge,
    /// The machine cannot be saved, or does not take what was saved.
    #[error(transparent)]
    Machine(#[from] LifecycleError),
    /// Guest memory cannot be read or written.
    #[error("guest memory: {0}")]
    Dma(#[from] DmaError),
    /// The file is something else.
    #[error("it is no snapshot")]
    NotASnapshot,
    /// The format has another version.
    #[error("it has version {found} of the format; known are versions up to {known}")]
    Version {
        /// The file's version.
        found: u16,
        /// The newest one that is known here.
        known: u16,
    },
    /// It is of a guest on another architecture.
    #[error("it is of a guest on {found}, and this host is {here}")]
    Architecture {
        /// The file's.
        found: Architecture,
        /// What would be right.
        here: Architecture,
    },
    /// The file ends too early.
    #[error("it is truncated: {has} bytes of {needs}")]
    Truncated {
        /// How many bytes there should be.
        needs: u64,
        /// How many there are.
        has: u64,
    },
    /// The bytes are not those that were written.
    #[error("it is damaged: its {part} has a wrong checksum")]
    Checksum {
        /// Of which part.
        part: &'static str,
    },
    /// Guest memory is not what was written.
    #[error("it is damaged: guest memory at {addr:#x} has a wrong checksum")]
    MemoryChecksum {
        /// The first guest address of the piece.
        addr: u64,
    },
    /// It has a tree of hashes, and is used without the key to it.
    #[error("it was saved with key {key}: open it with that key")]
    KeyNeeded {
        /// The id of the key.
        key: KeyId,
    },
    /// A key is given, and it was saved without one.
    #[error("it was saved without a key, and is opened with one: nothing in it can be checked against that")]
    NoTree,
    /// It was saved with another key than it is opened with.
    #[error("it was saved with key {found}, and is opened with key {given}")]
    OtherKey {
        /// The id of the key that it was saved with.
        found: KeyId,
        /// The id of the key that is given.
        given: KeyId,
    },
    /// Its header or its state is not what was saved with the key.
    #[error("its header or state is not what was saved with this key")]
    Tampered,
    /// Guest memory is not what was saved with the key.
    #[error("guest memory at {addr:#x} is not what was saved with this key")]
    TamperedMemory {
        /// The first guest address of the piece.
        addr: u64,
    },
    /// Somebody has put another snapshot into the file that was just written, before it was used as a checkpoint.
    #[error("it is not what was just written to it: somebody else has changed the file")]
    Overwritten,
    /// A diff and what it is based on are saved with the same key, or both without one.
    #[error("a diff has the key of its base: this one {}, and its base {}", key(found.as_ref()), key(base.as_ref()))]
    MixedKeys {
        /// The id of the diff's key.
        found: Option<KeyId>,
        /// The id of the base's key.
        base: Option<KeyId>,
    },
    /// A field says what cannot be.
    #[error("its {field}: {reason}")]
    Damaged {
        /// The field.
        field: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// The state is not one, or is damaged.
    #[error("its state is damaged: {0}")]
    Format(#[from] FormatError),
    /// A part of the state is not there.
    #[error("it has no section {id:?}")]
    Missing {
        /// The section.
        id: String,
    },
    /// A part of the state is wrong.
    #[error("its section {id:?}: {source}")]
    Section {
        /// The section.
        id: String,
        /// Why.
        source: StateError,
    },
    /// A section belongs to no device of the machine's.
    #[error("it has a section {id:?}, and its machine has no such device")]
    Foreign {
        /// The section.
        id: String,
    },
    /// The host cannot run a guest that has seen these features.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The machine that is to be restored has another number of vCPUs.
    #[error("it has {found} vCPUs, and {asked} are asked for")]
    OtherCpus {
        /// The snapshot's.
        found: u32,
        /// The builder's.
        asked: u32,
    },
    /// The machine that is to be restored has other NUMA nodes.
    #[error(
        "it has other NUMA nodes than are asked for, or none: leave them out, a restored machine has them by itself"
    )]
    OtherNuma,
    /// The machine that is to be restored has other memory.
    #[error("it has {found} bytes of memory, and {asked} are asked for, or at other addresses")]
    OtherMemory {
        /// The snapshot's.
        found: u64,
        /// The builder's.
        asked: u64,
    },
    /// The memory of the machine that is to be restored would be part of another file, which has contents of its own.
    #[error("its memory cannot be restored into a file: use another backing, such as a memfd")]
    FileMemory,
    /// The machine that is to be restored has other devices.
    #[error("{}", devices(missing, extra))]
    OtherDevices {
        /// Those that the snapshot has, and the machine has not.
        missing: Vec<String>,
        /// Those that the machine has, and the snapshot has not.
        extra: Vec<String>,
    },
    /// A device is not what it was.
    #[error("device {id:?} asks for other registers, interrupts or windows than the one in the snapshot")]
    OtherDevice {
        /// The device.
        id: String,
    },
    /// The machine has addresses that guests do not have on this host.
    #[error(
        "its memory or its devices' windows have addresses of {needs} bits, and guests have {here} on this host"
    )]
    AddressBits {
        /// How many its addresses take.
        needs: u32,
        /// How many guests have here.
        here: u32,
    },
    /// A diff is used without what it is based on.
    #[error("it is a diff of snapshot {base}, which has to be opened with it, before it")]
    NeedsBase {
        /// The id of the base.
        base: SnapshotId,
    },
    /// A snapshot that is no diff is put on another one.
    #[error("it is not a diff, and goes on no other snapshot")]
    NotADiff,
    /// A diff is put on another snapshot than its base.
    #[error("it is a diff of snapshot {expected}, and this one is {}", id(found.as_ref()))]
    OtherBase {
        /// The id of its base.
        expected: SnapshotId,
        /// The id of the other one, if it has one.
        found: Option<SnapshotId>,
    },
    /// The base of a diff is not what it was when the diff was made.
    #[error("it is a diff of snapshot {base}, whose file has been changed since")]
    ChangedBase {
        /// The id of the base.
        base: SnapshotId,
    },
    /// A chain consists of a full snapshot at least.
    #[error("a chain of snapshots without a file")]
    EmptyChain,
    /// No diff can be based on a snapshot of version 1 of the format.
    #[error("the machine goes on from a snapshot of version 1, which has no id: write a full snapshot first")]
    NoId,
    /// RAM came or went.
    #[error("slots of RAM were added or removed since then")]
    OtherSlots,
    /// A checkpoint belongs to the machine that it was taken of.
    #[error("the checkpoint is of another machine")]
    OtherMachine,
    /// Memory cannot be read from its source.
    #[error("guest memory at {addr:#x} cannot be read: {source}")]
    Source {
        /// The first guest address of the piece.
        addr: u64,
        /// The source's error.
        source: io::Error,
    },
    /// The host does not let this process serve page faults.
    #[error(transparent)]
    Userfault(#[from] UserfaultError),
    /// Memory that comes on demand was needed, and did not come.
    #[error("memory on demand: {reason}")]
    OnDemand {
        /// Why.
        reason: String,
    },
    /// The machine is not any more what was to be saved while it ran.
    #[error("it is not written: {reason}")]
    Interrupted {
        /// What has happened.
        reason: &'static str,
    },
    /// The working set is not one, is damaged, or is of another snapshot.
    #[error("its working set: {reason}")]
    WorkingSet {
        /// What is wrong.
        reason: &'static str,
    },
    /// Memory cannot be mapped from the file.
    #[error("its memory: {0}")]
    Map(#[from] MapFileError),
    /// There is no memory for the guest.
    #[error("memory: {0}")]
    Ram(#[from] RamError),
}

impl SnapshotError {
    /// Why, without the path by which it was [`Opened`](Self::Opened).
    pub fn reason(&self) -> &Self {
        match self {
            Self::Opened { source, .. } => source.reason(),
            reason => reason,
        }
    }

    /// The same of the file that was opened by this path.
    pub(super) fn opened(self, path: &Path) -> Self {
        match self {
            // It names the file itself.
            Self::File { .. } => self,
            _ => Self::Opened { path: path.to_owned(), source: Box::new(self) },
        }
    }
}

fn id(id: Option<&SnapshotId>) -> String {
    id.map_or_else(|| "of version 1 of the format, without an id".to_owned(), ToString::to_string)
}

fn key(id: Option<&KeyId>) -> String {
    id.map_or_else(|| "has none".to_owned(), |id| format!("has key {id}"))
}

fn devices(missing: &[String], extra: &[String]) -> String {
    let say = |ids: &[String], what: &str| {
        let ids = ids.iter().map(|id| format!("{id:?}")).collect::<Vec<_>>().join(", ");
        if ids.is_empty() { Vec::new() } else { vec![format!("{what} {ids}")] }
    };
    let mut parts = say(missing, "it has the devices that this machine has not:");
    parts.extend(say(extra, "it has not the devices that this machine has:"));
    parts.join("; ")
}
