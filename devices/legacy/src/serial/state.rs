//! The saved form of a serial port.
//!
//! Not saved: the line at the host's end, counters, and a Ctrl-A that waits for its letter, which is meant for the VMM.

use ossature_bus::state::{Decoder, Encoder, SavedState, StateError};

use super::port::TYPEAHEAD_CAPACITY;
use super::uart::{IER_MASK, MCR_MASK, RX_CAPACITY, TX_CAPACITY};

const KIND: &str = "ossature.serial16550";
const VERSION: u16 = 1;

/// A port's state; the fields in the order of the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SerialState {
    pub(super) uart: UartState,
    /// Input that was read for the sake of the escape keys and waits for room in the receiver.
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
        } = uart;
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u8(*ier).u8(*lcr).u8(*mcr).u8(*scratch).array(divisor);
        fields.bool(*fifo).bool(*overrun).bool(*tx_ready).bool(*tx_stalled).u8(*raised);
        fields.bytes(rx).bytes(tx).bytes(typeahead);
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, VERSION)?;
        let uart = UartState {
            ier: fields.u8_where("ier", |ier| ier & !IER_MASK == 0)?,
            lcr: fields.u8("lcr")?,
            mcr: fields.u8_where("mcr", |mcr| mcr & !MCR_MASK == 0)?,
            scratch: fields.u8("scratch")?,
            divisor: fields.array("divisor")?,
            fifo: fields.bool("fifo")?,
            overrun: fields.bool("overrun")?,
            tx_ready: fields.bool("tx_ready")?,
            tx_stalled: fields.bool("tx_stalled")?,
            raised: fields.u8("raised")?,
            rx: fields.bytes("rx", RX_CAPACITY)?.to_vec(),
            tx: fields.bytes("tx", TX_CAPACITY)?.to_vec(),
        };
        let typeahead = fields.bytes("typeahead", TYPEAHEAD_CAPACITY)?.to_vec();
        fields.finish()?;
        Ok(Self { uart, typeahead })
    }
}

#[cfg(test)]
mod tests;
