//! Virtio queues, transports and devices.
#![forbid(unsafe_code)]

mod device;
pub use device::{DeviceType, Start, StartError, VirtioDevice};
mod worker;
pub use worker::{Interest, Runtime, RuntimeError, Source, Turn, Worker, WorkerHandle};
mod queue;
pub use queue::{Chain, QueueBroken, VirtQueue};
