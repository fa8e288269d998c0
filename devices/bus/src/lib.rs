//! The device bus and the device contracts.
#![forbid(unsafe_code)]

mod access;
pub mod adapters;
mod bus;
mod cursor;
mod device;
mod event;
mod publish;
mod sync;

pub use access::{Access, BusFault, Effect, Mmio, MmioMut, Size, VmRequest};
pub use bus::{Bus, BusError, Registration, Retired};
pub use cursor::{BusCursor, FaultCounts};
pub use device::{
    AddressSpace, Assigned, AttachError, Attached, Device, DeviceError, DeviceEvent, DoorbellRequest,
    EventSink, InterruptRequest, MetricVisitor, NodeHint, Placement, RangeRequest, Requires, State, Syscall,
    Trigger,
};
pub use event::Event;
