//! The registers of a firmware configuration device, in ports or in memory: selector, data, and the address of a DMA request.

use std::sync::Arc;

use ossature_bus::{Access, BusFault, Effect, MmioMut, Size};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, DmaError};

use super::files::{Files, MAX_LEN};

/// Where the registers are, and how they lie there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// Selector at 0, a byte of data at 1, the address at 4.
    #[default]
    Ports,
    /// Data at 0, of any width; the selector at 8, big-endian; the address at 16.
    Memory,
}

impl Place {
    /// The length of all, in ports or bytes.
    pub(super) fn len(self) -> u16 {
        match self {
            Self::Ports => 12,
            Self::Memory => 24,
        }
    }

    fn register(self, offset: u64) -> Option<Register> {
        let (selector, data, address) = match self {
            Self::Ports => (0, 1, 4),
            Self::Memory => (8, 0, 16),
        };
        match offset {
            _ if offset == selector => Some(Register::Selector),
            _ if offset == data => Some(Register::Data),
            _ => usize::try_from(offset.checked_sub(address)?)
                .ok()
                .filter(|byte| *byte < 8)
                .map(Register::Address),
        }
    }
}

#[derive(Clone, Copy)]
enum Register {
    Selector,
    Data,
    /// Such a byte of the address, which is big-endian. Writing its lower half begins a transfer.
    Address(usize),
}

/// What the address reads as.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

// The bits of a request's control field; its upper half is a selector.
const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;

/// So much is written of the zeros behind an item at a time.
const ZEROS: [u8; 4096] = [0; 4096];

/// The registers with what is behind them.
#[derive(Debug, Default)]
pub(super) struct Registers {
    pub(super) place: Place,
    pub(super) files: Files,
    /// While the device is attached.
    pub(super) dma: Option<Dma>,
    pub(super) selector: u16,
    /// What was there when it was selected.
    item: Arc<[u8]>,
    /// The next byte of it.
    pub(super) offset: u32,
    pub(super) address_high: u32,
    pub(super) transfers: u64,
    pub(super) refused: u64,
}

impl Registers {
    pub(super) fn new(place: Place) -> Self {
        let mut registers = Self { place, ..Self::default() };
        registers.reset();
        registers
    }

    pub(super) fn select(&mut self, selector: u16) {
        (self.selector, self.offset) = (selector, 0);
        self.item = self.files.item(selector);
    }

    /// As after power on.
    pub(super) fn reset(&mut self) {
        self.address_high = 0;
        self.select(0);
    }

    /// What is left of the item.
    fn rest(&self) -> &[u8] {
        self.item.get(self.offset as usize..).unwrap_or_default()
    }

    fn advance(&mut self, len: usize) {
        // No item is as long as the number could be.
        self.offset += self.rest().len().min(len) as u32;
    }

    fn byte(&mut self) -> u8 {
        let byte = self.rest().first().copied().unwrap_or(0);
        self.advance(1);
        byte
    }

    /// Carries out the request at `at`: control, length and address, all big-endian.
    fn transfer(&mut self, at: GuestAddress) {
        self.transfers += 1;
        let Some(mut dma) = self.dma.take() else { return };
        dma.refresh();
        let done = self.request(&dma, at);
        self.dma = Some(dma);
        if done.is_err() {
            self.refused += 1;
        }
    }

    /// Fails if the request is refused, or cannot be read or answered.
    fn request(&mut self, dma: &Dma, at: GuestAddress) -> Result<(), Refused> {
        let [control, length, high, low] = dma.read_obj::<[u32; 4]>(at)?.map(u32::from_be);
        if control & SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let result = if control & READ != 0 {
            self.read_into(dma, GuestAddress(u64::from(high) << 32 | u64::from(low)), length)
        } else if control & WRITE != 0 {
            // There is nothing that a guest may write.
            Err(Refused)
        } else {
            if control & SKIP != 0 {
                self.advance(length as usize);
            }
            Ok(())
        };
        let status = if result.is_err() { ERROR } else { 0 };
        dma.write_obj(at, status.to_be())?;
        result
    }

    /// Copies `length` bytes from the offset on, with zeros behind the end, to RAM: all of them, or none.
    fn read_into(&mut self, dma: &Dma, to: GuestAddress, length: u32) -> Result<(), Refused> {
        let length = length as usize;
        if length > MAX_LEN {
            return Err(Refused);
        }
        dma.check(to, length as u64)?;
        let rest = self.rest();
        let rest = rest.get(..length).unwrap_or(rest);
        dma.write(to, rest)?;
        let mut written = rest.len();
        while let Some(zeros) = length.checked_sub(written).filter(|&left| left > 0) {
            let zeros = ZEROS.get(..zeros).unwrap_or(&ZEROS);
            dma.write(GuestAddress(to.0.saturating_add(written as u64)), zeros)?;
            written += zeros.len();
        }
        self.advance(length);
        Ok(())
    }
}

/// The guest asked for what it cannot have.
struct Refused;

impl From<DmaError> for Refused {
    fn from(_: DmaError) -> Self {
        Self
    }
}

impl MmioMut for Registers {
    fn read(&mut self, at: Access) -> Result<u64, BusFault> {
        let width = at.size.bytes() as usize;
        match self.place.register(at.offset).ok_or(BusFault::Unmapped)? {
            Register::Selector => Err(BusFault::WriteOnly),
            _ if self.place == Place::Ports && at.size == Size::B8 => Err(BusFault::Width),
            Register::Data if self.place == Place::Ports && at.size != Size::B1 => Err(BusFault::Width),
            // In the order in which they are in memory, when the guest has stored what it has read.
            Register::Data => {
                let mut bytes = [0; 8];
                bytes.iter_mut().take(width).for_each(|byte| *byte = self.byte());
                Ok(u64::from_le_bytes(bytes))
            }
            Register::Address(from) => {
                let bytes = DMA_SIGNATURE.get(from..).and_then(|rest| rest.get(..width));
                let bytes = bytes.ok_or(BusFault::Unmapped)?;
                Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
            }
        }
    }

    fn write(&mut self, at: Access, value: u64) -> Result<Effect, BusFault> {
        match (self.place.register(at.offset).ok_or(BusFault::Unmapped)?, at.size) {
            (Register::Selector, Size::B2) if self.place == Place::Ports => self.select(value as u16),
            (Register::Selector, Size::B2) => self.select((value as u16).swap_bytes()),
            (Register::Address(0), Size::B4) => self.address_high = (value as u32).swap_bytes(),
            (Register::Address(4), Size::B4) => {
                let high = std::mem::take(&mut self.address_high);
                let low = (value as u32).swap_bytes();
                self.transfer(GuestAddress(u64::from(high) << 32 | u64::from(low)));
            }
            (Register::Address(0), Size::B8) if self.place == Place::Memory => {
                self.address_high = 0;
                self.transfer(GuestAddress(value.swap_bytes()));
            }
            (Register::Data, Size::B1) => return Err(BusFault::ReadOnly),
            (Register::Data, _) if self.place == Place::Memory => return Err(BusFault::ReadOnly),
            _ => return Err(BusFault::Width),
        }
        Ok(Effect::None)
    }
}
