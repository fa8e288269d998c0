//! The saved form of the keyboard controller and its keyboard.

use ossature_bus::state::{Decoder, Encoder, SavedState, StateError};

use super::{controller, keyboard};

const KIND: &str = "ossature.i8042";
const VERSION: u16 = 1;

/// The controller's state; the fields in the order of the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ControllerState {
    pub(super) config: u8,
    pub(super) commanded: bool,
    /// The last command, if its parameter comes next; 0 if none does.
    pub(super) command: u8,
    /// Bytes for the guest with the status bits that come with them. The first is in the output buffer.
    pub(super) outputs: Vec<[u8; 2]>,
    /// What an empty output buffer reads as.
    pub(super) last: u8,
    pub(super) keyboard: KeyboardState,
}

/// The keyboard's part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyboardState {
    pub(super) scanning: bool,
    /// Scan code set.
    pub(super) set: u8,
    /// The last command, if its parameter comes next; 0 if none does.
    pub(super) command: u8,
    /// The last byte that it sent.
    pub(super) last: u8,
    pub(super) out: Vec<u8>,
}

impl ControllerState {
    pub(super) fn save(&self) -> SavedState<'static> {
        let Self { config, commanded, command, outputs, last, keyboard } = self;
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u8(*config).bool(*commanded).u8(*command).bytes(outputs.as_flattened()).u8(*last);
        let KeyboardState { scanning, set, command, last, out } = keyboard;
        fields.bool(*scanning).u8(*set).u8(*command).u8(*last).bytes(out);
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, VERSION)?;
        let config = fields.u8_where("config", |config| config & !controller::CONFIG_MASK == 0)?;
        let commanded = fields.bool("commanded")?;
        let command = fields.u8("command")?;
        let outputs = outputs(fields.bytes("outputs", 2 * (controller::CAPACITY + 1))?)?;
        let last = fields.u8("last")?;
        let keyboard = KeyboardState {
            scanning: fields.bool("keyboard.scanning")?,
            set: fields.u8_where("keyboard.set", |set| matches!(set, 1 | 2))?,
            command: fields.u8("keyboard.command")?,
            last: fields.u8("keyboard.last")?,
            out: fields.bytes("keyboard.out", keyboard::CAPACITY)?.to_vec(),
        };
        fields.finish()?;
        Ok(Self { config, commanded, command, outputs, last, keyboard })
    }
}

fn outputs(bytes: &[u8]) -> Result<Vec<[u8; 2]>, StateError> {
    let field = "outputs";
    let pairs = bytes.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(StateError::Inconsistent { field, reason: "a byte has no status bits" });
    }
    let pairs: Vec<[u8; 2]> = pairs.filter_map(|pair| pair.try_into().ok()).collect();
    match pairs.iter().find(|[_, status]| !controller::OUTPUT_STATUS.contains(status)) {
        Some([_, status]) => Err(StateError::Value { field, value: (*status).into() }),
        None => Ok(pairs),
    }
}

#[cfg(test)]
mod tests;
