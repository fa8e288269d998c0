//! Virtio for virtual machine monitors: queues, transports on MMIO and PCI, runtimes, and the devices of every day.
//!
//! A device consists of two halves that share no lock. The control plane is a [`LocalDevice`]: it says what the device
//! is (type, features, queues, configuration space), makes workers, and is called by the transport. The data plane is a
//! [`Worker`]: it owns its [`VirtQueue`]s by value and runs on one thread at a time, which a [`Runtime`] provides:
//! [`SharedLoop`] for many workers, [`DedicatedThread`] for each one its own, [`Inline`] for tests. Queues come to a
//! worker and leave it one by one, between two of its turns. [`VirtioMmio`] puts a device behind registers, [`VirtioPci`]
//! behind a function of a PCI bus; both make it an [`ossature_bus::Device`] that a machine can take.
//!
//! A transport itself knows a [`VirtioDevice`], whose queues may be served anywhere: it starts each with a [`QueueSetup`]
//! and gets a [`QueueState`] back when it stops, the one description of a stopped queue, for a pause, a saved state, a
//! queue's reset and a change of hands alike. [`Local`] is what makes a `LocalDevice` one.
//!
//! Whatever a driver does to its rings is a value, [`QueueBroken`]: it latches in the queue, ends the worker's turns, and
//! shows as DEVICE_NEEDS_RESET to the driver and as a [`DeviceEvent`](ossature_bus::DeviceEvent) to the VMM. A device
//! only passes it on with `?`. A worker that panics does the same, and no other worker notices.
//!
//! # A device of your own
//!
//! This one answers each request with the same text in capital letters. The feature `testing` brings a driver
//! that knows the device only through its registers, doorbells, interrupt and guest RAM, and a
#![cfg_attr(feature = "testing", doc = "[suite](testing::conformance) of hostile tests for every device.")]
#![cfg_attr(not(feature = "testing"), doc = "suite of hostile tests for every device.")]
//!
//! ```
//! use ossature_bus::state::StateError;
//! use ossature_bus::{DeviceError, DeviceState, Handover, MetricVisitor, Syscall};
//! use ossature_virtio::testing::TestDriver;
//! use ossature_virtio::{
//!     Activation, DeviceInfo, DeviceType, LocalDevice, QueueBroken, Removed, Source, Turn, VirtQueue, Worker,
//! };
//!
//! struct Shout;
//!
//! impl LocalDevice for Shout {
//!     fn info(&self) -> DeviceInfo {
//!         DeviceInfo::new(DeviceType(63), &[64])
//!     }
//!     fn groups(&self) -> Vec<Vec<u16>> {
//!         vec![vec![0]]
//!     }
//!     fn read_config(&self, _: u32, _: &mut [u8]) {}
//!     fn write_config(&mut self, _: u32, _: &[u8]) {}
//!     fn worker(&mut self, _: usize, _: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
//!         Ok(Box::new(Shouter(None)))
//!     }
//!     fn forget_queue(&mut self, _: u16) {}
//!     fn quiesce(&mut self) -> Result<(), DeviceError> {
//!         Ok(())
//!     }
//!     fn resume(&mut self) -> Result<(), DeviceError> {
//!         Ok(())
//!     }
//!     fn reset(&mut self) {}
//!     fn save(&mut self) -> Result<DeviceState, DeviceError> {
//!         Ok(DeviceState::Stateless)
//!     }
//!     fn restore(&mut self, _: Handover) -> Result<(), StateError> {
//!         Err(StateError::Unsupported { reason: "there is none" })
//!     }
//!     fn syscalls(&self) -> &'static [Syscall] {
//!         &[Syscall("write")] // the interrupt
//!     }
//!     fn metrics(&self, _: &mut dyn MetricVisitor) {}
//! }
//!
//! struct Shouter(Option<VirtQueue>);
//!
//! impl Worker for Shouter {
//!     fn sources(&self) -> Vec<Source> {
//!         Vec::new() // but for the queue's doorbell
//!     }
//!     fn add_queue(&mut self, queue: VirtQueue) {
//!         self.0 = Some(queue);
//!     }
//!     fn remove_queue(&mut self, _: u16) -> Removed {
//!         self.0.take().into()
//!     }
//!
//!     fn turn(&mut self, _: u16) -> Result<Turn, QueueBroken> {
//!         let Some(queue) = &mut self.0 else { return Ok(Turn::Sleep) };
//!         // A budget, so that no driver keeps the thread for itself.
//!         for _ in 0..32 {
//!             let Some(chain) = queue.pop()? else {
//!                 queue.flush()?;
//!                 return Ok(if queue.enable_kicks()? { Turn::Again } else { Turn::Sleep });
//!             };
//!             let mut text = [0; 64];
//!             let read = queue.dma().gather(chain.readable(), &mut text).unwrap_or(0);
//!             text.make_ascii_uppercase();
//!             let wrote = queue.dma().scatter(chain.writable(), &text[..read]).unwrap_or(0);
//!             queue.complete(chain, wrote as u32)?;
//!         }
//!         queue.flush()?;
//!         Ok(Turn::Again)
//!     }
//! }
//!
//! let mut driver = TestDriver::new(Shout);
//! driver.start(u128::MAX); // every feature that is offered
//! let (used, answer) = driver.transact(0, &[b"hello, ", b"guest"], &[64]);
//! assert_eq!(answer, b"HELLO, GUEST");
//! assert_eq!(used.len, 12);
//!
//! // In the tests of a device: ossature_virtio::conformance_tests!(shout, || Shout);
//! ```
//!
//! # How a machine without exits comes about
//!
//! A kick is a doorbell that the machine connects to an ioeventfd, an interrupt an event that it connects to an
//! irqfd, and what the guest reads on MMIO lies in a page that it maps read-only: a running driver leaves the kernel for
//! none of them. On PCI a running driver reads nothing. A machine that has none of that calls the same registers, and gets the same answers.
#![deny(unsafe_code)]

pub mod blk;
mod config;
pub mod console;
mod counter;
mod device;
pub mod features;
mod local;
pub mod net;
mod queue;
#[cfg(test)]
mod rig;
mod rng;
mod runtime;
#[allow(unsafe_code)] // see the module
mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod transport;
#[cfg(feature = "vhost")]
pub mod vhost;
#[cfg(test)]
mod virtio_queue_traps;
pub mod vsock;
mod worker;

pub use blk::Blk;
pub use console::Console;
pub use device::{Activation, ConfigInterrupt, DeviceInfo, DeviceType, Failure, FailureSink, VirtioDevice};
pub use local::{Local, LocalDevice};
pub use net::Net;
pub use queue::{Chain, QueueBroken, QueueSetup, QueueSetupError, QueueState, VirtQueue};
pub use rng::Rng;
pub use runtime::{DedicatedThread, Inline, SharedLoop};
pub use transport::mmio::{MmioInterrupt, VirtioMmio};
pub use transport::pci::VirtioPci;
pub use vsock::Vsock;
pub use worker::{Interest, Removed, Runtime, Source, Turn, Worker, WorkerHandle};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
