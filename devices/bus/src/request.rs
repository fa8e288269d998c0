//! What a device asks of a machine: address ranges, doorbells in them, interrupts and messages, each by name.

use std::fmt;
use std::sync::Arc;

pub use ossature_memory::layout::{NodeKind, Placement, Trigger};

use crate::Size;

/// Which of the machine's address spaces a range lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AddressSpace {
    /// Guest-physical memory addresses.
    Mmio,
    /// x86 I/O ports.
    Pio,
}

/// The name of a resource within its device, such as `registers` or the kick of queue 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceName {
    name: &'static str,
    index: Option<u16>,
}

impl From<&'static str> for ResourceName {
    fn from(name: &'static str) -> Self {
        Self { name, index: None }
    }
}

/// One of several resources of the same name.
impl From<(&'static str, u16)> for ResourceName {
    fn from((name, index): (&'static str, u16)) -> Self {
        Self { name, index: Some(index) }
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            None => f.write_str(self.name),
            Some(index) => write!(f, "{}{index}", self.name),
        }
    }
}

/// A range of addresses that the device answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegistersRequest {
    /// Its name in the device.
    pub name: ResourceName,
    /// Memory or ports.
    pub space: AddressSpace,
    /// Size in bytes (ports), not 0.
    pub size: u64,
    /// Alignment in bytes, a power of two.
    pub align: u64,
    /// Where.
    pub placement: Placement,
    /// The guest may serve *reads* itself from a [`RegisterPage`](ossature_memory::RegisterPage) that the device keeps
    /// up to date (a read-only memory slot); writes still reach the device or its doorbells. The range is one aligned
    /// host page of memory. A machine without such slots calls [`Mmio::read`](crate::Mmio::read) instead.
    pub page: bool,
    /// The device may ask to have the range moved: see [`RegisterRange::move_to`](crate::RegisterRange::move_to).
    pub movable: bool,
    /// The range is in no address space until the device has it moved into one, and again after a reset, whatever its
    /// placement says.
    pub unplaced: bool,
    /// Doorbells: writes inside the range that only wake the device.
    pub doorbells: Vec<DoorbellRequest>,
}

impl RegistersRequest {
    fn new(name: ResourceName, space: AddressSpace, size: u64, align: u64) -> Self {
        let placement = Placement::Any;
        let (page, movable, unplaced) = (false, false, false);
        Self { name, space, size, align, placement, page, movable, unplaced, doorbells: Vec::new() }
    }

    /// `size` bytes of memory, aligned to the next power of two.
    pub fn memory(name: impl Into<ResourceName>, size: u64) -> Self {
        Self::new(name.into(), AddressSpace::Mmio, size, size.checked_next_power_of_two().unwrap_or(1 << 63))
    }

    /// `count` I/O ports without alignment.
    pub fn ports(name: impl Into<ResourceName>, count: u16) -> Self {
        Self::new(name.into(), AddressSpace::Pio, count.into(), 1)
    }

    /// Exactly at `base`.
    #[must_use]
    pub fn fixed(mut self, base: u64) -> Self {
        self.placement = Placement::Fixed(base);
        self
    }

    /// Aligned to `align` bytes.
    #[must_use]
    pub fn align(mut self, align: u64) -> Self {
        self.align = align;
        self
    }

    /// With reads served from a register page: see [`page`](Self::page).
    #[must_use]
    pub fn with_page(mut self) -> Self {
        self.page = true;
        self
    }

    /// Movable while the machine runs.
    #[must_use]
    pub fn movable(mut self) -> Self {
        self.movable = true;
        self
    }

    /// Movable, and in no address space at first: see [`unplaced`](Self::unplaced).
    #[must_use]
    pub fn unplaced(mut self) -> Self {
        (self.movable, self.unplaced) = (true, true);
        self
    }

    /// With this doorbell.
    #[must_use]
    pub fn doorbell(mut self, doorbell: DoorbellRequest) -> Self {
        self.doorbells.push(doorbell);
        self
    }
}

/// A register whose writes only wake the device. The machine connects it to an ioeventfd, so that the guest's write
/// does not leave the kernel. A machine without that calls the device's [`Mmio::write`](crate::Mmio::write) instead,
/// which must then signal the same [`Event`](crate::Event).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DoorbellRequest {
    /// Its name in the device.
    pub name: ResourceName,
    /// Bytes from the start of the range that it lies in.
    pub offset: u64,
    /// Width of the write. Without a value, writes of any width ring.
    pub size: Size,
    /// The value that must be written; `None` for any.
    pub value: Option<u64>,
    /// Nobody waits for it: it is there so that the guest's write does not leave the kernel. The device is given no event;
    /// the machine has one for all of them.
    pub ignored: bool,
}

impl DoorbellRequest {
    /// Any write that begins at `offset`.
    pub fn new(name: impl Into<ResourceName>, offset: u64, size: Size) -> Self {
        Self { name: name.into(), offset, size, value: None, ignored: false }
    }

    /// Without anyone who waits for it: see [`ignored`](field@Self::ignored).
    #[must_use]
    pub fn ignored(mut self) -> Self {
        self.ignored = true;
        self
    }

    /// Only writes of `value`.
    #[must_use]
    pub fn value(mut self, value: u64) -> Self {
        self.value = Some(value);
        self
    }
}

/// An interrupt line that the device raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InterruptRequest {
    /// Its name in the device.
    pub name: ResourceName,
    /// The line's number where guests expect one (ISA), or any.
    pub placement: Placement,
    /// How it signals. Lines of level devices may be shared: several get the same number.
    pub trigger: Trigger,
    /// The device wants to know when the guest has acknowledged a level interrupt.
    pub resample: bool,
    /// The device raises an edge line rarely, and hands it to nobody: each edge is a call of the hypervisor's, and no
    /// descriptor is made for it ([`Interrupt::event`](crate::Interrupt::event) is `None`).
    pub rare: bool,
}

impl InterruptRequest {
    fn new(name: ResourceName, trigger: Trigger) -> Self {
        Self { name, placement: Placement::Any, trigger, resample: false, rare: false }
    }

    /// An edge-triggered line of the device's own.
    pub fn edge(name: impl Into<ResourceName>) -> Self {
        Self::new(name.into(), Trigger::Edge)
    }

    /// A level-triggered line, which other level devices may share.
    pub fn level(name: impl Into<ResourceName>) -> Self {
        Self::new(name.into(), Trigger::Level)
    }

    /// Exactly line `number`.
    #[must_use]
    pub fn fixed(mut self, number: u32) -> Self {
        self.placement = Placement::Fixed(number.into());
        self
    }

    /// Rarely raised: see [`rare`](field@Self::rare).
    #[must_use]
    pub fn rare(mut self) -> Self {
        self.rare = true;
        self
    }

    /// With an event for each acknowledgement: see [`Interrupt::resample`](crate::Interrupt::resample).
    #[must_use]
    pub fn resampled(mut self) -> Self {
        self.resample = true;
        self
    }
}

/// Message-signalled interrupts, which the guest programs one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MessagesRequest {
    /// Their name in the device.
    pub name: ResourceName,
    /// How many.
    pub count: u16,
}

impl MessagesRequest {
    /// `count` messages.
    pub fn new(name: impl Into<ResourceName>, count: u16) -> Self {
        Self { name: name.into(), count }
    }
}

/// Memory addresses that the device hands on: no device is put there, but registers of devices may be moved there
/// ([`RegistersRequest::movable`]). A bus has one for the devices behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WindowRequest {
    /// Its name in the device.
    pub name: ResourceName,
    /// Size in bytes, a power of two; also its alignment.
    pub size: u64,
    /// The size that does, a power of two: where there is no room for all, the window is half as large, as often as it
    /// takes.
    pub least: u64,
    /// The window lies above 4 GiB and above RAM, where there is more room; below 4 GiB otherwise.
    pub high: bool,
}

impl WindowRequest {
    /// `size` bytes below 4 GiB.
    pub fn memory32(name: impl Into<ResourceName>, size: u64) -> Self {
        Self { name: name.into(), size, least: size, high: false }
    }

    /// `size` bytes above 4 GiB and above RAM.
    pub fn memory64(name: impl Into<ResourceName>, size: u64) -> Self {
        Self { name: name.into(), size, least: size, high: true }
    }

    /// So many bytes do, where there is no room for all.
    #[must_use]
    pub fn at_least(mut self, least: u64) -> Self {
        self.least = least;
        self
    }
}

/// Names a bus that one device brings into its machine and others are on, such as that of a PCI host bridge. Clones name the
/// same bus.
///
/// A machine refuses a device that is [on](method@Requires::on) a bus that none of its devices [brings](method@Requires::brings): its
/// guest would never find it, or another machine's would.
#[derive(Clone)]
pub struct ParentBus(Arc<Absent>);

/// What to say where a machine does not have it.
struct Absent(&'static str);

impl ParentBus {
    /// Another bus than any before. `absent` says of it, where a device is on it and its machine does not have it, what it
    /// is and what to add: "a PCI bus whose host bridge is not in this machine: ...".
    pub fn new(absent: &'static str) -> Self {
        Self(Arc::new(Absent(absent)))
    }

    /// What to say where a machine does not have it.
    pub fn absent(&self) -> &'static str {
        self.0.0
    }
}

impl PartialEq for ParentBus {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ParentBus {}

impl fmt::Debug for ParentBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ParentBus")
    }
}

/// What a device needs of the machine.
///
/// ```
/// use ossature_bus::{InterruptRequest, RegistersRequest, Requires};
///
/// let serial_port = Requires::new()
///     .registers(RegistersRequest::ports("ports", 8).fixed(0x3f8))
///     .interrupt(InterruptRequest::edge("irq").fixed(4));
/// assert_eq!(serial_port.registers[0].size, 8);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Requires {
    /// Address ranges.
    pub registers: Vec<RegistersRequest>,
    /// Interrupt lines.
    pub interrupts: Vec<InterruptRequest>,
    /// Message-signalled interrupts.
    pub messages: Vec<MessagesRequest>,
    /// Addresses to hand on.
    pub windows: Vec<WindowRequest>,
    /// The bus that it brings into the machine for other devices.
    pub brings: Option<ParentBus>,
    /// The bus that it is on, which another device of the machine has to bring.
    pub on: Option<ParentBus>,
}

impl Requires {
    /// Begins with no requests.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a range of registers.
    #[must_use]
    pub fn registers(mut self, request: RegistersRequest) -> Self {
        self.registers.push(request);
        self
    }

    /// Adds an interrupt line.
    #[must_use]
    pub fn interrupt(mut self, request: InterruptRequest) -> Self {
        self.interrupts.push(request);
        self
    }

    /// Adds messages.
    #[must_use]
    pub fn messages(mut self, request: MessagesRequest) -> Self {
        self.messages.push(request);
        self
    }

    /// Adds addresses to hand on.
    #[must_use]
    pub fn window(mut self, request: WindowRequest) -> Self {
        self.windows.push(request);
        self
    }

    /// Brings this bus into the machine.
    #[must_use]
    pub fn brings(mut self, bus: &ParentBus) -> Self {
        self.brings = Some(bus.clone());
        self
    }

    /// Is on this bus.
    #[must_use]
    pub fn on(mut self, bus: &ParentBus) -> Self {
        self.on = Some(bus.clone());
        self
    }

    /// Returns true if what the other asks for can be wherever this can: they differ in no more than the buses.
    pub fn fits_like(&self, other: &Self) -> bool {
        let Self { registers, interrupts, messages, windows, brings: _, on: _ } = self;
        *registers == other.registers
            && *interrupts == other.interrupts
            && *messages == other.messages
            && *windows == other.windows
    }
}
