//! The controller: status, commands, and the one byte at a time that it hands to the guest.

use std::collections::VecDeque;

use ossature_bus::state::StateError;

use super::keyboard::AtKeyboard;
use super::registers::*;
use super::state::ControllerState;

/// The effect of a write on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Asks {
    Nothing,
    Reset,
}

/// The command whose parameter comes next.
#[derive(Clone, Copy, Debug)]
enum CommandParameter {
    Config = 0x60,
    OutputPort = 0xd1,
    KeyboardOutput = 0xd2,
    AuxOutput = 0xd3,
    Aux = 0xd4,
}

impl CommandParameter {
    /// Of the command of this number, if it has one.
    fn of(command: u8) -> Option<Self> {
        [Self::Config, Self::OutputPort, Self::KeyboardOutput, Self::AuxOutput, Self::Aux]
            .into_iter()
            .find(|parameter| *parameter as u8 == command)
    }
}

/// A byte for the guest and the status bits that come with it.
#[derive(Clone, Copy, Debug)]
struct Output {
    byte: u8,
    status: u8,
}

#[derive(Debug)]
pub(super) struct Controller {
    keyboard: AtKeyboard,
    config: u8,
    /// The last write went to the command port.
    commanded: bool,
    parameter: Option<CommandParameter>,
    answers: VecDeque<Output>,
    output: Option<Output>,
    last: u8,
    /// A byte has come into the output buffer since the last edge.
    fresh: bool,
}

impl Controller {
    pub(super) fn new() -> Self {
        Self {
            keyboard: AtKeyboard::new(),
            config: CONFIG_DEFAULT,
            commanded: false,
            parameter: None,
            answers: VecDeque::with_capacity(ANSWER_CAPACITY),
            output: None,
            last: 0,
            fresh: false,
        }
    }

    pub(super) fn state(&self) -> ControllerState {
        // `fresh` is clear: an edge is taken after each step.
        let Self { ref keyboard, config, commanded, parameter, ref answers, output, last, fresh: _ } = *self;
        ControllerState {
            config,
            commanded,
            command: parameter.map_or(0, |parameter| parameter as u8),
            outputs: output.iter().chain(answers).map(|output| [output.byte, output.status]).collect(),
            last,
            keyboard: keyboard.state(),
        }
    }

    /// The controller that has this state, if one can have it. The fields by themselves have been checked.
    pub(super) fn restored(state: ControllerState) -> Result<Self, StateError> {
        let ControllerState { config, commanded, command, outputs, last, keyboard } = state;
        let parameter = CommandParameter::of(command);
        if parameter.is_none() && command != 0 {
            return Err(StateError::Value { field: "command", value: command.into() });
        }
        let keyboard = AtKeyboard::restored(keyboard)?;
        let mut answers: VecDeque<_> =
            outputs.into_iter().map(|[byte, status]| Output { byte, status }).collect();
        let output = answers.pop_front();
        // Nobody would ever move them on.
        if output.is_none() && config & CONFIG_KEYBOARD_OFF == 0 && !keyboard.is_quiet() {
            let reason = "the keyboard's bytes wait behind an empty output buffer";
            return Err(StateError::Inconsistent { field: "keyboard.out", reason });
        }
        Ok(Self { keyboard, config, commanded, parameter, answers, output, last, fresh: false })
    }

    /// The status register.
    pub(super) fn status(&mut self) -> u8 {
        let mut status = STATUS_UNLOCKED;
        if let Some(output) = self.output {
            status |= STATUS_OUTPUT | output.status;
        }
        if self.config & CONFIG_SYSTEM != 0 {
            status |= STATUS_SYSTEM;
        }
        if self.commanded {
            status |= STATUS_COMMAND;
        }
        status
    }

    /// Takes the byte in the output buffer. An empty one reads as its last byte.
    pub(super) fn read_data(&mut self) -> u8 {
        if let Some(output) = self.output.take() {
            self.last = output.byte;
        }
        self.fill();
        self.last
    }

    /// A byte for the data port: a command's parameter or, without one, a byte for the keyboard.
    pub(super) fn write_data(&mut self, byte: u8) -> Asks {
        self.commanded = false;
        match self.parameter.take() {
            Some(CommandParameter::Config) => self.configure(byte & CONFIG_MASK),
            Some(CommandParameter::OutputPort) if byte & OUTPUT_PORT_RUN == 0 => return Asks::Reset,
            Some(CommandParameter::OutputPort) => {}
            // The second is the aux channel's loop-back test: a controller without that channel does not
            // mark the byte as coming from it, which tells Linux at once that there is no mouse.
            Some(CommandParameter::KeyboardOutput | CommandParameter::AuxOutput) => self.answer(byte, 0),
            Some(CommandParameter::Aux) => self.answer(NO_ANSWER, STATUS_AUX | STATUS_TIMEOUT),
            None => self.keyboard.command(byte),
        }
        self.fill();
        Asks::Nothing
    }

    /// A command.
    pub(super) fn command(&mut self, command: u8) -> Asks {
        self.commanded = true;
        self.parameter = None;
        match command {
            0x20 => self.answer(self.config, 0),
            0x60 | 0xd1..=0xd4 => self.parameter = CommandParameter::of(command),
            0xa7 => self.configure(self.config | CONFIG_AUX_OFF),
            0xa8 => self.configure(self.config & !CONFIG_AUX_OFF),
            // Test of the aux channel: its clock line is stuck low.
            0xa9 => self.answer(0x01, 0),
            // Self-test.
            0xaa => self.answer(0x55, 0),
            // Test of the keyboard channel.
            0xab => self.answer(0x00, 0),
            0xad => self.configure(self.config | CONFIG_KEYBOARD_OFF),
            0xae => self.configure(self.config & !CONFIG_KEYBOARD_OFF),
            // Input port: the keyboard is not locked.
            0xc0 => self.answer(0x80, 0),
            0xd0 => {
                let full = if self.output.is_some() { OUTPUT_PORT_FULL } else { 0 };
                self.answer(OUTPUT_PORT_RUN | OUTPUT_PORT_A20 | full, 0);
            }
            // Pulse the output port's lines whose bits are clear.
            0xf0..=0xff if command & OUTPUT_PORT_RUN == 0 => return Asks::Reset,
            _ => {}
        }
        self.fill();
        Asks::Nothing
    }

    fn configure(&mut self, config: u8) {
        let enabled = config & !self.config & CONFIG_KEYBOARD_IRQ != 0;
        self.config = config;
        // What is in the buffer interrupts as soon as it may.
        self.fresh |= enabled && self.output.is_some();
    }

    fn answer(&mut self, byte: u8, status: u8) {
        if self.answers.len() < ANSWER_CAPACITY {
            self.answers.push_back(Output { byte, status });
        }
    }

    /// Fills the empty output buffer: with the controller's own answers first, then from the keyboard.
    fn fill(&mut self) {
        if self.output.is_some() {
            return;
        }
        self.output = self.answers.pop_front();
        if self.output.is_none() && self.config & CONFIG_KEYBOARD_OFF == 0 {
            self.output = self.keyboard.pop().map(|byte| Output { byte, status: 0 });
        }
        self.fresh |= self.output.is_some();
    }

    /// Returns true if the keyboard's interrupt has to be raised. Ask after each step.
    pub(super) fn take_edge(&mut self) -> bool {
        let fresh = std::mem::take(&mut self.fresh);
        let aux = self.output.is_some_and(|output| output.status & STATUS_AUX != 0);
        fresh && !aux && self.config & CONFIG_KEYBOARD_IRQ != 0
    }

    /// Types Ctrl-Alt-Del. Returns false if the guest does not get it.
    pub(super) fn press_ctrl_alt_del(&mut self) -> bool {
        let typed = self.keyboard.press_ctrl_alt_del(self.config & CONFIG_TRANSLATE != 0);
        self.fill();
        typed
    }
}
