//! The device bus and the device contracts.
#![forbid(unsafe_code)]

mod access;
mod device;
mod event;

pub use access::{Access, BusFault, Effect, Mmio, MmioMut, Size, VmRequest};
pub use device::{
    AddressSpace, Assigned, AttachError, Attached, Device, DeviceError, DeviceEvent, DoorbellRequest,
    EventSink, InterruptRequest, MetricVisitor, NodeHint, Placement, RangeRequest, Requires, State, Syscall,
    Trigger,
};
pub use event::Event;
