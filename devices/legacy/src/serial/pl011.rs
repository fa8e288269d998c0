//! The registers of a PL011 as a pure state machine: no input or output of its own.
//!
//! Arm PrimeCell UART (PL011) Technical Reference Manual, DDI 0183, chapter 3. The transmitter empties into a queue that
//! the host drains, so that the guest sees a slow host as a slow line (FR.TXFF set). Baud rate, word length, parity and
//! DMA are stored and have no effect.

mod state;

use std::collections::VecDeque;

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{Access, BusFault, Size};

use super::model::{Uart, Written};
use super::registers::TX_CAPACITY;
use state::Pl011State;

/// Bytes of memory that the registers take.
pub(super) const LEN: u64 = 0x1000;
/// Bytes that each FIFO holds (revision r1p5).
pub(super) const FIFO: usize = 32;

const DR: u64 = 0x00;
const RSR: u64 = 0x04;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const DMACR: u64 = 0x48;
const ID: u64 = 0xfe0;
/// UARTPeriphID and UARTPCellID of revision r1p5, a byte in each word from [`ID`] on.
const IDS: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The other end is always there: CTS, DSR, DCD.
const FR_MODEM: u16 = 0x07;
const FR_RX_EMPTY: u16 = 1 << 4;
const FR_TX_FULL: u16 = 1 << 5;
const FR_RX_FULL: u16 = 1 << 6;
const FR_TX_EMPTY: u16 = 1 << 7;
const LCR_H_FIFO: u16 = 1 << 4;
const LCR_H_8_BITS: u16 = 0b11 << 5;
const CR_ENABLE: u16 = 1 << 0;
const CR_LOOP: u16 = 1 << 7;
const CR_TX: u16 = 1 << 8;
const CR_RX: u16 = 1 << 9;

/// Interrupts, as their bits in IMSC.
const RX: u16 = 1 << 4;
const TX: u16 = 1 << 5;
const RX_TIMEOUT: u16 = 1 << 6;
const OVERRUN: u16 = 1 << 10;

/// RSR and the received word: the FIFO was full when a word came.
const RSR_OVERRUN: u16 = 1 << 3;

/// What can be written to each register.
const ILPR_MASK: u16 = 0xff;
const FBRD_MASK: u16 = 0x3f;
const LCR_H_MASK: u16 = 0xff;
const CR_MASK: u16 = 0xff87;
const IFLS_MASK: u16 = 0x3f;
const IMSC_MASK: u16 = 0x7ff;
const DMACR_MASK: u16 = 0x7;

/// A PL011 with 64 KiB of output that waits: the registers of [`Serial::pl011`](crate::Serial::pl011).
///
/// It takes input while a receive interrupt is enabled. A driver that opens the port throws away what the receiver holds
/// before it enables one; what was typed until then is not lost so. Who polls the receiver without interrupts gets no input.
#[derive(Debug)]
pub struct Pl011 {
    ilpr: u16,
    ibrd: u16,
    fbrd: u16,
    lcr_h: u16,
    cr: u16,
    ifls: u16,
    imsc: u16,
    dmacr: u16,
    /// A word was lost; the word's own mark of it has been read, the interrupt not been cleared.
    overrun: bool,
    overrun_irq: bool,
    /// The transmitter has emptied to its trigger level since the guest cleared its interrupt.
    tx_ready: bool,
    /// The transmit queue was full: not ready until half of it is free.
    tx_stalled: bool,
    rx: VecDeque<u8>,
    tx: VecDeque<u8>,
}

impl Pl011 {
    /// After a reset, as firmware leaves it: on, at 115,200 Bd of 24 MHz, 8 bits, with its FIFOs. A driver for Arm's generic
    /// UART (SBSA), which is how ACPI describes it, takes it as it is.
    pub fn new() -> Self {
        Self {
            ilpr: 0,
            ibrd: 13,
            fbrd: 1,
            lcr_h: LCR_H_FIFO | LCR_H_8_BITS,
            cr: CR_ENABLE | CR_TX | CR_RX,
            ifls: 0x12,
            imsc: 0,
            dmacr: 0,
            overrun: false,
            overrun_irq: false,
            tx_ready: false,
            tx_stalled: false,
            rx: VecDeque::with_capacity(FIFO),
            tx: VecDeque::new(),
        }
    }

    fn rx_depth(&self) -> usize {
        if self.lcr_h & LCR_H_FIFO != 0 { FIFO } else { 1 }
    }

    /// How much the receiver holds when its interrupt is raised (IFLS).
    fn rx_trigger(&self) -> usize {
        let eighths = match self.ifls >> 3 & 7 {
            0 => 1,
            1 => 2,
            2 => 4,
            3 => 6,
            _ => 7,
        };
        (self.rx_depth() * eighths / 8).max(1)
    }

    /// The interrupts that are raised, enabled or not.
    fn raw(&self) -> u16 {
        let bit = |set, bit| if set { bit } else { 0 };
        // What is in the receiver has been there for longer than the time-out.
        bit(self.rx.len() >= self.rx_trigger(), RX)
            | bit(!self.rx.is_empty(), RX_TIMEOUT)
            | bit(self.tx_ready, TX)
            | bit(self.overrun_irq, OVERRUN)
    }

    fn flags(&self) -> u16 {
        let bit = |set, bit| if set { bit } else { 0 };
        FR_MODEM
            | bit(self.rx.is_empty(), FR_RX_EMPTY)
            | bit(self.rx.len() >= self.rx_depth(), FR_RX_FULL)
            | bit(self.tx_stalled, FR_TX_FULL)
            | bit(!self.tx_stalled, FR_TX_EMPTY)
    }

    fn read_data(&mut self) -> u16 {
        let lost = std::mem::take(&mut self.overrun);
        u16::from(self.rx.pop_front().unwrap_or(0)) | if lost { RSR_OVERRUN << 8 } else { 0 }
    }

    fn transmit(&mut self, byte: u8) -> Written {
        if self.cr & CR_LOOP != 0 {
            if self.rx.len() < self.rx_depth() {
                self.rx.push_back(byte);
            } else {
                (self.overrun, self.overrun_irq) = (true, true);
            }
            self.tx_ready = !self.tx_stalled;
            return Written::Register;
        }
        if self.tx.len() >= TX_CAPACITY {
            return Written::Overflow;
        }
        self.tx.push_back(byte);
        if TX_CAPACITY - self.tx.len() < FIFO {
            (self.tx_stalled, self.tx_ready) = (true, false);
        } else if !self.tx_stalled {
            self.tx_ready = true;
        }
        Written::Sent
    }

    fn get(&mut self, offset: u64) -> Option<u16> {
        Some(match offset {
            DR => self.read_data(),
            RSR => {
                if self.overrun {
                    RSR_OVERRUN
                } else {
                    0
                }
            }
            FR => self.flags(),
            ILPR => self.ilpr,
            IBRD => self.ibrd,
            FBRD => self.fbrd,
            LCR_H => self.lcr_h,
            CR => self.cr,
            IFLS => self.ifls,
            IMSC => self.imsc,
            RIS => self.raw(),
            MIS => self.raw() & self.imsc,
            DMACR => self.dmacr,
            _ => (*IDS.get(usize::try_from(offset.checked_sub(ID)? / 4).ok()?)?).into(),
        })
    }

    fn set(&mut self, offset: u64, value: u16) -> Option<Written> {
        match offset {
            DR => return Some(self.transmit(value as u8)),
            RSR => self.overrun = false,
            ILPR => self.ilpr = value & ILPR_MASK,
            IBRD => self.ibrd = value,
            FBRD => self.fbrd = value & FBRD_MASK,
            LCR_H => self.lcr_h = value & LCR_H_MASK,
            CR => self.cr = value & CR_MASK,
            IFLS => self.ifls = value & IFLS_MASK,
            IMSC => self.imsc = value & IMSC_MASK,
            ICR => {
                self.tx_ready &= value & TX == 0;
                self.overrun_irq &= value & OVERRUN == 0;
            }
            DMACR => self.dmacr = value & DMACR_MASK,
            _ => return None,
        }
        Some(Written::Register)
    }
}

impl Default for Pl011 {
    fn default() -> Self {
        Self::new()
    }
}

/// The offset of a register. They are words, of which drivers access the half that matters, too, or its first byte.
fn register(at: Access) -> Result<u64, BusFault> {
    if at.size == Size::B8 {
        return Err(BusFault::Width);
    }
    if at.offset.is_multiple_of(4) { Ok(at.offset) } else { Err(BusFault::Unmapped) }
}

impl Uart for Pl011 {
    fn read(&mut self, at: Access) -> Result<u64, BusFault> {
        let value = self.get(register(at)?).ok_or(BusFault::Unmapped)?;
        Ok(u64::from(value) & at.size.mask())
    }

    fn write(&mut self, at: Access, value: u64) -> Result<Written, BusFault> {
        self.set(register(at)?, (value & at.size.mask()) as u16).ok_or(BusFault::Unmapped)
    }

    fn reset(&mut self) {
        let tx = std::mem::take(&mut self.tx);
        *self = Self { tx, tx_stalled: self.tx_stalled, ..Self::new() };
    }

    fn take_edge(&mut self) -> bool {
        // The line is a level.
        false
    }

    fn interrupts(&self) -> bool {
        self.raw() & self.imsc != 0
    }

    fn rx_room(&self) -> usize {
        let on = CR_ENABLE | CR_RX;
        let listens = self.cr & (on | CR_LOOP) == on && self.imsc & (RX | RX_TIMEOUT) != 0;
        if listens { self.rx_depth().saturating_sub(self.rx.len()) } else { 0 }
    }

    fn rx_is_empty(&self) -> bool {
        self.rx.is_empty()
    }

    fn take_thrown(&mut self) -> VecDeque<u8> {
        // Nothing empties the receiver but reading it.
        VecDeque::new()
    }

    fn unread(&self) -> usize {
        0
    }

    fn receive(&mut self, input: &[u8]) -> usize {
        let n = input.len().min(self.rx_room());
        self.rx.extend(input.iter().take(n));
        n
    }

    fn output(&self) -> &[u8] {
        self.tx.as_slices().0
    }

    fn output_len(&self) -> usize {
        self.tx.len()
    }

    fn output_taken(&mut self, n: usize) {
        self.tx.drain(..n.min(self.tx.len()));
        if self.tx_stalled && self.tx.len() <= TX_CAPACITY / 2 {
            (self.tx_stalled, self.tx_ready) = (false, true);
        }
    }

    fn in_burst(&self) -> bool {
        self.tx_ready && self.imsc & TX != 0 && self.tx.len() < FIFO / 2
    }

    fn save(&self, typeahead: &[u8]) -> SavedState<'static> {
        Pl011State::of(self, typeahead).save()
    }

    fn restored(&self, state: &SavedState<'_>) -> Result<(Self, Vec<u8>), StateError> {
        Pl011State::load(state)?.into_uart()
    }
}

#[cfg(test)]
mod tests;
