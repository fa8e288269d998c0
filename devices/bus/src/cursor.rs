//! A vCPU's way to the devices: the hot path of every exit that user space handles.

use std::fmt;

use crate::publish::Reader;
use crate::routes::Routes;
use crate::table::Table;
use crate::{Access, BusFault, Effect, Mmio, Size};

/// How often a guest made each mistake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// [`BusFault::Unmapped`].
    pub unmapped: u64,
    /// [`BusFault::Width`].
    pub width: u64,
    /// [`BusFault::Alignment`].
    pub alignment: u64,
    /// [`BusFault::ReadOnly`].
    pub read_only: u64,
    /// [`BusFault::WriteOnly`].
    pub write_only: u64,
    /// [`BusFault::Crosses`].
    pub crosses: u64,
}

impl FaultCounts {
    // Out of line, so that the ways that do not fault keep their registers.
    #[cold]
    #[inline(never)]
    fn count(&mut self, fault: BusFault) {
        *match fault {
            BusFault::Unmapped => &mut self.unmapped,
            BusFault::Width => &mut self.width,
            BusFault::Alignment => &mut self.alignment,
            BusFault::ReadOnly => &mut self.read_only,
            BusFault::WriteOnly => &mut self.write_only,
            BusFault::Crosses => &mut self.crosses,
        } += 1;
    }
}

/// One thread's access to a [`Bus`](crate::Bus), made by [`Bus::cursor`](crate::Bus::cursor).
///
/// A dispatch takes no lock, allocates nothing and writes nothing that another thread reads. It looks at the
/// device of the access before first, because guests mostly go on where they were. A change of the bus is seen
/// by the next dispatch.
///
/// A fault is an answer, not an error: the caller gives the guest all ones for a read
/// ([`Size::mask`]) and goes on. The cursor counts it.
// In cache lines of its own: it writes to itself.
#[repr(align(64))]
pub struct BusCursor {
    reader: Reader<Table, Routes>,
    faults: FaultCounts,
}

impl BusCursor {
    pub(crate) fn new(reader: Reader<Table, Routes>) -> Self {
        Self { reader, faults: FaultCounts::default() }
    }

    /// Reads the register at `addr`.
    #[inline]
    pub fn read(&mut self, addr: u64, size: Size) -> Result<u64, BusFault> {
        let result = match Self::find(&mut self.reader, addr, size) {
            Ok((device, at)) => device.read(at),
            Err(fault) => Err(fault),
        };
        if let Err(fault) = result {
            self.faults.count(fault);
        }
        result
    }

    /// Writes the register at `addr`. The caller carries out the effect.
    #[inline]
    pub fn write(&mut self, addr: u64, size: Size, value: u64) -> Result<Effect, BusFault> {
        let result = match Self::find(&mut self.reader, addr, size) {
            Ok((device, at)) => device.write(at, value),
            Err(fault) => Err(fault),
        };
        if let Err(fault) = result {
            self.faults.count(fault);
        }
        result
    }

    /// Takes notice of changes of the bus, as a dispatch does. For threads that will not dispatch for a while, or were
    /// kicked because another thread waits for a [`Retired`](crate::Retired) device.
    pub fn sync(&mut self) {
        self.reader.get();
    }

    /// What the guest did wrong through this cursor.
    pub fn faults(&self) -> &FaultCounts {
        &self.faults
    }

    #[inline]
    fn find(
        reader: &mut Reader<Table, Routes>,
        addr: u64,
        size: Size,
    ) -> Result<(&dyn Mmio, Access), BusFault> {
        let (route, offset) = reader.get().find(addr).ok_or(BusFault::Unmapped)?;
        if route.size - offset < size.bytes() {
            return Err(BusFault::Crosses);
        }
        Ok((&*route.device, Access { offset, size }))
    }
}

impl fmt::Debug for BusCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusCursor").field("faults", &self.faults).finish_non_exhaustive()
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
