//! The control queues, by which device and driver tell each other of ports (5.3.6.2, with MULTIPORT).
//!
//! The driver is ready; it is told of a port; it is ready for the port; it is told that the port is a console, open at
//! this end, and how large its window is; it opens the port. Not before that does it take input: what comes earlier,
//! Linux's driver throws away.

use super::counters::Counters;
use super::port::PortState;
use super::window::ConsoleWindow;
use crate::{QueueBroken, Turn, VirtQueue};

/// Messages that a turn takes at most.
const TURN_MESSAGES: u32 = 32;

/// The only port.
const PORT: u32 = 0;

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event(u16);

impl Event {
    /// From the driver: it is ready.
    const DEVICE_READY: Self = Self(0);
    /// There is a port.
    pub(super) const PORT_ADD: Self = Self(1);
    /// From the driver: it has added the port.
    const PORT_READY: Self = Self(3);
    /// The port is a console.
    pub(super) const CONSOLE_PORT: Self = Self(4);
    /// The size of the port's window follows.
    pub(super) const RESIZE: Self = Self(5);
    /// The port is open (1) or closed (0) at the sender's end.
    pub(super) const PORT_OPEN: Self = Self(6);
}

/// The two queues. The driver has both or none.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// Messages to the driver.
    pub(super) rx: Option<VirtQueue>,
    /// Messages from the driver.
    pub(super) tx: Option<VirtQueue>,
    /// The driver takes the size of a window.
    pub(super) sized: bool,
}

impl Control {
    /// Takes the driver's messages.
    pub(super) fn receive(
        &mut self,
        state: &mut PortState,
        counters: &Counters,
    ) -> Result<Turn, QueueBroken> {
        let Some(queue) = &mut self.tx else { return Ok(Turn::Sleep) };
        queue.disable_kicks()?;
        for _ in 0..TURN_MESSAGES {
            let Some(chain) = queue.pop()? else {
                queue.flush()?;
                if queue.enable_kicks()? {
                    continue;
                }
                return Ok(Turn::Sleep);
            };
            let mut message = [0; 8];
            let len = queue.dma().gather(chain.readable(), &mut message).unwrap_or_default();
            queue.complete(chain, 0)?;
            let [i0, i1, i2, i3, e0, e1, v0, v1] = message;
            let (id, event) = (u32::from_le_bytes([i0, i1, i2, i3]), Event(u16::from_le_bytes([e0, e1])));
            let value = u16::from_le_bytes([v0, v1]) != 0;
            // DEVICE_READY is about no port.
            if len < message.len()
                || (id != PORT && event != Event::DEVICE_READY)
                || !state.hear(event, value)
            {
                counters.control_ignored.add(1);
            }
        }
        queue.flush()?;
        Ok(Turn::Again)
    }

    /// Sends the driver what is due, as far as there are buffers. There are few kinds of messages, so a turn sends all.
    pub(super) fn send(&mut self, state: &mut PortState, window: &ConsoleWindow) -> Result<(), QueueBroken> {
        let Some(queue) = &mut self.rx else { return Ok(()) };
        // Without anything to send we need no buffers, and no kick that tells of some.
        queue.disable_kicks()?;
        if !self.sized {
            state.due.remove(Event::RESIZE);
        }
        while let Some(event) = state.due.first() {
            let Some(chain) = queue.pop()? else {
                queue.flush()?;
                if queue.enable_kicks()? {
                    continue;
                }
                return Ok(());
            };
            // Before the size is read: a later one is another message.
            state.due.remove(event);
            let message = message(event, window);
            // A driver whose buffer is too short gets what fits.
            let len = queue.dma().scatter(chain.writable(), &message).unwrap_or_default();
            queue.complete(chain, len as u32)?;
        }
        queue.flush()
    }
}

/// The bytes of a message to the driver.
fn message(event: Event, window: &ConsoleWindow) -> Vec<u8> {
    let mut bytes = PORT.to_le_bytes().to_vec();
    let value = 1u16;
    bytes.extend(event.0.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    if event == Event::RESIZE {
        // Columns, then rows.
        bytes.extend(window.size().to_le_bytes());
    }
    bytes
}

impl PortState {
    /// Takes a message of the driver's. Returns false if it means nothing.
    fn hear(&mut self, event: Event, value: bool) -> bool {
        match event {
            Event::DEVICE_READY => {
                *self = Self { written: self.written, ..Self::default() };
                if value {
                    self.due.add(Event::PORT_ADD);
                }
            }
            Event::PORT_READY => {
                self.ready = value;
                if value {
                    let events = [Event::CONSOLE_PORT, Event::PORT_OPEN, Event::RESIZE];
                    events.into_iter().for_each(|event| self.due.add(event));
                }
            }
            Event::PORT_OPEN => self.open = value,
            _ => return false,
        }
        true
    }

    /// The window has another size.
    pub(super) fn resized(&mut self) {
        if self.ready {
            self.due.add(Event::RESIZE);
        }
    }
}
