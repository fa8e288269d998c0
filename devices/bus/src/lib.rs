//! The device bus and the device contracts of the Ossature VMM SDK: all that a device needs to depend on.
//!
//! - A device's registers are [`Mmio`]: a read gives a value, a write gives an [`Effect`] that the caller carries
//!   out, and what the guest does wrong is a [`BusFault`], never an error of the host.
//! - A [`Bus`] knows which registers answer which addresses; each vCPU has a [`BusCursor`] to get there.
//! - A [`Device`] says what it [requires](Requires) of a machine, each resource under a name, finds all of it in
//!   [`Assigned`], and takes part in the machine's life.
//! - An [`Interrupt`] is raised without knowing what is behind it: a line of its own, a shared level line, a message.
//! - An [`EventLoop`] gives handlers of descriptors and timers their turns: queues, serial lines, signals.
//! - A [`HostStream`] is a terminal, pipe, socket or file that they read and write without waiting.
//! - A [`RateLimiter`] holds a device to so many bytes and operations a second.
//! - [`state`] is the form in which devices save their registers, and [`state_file`] the file that keeps them.
//! - [`testing`] has a board for tests of devices: no machine, no hypervisor.
//!
//! # A device on a bus
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use ossature_bus::{Access, AddressSpace, Bus, BusFault, Effect, MmioMut, Size};
//!
//! /// A 32-bit counter at offset 0: reads give the count, writes set it.
//! struct Counter(u32);
//!
//! impl MmioMut for Counter {
//!     fn read(&mut self, at: Access) -> Result<u64, BusFault> {
//!         match at {
//!             Access { offset: 0, size: Size::B4 } => {
//!                 self.0 = self.0.wrapping_add(1);
//!                 Ok(self.0.into())
//!             }
//!             Access { offset: 0, .. } => Err(BusFault::Width),
//!             _ => Err(BusFault::Unmapped),
//!         }
//!     }
//!
//!     fn write(&mut self, at: Access, value: u64) -> Result<Effect, BusFault> {
//!         match at {
//!             Access { offset: 0, size: Size::B4 } => {
//!                 self.0 = value as u32;
//!                 Ok(Effect::None)
//!             }
//!             Access { offset: 0, .. } => Err(BusFault::Width),
//!             _ => Err(BusFault::Unmapped),
//!         }
//!     }
//! }
//!
//! let bus = Bus::new(AddressSpace::Mmio);
//! bus.insert(0xd000_0000, 0x1000, "counter", Arc::new(Mutex::new(Counter(0))))?;
//!
//! // A vCPU:
//! let mut cursor = bus.cursor();
//! assert_eq!(cursor.write(0xd000_0000, Size::B4, 41), Ok(Effect::None));
//! assert_eq!(cursor.read(0xd000_0000, Size::B4), Ok(42));
//! assert_eq!(cursor.read(0xd000_0000, Size::B2), Err(BusFault::Width));
//!
//! // Unplugging it, while vCPUs run:
//! let retired = bus.remove(0xd000_0000)?;
//! assert_eq!(cursor.read(0xd000_0000, Size::B4), Err(BusFault::Unmapped));
//! assert!(retired.is_passed());
//! # Ok::<(), ossature_bus::BusError>(())
//! ```
#![deny(unsafe_code)]

mod access;
mod assigned;
mod bus;
mod cursor;
mod device;
mod error;
#[allow(unsafe_code)] // borrows a descriptor that vmm-sys-util knows as a number
mod event;
mod event_loop;
mod host_stream;
mod identity;
mod interrupt;
mod metric;
mod panic;
mod publish;
mod rate_limiter;
mod request;
mod routes;
#[allow(unsafe_code)] // the thread's mask of signals
mod sigmask;
mod socket_file;
pub mod state;
pub mod state_file;
mod sync;
mod table;
pub mod testing;
mod token_bucket;

pub use access::{Access, BusFault, Effect, Mmio, MmioMut, Size, VmRequest};
pub use assigned::{Assigned, RangeId, RegisterRange};
pub use bus::{Bus, Registration, Retired};
pub use cursor::{BusCursor, FaultCounts};
pub use device::{Device, DeviceEvent, DeviceState, EventSink, Syscall};
pub use error::DeviceError;
pub use event::Event;
pub use event_loop::thread::{LoopThread, spawn_thread};
pub use event_loop::{
    EventLoop, Handler, Hosted, Interest, LoopHandle, Source, Timer, TimerSource, Turn, WatchError,
};
pub use host_stream::HostStream;
pub use identity::Identity;
pub use interrupt::{Interrupt, InterruptTarget, MessageInterrupt, MessageTarget, MsiMessage};
pub use metric::{Metric, MetricKind, MetricUnit, MetricVisitor};
pub use panic::Panic;
pub use rate_limiter::{RateLimiter, RateLimiterState, RateLimits, Throttle};
pub use request::{
    AddressSpace, DoorbellRequest, InterruptRequest, MessagesRequest, NodeKind, ParentBus, Placement,
    RegistersRequest, Requires, ResourceName, Trigger, WindowRequest,
};
pub use socket_file::SocketFile;
pub use state::Handover;
pub use table::BusError;
pub use token_bucket::{BucketState, RateLimit, TokenBucket};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
