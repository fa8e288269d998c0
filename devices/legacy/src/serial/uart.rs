//! The registers of a 16550A as a pure state machine: no input or output of its own.
//!
//! Texas Instruments PC16550D data sheet, section 8. The transmitter empties into a queue that the host
//! drains, so that the guest sees a slow host as a slow line (LSR.THRE clear) and never waits inside an
//! access. Baud rate, word length and parity are stored and have no effect.

use std::collections::VecDeque;

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{Access, BusFault};

use super::model::{Uart, Written};
use super::registers::*;
use super::state::{SerialState, UartState};
use crate::register;

/// How many there are, each a byte wide.
pub(super) const REGISTERS: u8 = 8;

/// A 16550A with a receiver of 64 bytes and 64 KiB of output that waits: the default model of a
/// [`Serial`](crate::Serial).
#[derive(Debug)]
pub struct Uart16550 {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: [u8; 2],
    fifo: bool,
    overrun: bool,
    /// The transmitter has become ready and the guest has not yet seen it in IIR.
    tx_ready: bool,
    /// The transmit queue was full: not ready until half of it is free.
    tx_stalled: bool,
    rx: VecDeque<u8>,
    /// There is something in the receiver that the guest has sent to itself.
    looped: bool,
    /// What was in the receiver when the guest reset the FIFO, until the host takes it back.
    thrown: VecDeque<u8>,
    tx: VecDeque<u8>,
    /// Enabled conditions that have raised their edge.
    raised: u8,
}

impl Uart16550 {
    /// After a master reset.
    pub fn new() -> Self {
        Self {
            ier: 0,
            lcr: 0x03,
            mcr: 0,
            scratch: 0,
            divisor: DIVISOR_9600,
            fifo: false,
            overrun: false,
            tx_ready: false,
            tx_stalled: false,
            rx: VecDeque::with_capacity(RX_CAPACITY),
            looped: false,
            thrown: VecDeque::new(),
            tx: VecDeque::new(),
            raised: 0,
        }
    }

    pub(super) fn state(&self) -> UartState {
        let Self {
            ier,
            lcr,
            mcr,
            scratch,
            divisor,
            fifo,
            overrun,
            tx_ready,
            tx_stalled,
            ref rx,
            looped,
            thrown: _,
            ref tx,
            raised,
        } = *self;
        let bytes = |queue: &VecDeque<u8>| {
            let (first, second) = queue.as_slices();
            [first, second].concat()
        };
        let (rx, tx) = (bytes(rx), bytes(tx));
        UartState {
            ier,
            lcr,
            mcr,
            scratch,
            divisor,
            fifo,
            overrun,
            tx_ready,
            tx_stalled,
            raised,
            rx,
            tx,
            looped,
        }
    }

    /// The UART that has this state, if one can have it. The fields by themselves have been checked.
    pub(super) fn of(state: UartState) -> Result<Self, StateError> {
        let UartState {
            ier,
            lcr,
            mcr,
            scratch,
            divisor,
            fifo,
            overrun,
            tx_ready,
            tx_stalled,
            raised,
            rx,
            tx,
            looped,
        } = state;
        let (rx, tx) = (rx.into(), tx.into());
        let thrown = VecDeque::new();
        let uart = Self {
            ier,
            lcr,
            mcr,
            scratch,
            divisor,
            fifo,
            overrun,
            tx_ready,
            tx_stalled,
            rx,
            looped,
            thrown,
            tx,
            raised,
        };
        let inconsistent = |field, reason| Err(StateError::Inconsistent { field, reason });
        if uart.rx.len() > uart.rx_depth() {
            return inconsistent("rx", "more than one byte without the FIFO");
        }
        if uart.tx_stalled && uart.tx.len() <= TX_CAPACITY / 2 {
            return inconsistent("tx_stalled", "half of the queue is free");
        }
        if !uart.tx_stalled && TX_CAPACITY - uart.tx.len() < TX_BURST {
            return inconsistent("tx_stalled", "the queue has no room for a burst");
        }
        if uart.looped && uart.rx.is_empty() {
            return inconsistent("looped", "the receiver is empty");
        }
        // Otherwise the condition's next edge would be missing.
        if uart.raised & !uart.pending() != 0 {
            return inconsistent("raised", "a condition that does not hold has raised its edge");
        }
        Ok(uart)
    }

    /// Reads the register at `offset` (0 to 7).
    pub fn read(&mut self, offset: u8) -> u8 {
        match offset {
            0 | 1 if self.lcr & LCR_DLAB != 0 => {
                let [low, high] = self.divisor;
                if offset == 0 { low } else { high }
            }
            0 => {
                let byte = self.rx.pop_front().unwrap_or(0);
                self.looped &= !self.rx.is_empty();
                byte
            }
            1 => self.ier,
            2 => self.read_iir(),
            3 => self.lcr,
            4 => self.mcr,
            5 => self.read_lsr(),
            6 => self.msr(),
            _ => self.scratch,
        }
    }

    /// Writes the register at `offset` (0 to 7).
    pub fn write(&mut self, offset: u8, value: u8) -> Written {
        match offset {
            0 | 1 if self.lcr & LCR_DLAB != 0 => {
                let [low, high] = &mut self.divisor;
                *(if offset == 0 { low } else { high }) = value;
            }
            0 if self.mcr & MCR_LOOP != 0 => {
                if self.rx.len() < self.rx_depth() {
                    self.rx.push_back(value);
                    self.looped = true;
                } else {
                    self.overrun = true;
                }
                self.tx_ready = true;
            }
            0 => return self.transmit(value),
            1 => {
                // Enabling the transmitter's interrupt while the transmitter is ready raises it.
                if value & IER_TX != 0 && self.ier & IER_TX == 0 && !self.tx_stalled {
                    self.tx_ready = true;
                }
                self.ier = value & IER_MASK;
            }
            2 => {
                let mut written = Written::Register;
                let fifo = value & FCR_ENABLE != 0;
                // FCR bit 2 (clear the transmit FIFO) is not honoured: what waits in the queue has left
                // the UART as far as the guest knows, and drivers set the bit when they open the port.
                if fifo != self.fifo || fifo && value & FCR_CLEAR_RX != 0 {
                    let rx = std::mem::take(&mut self.rx);
                    if !std::mem::take(&mut self.looped) && !rx.is_empty() {
                        self.thrown = rx;
                        written = Written::Thrown;
                    }
                }
                self.fifo = fifo;
                return written;
            }
            3 => self.lcr = value,
            4 => self.mcr = value & MCR_MASK,
            7 => self.scratch = value,
            _ => {}
        }
        Written::Register
    }

    fn transmit(&mut self, byte: u8) -> Written {
        if self.tx.len() >= TX_CAPACITY {
            return Written::Overflow;
        }
        self.tx.push_back(byte);
        if TX_CAPACITY - self.tx.len() < TX_BURST {
            self.tx_stalled = true;
            self.tx_ready = false;
        } else if !self.tx_stalled {
            self.tx_ready = true;
        }
        Written::Sent
    }

    fn read_iir(&mut self) -> u8 {
        let pending = self.pending();
        let id = if pending & IER_LINE != 0 {
            IIR_LINE
        } else if pending & IER_RX != 0 {
            IIR_RX
        } else if pending & IER_TX != 0 {
            self.tx_ready = false;
            IIR_TX
        } else {
            IIR_NONE
        };
        id | if self.fifo { IIR_FIFO } else { 0 }
    }

    fn read_lsr(&mut self) -> u8 {
        let mut lsr = 0;
        if !self.rx.is_empty() {
            lsr |= LSR_DATA_READY;
        }
        if std::mem::take(&mut self.overrun) {
            lsr |= LSR_OVERRUN;
        }
        if !self.tx_stalled {
            lsr |= LSR_THR_EMPTY | LSR_IDLE;
        }
        lsr
    }

    /// The other end is always there; in loopback the outputs drive the inputs.
    fn msr(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)]
            .iter()
            .filter(|(out, _)| self.mcr & out != 0)
            .fold(0, |msr, (_, input)| msr | input)
    }

    /// The conditions that hold and are enabled, as their bits in IER.
    fn pending(&self) -> u8 {
        let mut conditions = 0;
        if !self.rx.is_empty() {
            conditions |= IER_RX;
        }
        if self.tx_ready {
            conditions |= IER_TX;
        }
        if self.overrun {
            conditions |= IER_LINE;
        }
        conditions & self.ier
    }

    fn rx_depth(&self) -> usize {
        if self.fifo { RX_CAPACITY } else { 1 }
    }
}

impl Default for Uart16550 {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart for Uart16550 {
    fn reset(&mut self) {
        let tx = std::mem::take(&mut self.tx);
        *self = Self { tx, tx_stalled: self.tx_stalled, ..Self::new() };
    }

    fn read(&mut self, at: Access) -> Result<u64, BusFault> {
        Ok(self.read(register::byte(at, REGISTERS)?).into())
    }

    fn write(&mut self, at: Access, value: u64) -> Result<Written, BusFault> {
        Ok(self.write(register::byte(at, REGISTERS)?, value as u8))
    }

    fn take_edge(&mut self) -> bool {
        let pending = self.pending();
        let edge = pending & !self.raised != 0;
        self.raised = pending;
        edge
    }

    fn interrupts(&self) -> bool {
        self.pending() != 0
    }

    fn rx_room(&self) -> usize {
        let listens = self.mcr & MCR_RTS != 0 || self.ier & IER_RX != 0;
        if listens && self.mcr & MCR_LOOP == 0 { self.rx_depth().saturating_sub(self.rx.len()) } else { 0 }
    }

    fn rx_is_empty(&self) -> bool {
        self.rx.is_empty()
    }

    fn take_thrown(&mut self) -> VecDeque<u8> {
        std::mem::take(&mut self.thrown)
    }

    fn unread(&self) -> usize {
        if self.looped { 0 } else { self.rx.len() }
    }

    fn receive(&mut self, input: &[u8]) -> usize {
        let n = input.len().min(self.rx_room());
        self.rx.extend(input.iter().take(n));
        n
    }

    fn output(&self) -> &[u8] {
        self.tx.as_slices().0
    }

    fn in_burst(&self) -> bool {
        self.raised & IER_TX != 0 && self.tx.len() < TX_BURST
    }

    fn output_len(&self) -> usize {
        self.tx.len()
    }

    fn output_taken(&mut self, n: usize) {
        self.tx.drain(..n.min(self.tx.len()));
        if self.tx_stalled && self.tx.len() <= TX_CAPACITY / 2 {
            self.tx_stalled = false;
            self.tx_ready = true;
        }
    }

    fn save(&self, typeahead: &[u8]) -> SavedState<'static> {
        SerialState { uart: self.state(), typeahead: typeahead.to_vec() }.save()
    }

    fn restored(&self, state: &SavedState<'_>) -> Result<(Self, Vec<u8>), StateError> {
        let SerialState { uart, typeahead } = SerialState::load(state)?;
        Ok((Self::of(uart)?, typeahead))
    }
}

#[cfg(test)]
mod tests;
