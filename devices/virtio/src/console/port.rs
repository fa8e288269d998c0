//! What there is of a port while its queues run, and between two runs of them.

use ossature_bus::state::{Decoder, Encoder, Field, StateError};

use super::control::Event;
use super::output::ConsoleOutput;

const WRITTEN: Field = Field::new(1, "bytes of the next buffer that are written");
const READY: Field = Field::new(2, "readiness of a port");
const OPEN: Field = Field::new(3, "the guest has opened a port");
const DUE: Field = Field::new(4, "messages about a port");

/// A port. The worker has it; whoever makes, saves and resets the console only while there is no worker, and who resets a
/// queue alone between two turns.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) output: ConsoleOutput,
    pub(super) state: PortState,
}

/// What a driver has made of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PortState {
    /// Bytes of the next buffer with output that are written: the host had no room for more.
    pub(super) written: u64,
    /// The driver knows of the port and takes messages about it.
    pub(super) ready: bool,
    /// The driver takes input. Without the control queues it need not say so.
    pub(super) open: bool,
    /// The messages that are still to be sent about it.
    pub(super) due: Due,
}

impl PortState {
    pub(super) fn save(&self, fields: &mut Encoder) {
        let Self { written, ready, open, due } = *self;
        fields.u64(WRITTEN, written).bool(READY, ready).bool(OPEN, open).u8(DUE, due.0);
    }

    pub(super) fn load(fields: &mut Decoder<'_>) -> Result<Self, StateError> {
        Ok(Self {
            written: fields.u64(WRITTEN)?,
            ready: fields.bool(READY)?,
            open: fields.bool(OPEN)?,
            due: Due(fields.u8_where(DUE, |due| due & !Due::ALL == 0)?),
        })
    }
}

/// Messages that are to be sent, each once however often it becomes due: so a guest that takes none makes nothing grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due(u8);

impl Due {
    /// In the order in which they are sent.
    const ORDER: [Event; 4] = [Event::PORT_ADD, Event::CONSOLE_PORT, Event::PORT_OPEN, Event::RESIZE];
    const ALL: u8 = (1 << Self::ORDER.len()) - 1;

    pub(super) fn add(&mut self, event: Event) {
        self.0 |= Self::bit(event);
    }

    pub(super) fn remove(&mut self, event: Event) {
        self.0 &= !Self::bit(event);
    }

    /// The next one.
    pub(super) fn first(self) -> Option<Event> {
        Self::ORDER.into_iter().find(|event| self.0 & Self::bit(*event) != 0)
    }

    fn bit(event: Event) -> u8 {
        Self::ORDER.iter().position(|other| *other == event).map_or(0, |at| 1 << at)
    }
}
