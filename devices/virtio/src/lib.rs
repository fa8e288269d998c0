//! Virtio queues, transports and devices.
#![forbid(unsafe_code)]

mod device;
pub use device::{ConfigInterrupt, DeviceType, Start, StartError, VirtioDevice};
mod runtime;
pub use runtime::{DedicatedThread, Inline, SharedLoop};
mod rng;
pub use rng::Rng;
mod transport;
pub use transport::mmio::VirtioMmio;
mod worker;
pub use worker::{Interest, Runtime, RuntimeError, Source, Turn, Worker, WorkerHandle};
mod queue;
pub use queue::{Chain, QueueBroken, QueueConfig, QueueConfigError, VirtQueue};
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod virtio_queue_traps;
