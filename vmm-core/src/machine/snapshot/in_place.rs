//! A machine that exists goes back to a snapshot of it.

use std::collections::BTreeSet;
use std::ops::Range;

use ossature_memory::vm_memory::mmap::MmapRegion;
use ossature_memory::vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, VolatileMemory};
use ossature_memory::{Dma, Ram};

use super::{Shape, Snapshot, SnapshotError};

/// A snapshot whose memory is mapped, to be copied from: for a page, that takes a fraction of what a system call does, and
/// less than to drop it and have the guest fault it in again.
#[derive(Debug)]
pub(in crate::machine) struct Originals {
    snapshot: Snapshot,
    memory: MmapRegion,
}

impl Originals {
    pub(in crate::machine) fn new(snapshot: Snapshot) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError::Io { part: "memory", source };
        let file = snapshot.file.try_clone().map_err(failed)?;
        let place = FileOffset::new(file, snapshot.header.memory);
        let len = usize::try_from(snapshot.memory.len()).map_err(|_| SnapshotError::TooLarge)?;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let memory = MmapRegion::build(Some(place), len, libc::PROT_READ, flags);
        let memory = memory.map_err(|error| failed(std::io::Error::other(error)))?;
        Ok(Self { snapshot, memory })
    }

    pub(in crate::machine) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Makes the pages at these guest addresses, ascending, what they are in the snapshot.
    pub(in crate::machine) fn copy_to(&self, ram: &Ram, pages: &[Range<u64>]) -> Result<(), SnapshotError> {
        let dma = ram.dma();
        for range in pages {
            for piece in self.snapshot.memory.pieces_of(range) {
                match piece.offset {
                    Some(offset) => self.copy(&dma, piece.addr, offset, piece.len)?,
                    None => zero(&dma, piece.addr, piece.len)?,
                }
            }
        }
        Ok(())
    }

    fn copy(&self, dma: &Dma, addr: u64, offset: u64, len: u64) -> Result<(), SnapshotError> {
        let damaged = || SnapshotError::Damaged { field: "memory", reason: "as long as its slots are not" };
        let from = self.memory.get_slice(offset as usize, len as usize).map_err(|_| damaged())?;
        let to = dma.memory().get_slice(GuestAddress(addr), len as usize).map_err(|_| damaged())?;
        from.copy_to_volatile_slice(to);
        Ok(())
    }
}

/// Fills guest memory with zeros.
fn zero(dma: &Dma, addr: u64, len: u64) -> Result<(), SnapshotError> {
    const ZEROS: &[u8] = &[0; 64 << 10];
    for at in (0..len).step_by(ZEROS.len()) {
        let piece = (len - at).min(ZEROS.len() as u64) as usize;
        dma.write(GuestAddress(addr + at), ZEROS.get(..piece).unwrap_or_default())?;
    }
    Ok(())
}

impl Snapshot {
    /// Fails if a machine of this shape and memory is not what it is of.
    pub(in crate::machine) fn expect_machine(&self, shape: &Shape, ram: &Ram) -> Result<(), SnapshotError> {
        self.memory.expect_slots(ram)?;
        let (found, asked) = (self.shape.cpus, shape.cpus);
        if found != asked {
            return Err(SnapshotError::OtherCpus { found, asked });
        }
        let ids: BTreeSet<&str> = shape.devices.iter().map(|(id, _)| id.as_str()).collect();
        let (missing, extra) = self.shape.difference(&ids);
        if !(missing.is_empty() && extra.is_empty()) {
            return Err(SnapshotError::OtherDevices { missing, extra });
        }
        match shape.devices.iter().find(|(id, place)| !self.shape.is_at(id, place)) {
            Some((id, _)) => Err(SnapshotError::OtherDevice { id: id.clone() }),
            None => Ok(()),
        }
    }
}
