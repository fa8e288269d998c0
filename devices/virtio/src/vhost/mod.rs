//! Queues that the host's kernel serves (vhost), for [network cards](crate::net::VhostNet) and
//! [sockets](crate::vsock::VhostVsock).
//!
//! The kernel's thread is woken by the queue's doorbell and interrupts the guest by the queue's
//! [event](ossature_bus::Interrupt::event), if it has one: no packet passes through this process. Where an interrupt has to
//! go through its transport, a worker passes it on. What the kernel says of a ring that it cannot make sense of makes the
//! device need a reset.
//!
//! What the kernel writes, no [`DirtyLog`](ossature_memory::DirtyLog) sees. None can be started while a driver uses such a
//! device, and no driver can begin to use one while there is a log: both are errors that say so. Nor
//! can RAM be added or removed meanwhile: the kernel has a table of it.

#[allow(unsafe_code)] // see the module
mod kernel;
mod relay;
mod rings;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::io;

pub(crate) use kernel::{Kernel, Refused};
pub(crate) use rings::Vhost;

/// Why the host's kernel does not serve a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhostError {
    /// The kernel has no such driver, or has not loaded it.
    #[error("{path} does not exist; load the kernel module {module}")]
    NoDriver {
        /// The driver's file.
        path: &'static str,
        /// Its module.
        module: &'static str,
    },
    /// This user may not use it.
    #[error("{path}: no permission; give this user access to it")]
    Permission {
        /// The driver's file.
        path: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The driver lacks features that each device of this crate offers.
    #[error("the host's vhost driver lacks the features {missing:#x} (virtio's numbers)")]
    Features {
        /// Their bits.
        missing: u64,
    },
    /// The kernel refused something else.
    #[error("vhost: {request}: {source}")]
    Refused {
        /// The ioctl.
        request: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is nothing to serve, or too much.
    #[error("{found} pairs of queues; a network card has 1 to {most}")]
    Pairs {
        /// How many.
        found: usize,
        /// The most.
        most: u16,
    },
}

impl From<Refused> for VhostError {
    fn from(Refused { request, source }: Refused) -> Self {
        Self::Refused { request, source }
    }
}

impl From<Refused> for ossature_bus::DeviceError {
    fn from(refused: Refused) -> Self {
        Self::new(format!("vhost: {}", refused.request)).with_source(refused.source)
    }
}
