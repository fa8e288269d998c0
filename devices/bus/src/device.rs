//! The device contract: what a device says about itself, and what the machine gives it.

use std::fmt;
use std::sync::Arc;

pub use ossature_memory::layout::Placement;
use ossature_memory::{Dma, RegisterPage};

use crate::state::{SavedState, StateError};
use crate::{Event, Mmio, Size};

/// Which of the machine's address spaces a range lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AddressSpace {
    /// Guest-physical memory addresses.
    Mmio,
    /// x86 I/O ports.
    Pio,
}

/// A range of addresses that a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    /// Memory or ports.
    pub space: AddressSpace,
    /// Size in bytes (ports), not 0.
    pub size: u64,
    /// Alignment in bytes, a power of two.
    pub align: u64,
    /// Where.
    pub placement: Placement,
}

/// How an interrupt line signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trigger {
    /// Each signal is one edge.
    Edge,
}

/// An interrupt line that a device raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptRequest {
    /// The line's number where guests expect one (ISA), or any free one.
    pub placement: Placement,
    /// How it signals.
    pub trigger: Trigger,
}

/// A register whose writes only wake somebody up. The machine connects it to an ioeventfd, so that
/// the guest's write does not leave the kernel. A machine without that calls the device's
/// [`Mmio::write`] instead, which must then signal the same [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoorbellRequest {
    /// Index into [`Requires::ranges`].
    pub range: usize,
    /// Bytes from the start of that range.
    pub offset: u64,
    /// Width of the write.
    pub size: Size,
    /// The value that must be written; `None` for any.
    pub value: Option<u64>,
}

/// What a device needs of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requires {
    /// Address ranges; the device answers each with the port of the same index in [`Attached::ports`].
    pub ranges: Vec<RangeRequest>,
    /// Interrupt lines.
    pub interrupts: Vec<InterruptRequest>,
    /// Doorbells inside the ranges.
    pub doorbells: Vec<DoorbellRequest>,
    /// Indices of page-sized, page-aligned memory ranges whose *reads* the guest may serve itself from a
    /// [`RegisterPage`] that the device keeps up to date (a read-only memory slot); writes still reach the
    /// device or its doorbells. A machine without such slots calls [`Mmio::read`] instead.
    pub pages: Vec<usize>,
}

/// What the machine gave a device, each list in the order in which [`Requires`] asked.
#[derive(Debug)]
pub struct Assigned {
    /// The device's view of guest RAM.
    pub dma: Dma,
    /// Interrupt lines: signal one to raise an edge.
    pub interrupts: Vec<Arc<Event>>,
    /// Doorbells: readable after the guest has written.
    pub doorbells: Vec<Arc<Event>>,
    /// Register pages.
    pub pages: Vec<Arc<RegisterPage>>,
    /// Where the device reports what the VMM should know.
    pub events: EventSink,
}

/// What a device answers to [`Device::attach`].
pub struct Attached {
    /// One per requested range, in the same order.
    pub ports: Vec<Arc<dyn Mmio>>,
    /// What the boot tables say about the device.
    pub node: NodeHint,
}

/// The kind of node by which boot tables describe a device to the guest. The machine adds the
/// addresses and interrupts that it assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NodeHint {
    /// Not described: the guest knows or does not need to.
    Hidden,
    /// A virtio-mmio transport.
    VirtioMmio,
    /// A 16550 UART.
    Serial16550,
    /// An MC146818-compatible real-time clock.
    Rtc,
    /// An i8042 keyboard controller.
    I8042,
    /// Sleep control, sleep status and reset registers (in this order, a byte each), and a power button
    /// on the first interrupt.
    AcpiPower,
    /// A pvpanic port.
    Pvpanic,
}

/// Something that a device's host side found out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceEvent {
    /// The guest's driver broke the device's protocol: the device stopped until the guest resets it.
    NeedsReset {
        /// What it did.
        reason: String,
    },
    /// The host's side failed (a disk, a socket): the device goes on as its specification says.
    HostError {
        /// What failed.
        reason: String,
    },
}

/// Where a device reports [`DeviceEvent`]s. A device reports each condition once until it is reset, so
/// that no guest can flood the VMM.
#[derive(Clone)]
pub struct EventSink(Arc<dyn Fn(DeviceEvent) + Send + Sync>);

impl EventSink {
    /// A sink that calls `f`, from any thread; `f` must not block.
    pub fn new(f: impl Fn(DeviceEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    /// A sink that drops what it gets.
    pub fn discard() -> Self {
        Self::new(|_| ())
    }

    /// Reports `event`.
    pub fn report(&self, event: DeviceEvent) {
        (self.0)(event);
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSink")
    }
}

/// Why a device refused to attach.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct AttachError {
    /// What it lacked.
    pub reason: String,
    /// The failure behind it.
    #[source]
    pub source: Option<std::io::Error>,
}

/// A life-cycle step that a device's host side could not do.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct DeviceError {
    /// What failed.
    pub reason: String,
    /// The failure behind it.
    #[source]
    pub source: Option<std::io::Error>,
}

/// Whether and how a device's state can be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It cannot.
    Unsupported {
        /// Why.
        reason: &'static str,
    },
    /// There is none: the device is the same after [`Device::reset`].
    Stateless,
    /// This is it.
    Saved(SavedState<'static>),
}

/// A system call that a device makes after its machine has started, for sandboxes: the name as the
/// kernel's tables spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Syscall(pub &'static str);

/// Receives a device's counters.
pub trait MetricVisitor {
    /// A number that only grows, such as requests or bytes; the name ends with its unit.
    fn counter(&mut self, name: &'static str, value: u64);
    /// A number that goes up and down, such as requests in flight.
    fn gauge(&mut self, name: &'static str, value: u64);
}

/// A device as the machine sees it. No method has a body by default: a device that has nothing to do
/// says so.
pub trait Device: Send {
    /// The device's name in this machine: chosen by the caller, unique, stable over the machine's life.
    fn id(&self) -> &str;
    /// What it needs. Asked once, before [`attach`](Self::attach), and constant.
    fn requires(&self) -> Requires;
    /// Takes what the machine assigned and gives the ports that answer the guest. Called once.
    fn attach(&mut self, assigned: Assigned) -> Result<Attached, AttachError>;
    /// Stops all host-side work (threads, I/O in flight) and returns when it has stopped. The vCPUs do not
    /// run. Called again when quiet: nothing happens.
    fn quiesce(&mut self) -> Result<(), DeviceError>;
    /// Goes on after [`quiesce`](Self::quiesce).
    fn resume(&mut self) -> Result<(), DeviceError>;
    /// Back to the state after [`attach`](Self::attach), as a machine reset does. The vCPUs do not run.
    fn reset(&mut self) -> Result<(), DeviceError>;
    /// Its state, if it can be saved. The device is quiet and the vCPUs do not run.
    ///
    /// What a saved state holds of work to be done (such as output that waits for the host) is done by the one who
    /// goes on: this device after [`resume`](Self::resume), or the one that the state is restored into.
    fn state(&self) -> State;
    /// Becomes what the device was that gave `state`, of the same configuration, perhaps in another process. Called
    /// after [`attach`](Self::attach), while the device is quiet and the vCPUs do not run; it goes on with
    /// [`resume`](Self::resume).
    ///
    /// The state is hostile input: all of it is checked before any of it counts. If it is refused, the device is as
    /// it was. A device that gives no [`State::Saved`] refuses every state.
    fn restore(&mut self, state: &SavedState<'_>) -> Result<(), StateError>;
    /// The system calls that it makes once the machine runs.
    fn syscalls(&self) -> &'static [Syscall];
    /// Shows its counters to `visitor`.
    fn metrics(&self, visitor: &mut dyn MetricVisitor);
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
