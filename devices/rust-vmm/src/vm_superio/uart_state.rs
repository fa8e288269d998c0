//! The saved form of a serial port with vm-superio's registers.

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};
use ossature_legacy::TYPEAHEAD_CAPACITY;

use super::SerialState;
use super::uart::{IER_MASK, TX_BURST, TX_CAPACITY};

const KIND: &str = "ossature.vm_superio.serial";
const VERSION: u16 = 1;

const DIVISOR: Field = Field::new(1, "divisor");
const IER: Field = Field::new(2, "ier");
const IIR: Field = Field::new(3, "iir");
const LCR: Field = Field::new(4, "lcr");
const LSR: Field = Field::new(5, "lsr");
const MCR: Field = Field::new(6, "mcr");
const MSR: Field = Field::new(7, "msr");
const SCRATCH: Field = Field::new(8, "scratch");
const STALLED: Field = Field::new(9, "stalled");
const RX: Field = Field::new(10, "rx");
const TX: Field = Field::new(11, "tx");
const TYPEAHEAD: Field = Field::new(12, "typeahead");

pub(super) const IIR_NONE: u8 = 0x01;
pub(super) const IIR_TX: u8 = 0x02;
pub(super) const IIR_RX: u8 = 0x04;
const LSR_DATA_READY: u8 = 0x01;

/// Bytes that any FIFO of vm-superio's holds; its own limit is checked beside this one.
const RX_LIMIT: usize = 4096;

/// A port's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortState {
    pub(super) serial: SerialState,
    /// Output that the guest has sent and the line has not yet taken.
    pub(super) tx: Vec<u8>,
    pub(super) stalled: bool,
    pub(super) typeahead: Vec<u8>,
}

impl PortState {
    pub(super) fn save(&self) -> SavedState<'static> {
        let Self { serial, tx, stalled, typeahead } = self;
        let mut fields = Encoder::new(KIND, VERSION);
        fields.bytes(DIVISOR, &[serial.baud_divisor_low, serial.baud_divisor_high]);
        fields.u8(IER, serial.interrupt_enable).u8(IIR, serial.interrupt_identification);
        fields.u8(LCR, serial.line_control).u8(LSR, serial.line_status);
        fields.u8(MCR, serial.modem_control).u8(MSR, serial.modem_status).u8(SCRATCH, serial.scratch);
        fields.bool(STALLED, *stalled);
        fields.bytes(RX, &serial.in_buffer).bytes(TX, tx).bytes(TYPEAHEAD, typeahead);
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, VERSION..=VERSION)?;
        let [baud_divisor_low, baud_divisor_high] = fields.array(DIVISOR)?;
        let mut serial = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: fields.u8(IER)?,
            interrupt_identification: fields.u8(IIR)?,
            line_control: fields.u8(LCR)?,
            line_status: fields.u8(LSR)?,
            modem_control: fields.u8(MCR)?,
            modem_status: fields.u8(MSR)?,
            scratch: fields.u8(SCRATCH)?,
            in_buffer: Vec::new(),
        };
        let stalled = fields.bool(STALLED)?;
        serial.in_buffer = fields.bytes(RX, RX_LIMIT)?.to_vec();
        let tx = fields.bytes(TX, TX_CAPACITY)?.to_vec();
        let typeahead = fields.bytes(TYPEAHEAD, TYPEAHEAD_CAPACITY)?.to_vec();
        fields.finish()?;
        Ok(Self { serial, tx, stalled, typeahead })
    }
}

/// Refuses what vm-superio's registers and the queue never are; vm-superio itself would take it.
pub(super) fn check(port: &PortState) -> Result<(), StateError> {
    let PortState { serial, tx, stalled, .. } = port;
    let value = |field, value: u8| Err(StateError::Value { field, value: value.into() });
    let inconsistent = |field, reason| Err(StateError::Inconsistent { field, reason });
    let (iir, fresh) = (serial.interrupt_identification, SerialState::default());
    let ready = if serial.in_buffer.is_empty() { 0 } else { LSR_DATA_READY };
    if serial.interrupt_enable & !IER_MASK != 0 {
        return value("ier", serial.interrupt_enable);
    }
    if iir != IIR_NONE && (iir == 0 || iir & !(IIR_TX | IIR_RX) != 0) {
        return value("iir", iir);
    }
    if serial.modem_status != fresh.modem_status {
        return value("msr", serial.modem_status);
    }
    if serial.line_status != fresh.line_status | ready {
        return inconsistent("lsr", "it does not say what the receiver holds");
    }
    if iir & IIR_RX != 0 && serial.in_buffer.is_empty() {
        return inconsistent("iir", "nothing has been received");
    }
    if *stalled && iir & IIR_TX != 0 {
        return inconsistent("iir", "the transmitter is not ready");
    }
    if *stalled && tx.len() <= TX_CAPACITY / 2 {
        return inconsistent("stalled", "half of the queue is free");
    }
    if !*stalled && TX_CAPACITY.saturating_sub(tx.len()) < TX_BURST {
        return inconsistent("stalled", "the queue has no room for a burst");
    }
    Ok(())
}
