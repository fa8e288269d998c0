//! Snapshots: a whole machine in a file, memory included, from which any number of machines go on.
//!
//! # The file
//!
//! Numbers are little-endian; a checksum is the CRC-32 of IEEE 802.3. A header of 44 bytes says what the file is:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `OSSASNAP` |
//! | 8 | 2 | version of the format: 1 |
//! | 10 | 2 | [`Architecture`] |
//! | 12 | 4 | 0 |
//! | 16 | 8 | bytes of the state, at most 64 MiB |
//! | 24 | 8 | offset of the memory, a multiple of 64 KiB |
//! | 32 | 8 | offset of the byte behind it |
//! | 40 | 4 | checksum of the bytes before it |
//!
//! Then the state, a [`state_file`]: the sections `machine` (number of vCPUs, devices and
//! where they are), `memory` (slots, and a checksum for each 2 MiB that are not zero), `vm`, `vcpu0` and so on, and one
//! for each device that has a state, under its id. Then the memory, slot after slot, each from a multiple of 64 KiB on.
//! Pages of zeros are holes.

mod error;
mod file;
mod header;
mod memory;
mod save;
mod saved;
mod shape;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ossature_bus::Handover;
use ossature_bus::state::{SavedState, StateError};
use ossature_bus::state_file::{Architecture, StateFile, is_reserved_id};
use ossature_memory::{Ram, RamConfig};

use super::MachineState;
use crate::{VcpuState, VmState};
pub use error::SnapshotError;
pub(super) use file::NewFile;
use header::Header;
use memory::MemoryTable;
pub(super) use save::write;
pub(super) use saved::Saved;
pub(super) use shape::Shape;

/// The section of what the hypervisor has of the machine.
const VM: &str = "vm";

/// The section of vCPU `index`.
fn vcpu(index: u32) -> String {
    format!("vcpu{index}")
}

/// A snapshot: a paused machine in a file. What it says has been checked, but for its memory, which is not read before
/// it is used: see [`verify_memory`](Self::verify_memory).
///
/// Each machine that is [restored](super::MachineBuilder::restore) from it maps the file's memory copy on write: nothing
/// is copied before it is written, and what is only read is shared by all of them. The file must stay as it is while one
/// of them lives; a new snapshot in its place is another file and does no harm.
///
/// ```
/// use ossature_core::machine::{Machine, Snapshot};
/// use ossature_core::scripted::{Script, Scripted};
/// use ossature_memory::vm_memory::GuestAddress;
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("guest.snap");
/// // With KVM: `&Kvm::open()?` instead of a guest that follows a script.
/// let machine = Machine::builder("first").build(&Scripted::new([Script::new()]))?;
/// machine.start()?;
/// machine.ram().dma().write(GuestAddress(0x1000), b"kept")?;
/// machine.snapshot(&path)?; // the guest goes on
/// machine.stop()?;
///
/// // Here, or in another process: a machine of the same devices.
/// let snapshot = Snapshot::open(&path)?;
/// let machine = Machine::builder("second").restore(snapshot).build(&Scripted::new([Script::new()]))?;
/// assert_eq!(machine.ram().dma().read_obj::<[u8; 4]>(GuestAddress(0x1000))?, *b"kept");
/// machine.start()?; // the guest goes on
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    header: Header,
    shape: Shape,
    memory: MemoryTable,
    sections: BTreeMap<String, SavedState<'static>>,
}

/// A section of a snapshot's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotSection<'a> {
    /// A device's id, or `machine`, `memory`, `vm`, `vcpu0` and so on.
    pub id: &'a str,
    /// What it is of.
    pub kind: &'a str,
    /// Version of its payload.
    pub version: u16,
    /// Bytes of its payload.
    pub len: usize,
}

impl Snapshot {
    /// Opens a snapshot for reading.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SnapshotError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| SnapshotError::File {
            path: path.to_owned(),
            call: "open",
            source,
        })?;
        Self::from_file(file)
    }

    /// A snapshot in an open file, such as a memfd.
    pub fn from_file(file: impl Into<OwnedFd>) -> Result<Self, SnapshotError> {
        let file = File::from(file.into());
        let failed = |part| move |source| SnapshotError::Io { part, source };
        let about = file.metadata().map_err(failed("header"))?;
        if !about.is_file() {
            return Err(SnapshotError::NotASnapshot);
        }
        let (mut bytes, needs, has) = ([0; header::LEN], header::LEN as u64, about.len());
        let there = bytes.get_mut(..needs.min(has) as usize).unwrap_or_default();
        file.read_exact_at(there, 0).map_err(failed("header"))?;
        // Of whatever is shorter than a header, too, the first bytes say what it is.
        if has < needs && bytes.starts_with(&header::MAGIC) {
            return Err(SnapshotError::Truncated { needs, has });
        }
        let header = Header::read(&bytes, has)?;
        let mut state = vec![0; header.state as usize];
        file.read_exact_at(&mut state, header::LEN as u64).map_err(failed("state"))?;
        let state = StateFile::parse(&state, header.architecture)?;
        let sections: BTreeMap<_, _> =
            state.iter().map(|(id, state)| (id.to_owned(), state.borrowed().into_owned())).collect();
        let shape = load(&sections, shape::ID, Shape::load)?;
        let memory = load(&sections, memory::ID, MemoryTable::load)?;
        if header.end - header.memory != memory.len() {
            return Err(SnapshotError::Damaged { field: "memory", reason: "as long as its slots are not" });
        }
        // Nothing is there that nobody would look at.
        let own = |id: &str| {
            let number = id.strip_prefix("vcpu").and_then(|number| number.parse().ok());
            matches!(id, shape::ID | memory::ID | VM)
                || number.is_some_and(|index| index < shape.cpus && vcpu(index) == id)
        };
        let is_device = |id: &str| !is_reserved_id(id) && shape.devices.iter().any(|(other, _)| other == id);
        if let Some(id) = sections.keys().find(|id| !own(id) && !is_device(id)) {
            return Err(SnapshotError::Foreign { id: id.clone() });
        }
        Ok(Self { file, header, shape, memory, sections })
    }

    /// The guest's architecture.
    pub fn architecture(&self) -> Architecture {
        self.header.architecture
    }

    /// The number of vCPUs.
    pub fn cpus(&self) -> u32 {
        self.shape.cpus
    }

    /// Bytes of guest memory.
    pub fn memory_size(&self) -> u64 {
        self.memory.size()
    }

    /// The ids of the devices, which a machine that is restored from it must have.
    pub fn devices(&self) -> impl ExactSizeIterator<Item = &str> {
        self.shape.devices.iter().map(|(id, _)| id.as_str())
    }

    /// What the state consists of, by id.
    pub fn sections(&self) -> impl ExactSizeIterator<Item = SnapshotSection<'_>> {
        self.sections.iter().map(|(id, state)| SnapshotSection {
            id,
            kind: &state.kind,
            version: state.version,
            len: state.payload.len(),
        })
    }

    /// Reads all memory and compares it with its checksums.
    pub fn verify_memory(&self) -> Result<(), SnapshotError> {
        self.memory.verify(&self.file, self.header.memory)
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The state of the machine, decoded.
    pub(super) fn state(&self) -> Result<MachineState, SnapshotError> {
        let vcpus = (0..self.shape.cpus)
            .map(|index| load(&self.sections, &vcpu(index), VcpuState::from_saved))
            .collect::<Result<_, _>>()?;
        let vm = load(&self.sections, VM, VmState::from_saved)?;
        let devices = self.sections.iter().filter(|(id, _)| !is_reserved_id(id));
        let devices = devices.map(|(id, state)| (id.clone(), Handover::new(state.clone())));
        Ok(MachineState { vcpus, vm, devices: devices.collect() })
    }

    /// Guest memory, which is `given` or made as `config` says.
    pub(super) fn ram(&self, given: Option<Ram>, config: Option<RamConfig>) -> Result<Ram, SnapshotError> {
        let ram = match given {
            Some(ram) => ram,
            None => {
                let config = self.memory.config(config)?;
                let ram = Ram::new(&config)?;
                self.memory.add_slots(&ram, &config)?;
                ram
            }
        };
        self.memory.fill(&ram, &self.file, self.header.memory)?;
        Ok(ram)
    }
}

fn load<T>(
    sections: &BTreeMap<String, SavedState<'static>>,
    id: &str,
    load: impl FnOnce(&SavedState<'_>) -> Result<T, StateError>,
) -> Result<T, SnapshotError> {
    let section = sections.get(id).ok_or_else(|| SnapshotError::Missing { id: id.to_owned() })?;
    load(section).map_err(|source| SnapshotError::Section { id: id.to_owned(), source })
}

#[cfg(test)]
mod tests;
