//! A paused machine becomes a file.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use ossature_bus::state::SavedState;
use ossature_bus::state_file;
use ossature_memory::Ram;

use super::error::SnapshotError;
use super::header::{self, HERE, Header};
use super::identity::{self, Identity, SnapshotId};
use super::memory::{self, MemoryTable};
use super::shape::{self, Shape};
use super::tree::{self, Seal, SnapshotKey};
use super::{Snapshot, VM, vcpu};
use crate::machine::MachineState;

/// What was written to a file, to know it again.
#[derive(Clone, Copy, Debug)]
pub(in crate::machine) struct Written {
    id: SnapshotId,
    seal: Option<Seal>,
}

impl Written {
    /// Opens what was written to this file. With a key, it is what was written, its memory included; without one, at least
    /// nobody has put another snapshot there since.
    pub(in crate::machine) fn open(
        self,
        file: File,
        key: Option<&SnapshotKey>,
    ) -> Result<Snapshot, SnapshotError> {
        let snapshot = Snapshot::open_fd(file.into(), key)?;
        let same = snapshot.id() == Some(self.id) && snapshot.seal == self.seal;
        if same { Ok(snapshot) } else { Err(SnapshotError::Overwritten) }
    }
}

/// Writes a machine that is paused into `file`, which is empty; with a tree, if there is a key.
pub(in crate::machine) fn write(
    file: &File,
    shape: &Shape,
    state: &MachineState,
    ram: &Ram,
    key: Option<&SnapshotKey>,
) -> Result<Written, SnapshotError> {
    let table = MemoryTable::of(ram).ok_or(SnapshotError::TooLarge)?.with_key(key);
    write_parts(file, &Identity::new(None)?, &sections(shape, state), table, |table, start| {
        table.write(ram, file, start)
    })
}

/// Writes what has changed of it since `base`, with the same key: its state, and the pages at these guest addresses,
/// ascending.
pub(in crate::machine) fn write_diff(
    file: &File,
    shape: &Shape,
    state: &MachineState,
    ram: &Ram,
    base: &Snapshot,
    dirty: &[Range<u64>],
) -> Result<Written, SnapshotError> {
    let table = MemoryTable::of_pages(ram, dirty).ok_or(SnapshotError::TooLarge)?.with_key(base.key());
    let identity = Identity::new(Some(base.as_base()?))?;
    write_parts(file, &identity, &sections(shape, state), table, |table, start| table.write(ram, file, start))
}

/// Sections by id, beside those of identity and memory.
type Sections<'a> = Vec<(String, SavedState<'a>)>;

/// Writes a snapshot of these parts into `file`, which is empty; `write_memory` writes the table's memory from an offset
/// on.
pub(super) fn write_parts(
    file: &File,
    identity: &Identity,
    sections: &Sections<'_>,
    mut table: MemoryTable,
    write_memory: impl FnOnce(&mut MemoryTable, u64) -> Result<(), SnapshotError>,
) -> Result<Written, SnapshotError> {
    let header = begin(file, identity, sections, &table)?;
    write_memory(&mut table, header.memory)?;
    end(file, identity, sections, &table, header)
}

/// Makes room in an empty file, and says where memory is to be written.
pub(super) fn begin(
    file: &File,
    identity: &Identity,
    sections: &Sections<'_>,
    table: &MemoryTable,
) -> Result<Header, SnapshotError> {
    let failed = |part| move |source| SnapshotError::Io { part, source };
    let len = file.metadata().map_err(failed("length"))?.len();
    if len != 0 {
        return Err(SnapshotError::NotEmpty { len });
    }
    // What a chunk takes in the table depends on what is in it: memory is placed behind all that the state may take.
    let bytes = encode(identity, sections, &table.full())?;
    let header =
        Header::new(bytes.len() as u64, table.len(), table.key().is_some()).ok_or(SnapshotError::TooLarge)?;
    // One that is too long for the file system is refused before anything is written.
    file.set_len(header.end).map_err(failed("length"))?;
    Ok(header)
}

/// Writes the rest to a file that has all memory.
pub(super) fn end(
    file: &File,
    identity: &Identity,
    sections: &Sections<'_>,
    table: &MemoryTable,
    header: Header,
) -> Result<Written, SnapshotError> {
    let failed = |part| move |source| SnapshotError::Io { part, source };
    let bytes = encode(identity, sections, table)?;
    let header = Header { state: bytes.len() as u64, ..header };
    file.write_all_at(&bytes, header.state_at()).map_err(failed("state"))?;
    let beginning = header.to_bytes();
    let seal = table.key().map(|key| Seal::of(key, &beginning, &bytes));
    if let Some(seal) = seal {
        file.write_all_at(&seal.to_bytes(), header::LEN as u64).map_err(failed("root"))?;
    }
    // Last: until it is there, the file is no snapshot.
    file.write_all_at(&beginning, 0).map_err(failed("header"))?;
    Ok(Written { id: identity.id, seal })
}

/// The parts of a machine in this state.
pub(super) fn sections<'a>(shape: &Shape, state: &'a MachineState) -> Sections<'a> {
    let mut sections = vec![(shape::ID.to_owned(), shape.save()), (VM.to_owned(), state.vm.to_saved())];
    sections.extend((0..).zip(&state.vcpus).map(|(index, state)| (vcpu(index), state.to_saved())));
    let devices = state.devices.iter().map(|(id, handover)| (id.clone(), handover.state.borrowed()));
    sections.extend(devices);
    sections
}

fn encode(
    identity: &Identity,
    sections: &Sections<'_>,
    table: &MemoryTable,
) -> Result<Vec<u8>, SnapshotError> {
    let (identity, leaves, table) = (identity.save(), table.save_leaves(), table.save());
    let mut all: Vec<_> = sections.iter().map(|(id, state)| (id.as_str(), state)).collect();
    all.extend([(identity::ID, &identity), (memory::ID, &table)]);
    all.extend(leaves.iter().map(|leaves| (tree::ID, leaves)));
    let mut bytes = Vec::new();
    state_file::write(&mut bytes, HERE, &all)?;
    Ok(bytes)
}
