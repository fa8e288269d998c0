//! Virtio for virtual machine monitors: queues, an MMIO transport, runtimes, and the devices of every day.
//!
//! A device consists of two halves that share no lock. The control plane is a [`VirtioDevice`]: it says what
//! the device is (type, features, queues, configuration space) and is called by the transport on the vCPUs'
//! threads. The data plane is a [`Worker`]: it owns its [`VirtQueue`]s by value and runs on exactly one thread,
//! which a [`Runtime`] provides: [`SharedLoop`] for many workers, [`DedicatedThread`] for each one its own,
//! [`Inline`] for tests. [`VirtioMmio`] puts a device behind registers and makes it an
//! [`ossature_bus::Device`] that a machine can take.
//!
//! Whatever a driver does to its rings is a value, [`QueueBroken`]: it latches in the queue, parks the worker,
//! and shows as DEVICE_NEEDS_RESET to the driver and as a
//! [`DeviceEvent`](ossature_bus::DeviceEvent) to the VMM. A device only passes it on with `?`.
//!
//! # A device of your own
//!
//! This one answers each request with the same text in capital letters. The feature `testing` brings a driver
//! that knows the device only through its registers, doorbells, interrupt and guest RAM, and a
#![cfg_attr(feature = "testing", doc = "[suite](testing::conformance) of hostile tests for every device.")]
#![cfg_attr(not(feature = "testing"), doc = "suite of hostile tests for every device.")]
//!
//! ```
//! use std::os::fd::AsRawFd;
//!
//! use ossature_bus::{MetricVisitor, State, Syscall};
//! use ossature_virtio::testing::TestDriver;
//! use ossature_virtio::{
//!     DeviceType, Interest, QueueBroken, Source, Start, StartError, Turn, VirtQueue, VirtioDevice, Worker,
//! };
//!
//! struct Shout;
//!
//! impl VirtioDevice for Shout {
//!     fn device_type(&self) -> DeviceType {
//!         DeviceType(63)
//!     }
//!     fn features(&self) -> u64 {
//!         0
//!     }
//!     fn queues(&self) -> &[u16] {
//!         &[64]
//!     }
//!     fn groups(&self) -> Vec<Vec<u16>> {
//!         vec![vec![0]]
//!     }
//!     fn config_len(&self) -> u32 {
//!         0
//!     }
//!     fn read_config(&self, _: u32, _: &mut [u8]) {}
//!     fn write_config(&mut self, _: u32, _: &[u8]) {}
//!     fn start(&mut self, _: usize, start: Start) -> Result<Box<dyn Worker>, StartError> {
//!         Ok(Box::new(Shouter(start.queues)))
//!     }
//!     fn reset(&mut self) {}
//!     fn state(&self) -> State {
//!         State::Stateless
//!     }
//!     fn syscalls(&self) -> &'static [Syscall] {
//!         &[Syscall("write")] // the interrupt
//!     }
//!     fn metrics(&self, _: &mut dyn MetricVisitor) {}
//! }
//!
//! struct Shouter(Vec<VirtQueue>);
//!
//! impl Worker for Shouter {
//!     fn sources(&self) -> Vec<Source> {
//!         let queue = &self.0[0];
//!         vec![Source { token: 0, fd: queue.doorbell().as_raw_fd(), interest: Interest::Readable }]
//!     }
//!
//!     fn turn(&mut self, _token: u16) -> Result<Turn, QueueBroken> {
//!         let queue = &mut self.0[0];
//!         // A budget, so that no driver keeps the thread for itself.
//!         for _ in 0..32 {
//!             let Some(chain) = queue.pop()? else {
//!                 queue.flush()?;
//!                 return Ok(if queue.park()? { Turn::Again } else { Turn::Sleep });
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
//!
//!     fn finish(self: Box<Self>) -> Vec<VirtQueue> {
//!         self.0
//!     }
//! }
//!
//! let mut driver = TestDriver::new(Shout);
//! driver.start(u64::MAX); // every feature that is offered
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
//! irqfd, and what the guest reads lies in a page that it maps read-only: a running driver leaves the kernel for
//! none of them. A machine that has none of that calls the same registers, and gets the same answers.
#![deny(unsafe_code)]

pub mod blk;
mod config;
pub mod console;
mod counter;
mod device;
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
#[cfg(test)]
mod virtio_queue_traps;
mod worker;

pub use blk::Blk;
pub use console::Console;
pub use device::{ConfigInterrupt, DeviceType, Start, StartError, VirtioDevice};
pub use net::Net;
pub use queue::{Chain, QueueBroken, QueueConfig, QueueConfigError, VirtQueue};
pub use rng::Rng;
pub use runtime::{DedicatedThread, Inline, SharedLoop};
pub use transport::mmio::VirtioMmio;
pub use worker::{Interest, Runtime, RuntimeError, Source, Turn, Worker, WorkerHandle};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
