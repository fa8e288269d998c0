//! A paused machine becomes a file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use ossature_bus::state::SavedState;
use ossature_bus::state_file;
use ossature_memory::Ram;

use super::error::SnapshotError;
use super::header::{self, HERE, Header};
use super::memory::{self, MemoryTable};
use super::shape::{self, Shape};
use super::{VM, vcpu};
use crate::machine::MachineState;

/// Writes a machine that is paused into `file`, which is empty.
pub(in crate::machine) fn write(
    file: &File,
    shape: &Shape,
    state: &MachineState,
    ram: &Ram,
) -> Result<(), SnapshotError> {
    let mut table = MemoryTable::of(ram).ok_or(SnapshotError::TooLarge)?;
    let header = begin(file, shape, state, &table)?;
    table.write(ram, file, header.memory)?;
    end(file, shape, state, &table, header)
}

/// Makes room in an empty file, and says where memory is to be written.
pub(super) fn begin(
    file: &File,
    shape: &Shape,
    state: &MachineState,
    table: &MemoryTable,
) -> Result<Header, SnapshotError> {
    let failed = |part| move |source| SnapshotError::Io { part, source };
    let len = file.metadata().map_err(failed("length"))?.len();
    if len != 0 {
        return Err(SnapshotError::NotEmpty { len });
    }
    // What a chunk takes in the table depends on what is in it: memory is placed behind all that the state may take.
    let bytes = encode(shape, state, &table.full())?;
    let header = Header::new(bytes.len() as u64, table.len()).ok_or(SnapshotError::TooLarge)?;
    // One that is too long for the file system is refused before anything is written.
    file.set_len(header.end).map_err(failed("length"))?;
    Ok(header)
}

/// Writes the rest to a file that has all memory.
pub(super) fn end(
    file: &File,
    shape: &Shape,
    state: &MachineState,
    table: &MemoryTable,
    header: Header,
) -> Result<(), SnapshotError> {
    let failed = |part| move |source| SnapshotError::Io { part, source };
    let bytes = encode(shape, state, table)?;
    let header = Header { state: bytes.len() as u64, ..header };
    file.write_all_at(&bytes, header::LEN as u64).map_err(failed("state"))?;
    // Last: until it is there, the file is no snapshot.
    file.write_all_at(&header.to_bytes(), 0).map_err(failed("header"))
}

fn encode(shape: &Shape, state: &MachineState, table: &MemoryTable) -> Result<Vec<u8>, SnapshotError> {
    let mut sections: Vec<(String, SavedState<'_>)> = vec![
        (shape::ID.to_owned(), shape.save()),
        (memory::ID.to_owned(), table.save()),
        (VM.to_owned(), state.vm.to_saved()),
    ];
    sections.extend((0..).zip(&state.vcpus).map(|(index, state)| (vcpu(index), state.to_saved())));
    let devices = state.devices.iter().map(|(id, handover)| (id.clone(), handover.state.borrowed()));
    sections.extend(devices);
    let sections: Vec<_> = sections.iter().map(|(id, state)| (id.as_str(), state)).collect();
    let mut bytes = Vec::new();
    state_file::write(&mut bytes, HERE, &sections)?;
    Ok(bytes)
}
