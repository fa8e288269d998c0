//! The control queues, by which device and driver tell each other of ports (5.3.6.2, with MULTIPORT).
//!
//! The driver is ready; it is told of each port; it is ready for a port; it is told that the port is a console, how it is
//! called, whether it is open at this end, and how large its window is; it opens the port. Not before that does it take
//! input: what comes earlier, Linux's driver throws away.

use super::counters::Counters;
use super::port::Port;
use super::state::{Message, PortState};
use super::window::ConsoleWindow;
use crate::{QueueBroken, Turn, VirtQueue};

/// Messages that a turn takes at most.
const TURN_MESSAGES: u32 = 32;

// What a message says.
/// From the driver: it is ready.
const DEVICE_READY: u16 = 0;
/// There is a port.
const PORT_ADD: u16 = 1;
/// From the driver: it has added the port.
const PORT_READY: u16 = 3;
/// The port is a console.
const CONSOLE_PORT: u16 = 4;
/// The size of the port's window follows.
const RESIZE: u16 = 5;
/// The port is open (1) or closed (0) at the sender's end.
const PORT_OPEN: u16 = 6;
/// The port's name follows.
const PORT_NAME: u16 = 7;

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
    /// Takes the driver's messages. `opened` is called with each port that is opened.
    pub(super) fn receive(
        &mut self,
        ports: &mut [Port],
        counters: &Counters,
        mut opened: impl FnMut(usize),
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
            if len < message.len() || !hear(message, ports, &mut opened) {
                counters.control_ignored.add(1);
            }
        }
        queue.flush()?;
        Ok(Turn::Again)
    }

    /// Sends the driver what is due, as far as there are buffers. There are few kinds of messages for each port, so a turn
    /// sends all.
    pub(super) fn send(&mut self, ports: &mut [Port], window: &ConsoleWindow) -> Result<(), QueueBroken> {
        let Some(queue) = &mut self.rx else { return Ok(()) };
        // Without anything to send we need no buffers, and no kick that tells of some.
        queue.disable_kicks()?;
        for (id, port) in (0..).zip(ports) {
            if !self.sized || id != 0 {
                port.state.due.remove(Message::Resize);
            }
            while let Some(message) = port.state.due.first() {
                let Some(chain) = queue.pop()? else {
                    queue.flush()?;
                    if queue.enable_kicks()? {
                        continue;
                    }
                    return Ok(());
                };
                // Before the size is read: a later one is another message.
                port.state.tell(message);
                let bytes = bytes(id, message, &port.name, window);
                // A driver whose buffer is too short gets what fits.
                let len = queue.dma().scatter(chain.writable(), &bytes).unwrap_or_default();
                queue.complete(chain, len as u32)?;
            }
        }
        queue.flush()
    }
}

/// The bytes of a message to the driver.
fn bytes(id: u32, message: Message, name: &str, window: &ConsoleWindow) -> Vec<u8> {
    let (event, value): (u16, u16) = match message {
        Message::Add => (PORT_ADD, 1),
        Message::Console => (CONSOLE_PORT, 1),
        Message::Open => (PORT_OPEN, 1),
        Message::Close => (PORT_OPEN, 0),
        Message::Resize => (RESIZE, 1),
        Message::Name => (PORT_NAME, 1),
    };
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    match message {
        // Columns, then rows.
        Message::Resize => bytes.extend(window.size().to_le_bytes()),
        Message::Name => bytes.extend(name.as_bytes()),
        _ => {}
    }
    bytes
}

/// Takes a message of the driver's. Returns false if it means nothing.
fn hear(message: [u8; 8], ports: &mut [Port], opened: &mut impl FnMut(usize)) -> bool {
    let [i0, i1, i2, i3, e0, e1, v0, v1] = message;
    let id = u32::from_le_bytes([i0, i1, i2, i3]) as usize;
    let (event, value) = (u16::from_le_bytes([e0, e1]), u16::from_le_bytes([v0, v1]) != 0);
    if event == DEVICE_READY {
        // It is about no port.
        for port in ports {
            port.state = PortState { written: port.state.written, ..PortState::default() };
            if value {
                port.state.due.add(Message::Add);
            }
        }
        return true;
    }
    let Some(port) = ports.get_mut(id) else { return false };
    match event {
        PORT_READY => port.set_ready(value),
        PORT_OPEN => {
            port.state.open = value;
            if value {
                opened(id);
            }
        }
        _ => return false,
    }
    true
}
