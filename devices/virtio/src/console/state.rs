//! What a driver has made of a port, as it is saved.

use ossature_bus::state::{Decoder, Encoder, Field, StateError};

const WRITTEN: Field = Field::new(1, "bytes of the next buffer that are written");
const READY: Field = Field::new(2, "readiness of a port");
const OPEN: Field = Field::new(3, "the guest has opened a port");
const DUE: Field = Field::new(4, "messages about a port");
const TOLD_OPEN: Field = Field::new(5, "the guest knows a port to be open on the host");

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
    /// What the driver was told last of the host's end.
    pub(super) told_open: bool,
}

impl PortState {
    pub(super) fn save(&self, fields: &mut Encoder) {
        let Self { written, ready, open, due, told_open } = *self;
        fields
            .u64(WRITTEN, written)
            .bool(READY, ready)
            .bool(OPEN, open)
            .u8(DUE, due.0)
            .bool(TOLD_OPEN, told_open);
    }

    pub(super) fn load(fields: &mut Decoder<'_>) -> Result<Self, StateError> {
        let mut state = Self {
            written: fields.u64(WRITTEN)?,
            ready: fields.bool(READY)?,
            open: fields.bool(OPEN)?,
            due: Due(fields.u8_where(DUE, |due| due & !Due::ALL == 0)?),
            told_open: false,
        };
        // Before version 3 the host's end was always open.
        let told = state.ready && !state.due.has(Message::Open);
        state.told_open = fields.since(3, TOLD_OPEN, told, Decoder::bool)?;
        Ok(state)
    }

    /// The host's end has been `closed` since the last time, or not, and is `connected` now: what is due to be told. An
    /// end that was closed and is open again is told as both.
    pub(super) fn connection(&mut self, closed: bool, connected: bool) {
        if !self.ready {
            return;
        }
        if (closed || !connected) && self.told_open {
            self.due.add(Message::Close);
        }
        if !connected {
            self.due.remove(Message::Open);
        } else if !self.told_open || self.due.has(Message::Close) {
            self.due.add(Message::Open);
        }
    }

    /// The driver is told this.
    pub(super) fn tell(&mut self, message: Message) {
        self.due.remove(message);
        match message {
            Message::Open => self.told_open = true,
            Message::Close => self.told_open = false,
            _ => {}
        }
    }
}

/// A message to the driver about a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// It exists.
    Add = 0,
    /// It is a console.
    Console = 1,
    /// It is open at the host's end.
    Open = 2,
    /// The size of its window.
    Resize = 3,
    /// Its name.
    Name = 4,
    /// It is closed at the host's end.
    Close = 5,
}

impl Message {
    /// In the order in which they are sent.
    const ORDER: [Self; 6] = [Self::Add, Self::Console, Self::Name, Self::Close, Self::Open, Self::Resize];
}

/// Messages that are to be sent, each once however often it becomes due: so a guest that takes none makes nothing grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due(u8);

impl Due {
    const ALL: u8 = (1 << Message::ORDER.len()) - 1;

    pub(super) fn add(&mut self, message: Message) {
        self.0 |= 1 << message as u8;
    }

    pub(super) fn remove(&mut self, message: Message) {
        self.0 &= !(1 << message as u8);
    }

    /// Removes all others.
    pub(super) fn keep(&mut self, message: Message) {
        self.0 &= 1 << message as u8;
    }

    pub(super) fn has(self, message: Message) -> bool {
        self.0 & 1 << message as u8 != 0
    }

    /// The next one.
    pub(super) fn first(self) -> Option<Message> {
        Message::ORDER.into_iter().find(|message| self.has(*message))
    }
}
