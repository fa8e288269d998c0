//! One register access: its address, its width, what it may answer.

use std::sync::Mutex;

use crate::RangeId;

/// Width of one register access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Size {
    /// 8 bits.
    B1 = 1,
    /// 16 bits.
    B2 = 2,
    /// 32 bits.
    B4 = 4,
    /// 64 bits.
    B8 = 8,
}

impl Size {
    /// The width in bytes.
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// The width that `len` bytes make; `None` for a length no register access has.
    pub const fn from_len(len: usize) -> Option<Self> {
        match len {
            1 => Some(Self::B1),
            2 => Some(Self::B2),
            4 => Some(Self::B4),
            8 => Some(Self::B8),
            _ => None,
        }
    }

    /// The bits that a value of this width can have. Also what a read of nothing returns.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self as u32)
    }
}

/// Where in a device's range an access falls, and how wide it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Bytes from the start of the device's range.
    pub offset: u64,
    /// Width.
    pub size: Size,
}

/// What the guest did wrong. A value, never an error of the host: it is counted, a read answers all
/// ones and a write is dropped.
// As wide as a value: then the result of a read is returned in two registers, not through memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum BusFault {
    /// No device there, or no register at this offset.
    Unmapped,
    /// The register has another width.
    Width,
    /// The access is not aligned as the register asks.
    Alignment,
    /// A write to a register that is only read.
    ReadOnly,
    /// A read of a register that is only written.
    WriteOnly,
    /// The access starts in the range and ends outside it.
    Crosses,
}

/// What a guest asks of the machine through a register.
// As wide as a fault, for the result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u64)]
pub enum VmRequest {
    /// Power off (ACPI S5).
    Shutdown,
    /// Start again from reset.
    Reset,
    /// The guest's kernel reports that it has panicked (pvpanic).
    GuestPanic,
}

/// What a write asks the caller to carry out once the device has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Effect {
    /// Nothing.
    None,
    /// A change of the machine's state.
    Vm(VmRequest),
    /// Move the ranges of addresses of the device that this one belongs to where the device wants them: see
    /// [`RegisterRange::move_to`](crate::RegisterRange::move_to).
    Remap(RangeId),
    /// Remove the device that this range belongs to: the guest has given it up. The thread that controls the machine
    /// does so when it gets to it.
    Remove(RangeId),
}

/// A device's registers as vCPUs reach them, on either address space: the bus knows which one, the
/// device does not. Values are little-endian numbers of the access's width.
pub trait Mmio: Send + Sync {
    /// Reads a register.
    fn read(&self, at: Access) -> Result<u64, BusFault>;
    /// Writes a register.
    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault>;
}

/// [`Mmio`] for a device whose registers need `&mut`: put it in a [`Mutex`].
pub trait MmioMut: Send {
    /// Reads a register.
    fn read(&mut self, at: Access) -> Result<u64, BusFault>;
    /// Writes a register.
    fn write(&mut self, at: Access, value: u64) -> Result<Effect, BusFault>;
}

impl<T: MmioMut> Mmio for Mutex<T> {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        self.lock().unwrap_or_else(std::sync::PoisonError::into_inner).read(at)
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        self.lock().unwrap_or_else(std::sync::PoisonError::into_inner).write(at, value)
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
