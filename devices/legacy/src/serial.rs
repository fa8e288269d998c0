//! A 16550A serial port as a device.

pub(crate) mod escape;
pub(crate) mod line;
mod port;
mod pty;
mod socket;
mod state;
mod uart;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{
    Assigned, AttachError, Attached, Device, DeviceError, EventLoop, Hosted, LoopThread, MetricVisitor,
    NodeHint, Placement, Requires, State, Syscall,
};

pub use escape::{Escape, EscapeFilter};
pub(crate) use pty::PtyLine;
pub(crate) use socket::SocketLine;

use crate::backend::Backend;
use crate::register;
use port::{OnLoop, Shared};

/// How long the end of a port waits for its line to take the last output.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Where guests expect a serial port: its first I/O port and its interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// First of the eight I/O ports.
    pub base: u16,
    /// Interrupt line (ISA).
    pub irq: u8,
}

impl SerialPort {
    /// `ttyS0`.
    pub const COM1: Self = Self { base: 0x3f8, irq: 4 };
    /// `ttyS1`.
    pub const COM2: Self = Self { base: 0x2f8, irq: 3 };
    /// `ttyS2`. Shares its interrupt with [`COM1`](Self::COM1).
    pub const COM3: Self = Self { base: 0x3e8, irq: 4 };
    /// `ttyS3`. Shares its interrupt with [`COM2`](Self::COM2).
    pub const COM4: Self = Self { base: 0x2e8, irq: 3 };
}

/// A 16550A serial port (TI PC16550D data sheet).
///
/// **Output** is handed to the line at once by the vCPU that sends, without waiting; where the guest waits for the
/// transmitter's interrupt, in one piece for each burst of up to 16 bytes. What the line does not
/// take now (a full pipe, a stopped terminal) waits in a queue of 64 KiB and goes out by the port's event loop;
/// once the queue is full the guest sees a transmitter that is not ready, as on a slow line, and does as its
/// driver does then: sleeps until the interrupt, or polls and gives up. So a blocked output blocks no vCPU,
/// and no pause.
///
/// **Input** is taken from the line when the guest listens (RTS or the receive interrupt on) and only as
/// much as fits in the FIFO of 64 bytes; the rest stays where it is until the guest has read.
///
/// **Saved** are the registers, the bytes in both directions and the interrupt. Output that the line has not yet taken
/// belongs to whoever goes on: the port when it is resumed, or the one that the state is restored into. A port that was
/// saved and ends without being resumed leaves it to the other; so nothing is lost and nothing sent twice.
///
/// Whatever has to be waited for is waited for on an event loop: the VMM's, given by [`on`](Self::on), or one on a
/// thread of the port's own, which is named after it. A line that never makes anyone wait (a file, a writer) needs
/// neither.
#[derive(Debug)]
pub struct Serial {
    id: String,
    port: SerialPort,
    shared: Arc<Shared>,
    /// The loop that was given, if one was.
    event_loop: Option<EventLoop>,
    /// Waits to be attached, if the line needs a loop.
    on_loop: Option<OnLoop>,
    hosted: Option<Hosted<OnLoop>>,
    thread: Option<LoopThread>,
}

impl Serial {
    /// A port named `id` at `port` on the line `backend`.
    pub fn new(id: impl Into<String>, port: SerialPort, backend: Backend) -> Self {
        let Backend { line, on_key } = backend;
        let needs_loop = line.needs_loop();
        let shared = Arc::new(Shared::new(line, on_key.is_some()));
        let on_key = on_key.unwrap_or_else(|| Box::new(|_| ()));
        let on_loop = needs_loop.then(|| OnLoop { shared: shared.clone(), on_key });
        Self { id: id.into(), port, shared, event_loop: None, on_loop, hosted: None, thread: None }
    }

    /// The same port with its turns on `event_loop`, which somebody else runs.
    #[must_use]
    pub fn on(mut self, event_loop: &EventLoop) -> Self {
        self.event_loop = Some(event_loop.clone());
        self
    }

    /// A handle that puts bytes into the receiver, beside the line.
    pub fn input(&self) -> SerialInput {
        SerialInput(self.shared.clone())
    }
}

/// Puts bytes into a [`Serial`]'s receiver. A handle: clones feed the same port, from any thread.
#[derive(Clone, Debug)]
pub struct SerialInput(Arc<Shared>);

impl SerialInput {
    /// Puts the first bytes of `input` into the FIFO and returns how many fitted: 0 while the guest does not
    /// listen, has not read, or is paused.
    pub fn try_write(&self, input: &[u8]) -> usize {
        self.0.receive(input)
    }

    /// Puts all of `input` into the FIFO, waiting for the guest to read as often as it is full.
    /// `BrokenPipe` once the device is gone.
    pub fn write_all(&self, input: &[u8]) -> io::Result<()> {
        self.0.receive_all(input)
    }
}

impl Device for Serial {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        Requires {
            ranges: vec![register::ports(self.port.base, 8)],
            interrupts: vec![register::interrupt(Placement::Fixed(self.port.irq.into()))],
            ..Requires::default()
        }
    }

    fn attach(&mut self, assigned: Assigned) -> Result<Attached, AttachError> {
        self.shared.attach(assigned.interrupts.into_iter().next(), assigned.events);
        if let Some(on_loop) = self.on_loop.take() {
            let failed =
                |source| AttachError { reason: "no event loop for the line".into(), source: Some(source) };
            let event_loop = match &self.event_loop {
                Some(event_loop) => event_loop,
                None => self.thread.insert(LoopThread::start(&self.id).map_err(failed)?).event_loop(),
            };
            let hosted = event_loop.host(on_loop).map_err(|e| failed(e.source))?;
            self.shared.hosted(hosted.handle().clone());
            self.hosted = Some(hosted);
        }
        Ok(Attached { ports: vec![self.shared.clone()], node: NodeHint::Serial16550 })
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.shared.pause();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.shared.resume();
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.shared.reset();
        Ok(())
    }

    fn state(&self) -> State {
        State::Saved(self.shared.state())
    }

    fn restore(&mut self, state: &SavedState<'_>) -> Result<(), StateError> {
        self.shared.restore(state)
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // The lock, wake-ups and interrupts; files and terminals; sockets. Starting and ending a thread of its own
        // takes what the language's runtime asks for.
        &[
            Syscall("futex"),
            Syscall("epoll_ctl"),
            Syscall("epoll_wait"),
            Syscall("ppoll"),
            Syscall("read"),
            Syscall("write"),
            Syscall("accept4"),
            Syscall("close"),
            Syscall("ioctl"),
            Syscall("recvfrom"),
            Syscall("sendto"),
            Syscall("timerfd_settime"),
            Syscall("unlink"),
        ]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        self.shared.metrics(visitor);
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        self.shared.stop(LAST_OUTPUT);
        self.hosted = None;
        self.thread = None;
        self.shared.close();
    }
}

#[cfg(test)]
mod tests;
