//! The 256 bytes of a function's configuration space: what they read, and which of their bits a guest can write.

use ossature_bus::Size;

/// Bytes of configuration space.
pub(crate) const LEN: usize = 256;

/// Registers of a type-0 header.
pub(crate) mod reg {
    pub(crate) const VENDOR: u8 = 0x00;
    pub(crate) const DEVICE: u8 = 0x02;
    pub(crate) const COMMAND: u8 = 0x04;
    pub(crate) const STATUS: u8 = 0x06;
    pub(crate) const REVISION: u8 = 0x08;
    /// Three bytes: programming interface, subclass, class.
    pub(crate) const CLASS: u8 = 0x09;
    pub(crate) const CACHE_LINE: u8 = 0x0c;
    pub(crate) const BARS: u8 = 0x10;
    pub(crate) const SUBSYSTEM_VENDOR: u8 = 0x2c;
    pub(crate) const SUBSYSTEM: u8 = 0x2e;
    pub(crate) const CAPABILITIES: u8 = 0x34;
    pub(crate) const INTERRUPT_LINE: u8 = 0x3c;
    /// Where capabilities begin.
    pub(crate) const FIRST_CAPABILITY: u8 = 0x40;
}

/// Bits of the command register.
pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_NO_INTX: u16 = 1 << 10;

/// Bit of the status register: there are capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;

#[derive(Clone, Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; LEN],
    /// The bits that a guest can write.
    writable: [u8; LEN],
    initial: [u8; LEN],
}

impl ConfigSpace {
    /// A header in which everything reads 0 and only the command register's bits can be written.
    pub(crate) fn new() -> Self {
        Self { bytes: [0; LEN], writable: [0; LEN], initial: [0; LEN] }
    }

    /// Sets what the bytes at `offset` read after a reset; what does not fit is left out.
    pub(crate) fn define(&mut self, offset: u8, value: &[u8]) {
        let at = usize::from(offset);
        for space in [&mut self.bytes, &mut self.initial] {
            space.iter_mut().skip(at).zip(value).for_each(|(to, from)| *to = *from);
        }
    }

    /// Lets guests write these bits of the bytes at `offset`.
    pub(crate) fn allow(&mut self, offset: u8, bits: &[u8]) {
        self.writable.iter_mut().skip(offset.into()).zip(bits).for_each(|(to, from)| *to = *from);
    }

    /// Makes the header's registers those of a function that has memory BARs.
    pub(crate) fn allow_header(&mut self) {
        let command = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_INTX;
        self.allow(reg::COMMAND, &command.to_le_bytes());
        self.allow(reg::CACHE_LINE, &[0xff]);
        self.allow(reg::INTERRUPT_LINE, &[0xff]);
    }

    /// Notes that the first capability is at `offset`.
    pub(crate) fn set_first_capability(&mut self, offset: u8) {
        self.define(reg::STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.define(reg::CAPABILITIES, &[offset]);
    }

    /// Reads an aligned register; beyond the space, all ones.
    pub(crate) fn read(&self, offset: u16, size: Size) -> u64 {
        let (at, len) = (usize::from(offset), size.bytes() as usize);
        let Some(bytes) = at.checked_add(len).and_then(|end| self.bytes.get(at..end)) else {
            return size.mask();
        };
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Writes the bits of an aligned register that can be written.
    pub(crate) fn write(&mut self, offset: u16, size: Size, value: u64) {
        let at = usize::from(offset);
        let places = self.bytes.iter_mut().zip(&self.writable).skip(at).take(size.bytes() as usize);
        for ((byte, writable), new) in places.zip(value.to_le_bytes()) {
            *byte = *byte & !writable | new & writable;
        }
    }

    pub(crate) fn read_u16(&self, offset: u8) -> u16 {
        self.read(offset.into(), Size::B2) as u16
    }

    pub(crate) fn read_u32(&self, offset: u8) -> u32 {
        self.read(offset.into(), Size::B4) as u32
    }

    /// The `len` bytes at `offset`.
    pub(crate) fn copy(&self, offset: u8, len: usize) -> Vec<u8> {
        self.bytes.iter().skip(offset.into()).take(len).copied().collect()
    }

    pub(crate) fn reset(&mut self) {
        self.bytes = self.initial;
    }

    pub(crate) fn bytes(&self) -> &[u8; LEN] {
        &self.bytes
    }

    /// Returns true if guest writes can have led to `bytes`.
    pub(crate) fn may_read(&self, bytes: &[u8; LEN]) -> bool {
        let places = bytes.iter().zip(&self.initial).zip(&self.writable);
        places.into_iter().all(|((saved, initial), writable)| (saved ^ initial) & !writable == 0)
    }

    pub(crate) fn replace(&mut self, bytes: [u8; LEN]) {
        self.bytes = bytes;
    }
}
