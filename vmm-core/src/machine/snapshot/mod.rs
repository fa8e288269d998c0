//! Snapshots: a whole machine in a file, memory included, from which any number of machines go on.
//!
//! # The file
//!
//! Numbers are little-endian; a checksum is the CRC-32 of IEEE 802.3. A header of 44 bytes says what the file is:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `OSSASNAP` |
//! | 8 | 2 | version of the format: 2 |
//! | 10 | 2 | [`Architecture`] |
//! | 12 | 4 | 0 |
//! | 16 | 8 | bytes of the state, at most 64 MiB |
//! | 24 | 8 | offset of the memory, a multiple of 64 KiB |
//! | 32 | 8 | offset of the byte behind it |
//! | 40 | 4 | checksum of the bytes before it |
//!
//! Then the state, a [`state_file`]: the sections `machine` (number of vCPUs, NUMA nodes, devices and
//! where they are), `memory` (slots, and a checksum for each 2 MiB that are not zero), `vm`, `vcpu0` and so on, and one
//! for each device that has a state, under its id. Then the memory, slot after slot, each from a multiple of 64 KiB on.
//! Pages of zeros are holes.
//!
//! Since version 2, the section `ossature.identity` has the snapshot's id, 16 random bytes. That of a diff also has the id
//! of its base, and a checksum of the base's sections but `memory` and this one; its section `memory`, of version 2, has a
//! bit for each page of the chunks of which some were written, and checksums of these pages only. All others are holes.
//!
//! A snapshot that was saved with a [`SnapshotKey`] has version 3, and 48 bytes between header and state:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 44 | 16 | id of the key: the first bytes of BLAKE3's `derive_key("ossature 2026 snapshot key id", key)` |
//! | 60 | 32 | root: the hash of the header's 44 bytes and the state, keyed with `derive_key("ossature 2026 snapshot root", key)` |
//!
//! The section `ossature.tree` has the leaves: for each checksum in `memory`, the hash of the same bytes, keyed with
//! `derive_key("ossature 2026 snapshot leaf", key)`. The section `ossature.identity`, then of version 2, also has the root
//! of the base of a diff; and that of the last one of a chain, in what was merged of it.

mod chain;
mod error;
mod file;
mod header;
mod identity;
mod in_place;
mod live;
mod memory;
mod merge;
#[cfg(feature = "lz4")]
mod packed;
mod pager;
mod pages;
mod remote;
mod save;
mod saved;
mod shape;
mod source;
mod tree;
mod working_set;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ossature_bus::Handover;
use ossature_bus::state::{SavedState, StateError};
use ossature_bus::state_file::{Architecture, StateFile, is_reserved_id};
use ossature_memory::{Ram, RamConfig};

use super::MachineState;
use crate::{VcpuState, VmState};
use chain::Layer;
pub use error::SnapshotError;
pub(super) use file::NewFile;
use header::Header;
use identity::Identity;
pub use identity::SnapshotId;
pub(super) use in_place::Originals;
pub use live::LiveSnapshot;
use memory::MemoryTable;
#[cfg(feature = "lz4")]
pub use packed::PackedSnapshot;
pub use pager::MemoryProgress;
use pager::Prefetch;
pub(super) use pager::{Pager, Pages};
pub use remote::{RemoteSnapshot, serve_snapshot};
pub(super) use save::{Written, write, write_diff};
pub(super) use saved::Saved;
pub(super) use shape::Shape;
pub use source::SnapshotSource;
use tree::Seal;
pub use tree::{KeyId, SnapshotKey};
pub use working_set::WorkingSet;

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
/// What was saved with a [`SnapshotKey`] is opened with [`SnapshotKey::open`]. Without the key it is listed only.
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
pub struct Snapshot {
    contents: Contents,
    prefetch: Prefetch,
    /// Tells snapshots apart.
    number: u64,
    header: Header,
    /// The root of its tree, if it has one.
    seal: Option<Seal>,
    /// None in version 1 of the format.
    identity: Option<Identity>,
    shape: Shape,
    memory: Arc<MemoryTable>,
    /// What it is based on, if it is a diff: its base first, a full snapshot last.
    below: Vec<Layer>,
    sections: BTreeMap<String, SavedState<'static>>,
}

/// Where the bytes of a snapshot are.
enum Contents {
    /// In a file, which can be mapped.
    File(Arc<File>),
    /// Wherever they are: memory comes when it is touched.
    Source(Mutex<Option<Box<dyn SnapshotSource>>>),
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_demand = matches!(self.contents, Contents::Source(_));
        let mut all = f.debug_struct("Snapshot");
        all.field("header", &self.header).field("shape", &self.shape).field("on_demand", &on_demand);
        all.finish_non_exhaustive()
    }
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
        Self::open_path(path.as_ref(), None)
    }

    fn open_path(path: &Path, key: Option<&SnapshotKey>) -> Result<Self, SnapshotError> {
        let file = File::open(path).map_err(|source| SnapshotError::File {
            path: path.to_owned(),
            call: "open",
            source,
        })?;
        Self::open_fd(file.into(), key).map_err(|error| error.opened(path))
    }

    /// A snapshot in an open file, such as a memfd.
    pub fn from_file(file: impl Into<OwnedFd>) -> Result<Self, SnapshotError> {
        Self::open_fd(file.into(), None)
    }

    pub(super) fn open_fd(file: OwnedFd, key: Option<&SnapshotKey>) -> Result<Self, SnapshotError> {
        let file = File::from(file);
        let failed = |part| move |source| SnapshotError::Io { part, source };
        let about = file.metadata().map_err(failed("header"))?;
        if !about.is_file() {
            return Err(SnapshotError::NotASnapshot);
        }
        let snapshot = Self::read(&mut &file, key)?;
        Ok(snapshot(Contents::File(Arc::new(file))))
    }

    /// A snapshot whose bytes come from anywhere: [a peer](RemoteSnapshot), a [compressed
    /// file](PackedSnapshot::open), the caller's own [`SnapshotSource`]. Its state is read now, and its memory [on
    /// demand](Self::on_demand).
    pub fn from_source(source: impl SnapshotSource + 'static) -> Result<Self, SnapshotError> {
        Self::open_source(Box::new(source), None)
    }

    fn open_source(
        mut source: Box<dyn SnapshotSource>,
        key: Option<&SnapshotKey>,
    ) -> Result<Self, SnapshotError> {
        let snapshot = Self::read(&mut *source, key)?;
        Ok(snapshot(Contents::Source(Mutex::new(Some(source)))))
    }

    /// Has the memory of machines come when it is touched, 2 MiB at a time, instead of mapping the file. Each piece is
    /// compared with its checksum before the guest sees it; one that is damaged, or cannot be read, ends the machine. Whoever
    /// waits for it goes on with zeros: vCPUs execute nothing with them, but a device that was writing from there to a disk
    /// may write them, so take the disk for damaged.
    /// What has come is the process's own: when all has, the file may change.
    ///
    /// It takes userfaultfd(2), which the host must permit. Memory that other processes can see, or that is made of huge
    /// pages, does not come on demand, but is copied when the machine is built.
    pub fn on_demand(self) -> Self {
        let contents = match self.contents {
            Contents::File(file) => Contents::Source(Mutex::new(Some(Box::new(file)))),
            source => source,
        };
        Self { contents, ..self }
    }

    /// Fetches this part of memory that comes [on demand](Self::on_demand) before it is touched, while the guest runs.
    /// Refuses a working set of another snapshot.
    ///
    /// ```
    /// # use ossature_core::machine::{Machine, Snapshot, WorkingSet};
    /// # use ossature_core::scripted::{Script, Scripted};
    /// # use ossature_memory::vm_memory::GuestAddress;
    /// # let folder = tempfile::tempdir()?;
    /// # std::env::set_current_dir(&folder)?;
    /// # let machine = Machine::builder("saved").build(&Scripted::new([Script::new()]))?;
    /// # machine.ram().dma().write(GuestAddress(0x1000), b"kept")?;
    /// # machine.snapshot("guest.snap")?;
    /// # if ossature_memory::Userfault::open(ossature_memory::UserfaultMode::Missing).is_err() { return Ok(()) }
    /// let snapshot = Snapshot::open("guest.snap")?.on_demand();
    /// let machine = Machine::builder("first").restore(snapshot).build(&Scripted::new([Script::new()]))?;
    /// // The guest runs, until it has done what is typical of it.
    /// # machine.ram().dma().read_obj::<u8>(GuestAddress(0x1000))?;
    /// if let Some(set) = machine.working_set()? {
    ///     set.save("guest.snap.ws")?;
    /// }
    ///
    /// // The next one waits less for its memory.
    /// let snapshot = Snapshot::open("guest.snap")?.on_demand().prefetch(WorkingSet::open("guest.snap.ws")?)?;
    /// let machine = Machine::builder("second").restore(snapshot).build(&Scripted::new([Script::new()]))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn prefetch(self, set: WorkingSet) -> Result<Self, SnapshotError> {
        if set.snapshot != self.number {
            return Err(SnapshotError::WorkingSet { reason: "it is of another snapshot" });
        }
        let mut seen = vec![false; self.memory.chunks().count()];
        for index in &set.chunks {
            match seen.get_mut(*index as usize) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return Err(SnapshotError::WorkingSet { reason: "it has some memory twice" }),
                None => {
                    let reason = "it has memory that the snapshot has not";
                    return Err(SnapshotError::WorkingSet { reason });
                }
            }
        }
        Ok(Self { prefetch: Prefetch::These(set.chunks), ..self })
    }

    /// Fetches all memory that comes [on demand](Self::on_demand), while the guest runs: then its source is not needed
    /// any more.
    pub fn prefetch_all(self) -> Self {
        Self { prefetch: Prefetch::All, ..self }
    }

    /// Reads and checks all but the memory: with a key, before anything of it is decoded. The snapshot that it gives lacks
    /// only where it comes from.
    fn read(
        source: &mut dyn SnapshotSource,
        key: Option<&SnapshotKey>,
    ) -> Result<impl FnOnce(Contents) -> Self + use<>, SnapshotError> {
        let failed = |part| move |source| SnapshotError::Io { part, source };
        let has = source.size().map_err(failed("header"))?;
        let (mut bytes, needs) = ([0; header::LEN], header::LEN as u64);
        let there = bytes.get_mut(..needs.min(has) as usize).unwrap_or_default();
        source.fetch(0, there).map_err(failed("header"))?;
        // Of whatever is shorter than a header, too, the first bytes say what it is.
        if has < needs && bytes.starts_with(&header::MAGIC) {
            return Err(SnapshotError::Truncated { needs, has });
        }
        let header = Header::read(&bytes, has)?;
        if key.is_some() && !header.has_tree() {
            return Err(SnapshotError::NoTree);
        }
        let mut seal = None;
        if header.has_tree() {
            let mut bytes = [0; tree::SEAL];
            source.fetch(header::LEN as u64, &mut bytes).map_err(failed("root"))?;
            seal = Some(Seal::from_bytes(&bytes));
        }
        let mut state = vec![0; header.state as usize];
        source.fetch(header.state_at(), &mut state).map_err(failed("state"))?;
        if let Some((seal, key)) = seal.zip(key) {
            seal.check(key, &bytes, &state)?;
        }
        let number = u64::from(crc32fast::hash(&bytes)) << 32 | u64::from(crc32fast::hash(&state));
        let state = StateFile::parse(&state, header.architecture)?;
        let sections: BTreeMap<_, _> =
            state.iter().map(|(id, state)| (id.to_owned(), state.borrowed().into_owned())).collect();
        let identity = match header.version {
            1 => None,
            _ => Some(load(&sections, identity::ID, Identity::load)?),
        };
        let shape = load(&sections, shape::ID, Shape::load)?;
        let mut memory = load(&sections, memory::ID, MemoryTable::load)?;
        if seal.is_some() {
            load(&sections, tree::ID, |leaves| memory.load_leaves(leaves, key))?;
        } else if identity.is_some_and(|identity| identity.has_roots()) {
            return Err(SnapshotError::Damaged { field: "identity", reason: "it has roots, and no tree" });
        }
        if header.end - header.memory != memory.len() {
            return Err(SnapshotError::Damaged { field: "memory", reason: "as long as its slots are not" });
        }
        if identity.is_some_and(|identity| identity.base.is_some()) != memory.is_diff() {
            return Err(SnapshotError::Damaged {
                field: "memory",
                reason: "a diff has a base, and no other",
            });
        }
        // Nothing is there that nobody would look at.
        let own = |id: &str| {
            let number = id.strip_prefix("vcpu").and_then(|number| number.parse().ok());
            matches!(id, shape::ID | memory::ID | VM)
                || (id == identity::ID && identity.is_some())
                || (id == tree::ID && seal.is_some())
                || number.is_some_and(|index| index < shape.cpus && vcpu(index) == id)
        };
        let is_device = |id: &str| !is_reserved_id(id) && shape.devices.iter().any(|(other, _)| other == id);
        if let Some(id) = sections.keys().find(|id| !own(id) && !is_device(id)) {
            return Err(SnapshotError::Foreign { id: id.clone() });
        }
        let (memory, below, prefetch) = (Arc::new(memory), Vec::new(), Prefetch::Nothing);
        Ok(move |contents| Self {
            contents,
            prefetch,
            number,
            header,
            seal,
            identity,
            shape,
            memory,
            below,
            sections,
        })
    }

    /// The guest's architecture.
    pub fn architecture(&self) -> Architecture {
        self.header.architecture
    }

    /// The number of vCPUs.
    pub fn cpus(&self) -> u32 {
        self.shape.cpus
    }

    /// Fails if guests with so many bits of addresses do not have those of the machine, or if they contradict each other.
    fn check_addresses(&self, here: u32) -> Result<(), SnapshotError> {
        let ram = || self.memory.slots().map(|(addr, size)| addr..=addr + (size - 1));
        let overlap = |window: &RangeInclusive<u64>| {
            ram().any(|slot| slot.start() <= window.end() && window.start() <= slot.end())
        };
        if self.shape.all_windows().any(overlap) {
            return Err(SnapshotError::Damaged {
                field: "windows of devices",
                reason: "one is where RAM is",
            });
        }
        let last = ram().chain(self.shape.all_windows().cloned()).map(|range| *range.end()).max();
        match u64::BITS - last.unwrap_or_default().leading_zeros() {
            needs if needs > here => Err(SnapshotError::AddressBits { needs, here }),
            _ => Ok(()),
        }
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

    /// The id of the key that it was saved with, if it was.
    pub fn key_id(&self) -> Option<KeyId> {
        Some(self.seal?.key)
    }

    /// The key that it was opened with.
    pub(super) fn key(&self) -> Option<&SnapshotKey> {
        self.memory.key()
    }

    /// Fails if it has a tree that cannot be checked.
    fn expect_key(&self) -> Result<(), SnapshotError> {
        match self.key_id().filter(|_| self.key().is_none()) {
            Some(key) => Err(SnapshotError::KeyNeeded { key }),
            None => Ok(()),
        }
    }

    /// Reads all memory and compares it with its checksums, or with its tree; also that of what a diff is based on, as far
    /// as it was opened.
    pub fn verify_memory(&self) -> Result<(), SnapshotError> {
        self.expect_key()?;
        match &self.contents {
            Contents::File(_) => self.layers()?.iter().try_for_each(|layer| {
                let Layer { file, start, memory } = layer;
                memory.verify(&mut &**file, *start)
            }),
            Contents::Source(source) => {
                let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
                let source = source.as_mut().ok_or_else(|| self.no_file())?;
                self.memory.verify(&mut **source, self.header.memory)
            }
        }
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The state of the machine, decoded.
    pub(super) fn state(&self) -> Result<MachineState, SnapshotError> {
        self.expect_key()?;
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
        self.expect_whole()?;
        let ram = match given {
            Some(ram) => ram,
            None => {
                let config = self.memory.config(config)?;
                let ram = Ram::new(&config)?;
                self.memory.add_slots(&ram, &config)?;
                ram
            }
        };
        match &self.contents {
            Contents::File(_) => self.fill(&ram)?,
            // See below.
            Contents::Source(_) if self.below.is_empty() => self.memory.expect_slots(&ram)?,
            Contents::Source(_) => return Err(self.no_file()),
        }
        Ok(ram)
    }

    /// What fills this memory when it is touched, if it comes on demand: of one machine, which has its source from then
    /// on. Where that cannot be, it is filled now.
    pub(super) fn pager(&self, ram: &Ram, pages: Pages) -> Result<Option<Pager>, SnapshotError> {
        let Contents::Source(source) = &self.contents else { return Ok(None) };
        let source = source.lock().unwrap_or_else(PoisonError::into_inner).take();
        let source = source.ok_or_else(|| self.no_file())?;
        let names = (self.header.memory, self.number);
        match Pager::start(ram, &self.memory, source, names, self.prefetch.clone(), pages)? {
            Ok(pager) => Ok(Some(pager)),
            Err(mut source) => self.memory.copy(ram, &mut *source, self.header.memory).map(|()| None),
        }
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
