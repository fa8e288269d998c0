//! The saved form of a serial port.
//!
//! Not saved: the line at the host's end, counters, and a Ctrl-A that waits for its letter, which is meant for the VMM.

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::registers::{IER_MASK, MCR_MASK, RX_CAPACITY, TX_CAPACITY, TYPEAHEAD_CAPACITY};

const KIND: &str = "ossature.serial16550";
const VERSION: u16 = 1;

const IER: Field = Field::new(1, "ier");
const LCR: Field = Field::new(2, "lcr");
const MCR: Field = Field::new(3, "mcr");
const SCRATCH: Field = Field::new(4, "scratch");
const DIVISOR: Field = Field::new(5, "divisor");
const FIFO: Field = Field::new(6, "fifo");
const OVERRUN: Field = Field::new(7, "overrun");
const TX_READY: Field = Field::new(8, "tx_ready");
const TX_STALLED: Field = Field::new(9, "tx_stalled");
const RAISED: Field = Field::new(10, "raised");
const RX: Field = Field::new(11, "rx");
const TX: Field = Field::new(12, "tx");
const TYPEAHEAD: Field = Field::new(13, "typeahead");
/// Only where it is so.
const LOOPED: Field = Field::new(14, "looped");

/// A port's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SerialState {
    pub(super) uart: UartState,
    /// Input that has left the line and waits for room in the receiver.
    pub(super) typeahead: Vec<u8>,
}

/// The UART's part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UartState {
    pub(super) ier: u8,
    pub(super) lcr: u8,
    pub(super) mcr: u8,
    pub(super) scratch: u8,
    /// Divisor latch, low byte first.
    pub(super) divisor: [u8; 2],
    pub(super) fifo: bool,
    pub(super) overrun: bool,
    pub(super) tx_ready: bool,
    pub(super) tx_stalled: bool,
    /// Conditions that have raised their edge, as their bits in IER.
    pub(super) raised: u8,
    pub(super) rx: Vec<u8>,
    /// Output that the guest has sent and the line has not yet taken.
    pub(super) tx: Vec<u8>,
    /// There is something in the receiver that the guest has sent to itself.
    pub(super) looped: bool,
}

impl SerialState {
    pub(super) fn save(&self) -> SavedState<'static> {
        let Self { uart, typeahead } = self;
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
        } = uart;
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u8(IER, *ier).u8(LCR, *lcr).u8(MCR, *mcr).u8(SCRATCH, *scratch).bytes(DIVISOR, divisor);
        fields.bool(FIFO, *fifo).bool(OVERRUN, *overrun).bool(TX_READY, *tx_ready);
        fields.bool(TX_STALLED, *tx_stalled).u8(RAISED, *raised);
        fields.bytes(RX, rx).bytes(TX, tx).bytes(TYPEAHEAD, typeahead);
        if *looped {
            fields.bool(LOOPED, true);
        }
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, VERSION..=VERSION)?;
        let mut uart = UartState {
            ier: fields.u8_where(IER, |ier| ier & !IER_MASK == 0)?,
            lcr: fields.u8(LCR)?,
            mcr: fields.u8_where(MCR, |mcr| mcr & !MCR_MASK == 0)?,
            scratch: fields.u8(SCRATCH)?,
            divisor: fields.array(DIVISOR)?,
            fifo: fields.bool(FIFO)?,
            overrun: fields.bool(OVERRUN)?,
            tx_ready: fields.bool(TX_READY)?,
            tx_stalled: fields.bool(TX_STALLED)?,
            raised: fields.u8(RAISED)?,
            rx: fields.bytes(RX, RX_CAPACITY)?.to_vec(),
            tx: fields.bytes(TX, TX_CAPACITY)?.to_vec(),
            looped: false,
        };
        let typeahead = fields.bytes(TYPEAHEAD, TYPEAHEAD_CAPACITY)?.to_vec();
        uart.looped = fields.optional(LOOPED, Decoder::bool)?.unwrap_or_default();
        fields.finish()?;
        Ok(Self { uart, typeahead })
    }
}

#[cfg(test)]
mod tests;
