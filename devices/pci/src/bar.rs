//! Base address registers: ranges of memory that the guest places.

use ossature_bus::{DeviceError, DoorbellRequest, RegistersRequest, ResourceName};

use crate::space::{ConfigSpace, reg};

/// BARs of a type-0 function.
const COUNT: u8 = 6;
/// The smallest memory BAR.
const MIN_SIZE: u64 = 16;
/// The largest 32-bit BAR.
const MAX_SIZE_32: u64 = 1 << 31;

/// Bits of a memory BAR that say what it is.
const WIDTH_64: u32 = 1 << 2;
const PREFETCHABLE: u32 = 1 << 3;

/// A range of memory that a function answers, wherever the guest puts it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bar {
    /// Its number, 0 to 5. A 64-bit BAR takes the next one as well.
    pub index: u8,
    /// Size in bytes, a power of two from 16.
    pub size: u64,
    /// It can be put above 4 GiB.
    pub wide: bool,
    /// Reads have no side effects, and writes may be merged.
    pub prefetchable: bool,
    /// Writes inside it that only wake the device.
    pub doorbells: Vec<DoorbellRequest>,
}

impl Bar {
    /// BAR `index` of `size` bytes, which the guest puts below 4 GiB.
    pub fn memory32(index: u8, size: u64) -> Self {
        Self { index, size, wide: false, prefetchable: false, doorbells: Vec::new() }
    }

    /// BAR `index` of `size` bytes, which the guest puts anywhere.
    pub fn memory64(index: u8, size: u64) -> Self {
        Self { wide: true, ..Self::memory32(index, size) }
    }

    /// The same, prefetchable.
    #[must_use]
    pub fn prefetchable(mut self) -> Self {
        self.prefetchable = true;
        self
    }

    /// The same with this doorbell.
    #[must_use]
    pub fn doorbell(mut self, doorbell: DoorbellRequest) -> Self {
        self.doorbells.push(doorbell);
        self
    }

    /// What it is called among its device's registers.
    pub(crate) fn name(&self) -> ResourceName {
        ("bar", u16::from(self.index)).into()
    }

    pub(crate) fn request(&self) -> RegistersRequest {
        let request = RegistersRequest::memory(self.name(), self.size).unplaced();
        self.doorbells.iter().fold(request, |request, doorbell| request.doorbell(*doorbell))
    }

    fn register(&self) -> u8 {
        reg::BARS.saturating_add(self.index.saturating_mul(4))
    }

    /// Puts its registers into `space`.
    pub(crate) fn define(&self, space: &mut ConfigSpace) {
        let kind = if self.wide { WIDTH_64 } else { 0 } | if self.prefetchable { PREFETCHABLE } else { 0 };
        // What can be written says how large it is.
        let address = !self.size.wrapping_sub(1);
        space.define(self.register(), &kind.to_le_bytes());
        if self.wide {
            space.allow(self.register(), &address.to_le_bytes());
        } else {
            space.allow(self.register(), &(address as u32).to_le_bytes());
        }
    }

    /// Where the guest has put it.
    pub(crate) fn address(&self, space: &ConfigSpace) -> u64 {
        let low = u64::from(space.read_u32(self.register()));
        let high = if self.wide { u64::from(space.read_u32(self.register().saturating_add(4))) } else { 0 };
        (high << 32 | low) & !(MIN_SIZE - 1)
    }
}

/// Fails if a function cannot have these BARs.
pub(crate) fn check(bars: &[Bar]) -> Result<(), DeviceError> {
    let mut taken = [false; COUNT as usize];
    for bar in bars {
        let Bar { index, size, wide, .. } = *bar;
        let wrong = |reason: String| Err(DeviceError::new(format!("BAR {index}: {reason}")));
        let registers = if wide { 2 } else { 1 };
        if index.checked_add(registers).is_none_or(|end| end > COUNT) {
            return wrong(format!("there are BARs 0 to {}, and a 64-bit one takes two", COUNT - 1));
        }
        if !size.is_power_of_two() || size < MIN_SIZE || !wide && size > MAX_SIZE_32 {
            return wrong(format!(
                "a size of {size:#x}: a power of two from 16 on, and up to 2 GiB in 32 bits"
            ));
        }
        for taken in taken.iter_mut().skip(index.into()).take(registers.into()) {
            if std::mem::replace(taken, true) {
                return wrong("another BAR has its registers".to_owned());
            }
        }
    }
    Ok(())
}
