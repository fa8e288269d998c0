//! Block device (virtio 1.2, section 5.2).
//!
//! ```
//! use ossature_virtio::blk::{Blk, OpenMode, RawFile};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("root.img");
//! std::fs::File::create(&path)?.set_len(1 << 20)?;
//! let disk = RawFile::open(&path, OpenMode::ReadWrite)?;
//! let device = Blk::new(disk, "root".parse()?);
//!
//! // Nobody else gets at a disk that is written.
//! let error = RawFile::open(&path, OpenMode::ReadOnly).unwrap_err();
//! assert!(error.to_string().ends_with("is in use by another process, which has locked it"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod disk;
mod id;
mod raw_file;
mod request;
mod worker;

use std::fmt;
use std::sync::Arc;

use ossature_bus::{MetricVisitor, State, Syscall};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY,
};

use crate::counter::{Counter, HostErrors};
use crate::{DeviceType, Start, StartError, VirtioDevice, Worker};
pub use disk::{DiskIo, NullDisk};
pub use id::{DiskId, DiskIdError};
pub use raw_file::{DiskError, OpenMode, RawFile};

/// Bytes in a sector: the unit of every position and length that the driver names.
pub(crate) const SECTOR: u64 = 512;
const QUEUE_SIZE: u16 = 256;
/// Data segments of a request: without indirect descriptors, the header and the status take two of the queue.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of a data segment.
const SIZE_MAX: u32 = 1 << 20;
const CONFIG_LEN: usize = 32;

/// What the device has done since it was made.
#[derive(Debug, Default)]
struct Counters {
    reads: Counter,
    read_bytes: Counter,
    writes: Counter,
    written_bytes: Counter,
    flushes: Counter,
    refused: Counter,
    host_errors: HostErrors,
}

/// A block device on a [`DiskIo`], with one queue.
///
/// It offers FLUSH (a driver that does not accept it gets a disk that writes through), RO where the disk is
/// read-only, SIZE_MAX, SEG_MAX, BLK_SIZE and TOPOLOGY. Requests: read, write, flush and get-id; others are answered
/// UNSUPP, and what the disk cannot do (writing to a read-only disk, sectors beyond the end, lengths that are no
/// multiple of 512 or exceed SIZE_MAX times SEG_MAX) IOERR.
///
/// A worker's turn serves a bounded number of requests and bytes, so that no disk starves the other devices of a
/// shared loop.
#[derive(Debug)]
pub struct Blk<D> {
    disk: Arc<D>,
    id: DiskId,
    config: [u8; CONFIG_LEN],
    counters: Arc<Counters>,
}

impl<D: DiskIo> Blk<D> {
    /// A device on `disk`.
    pub fn new(disk: D, id: DiskId) -> Self {
        Self { config: config(&disk), disk: Arc::new(disk), id, counters: Arc::default() }
    }

    /// The disk.
    pub fn disk(&self) -> &D {
        &self.disk
    }
}

/// `struct virtio_blk_config` up to the last field of a feature that we offer.
fn config(disk: &impl DiskIo) -> [u8; CONFIG_LEN] {
    // A physical block is a power of two of logical blocks, which are sectors.
    let exponent = (u64::from(disk.physical_block()) / SECTOR).max(1).ilog2();
    let mut config = [0; CONFIG_LEN];
    let fields: [(usize, &[u8]); 6] = [
        (0, &(disk.capacity() / SECTOR).to_le_bytes()),
        (8, &SIZE_MAX.to_le_bytes()),
        (12, &SEG_MAX.to_le_bytes()),
        (20, &(SECTOR as u32).to_le_bytes()),
        (24, &[exponent as u8]),
        (26, &(1u16 << exponent).to_le_bytes()),
    ];
    for (offset, value) in fields {
        for (to, from) in config.iter_mut().skip(offset).zip(value) {
            *to = *from;
        }
    }
    config
}

impl<D: DiskIo + fmt::Debug> VirtioDevice for Blk<D> {
    fn device_type(&self) -> DeviceType {
        DeviceType::BLOCK
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY;
        always | u64::from(self.disk.read_only()) << VIRTIO_BLK_F_RO
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![0]]
    }

    fn config_len(&self) -> u32 {
        CONFIG_LEN as u32
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        crate::config::read(&self.config, offset, buf);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {
        // Only `writeback` could be written, and CONFIG_WCE is not offered.
    }

    fn start(&mut self, _group: usize, start: Start) -> Result<Box<dyn Worker>, StartError> {
        worker::start(self, start)
    }

    fn reset(&mut self) {
        // The disk keeps its sectors; nearly all else went with the worker.
        self.counters.host_errors.reset();
    }

    fn state(&self) -> State {
        State::Stateless
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.disk.syscalls()
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        let Counters { reads, read_bytes, writes, written_bytes, flushes, refused, host_errors } =
            &*self.counters;
        visitor.counter("read_requests", reads.get());
        visitor.counter("read_bytes", read_bytes.get());
        visitor.counter("write_requests", writes.get());
        visitor.counter("written_bytes", written_bytes.get());
        visitor.counter("flush_requests", flushes.get());
        visitor.counter("refused_requests", refused.get());
        visitor.counter("host_errors", host_errors.get());
    }
}

#[cfg(test)]
mod tests;
