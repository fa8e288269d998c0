//! PCI for virtual machine monitors: a root bus, functions with BARs and MSI-X, and hotplug that the guest's ACPI sees.
//!
//! - A [`PciBus`] has 32 slots. [`PciBus::host`] makes the [`PciHost`] that connects it to a machine: configuration space
//!   by ECAM and by the ports 0xcf8 and 0xcfc, addresses for BARs, registers for hotplug.
//! - A [`Function`] does all of configuration space for the author of a device: ids, [BARs](Bar) of 32 and 64 bits that
//!   the guest sizes and moves, [capabilities](Capability), [MSI-X](MsixLayout); reset, saved states, hotplug.
//!
//! To a machine, host bridge and functions are [devices](ossature_bus::Device) like any other, so all that this crate
//! knows is `ossature-bus`. There are no lines (INTx), no I/O BARs, no bridges to further buses, and one function in a
//! slot. A guest that supports message-signalled interrupts misses none of it.
//!
//! # A device of your own
//!
//! One register, which adds up what is written to it and interrupts the guest:
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU32, Ordering};
//!
//! use ossature_bus::state::StateError;
//! use ossature_bus::testing::TestBoard;
//! use ossature_bus::{
//!     Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, Interrupt, MetricVisitor, Mmio,
//!     NodeKind, Requires, Size, Syscall,
//! };
//! use ossature_pci::{Bar, Function, FunctionInfo, MsixLayout, PciBus};
//!
//! struct Sum {
//!     total: AtomicU32,
//!     changed: Option<Interrupt>,
//! }
//!
//! impl Mmio for Sum {
//!     fn read(&self, at: Access) -> Result<u64, BusFault> {
//!         match at {
//!             Access { offset: 0, size: Size::B4 } => Ok(self.total.load(Ordering::Relaxed).into()),
//!             _ => Err(BusFault::Unmapped),
//!         }
//!     }
//!     fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
//!         let Access { offset: 0, size: Size::B4 } = at else { return Err(BusFault::Unmapped) };
//!         self.total.fetch_add(value as u32, Ordering::Relaxed);
//!         let _ = self.changed.as_ref().map(Interrupt::signal);
//!         Ok(Effect::None)
//!     }
//! }
//!
//! struct Adder(Function);
//!
//! impl Adder {
//!     fn new(id: &str, bus: &PciBus) -> Self {
//!         let info = FunctionInfo::new(0x1234, 0x0001, 0x00ff_0000)
//!             .bar(Bar::memory64(0, 0x2000))
//!             .msix(MsixLayout::new(1, 0, 0x1000, 0x1800));
//!         Self(Function::new(id, bus, info))
//!     }
//! }
//!
//! impl Device for Adder {
//!     fn id(&self) -> &str {
//!         self.0.id()
//!     }
//!     fn requires(&self) -> Requires {
//!         self.0.requires()
//!     }
//!     fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
//!         self.0.attach(&assigned, |vectors| {
//!             let changed = vectors.interrupt(0).cloned();
//!             Ok(vec![Arc::new(Sum { total: AtomicU32::new(0), changed }) as _])
//!         })
//!     }
//!     fn quiesce(&mut self) -> Result<(), DeviceError> {
//!         Ok(())
//!     }
//!     fn resume(&mut self) -> Result<(), DeviceError> {
//!         self.0.resume()
//!     }
//!     fn reset(&mut self) -> Result<(), DeviceError> {
//!         self.0.reset() // and the total, in a device that is more than an example
//!     }
//!     fn save(&mut self) -> Result<DeviceState, DeviceError> {
//!         Ok(DeviceState::Unsupported { reason: "an example" })
//!     }
//!     fn restore(&mut self, _: Handover<'_>) -> Result<(), StateError> {
//!         Err(StateError::Unsupported { reason: "an example" })
//!     }
//!     fn detach(&mut self) -> Result<(), DeviceError> {
//!         self.0.detach()
//!     }
//!     fn syscalls(&self) -> &'static [Syscall] {
//!         &[Syscall("write")] // the interrupt
//!     }
//!     fn metrics(&self, _: &mut dyn MetricVisitor) {}
//! }
//!
//! let bus = PciBus::new();
//! let (mut host, mut adder) = (bus.host("pci"), Adder::new("adder", &bus));
//! // A machine does this, and then the guest finds the device.
//! let (mut host_board, mut board) = (TestBoard::default(), TestBoard::default());
//! host_board.attach(&mut host)?;
//! board.attach(&mut adder)?;
//! host.resume()?;
//! adder.resume()?;
//!
//! let ecam = host_board.port("ecam").ok_or("no ECAM")?;
//! let register = |offset: u64| Access { offset: 1 << 15 | offset, size: Size::B4 }; // of slot 1
//! assert_eq!(ecam.read(register(0)), Ok(0x0001_1234));
//! // The guest asks for the size of BAR 0, puts it somewhere, and has it answer there.
//! let _ = ecam.write(register(0x10), 0xffff_ffff);
//! assert_eq!(ecam.read(register(0x10)), Ok(0xffff_e004));
//! let _ = ecam.write(register(0x10), 0xe000_0000);
//! let effect = ecam.write(register(0x04), 2).map_err(|_| "refused")?;
//! assert!(board.carry_out(effect));
//! assert_eq!(board.registers()[0].base(), Some(0xe000_0000));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod bar;
mod bus;
mod capability;
mod error;
mod function;
mod host;
mod msix;
mod port;
mod space;
mod state;
#[cfg(test)]
mod tests;

pub use bar::Bar;
pub use bus::PciBus;
pub use capability::{Bars, Capability, CapabilityPort};
pub use error::PciError;
pub use function::{Function, FunctionInfo};
pub use host::PciHost;
pub use msix::{MsixLayout, Vectors};
pub use state::FunctionState;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
