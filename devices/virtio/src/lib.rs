//! Virtio queues, transports and devices.
#![deny(unsafe_code)]

pub mod blk;
mod config;
pub mod console;
mod counter;
mod device;
pub use device::{ConfigInterrupt, DeviceType, Start, StartError, VirtioDevice};
mod runtime;
pub use runtime::{DedicatedThread, Inline, SharedLoop};
mod rng;
pub use rng::Rng;
mod transport;
pub use transport::mmio::VirtioMmio;
pub mod net;
#[cfg(test)]
mod rig;
#[allow(unsafe_code)] // see the module
mod sys;
mod worker;
pub use worker::{Interest, Runtime, RuntimeError, Source, Turn, Worker, WorkerHandle};
mod queue;
pub use queue::{Chain, QueueBroken, QueueConfig, QueueConfigError, VirtQueue};
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod virtio_queue_traps;
pub use blk::Blk;
pub use console::Console;
pub use net::Net;
