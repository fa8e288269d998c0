//! The saved form of a serial port that is a PL011. Not saved is what a 16550's is not, either.

use std::collections::VecDeque;

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::{CR_MASK, DMACR_MASK, FBRD_MASK, FIFO, IFLS_MASK, ILPR_MASK, IMSC_MASK, LCR_H_MASK, Pl011};
use crate::serial::registers::{TX_CAPACITY, TYPEAHEAD_CAPACITY};

const KIND: &str = "ossature.pl011";
const VERSION: u16 = 1;

const REGISTERS: Field = Field::new(1, "registers");
const OVERRUN: Field = Field::new(2, "overrun");
const OVERRUN_IRQ: Field = Field::new(3, "overrun interrupt");
const TX_READY: Field = Field::new(4, "tx_ready");
const TX_STALLED: Field = Field::new(5, "tx_stalled");
const RX: Field = Field::new(6, "rx");
const TX: Field = Field::new(7, "tx");
const TYPEAHEAD: Field = Field::new(8, "typeahead");

/// What can be in each of the registers, in the order in which they are saved: ILPR, IBRD, FBRD, LCR_H, CR, IFLS, IMSC,
/// DMACR.
const MASKS: [u16; 8] =
    [ILPR_MASK, u16::MAX, FBRD_MASK, LCR_H_MASK, CR_MASK, IFLS_MASK, IMSC_MASK, DMACR_MASK];

/// A port's state.
pub(super) struct Pl011State {
    registers: [u16; 8],
    overrun: bool,
    overrun_irq: bool,
    tx_ready: bool,
    tx_stalled: bool,
    rx: Vec<u8>,
    tx: Vec<u8>,
    typeahead: Vec<u8>,
}

impl Pl011State {
    pub(super) fn of(uart: &Pl011, typeahead: &[u8]) -> Self {
        let bytes = |queue: &VecDeque<u8>| queue.iter().copied().collect();
        let &Pl011 { ilpr, ibrd, fbrd, lcr_h, cr, ifls, imsc, dmacr, .. } = uart;
        let &Pl011 { overrun, overrun_irq, tx_ready, tx_stalled, ref rx, ref tx, .. } = uart;
        Self {
            registers: [ilpr, ibrd, fbrd, lcr_h, cr, ifls, imsc, dmacr],
            overrun,
            overrun_irq,
            tx_ready,
            tx_stalled,
            rx: bytes(rx),
            tx: bytes(tx),
            typeahead: typeahead.to_vec(),
        }
    }

    pub(super) fn save(&self) -> SavedState<'static> {
        let mut fields = Encoder::new(KIND, VERSION);
        let registers: Vec<u8> = self.registers.iter().flat_map(|value| value.to_le_bytes()).collect();
        fields.bytes(REGISTERS, &registers).bool(OVERRUN, self.overrun).bool(OVERRUN_IRQ, self.overrun_irq);
        fields.bool(TX_READY, self.tx_ready).bool(TX_STALLED, self.tx_stalled);
        fields.bytes(RX, &self.rx).bytes(TX, &self.tx).bytes(TYPEAHEAD, &self.typeahead);
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, VERSION..=VERSION)?;
        let bytes: [u8; 16] = fields.array(REGISTERS)?;
        let mut registers = [0; 8];
        for (value, bytes) in registers.iter_mut().zip(bytes.chunks_exact(2)) {
            *value = bytes.try_into().map_or(0, u16::from_le_bytes);
        }
        let loaded = Self {
            registers,
            overrun: fields.bool(OVERRUN)?,
            overrun_irq: fields.bool(OVERRUN_IRQ)?,
            tx_ready: fields.bool(TX_READY)?,
            tx_stalled: fields.bool(TX_STALLED)?,
            rx: fields.bytes(RX, FIFO)?.to_vec(),
            tx: fields.bytes(TX, TX_CAPACITY)?.to_vec(),
            typeahead: fields.bytes(TYPEAHEAD, TYPEAHEAD_CAPACITY)?.to_vec(),
        };
        fields.finish()?;
        Ok(loaded)
    }

    /// The UART that has this state, if one can have it, and the typeahead.
    pub(super) fn into_uart(self) -> Result<(Pl011, Vec<u8>), StateError> {
        let inconsistent = |field, reason| Err(StateError::Inconsistent { field, reason });
        if self.registers.iter().zip(MASKS).any(|(value, mask)| value & !mask != 0) {
            return inconsistent("registers", "a bit is set that no register has");
        }
        if self.tx_stalled && self.tx.len() <= TX_CAPACITY / 2 {
            return inconsistent("tx_stalled", "half of the queue is free");
        }
        if !self.tx_stalled && TX_CAPACITY - self.tx.len() < FIFO {
            return inconsistent("tx_stalled", "the queue has no room for a burst");
        }
        let [ilpr, ibrd, fbrd, lcr_h, cr, ifls, imsc, dmacr] = self.registers;
        let Self { overrun, overrun_irq, tx_ready, tx_stalled, .. } = self;
        let (rx, tx) = (self.rx.into(), self.tx.into());
        let registers = Pl011 {
            ilpr,
            ibrd,
            fbrd,
            lcr_h,
            cr,
            ifls,
            imsc,
            dmacr,
            overrun,
            overrun_irq,
            tx_ready,
            tx_stalled,
            rx,
            tx,
        };
        Ok((registers, self.typeahead))
    }
}
