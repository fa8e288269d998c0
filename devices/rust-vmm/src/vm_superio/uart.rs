//! vm-superio's serial port as the register model of ours.
//!
//! vm-superio writes to its sink inside the guest's access and always reports a transmitter that is ready. So its sink
//! is a bounded queue here, which never waits, and while the queue has no room for a burst the transmitter is held back
//! between the guest and vm-superio's registers: LSR shows it as not ready, and vm-superio does not see its interrupt
//! enabled. Enabling that again, when half of the queue is free, is what makes vm-superio raise it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io::{self, Write};

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{Access, BusFault, Size};
use ossature_legacy::{Uart, Written};

use super::serial::{Error, NoEvents, SerialEvents};
use super::uart_state::{IIR_NONE, IIR_RX, IIR_TX, PortState, check};
use super::{Serial, SerialState, Trigger};

/// Bytes of output that wait for a slow line before the guest has to.
pub(super) const TX_CAPACITY: usize = 64 * 1024;
/// Bytes that a driver may write after it has seen the transmitter ready, without looking again.
pub(super) const TX_BURST: usize = 16;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;

pub(super) const IER_RX: u8 = 0x01;
pub(super) const IER_TX: u8 = 0x02;
pub(super) const IER_MASK: u8 = 0x0f;
const LCR_DLAB: u8 = 0x80;
const MCR_RTS: u8 = 0x02;
const MCR_LOOP: u8 = 0x10;
const LSR_TX: u8 = 0x60;

/// The registers of a [`Serial`] of vm-superio's, for [`ossature_legacy::Serial::with_uart`].
///
/// The guest sees vm-superio's registers, with this difference: a transmitter whose line is slow is not ready. Input is
/// taken when the guest listens (RTS or the receive interrupt on) and as far as vm-superio's FIFO has room.
///
/// Saved are vm-superio's [`SerialState`] and the output that waits. As vm-superio does, a restored port raises once
/// more what IIR names.
///
/// ```
/// use ossature_legacy::Uart;
/// use ossature_rust_vmm::vm_superio::SuperioUart;
/// use ossature_rust_vmm::vm_superio::serial::NoEvents;
///
/// let mut uart = SuperioUart::new();
/// uart.write(7, 0x5a);
/// uart.write(0, b'x');
/// assert_eq!(uart.output(), b"x");
/// // vm-superio's state goes out and in.
/// let mut copy = SuperioUart::from_state(&uart.state(), NoEvents)?;
/// assert_eq!(copy.read(7), 0x5a);
/// # Ok::<(), ossature_bus::state::StateError>(())
/// ```
pub struct SuperioUart<EV: SerialEvents = NoEvents> {
    serial: Serial<Edge, EV, Queue>,
    /// What the guest wrote to IER, MCR and, of LCR, the divisor's bit.
    ier: u8,
    mcr: u8,
    divisor: bool,
    /// The queue was full: not ready until half of it is free.
    stalled: bool,
    /// The transmitter's interrupt was raised, and the guest has not read IIR since.
    tx_raised: bool,
    rx_capacity: usize,
}

/// Remembers that an edge is due.
#[derive(Debug, Default)]
struct Edge(Cell<bool>);

impl Trigger for Edge {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// Output that waits for the line.
#[derive(Debug, Default)]
struct Queue(VecDeque<u8>);

impl Queue {
    fn room(&self) -> usize {
        TX_CAPACITY.saturating_sub(self.0.len())
    }
}

impl Write for Queue {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.room());
        self.0.extend(bytes.iter().take(n));
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SuperioUart {
    /// Registers after a reset.
    pub fn new() -> Self {
        Self::with_events(NoEvents)
    }
}

impl Default for SuperioUart {
    fn default() -> Self {
        Self::new()
    }
}

impl<EV: SerialEvents> SuperioUart<EV> {
    /// Registers after a reset, which tell `events` what they do.
    pub fn with_events(events: EV) -> Self {
        Self::around(Serial::with_events(Edge::default(), events, Queue::default()))
    }

    /// Registers with this state of vm-superio's, if they can have it.
    pub fn from_state(state: &SerialState, events: EV) -> Result<Self, StateError> {
        let port = PortState { serial: state.clone(), tx: Vec::new(), stalled: false, typeahead: Vec::new() };
        Self::of(port, events)
    }

    /// The state of vm-superio's registers, which does not have the output that waits.
    pub fn state(&self) -> SerialState {
        SerialState { interrupt_enable: self.ier, ..self.serial.state() }
    }

    fn around(serial: Serial<Edge, EV, Queue>) -> Self {
        let rx_capacity = serial.fifo_capacity();
        let mcr = SerialState::default().modem_control;
        Self { serial, ier: 0, mcr, divisor: false, stalled: false, tx_raised: false, rx_capacity }
    }

    fn of(port: PortState, events: EV) -> Result<Self, StateError> {
        check(&port)?;
        let PortState { serial: mut state, tx, stalled, .. } = port;
        let (ier, mcr) = (state.interrupt_enable, state.modem_control);
        let divisor = state.line_control & LCR_DLAB != 0;
        let tx_raised = state.interrupt_identification & IIR_TX != 0;
        if stalled {
            state.interrupt_enable &= !IER_TX;
        }
        let full = |_| StateError::Inconsistent { field: "rx", reason: "more than the FIFO holds" };
        let serial = Serial::from_state(&state, Edge::default(), events, Queue(tx.into())).map_err(full)?;
        let rx_capacity = serial.fifo_capacity() + state.in_buffer.len();
        Ok(Self { serial, ier, mcr, divisor, stalled, tx_raised, rx_capacity })
    }

    /// Writes one of vm-superio's registers. The trigger and, while there is room, the queue cannot fail.
    fn set(&mut self, offset: u8, value: u8) -> Written {
        match self.serial.write(offset, value) {
            Err(Error::IOError(_) | Error::FullFifo) => Written::Overflow,
            Ok(()) => Written::Sent,
            Err(Error::Trigger(never)) => match never {},
        }
    }

    fn write_ier(&mut self) {
        let hidden = if self.stalled { IER_TX } else { 0 };
        self.set(IER, self.ier & !hidden);
        self.tx_raised |= self.ier & IER_TX & !hidden != 0;
    }

    fn transmit(&mut self, byte: u8) -> Written {
        // With this byte there is no room for a burst.
        if !self.stalled && self.serial.writer().room() <= TX_BURST {
            self.stalled = true;
            // An interrupt that is pending is forgotten, the receiver's is raised again.
            self.serial.read(IIR);
            self.tx_raised = false;
            self.write_ier();
        }
        let written = self.set(DATA, byte);
        self.tx_raised |= !self.stalled && self.ier & IER_TX != 0;
        written
    }

    /// Lets the guest see a transmitter that is ready.
    fn go_on(&mut self) {
        self.stalled = false;
        let lcr = self.serial.read(LCR);
        self.set(LCR, lcr & !LCR_DLAB);
        self.write_ier();
        self.set(LCR, lcr);
    }

    /// Reads the register at `offset` (0 to 7).
    pub fn read(&mut self, offset: u8) -> u8 {
        match offset {
            IER if !self.divisor => return self.ier,
            IIR => self.tx_raised = false,
            LSR if self.stalled => return self.serial.read(LSR) & !LSR_TX,
            _ => {}
        }
        self.serial.read(offset)
    }

    /// Writes the register at `offset` (0 to 7).
    pub fn write(&mut self, offset: u8, value: u8) -> Written {
        match offset {
            DATA if !self.divisor && !self.is_loop() => return self.transmit(value),
            IER if !self.divisor => {
                self.ier = value & IER_MASK;
                self.write_ier();
                return Written::Register;
            }
            LCR => self.divisor = value & LCR_DLAB != 0,
            MCR => self.mcr = value,
            _ => {}
        }
        self.set(offset, value);
        Written::Register
    }

    fn is_loop(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }
}

/// The number of the register that `at` means, of 8 that are a byte wide.
fn register(at: Access) -> Result<u8, BusFault> {
    match (at.size, u8::try_from(at.offset)) {
        (Size::B1, Ok(offset @ 0..8)) => Ok(offset),
        (Size::B1, _) => Err(BusFault::Unmapped),
        _ => Err(BusFault::Width),
    }
}

impl<EV: SerialEvents + Clone + Send> Uart for SuperioUart<EV> {
    fn read(&mut self, at: Access) -> Result<u64, BusFault> {
        Ok(self.read(register(at)?).into())
    }

    fn write(&mut self, at: Access, value: u64) -> Result<Written, BusFault> {
        Ok(self.write(register(at)?, value as u8))
    }

    fn reset(&mut self) {
        let events = self.serial.events().clone();
        let fresh = Serial::with_events(Edge::default(), events, Queue::default());
        let queue = std::mem::replace(&mut self.serial, fresh).into_writer();
        *self.serial.writer_mut() = queue;
        (self.ier, self.divisor, self.tx_raised) = (0, false, false);
        self.mcr = SerialState::default().modem_control;
    }

    fn take_edge(&mut self) -> bool {
        self.serial.interrupt_evt().0.take()
    }

    fn interrupts(&self) -> bool {
        let iir = self.serial.state().interrupt_identification;
        let named = |bit, enable| iir & bit != 0 && self.ier & enable != 0;
        iir & IIR_NONE == 0 && (named(IIR_RX, IER_RX) || named(IIR_TX, IER_TX))
    }

    fn rx_room(&self) -> usize {
        let listens = self.mcr & MCR_RTS != 0 || self.ier & IER_RX != 0;
        if listens && !self.is_loop() { self.serial.fifo_capacity() } else { 0 }
    }

    fn rx_is_empty(&self) -> bool {
        self.serial.fifo_capacity() == self.rx_capacity
    }

    fn take_thrown(&mut self) -> VecDeque<u8> {
        // vm-superio's receiver keeps what it has when the guest resets the FIFO.
        VecDeque::new()
    }

    fn unread(&self) -> usize {
        0
    }

    fn receive(&mut self, input: &[u8]) -> usize {
        let room = self.rx_room().min(input.len());
        self.serial.enqueue_raw_bytes(input.get(..room).unwrap_or_default()).unwrap_or(0)
    }

    fn output(&self) -> &[u8] {
        self.serial.writer().0.as_slices().0
    }

    fn output_len(&self) -> usize {
        self.serial.writer().0.len()
    }

    fn output_taken(&mut self, n: usize) {
        let queue = &mut self.serial.writer_mut().0;
        queue.drain(..n.min(queue.len()));
        if self.stalled && queue.len() <= TX_CAPACITY / 2 {
            self.go_on();
        }
    }

    fn in_burst(&self) -> bool {
        self.tx_raised && self.ier & IER_TX != 0 && self.output_len() < TX_BURST
    }

    fn save(&self, typeahead: &[u8]) -> SavedState<'static> {
        let (first, second) = self.serial.writer().0.as_slices();
        PortState {
            serial: self.state(),
            tx: [first, second].concat(),
            stalled: self.stalled,
            typeahead: typeahead.to_vec(),
        }
        .save()
    }

    fn restored(&self, state: &SavedState<'_>) -> Result<(Self, Vec<u8>), StateError> {
        let mut port = PortState::load(state)?;
        let typeahead = std::mem::take(&mut port.typeahead);
        Ok((Self::of(port, self.serial.events().clone())?, typeahead))
    }
}

impl<EV: SerialEvents> fmt::Debug for SuperioUart<EV> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SuperioUart").field("state", &self.state()).finish_non_exhaustive()
    }
}
