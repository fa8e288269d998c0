//! A serial port as a device: a 16550A, or a PL011.

mod interrupt_line;
mod model;
mod pl011;
mod port;
mod registers;
mod state;
mod transfer;
mod uart;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ossature_bus::state::StateError;
use ossature_bus::{
    Assigned, Device, DeviceError, DeviceEvent, DeviceState, EventLoop, EventSink, Handover, Hosted,
    InterruptRequest, LoopThread, MetricVisitor, NodeKind, RegistersRequest, Requires, Syscall,
};

use crate::backend::Backend;
use crate::register::{IRQ, REGISTERS};
use interrupt_line::InterruptLine;
use port::{Port, PortTurns, Receive};

pub use model::{Uart, Written};
pub use pl011::Pl011;
pub use registers::TYPEAHEAD_CAPACITY;
pub use uart::Uart16550;

/// How long a port that is detached waits for its line to take the last output.
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
    /// `ttyS2`. Shares its interrupt with [`COM1`](Self::COM1): see [`Serial::shared_line`].
    pub const COM3: Self = Self { base: 0x3e8, irq: 4 };
    /// `ttyS3`. Shares its interrupt with [`COM2`](Self::COM2): see [`Serial::shared_line`].
    pub const COM4: Self = Self { base: 0x2e8, irq: 3 };
}

/// Where a port's registers and its interrupt are.
#[derive(Clone, Copy, Debug)]
enum Place {
    Ports(SerialPort),
    /// A page of memory, and a level-triggered interrupt, wherever the machine has room.
    Memory,
}

/// A 16550A serial port (TI PC16550D data sheet), or an Arm machine's [`PL011`](Self::pl011).
///
/// **Output** is handed to the line at once by the vCPU that sends, without waiting; where the guest waits for the
/// transmitter's interrupt, in one piece for each burst of up to 16 bytes. What the line does not take now (a full
/// pipe, a stopped terminal) waits in a queue of 64 KiB and is sent from the port's event loop; once the queue is full
/// the guest sees a transmitter that is not ready, as on a slow line, and its driver does what it does then: it sleeps
/// until the interrupt, or polls and gives up. So a blocked output blocks no vCPU, and no pause.
///
/// **Input** is taken from the line when the guest listens (RTS or the receive interrupt on) and only as
/// much as fits in the FIFO of 64 bytes; the rest stays where it is until the guest has read.
///
/// **Saved** are the registers, the bytes in both directions and the interrupt. Output that the line has not yet taken
/// belongs to the one that goes on: the port when it is resumed, or the one that the state is restored into. A port that
/// was saved and is detached without being resumed leaves it to the other; so nothing is lost and nothing sent twice.
///
/// While the port is quiet, which it is from being attached until it is first resumed, what the guest sends waits in the
/// queue, and the line is neither read nor written. A reset leaves in the queue what the guest had sent.
///
/// All waiting happens on an event loop: the VMM's, given by [`on`](Self::on), or one on a thread of the port's own,
/// which is named after it. A line that never makes anyone wait (a file, a writer) needs neither.
///
/// All of this is the same with another model of the registers: see [`with_uart`](Self::with_uart).
#[derive(Debug)]
pub struct Serial<U: Uart = Uart16550> {
    id: String,
    place: Place,
    /// The interrupt line is level-triggered.
    level: bool,
    /// The loop that was given, if one was.
    event_loop: Option<EventLoop>,
    needs_loop: bool,
    port: Arc<Port<U>>,
    hosted: Option<Hosted<PortTurns<U>>>,
    thread: Option<LoopThread>,
}

impl Serial {
    /// A port named `id` at `place` on the line `backend`.
    pub fn new(id: impl Into<String>, place: SerialPort, backend: Backend) -> Self {
        Self::with_uart(id, place, backend, Uart16550::new())
    }
}

impl Serial<Pl011> {
    /// A PL011 named `id` on the line `backend`, in a page of memory: `ttyAMA0` of an Arm machine.
    ///
    /// ```
    /// use ossature_legacy::{Serial, backend};
    /// # fn demo(builder: impl Fn(Box<dyn ossature_bus::Device>)) -> std::io::Result<()> {
    /// let console = Serial::pl011("console", backend::stdio()?);
    /// # builder(Box::new(console));
    /// # Ok(()) }
    /// ```
    pub fn pl011(id: impl Into<String>, backend: Backend) -> Self {
        let mut port = Self::at(id, Place::Memory, backend, Pl011::new());
        port.level = true;
        port
    }
}

impl<U: Uart + 'static> Serial<U> {
    /// The same with the registers of `uart`, as a master reset leaves them.
    pub fn with_uart(id: impl Into<String>, place: SerialPort, backend: Backend, uart: U) -> Self {
        Self::at(id, Place::Ports(place), backend, uart)
    }

    fn at(id: impl Into<String>, place: Place, backend: Backend, uart: U) -> Self {
        let Backend { line, on_key } = backend;
        let needs_loop = line.needs_loop();
        let port = Arc::new(Port::new(uart, line, on_key));
        let (event_loop, hosted, thread) = (None, None, None);
        Self { id: id.into(), place, level: false, event_loop, needs_loop, port, hosted, thread }
    }

    /// The same port with a level-triggered interrupt line, which other level devices may share, such as
    /// [`COM1`](SerialPort::COM1) and [`COM3`](SerialPort::COM3) with each other: it is asserted for as long as the
    /// interrupt identification register names a condition. Both ports have to be made so, and the guest has to be told
    /// of the line's trigger, as boot tables made from the device's request do.
    ///
    /// Without this the line is edge-triggered and the port's own, as guests expect of ISA.
    #[must_use]
    pub fn shared_line(mut self) -> Self {
        self.level = true;
        self
    }

    /// The same port with its turns on `event_loop`, which the caller runs.
    #[must_use]
    pub fn on(mut self, event_loop: &EventLoop) -> Self {
        self.event_loop = Some(event_loop.clone());
        self
    }

    /// Has the port take turns on its loop.
    fn host(&mut self, events: &EventSink) -> Result<(), DeviceError> {
        let failed = |e: io::Error| DeviceError::new("no event loop for the serial line").with_source(e);
        let event_loop = match &self.event_loop {
            Some(event_loop) => event_loop,
            None => self.thread.insert(LoopThread::start(&self.id).map_err(failed)?).event_loop(),
        };
        let events = events.clone();
        let event_loop = event_loop.on_panic(move |panic| {
            events.report(DeviceEvent::Panicked { message: panic.message });
        });
        match event_loop.host(PortTurns(self.port.clone())) {
            Ok(hosted) => self.hosted = Some(hosted),
            Err(e) => {
                self.thread = None;
                return Err(failed(e.source));
            }
        }
        Ok(())
    }

    /// A handle that puts bytes into the receiver, beside the line.
    pub fn input(&self) -> SerialInput {
        SerialInput(self.port.clone())
    }
}

impl<U: Uart> Serial<U> {
    /// Ends the port's part in its machine.
    fn end(&mut self) {
        self.port.finish(LAST_OUTPUT);
        self.hosted = None;
        self.thread = None;
        self.port.release();
    }
}

/// Puts bytes into a [`Serial`]'s receiver. A handle: clones feed the same port, from any thread.
#[derive(Clone, Debug)]
pub struct SerialInput(Arc<dyn Receive>);

impl SerialInput {
    /// Puts the first bytes of `input` into the FIFO and returns how many fitted: 0 while the guest does not
    /// listen, has not read, or is paused, and while the port is not attached.
    pub fn try_write(&self, input: &[u8]) -> usize {
        self.0.receive(input)
    }

    /// Puts all of `input` into the FIFO, waiting for the guest to read as often as it is full.
    /// `NotConnected` if the port is not attached, or is detached in the meantime.
    pub fn write_all(&self, input: &[u8]) -> io::Result<()> {
        self.0.receive_all(input)
    }
}

impl<U: Uart + 'static> Device for Serial<U> {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        let irq = if self.level { InterruptRequest::level(IRQ) } else { InterruptRequest::edge(IRQ) };
        match self.place {
            Place::Ports(SerialPort { base, irq: line }) => Requires::new()
                .registers(RegistersRequest::ports(REGISTERS, uart::REGISTERS.into()).fixed(base.into()))
                .interrupt(irq.fixed(line.into())),
            Place::Memory => Requires::new()
                .registers(RegistersRequest::memory(REGISTERS, pl011::LEN).align(pl011::LEN))
                .interrupt(irq),
        }
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        let line = InterruptLine::new(assigned.interrupt(IRQ)?.clone(), self.level);
        let registers = assigned.registers(REGISTERS)?;
        if self.needs_loop {
            self.host(assigned.events())?;
        }
        let on_loop = self.hosted.as_ref().map(|hosted| hosted.handle().clone());
        self.port.attach(line, assigned.events().clone(), on_loop);
        registers.answer(self.port.clone());
        Ok(match self.place {
            Place::Ports(_) => NodeKind::Serial16550,
            Place::Memory => NodeKind::Pl011,
        })
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.port.pause();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.port.resume();
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.port.reset();
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Saved(Handover::new(self.port.save())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        self.port.restore(&handover.state)
    }

    /// Waits up to a second for the line to take the guest's last output. What it does not take is lost; what a saved
    /// state holds is left to the port that it is restored into. The line stays open for the next machine.
    fn detach(&mut self) -> Result<(), DeviceError> {
        self.end();
        Ok(())
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
        self.port.metrics(visitor);
    }
}

impl<U: Uart> Drop for Serial<U> {
    fn drop(&mut self) {
        self.end();
        self.port.close();
    }
}

#[cfg(test)]
mod tests;
