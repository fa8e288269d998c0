//! The keyboard at the other end of the controller's cable: its commands and what it answers.
//!
//! IBM PS/2 Technical Reference, "Keyboards (101- and 102-key)".

use std::collections::VecDeque;

use ossature_bus::state::StateError;

use super::registers::KEYBOARD_CAPACITY;
use super::state::KeyboardState;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const TEST_PASSED: u8 = 0xaa;
const ID: [u8; 2] = [0xab, 0x83];

/// Ctrl, Alt and Del pressed in this order, released in the other: scan code set 1.
const CTRL_ALT_DEL_1: &[u8] = &[0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d];
/// The same in scan code set 2.
const CTRL_ALT_DEL_2: &[u8] = &[0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];

/// The command whose parameter comes next.
#[derive(Clone, Copy, Debug)]
enum KeyParameter {
    /// LEDs, or rate and delay: stored nowhere.
    Ignored,
    ScanCodeSet,
}

#[derive(Debug)]
pub(super) struct AtKeyboard {
    out: VecDeque<u8>,
    last: u8,
    scanning: bool,
    set: u8,
    parameter: Option<KeyParameter>,
}

impl AtKeyboard {
    pub(super) fn new() -> Self {
        Self {
            out: VecDeque::with_capacity(KEYBOARD_CAPACITY),
            last: 0,
            scanning: true,
            set: 2,
            parameter: None,
        }
    }

    pub(super) fn state(&self) -> KeyboardState {
        let Self { ref out, last, scanning, set, parameter } = *self;
        let command = match parameter {
            None => 0,
            Some(KeyParameter::Ignored) => 0xed,
            Some(KeyParameter::ScanCodeSet) => 0xf0,
        };
        KeyboardState { scanning, set, command, last, out: out.iter().copied().collect() }
    }

    /// The keyboard that has this state, if one can have it. The fields by themselves have been checked.
    pub(super) fn restored(state: KeyboardState) -> Result<Self, StateError> {
        let KeyboardState { scanning, set, command, last, out } = state;
        let parameter = match command {
            0 => None,
            0xed => Some(KeyParameter::Ignored),
            0xf0 => Some(KeyParameter::ScanCodeSet),
            _ => return Err(StateError::Value { field: "keyboard.command", value: command.into() }),
        };
        Ok(Self { out: out.into(), last, scanning, set, parameter })
    }

    /// Returns true if it has nothing to send.
    pub(super) fn is_quiet(&self) -> bool {
        self.out.is_empty()
    }

    /// The next byte for the controller.
    pub(super) fn pop(&mut self) -> Option<u8> {
        let byte = self.out.pop_front()?;
        self.last = byte;
        Some(byte)
    }

    fn answer(&mut self, bytes: &[u8]) {
        let room = KEYBOARD_CAPACITY - self.out.len().min(KEYBOARD_CAPACITY);
        self.out.extend(bytes.iter().take(room));
    }

    /// A byte from the host.
    pub(super) fn command(&mut self, byte: u8) {
        if let Some(parameter) = self.parameter.take() {
            return self.parameter(parameter, byte);
        }
        match byte {
            // Set LEDs; set typematic rate and delay.
            0xed | 0xf3 => {
                self.parameter = Some(KeyParameter::Ignored);
                self.answer(&[ACK]);
            }
            0xee => self.answer(&[0xee]),
            0xf0 => {
                self.parameter = Some(KeyParameter::ScanCodeSet);
                self.answer(&[ACK]);
            }
            0xf2 => {
                let [first, second] = ID;
                self.answer(&[ACK, first, second]);
            }
            // Enable; disable and set defaults; set defaults.
            0xf4..=0xf6 => {
                self.out.clear();
                self.scanning = byte != 0xf5;
                if byte != 0xf4 {
                    self.set = 2;
                }
                self.answer(&[ACK]);
            }
            // How keys behave in scan code set 3, all at once.
            0xf7..=0xfa => self.answer(&[ACK]),
            RESEND => self.answer(&[self.last]),
            0xff => {
                *self = Self::new();
                self.answer(&[ACK, TEST_PASSED]);
            }
            _ => self.answer(&[RESEND]),
        }
    }

    fn parameter(&mut self, parameter: KeyParameter, byte: u8) {
        match (parameter, byte) {
            (KeyParameter::ScanCodeSet, 0) => self.answer(&[ACK, self.set]),
            (KeyParameter::ScanCodeSet, 1 | 2) => {
                self.set = byte;
                self.answer(&[ACK]);
            }
            (KeyParameter::ScanCodeSet, _) => self.answer(&[RESEND]),
            (KeyParameter::Ignored, _) => self.answer(&[ACK]),
        }
    }

    /// Types Ctrl-Alt-Del, in set 1 if the controller translates. Returns false if the keyboard is
    /// disabled or has no room for all of it.
    pub(super) fn press_ctrl_alt_del(&mut self, translated: bool) -> bool {
        let codes = if translated || self.set == 1 { CTRL_ALT_DEL_1 } else { CTRL_ALT_DEL_2 };
        let typed = self.scanning && codes.len() <= KEYBOARD_CAPACITY - self.out.len().min(KEYBOARD_CAPACITY);
        if typed {
            self.out.extend(codes);
        }
        typed
    }
}
