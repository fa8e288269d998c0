//! What a model of a UART's registers is to a port.

use std::collections::VecDeque;

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{Access, BusFault};

/// The effect of a write on the side that moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing.
    Register,
    /// A byte has entered the transmit queue.
    Sent,
    /// The transmit queue was full: the byte is lost.
    Overflow,
    /// The receiver was emptied unread: [`Uart::take_thrown`] has what was in it.
    Thrown,
}

/// The registers of a UART as a state machine without input or output of its own: what a [`Serial`](crate::Serial) puts
/// between the guest and the line. [`Uart16550`](crate::Uart16550) is one, and what
/// [`Serial::with_uart`](crate::Serial::with_uart) takes is another.
///
/// What the guest sends waits in a bounded queue until the line takes it. A model whose queue is full shows the guest a
/// transmitter that is not ready, and raises the transmitter's interrupt once enough of it is free. No method waits.
pub trait Uart: Send {
    /// Reads the register that the guest has accessed, if it has such a register of such a width.
    fn read(&mut self, at: Access) -> Result<u64, BusFault>;
    /// Writes it.
    fn write(&mut self, at: Access, value: u64) -> Result<Written, BusFault>;
    /// Master reset. Output that waits for the line stays: for the guest it has been sent.
    fn reset(&mut self);

    /// Returns true if an edge-triggered line has to be raised. Asked after each step, and answered once.
    fn take_edge(&mut self) -> bool;
    /// Returns true while the interrupt identification register names a condition: a level-triggered line is asserted
    /// for as long.
    fn interrupts(&self) -> bool;

    /// How many bytes the receiver takes now.
    fn rx_room(&self) -> usize;
    /// Returns true if the guest has read all that has arrived.
    fn rx_is_empty(&self) -> bool;
    /// Puts the first bytes of `input` into the receiver and returns how many it took: as many as there is
    /// [room](Self::rx_room) for.
    fn receive(&mut self, input: &[u8]) -> usize;
    /// Takes back what came from the other end and the guest has thrown away unread, as a driver does that resets the
    /// FIFO after it has said that it listens. Asked after a write that was [`Written::Thrown`].
    fn take_thrown(&mut self) -> VecDeque<u8>;
    /// How much [`take_thrown`](Self::take_thrown) would give if the guest threw it away now; 0 from a model that never
    /// gives any. The port counts it as input that waits, so that what comes back always has a place.
    fn unread(&self) -> usize;

    /// Output that waits for the line: the first contiguous part of it, empty only if there is none.
    fn output(&self) -> &[u8];
    /// How much output waits for the line.
    fn output_len(&self) -> usize;
    /// The line has taken the first `n` bytes of the output.
    fn output_taken(&mut self, n: usize);
    /// Returns true if the guest is about to come back for the interrupt that tells it of room in the transmitter, and
    /// may write more until then, as it does in bursts. The port then leaves the output until it does.
    fn in_burst(&self) -> bool;

    /// The state of a port with these registers, the output that waits, and `typeahead`: input
    /// that waits for room in the receiver, up to [4096](crate::TYPEAHEAD_CAPACITY) bytes together with what is
    /// [unread](Self::unread).
    fn save(&self, typeahead: &[u8]) -> SavedState<'static>;
    /// The registers, configured as these are, that have this state, and the typeahead in it. The state is hostile
    /// input: all of it is checked.
    fn restored(&self, state: &SavedState<'_>) -> Result<(Self, Vec<u8>), StateError>
    where
        Self: Sized;
}
