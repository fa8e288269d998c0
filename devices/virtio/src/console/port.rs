//! A port: what it is, and its end on the host.

use std::fmt;
use std::str::FromStr;

use ossature_bus::EventSink;

use super::counters::Counters;
use super::end::End;
use super::input::ConsoleInput;
use super::output::ConsoleOutput;
use super::socket::PortSocket;
use super::state::{Message, PortState};

/// The name of a port, by which a guest finds it: 1 to 64 ASCII characters without blanks and slashes, not with a dot
/// first, so that it can be that of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortName(String);

impl PortName {
    /// The most characters.
    pub const MAX: usize = 64;
}

/// Text that is no [`PortName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no port's name: 1 to {} ASCII characters, no blanks, no slashes, no dot first",
    PortName::MAX
)]
pub struct PortNameError {
    /// The text.
    pub text: String,
}

impl FromStr for PortName {
    type Err = PortNameError;

    fn from_str(text: &str) -> Result<Self, PortNameError> {
        let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
        if (1..=Self::MAX).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('.') {
            Ok(Self(text.to_owned()))
        } else {
            Err(PortNameError { text: text.to_owned() })
        }
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A port of a [`Console`](super::Console): a console, or a channel with a name between a program in the guest and one
/// on the host.
#[derive(Debug)]
pub struct ConsolePort(pub(super) Port);

impl ConsolePort {
    /// A console without a name, `hvc0` or a later one in Linux.
    pub fn console(input: Option<ConsoleInput>, output: ConsoleOutput) -> Self {
        Self(Port::new(String::new(), true, End::Streams { input, output }))
    }

    /// A channel that the guest finds by its name (in Linux with udev as `/dev/virtio-ports/NAME`), on streams that are
    /// always open.
    pub fn streams(name: PortName, input: Option<ConsoleInput>, output: ConsoleOutput) -> Self {
        Self(Port::new(name.0, false, End::Streams { input, output }))
    }

    /// The same on a socket, whose clients come and go. While there is none, what the guest writes is dropped and
    /// counted.
    pub fn socket(name: PortName, socket: PortSocket) -> Self {
        Self(Port::new(name.0, false, End::Socket(socket)))
    }

    /// Leaves what the guest writes while there is no client in the guest's buffers, of which it has so many as its
    /// queue takes, for the next client. The rest of a buffer that the last one got in part is dropped.
    #[must_use]
    pub fn hold_output(mut self) -> Self {
        self.0.hold = true;
        self
    }
}

/// A port. The worker has it; whoever makes, saves and resets the console only while there is no worker, and who resets a
/// queue alone between two turns.
#[derive(Debug)]
pub(super) struct Port {
    /// Empty if it has none.
    pub(super) name: String,
    pub(super) is_console: bool,
    /// Output waits for a client.
    pub(super) hold: bool,
    pub(super) end: End,
    pub(super) state: PortState,
    /// Whoever got the written part of the next buffer has gone: the rest is for nobody.
    pub(super) cut: bool,
}

impl Port {
    fn new(name: String, is_console: bool, end: End) -> Self {
        Self { name, is_console, hold: false, end, state: PortState::default(), cut: false }
    }

    /// Takes over what a driver had made of a port like this.
    pub(super) fn restore(&mut self, state: PortState) {
        self.state = state;
        // The client that got the first part was another process's.
        self.cut = state.written > 0 && matches!(self.end, End::Socket(_));
    }

    /// Sees who has come and who has gone at the host's end. Returns true if that may be something to tell the driver.
    pub(super) fn update(&mut self, counters: &Counters, events: &EventSink) -> bool {
        let End::Socket(socket) = &mut self.end else { return false };
        let change = socket.update();
        if let Some(error) = change.error {
            counters.host_errors.note(events, "accept a client of a port", &error);
        }
        counters.clients.add(change.opened.into());
        counters.rx_dropped_bytes.add(change.unread);
        self.cut |= change.closed && self.state.written > 0;
        self.state.connection(change.closed, socket.is_connected());
        change.closed || change.opened
    }

    /// Returns true if [`update`](Self::update) is to be called, although no event says so.
    pub(super) fn has_changed(&self) -> bool {
        matches!(&self.end, End::Socket(socket) if socket.has_changed())
    }

    /// The driver takes messages about the port, or does not any more.
    pub(super) fn set_ready(&mut self, ready: bool) {
        let state = &mut self.state;
        (state.ready, state.told_open) = (ready, false);
        // A driver that speaks before it has listened is told of the port all the same.
        state.due.keep(Message::Add);
        if ready {
            if self.is_console {
                state.due.add(Message::Console);
                state.due.add(Message::Resize);
            }
            if !self.name.is_empty() {
                state.due.add(Message::Name);
            }
            state.connection(false, self.end.is_connected());
        }
    }

    /// The window has another size.
    pub(super) fn resized(&mut self) {
        if self.state.ready && self.is_console {
            self.state.due.add(Message::Resize);
        }
    }
}
