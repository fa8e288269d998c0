//! The registers of a 16550A (TI PC16550D data sheet, section 8), and how much waits behind them.

/// Bytes that the receiver holds in FIFO mode. A 16550A has 16; drivers read until LSR.DR is clear, so
/// that a deeper one saves interrupts.
pub(super) const RX_CAPACITY: usize = 64;
/// Bytes of output that wait for a slow host before the guest has to.
pub(super) const TX_CAPACITY: usize = 64 * 1024;
/// Bytes that a driver may write after it has seen LSR.THRE set, without looking again.
pub(super) const TX_BURST: usize = 16;

pub(super) const IER_RX: u8 = 1 << 0;
pub(super) const IER_TX: u8 = 1 << 1;
pub(super) const IER_LINE: u8 = 1 << 2;
pub(super) const IER_MASK: u8 = 0x0f;
pub(super) const IIR_NONE: u8 = 0x01;
pub(super) const IIR_TX: u8 = 0x02;
pub(super) const IIR_RX: u8 = 0x04;
pub(super) const IIR_LINE: u8 = 0x06;
pub(super) const IIR_FIFO: u8 = 0xc0;
pub(super) const FCR_ENABLE: u8 = 1 << 0;
pub(super) const FCR_CLEAR_RX: u8 = 1 << 1;
pub(super) const LCR_DLAB: u8 = 1 << 7;
pub(super) const MCR_DTR: u8 = 1 << 0;
pub(super) const MCR_RTS: u8 = 1 << 1;
pub(super) const MCR_OUT1: u8 = 1 << 2;
pub(super) const MCR_OUT2: u8 = 1 << 3;
pub(super) const MCR_LOOP: u8 = 1 << 4;
pub(super) const MCR_MASK: u8 = 0x1f;
pub(super) const LSR_DATA_READY: u8 = 1 << 0;
pub(super) const LSR_OVERRUN: u8 = 1 << 1;
pub(super) const LSR_THR_EMPTY: u8 = 1 << 5;
pub(super) const LSR_IDLE: u8 = 1 << 6;
pub(super) const MSR_CTS: u8 = 1 << 4;
pub(super) const MSR_DSR: u8 = 1 << 5;
pub(super) const MSR_RI: u8 = 1 << 6;
pub(super) const MSR_DCD: u8 = 1 << 7;

/// Divisor latch for 9600 baud at 1.8432 MHz.
pub(super) const DIVISOR_9600: [u8; 2] = [12, 0];

/// Input that waits for the guest while the escape keys are listened for, with what is unread in the receiver: as much as
/// a terminal keeps.
pub const TYPEAHEAD_CAPACITY: usize = 4096;
