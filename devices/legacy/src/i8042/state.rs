//! The saved form of the keyboard controller and its keyboard.

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::registers::{ANSWER_CAPACITY, CONFIG_MASK, KEYBOARD_CAPACITY, OUTPUT_STATUS};

const KIND: &str = "ossature.i8042";
const VERSION: u16 = 1;

const CONFIG: Field = Field::new(1, "config");
const COMMANDED: Field = Field::new(2, "commanded");
const COMMAND: Field = Field::new(3, "command");
const OUTPUTS: Field = Field::new(4, "outputs");
const LAST: Field = Field::new(5, "last");
const KEYBOARD: Field = Field::new(6, "keyboard");

/// The fields of the keyboard's record.
mod key {
    use super::Field;

    pub(super) const SCANNING: Field = Field::new(1, "keyboard.scanning");
    pub(super) const SET: Field = Field::new(2, "keyboard.set");
    pub(super) const COMMAND: Field = Field::new(3, "keyboard.command");
    pub(super) const LAST: Field = Field::new(4, "keyboard.last");
    pub(super) const OUT: Field = Field::new(5, "keyboard.out");
}

/// The controller's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ControllerState {
    pub(super) config: u8,
    pub(super) commanded: bool,
    /// The last command, if its parameter comes next; 0 if none does.
    pub(super) command: u8,
    /// Bytes for the guest with the status bits that come with them. The first is in the output buffer.
    pub(super) outputs: Vec<[u8; 2]>,
    /// The value of an empty output buffer.
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
        fields.u8(CONFIG, *config).bool(COMMANDED, *commanded).u8(COMMAND, *command);
        fields.bytes(OUTPUTS, outputs.as_flattened()).u8(LAST, *last);
        fields.nested(KEYBOARD, |fields| {
            let KeyboardState { scanning, set, command, last, out } = keyboard;
            fields.bool(key::SCANNING, *scanning).u8(key::SET, *set).u8(key::COMMAND, *command);
            fields.u8(key::LAST, *last).bytes(key::OUT, out);
        });
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, VERSION..=VERSION)?;
        let config = fields.u8_where(CONFIG, |config| config & !CONFIG_MASK == 0)?;
        let commanded = fields.bool(COMMANDED)?;
        let command = fields.u8(COMMAND)?;
        let outputs = outputs(fields.bytes(OUTPUTS, 2 * (ANSWER_CAPACITY + 1))?)?;
        let last = fields.u8(LAST)?;
        let keyboard = fields.nested(KEYBOARD, |fields| {
            Ok(KeyboardState {
                scanning: fields.bool(key::SCANNING)?,
                set: fields.u8_where(key::SET, |set| matches!(set, 1 | 2))?,
                command: fields.u8(key::COMMAND)?,
                last: fields.u8(key::LAST)?,
                out: fields.bytes(key::OUT, KEYBOARD_CAPACITY)?.to_vec(),
            })
        })?;
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
    match pairs.iter().find(|[_, status]| !OUTPUT_STATUS.contains(status)) {
        Some([_, status]) => Err(StateError::Value { field, value: (*status).into() }),
        None => Ok(pairs),
    }
}

#[cfg(test)]
mod tests;
