//! virtio-queue, and its adapters: devices that were written for its queues on our transports, and the states of queues
//! both ways.
//!
//! | there | here | by |
//! |---|---|---|
//! | a device that works on a [`Queue`] | [`Worker`](ossature_virtio::Worker) | [`QueueHandler`], [`QueueWorker`] |
//! | the same, whole | [`LocalDevice`](ossature_virtio::LocalDevice) | [`QueueDevice`] |
//! | [`Queue`] | [`QueueSetup`](ossature_virtio::QueueSetup), [`QueueState`](ossature_virtio::QueueState) | [`setup_of`], [`state_of`], [`queue_of`] |
//! | [`DescriptorChain`] | [`Segment`](ossature_memory::Segment)s | [`segments_of`] |
//!
//! # A device of theirs
//!
//! This one, whose parser is virtio-queue's, answers each request with the same text in capital letters:
//!
//! ```
//! use std::io::{Read, Write};
//! use std::sync::Arc;
//!
//! use ossature_memory::GuestMmap;
//! use ossature_rust_vmm::virtio_queue::{HandlerError, Queue, QueueDevice, QueueT};
//! use ossature_virtio::testing::TestDriver;
//! use ossature_virtio::{DeviceInfo, DeviceType};
//!
//! fn shout(_: u16, queue: &mut Queue, memory: &Arc<GuestMmap>) -> Result<(), HandlerError> {
//!     while let Some(chain) = queue.pop_descriptor_chain(&**memory) {
//!         let (mut reader, mut writer) = (chain.clone().reader(memory)?, chain.clone().writer(memory)?);
//!         let mut text = vec![0; reader.available_bytes().min(64)];
//!         reader.read_exact(&mut text)?;
//!         text.make_ascii_uppercase();
//!         let written = writer.write(&text)?;
//!         queue.add_used(&**memory, chain.head_index(), written as u32)?;
//!     }
//!     Ok(())
//! }
//!
//! let info = DeviceInfo::new(DeviceType(63), &[64]);
//! let device = QueueDevice::new(info, |_| Ok(shout));
//!
//! let mut driver = TestDriver::new(device);
//! driver.start(u128::MAX);
//! let (used, answer) = driver.transact(0, &[b"hello, ", b"guest"], &[64]);
//! assert_eq!((used.len, answer), (12, b"HELLO, GUEST".to_vec()));
//! ```

mod device;
mod running;
mod shadow;
mod state;
#[cfg(test)]
mod tests;
mod worker;

pub use ::virtio_queue::*;

pub use device::QueueDevice;
pub use state::{queue_of, segments_of, setup_of, state_of};
pub use worker::{HandlerError, QueueHandler, QueueWorker, Queues};
