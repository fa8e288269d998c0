//! Disks for virtual machine monitors, without virtio: what holds a guest's sectors, and how requests for them are
//! carried out.
//!
//! - [`Disk`] is an image: its size, its limits, its lock. [`RawFile`] is one whose sectors are the bytes of a file or of
//!   a block device, `Qcow2` one in QEMU's format, perhaps over others (feature `qcow2`, on by default).
//! - [`Engine`] carries requests out for one queue: [`submit`](Engine::submit), [`reap`](Engine::reap), and a
//!   descriptor that says when to reap. A disk hands engines out, one for each queue. [`SyncEngine`] completes a request
//!   inside of `submit`, [`ThreadEngine`] on a thread of its own, [`UringEngine`] has many in flight.
//! - [`DiskIo`] is what a format implements to get the synchronous engines: blocking transfers by offset.
//!
//! Data moves straight between the disk and guest memory, which an [`ossature_memory::Dma`] bounds.
#![deny(unsafe_code)]

mod disk;
mod engine;
mod format;
mod io;
mod null;
#[cfg(feature = "qcow2")]
mod qcow2;
mod raw;
mod sync_engine;
#[allow(unsafe_code)] // see the module
mod sys;
#[cfg(test)]
mod testing;
mod thread_engine;
#[allow(unsafe_code)] // see the module
mod uring;

pub use disk::Disk;
pub use engine::{Completion, Engine, EngineSetup, Finished, Operation, Submitted};
pub use format::{ImageFormat, ParseImageFormatError};
pub use io::DiskIo;
pub use null::NullDisk;
#[cfg(feature = "qcow2")]
pub use qcow2::{NewQcow2, Qcow2, Qcow2Options};
pub use raw::{DiskError, EngineKind, OpenMode, RawFile, RawOptions};
pub use sync_engine::SyncEngine;
pub use thread_engine::ThreadEngine;
pub use uring::UringEngine;

#[cfg(all(doctest, feature = "qcow2"))]
#[doc = include_str!("../README.md")]
struct Readme;
