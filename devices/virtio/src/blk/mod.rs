//! Block device (virtio 1.2, section 5.2).
//!
//! ```
//! use ossature_block::{OpenMode, RawFile};
//! use ossature_virtio::Blk;
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("root.img");
//! std::fs::File::create(&path)?.set_len(1 << 20)?;
//! let disk = RawFile::open(&path, OpenMode::ReadWrite)?;
//! let device = Blk::new(disk, "root".parse()?);
//! # let _ = device;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod counters;
mod id;
mod limits;
mod request;
mod worker;

use std::fmt;
use std::sync::Arc;

use ossature_block::{Disk, DiskIo};
use ossature_bus::state::{Decoder, Encoder, Field, StateError};
use ossature_bus::{DeviceError, DeviceState, Handover, MetricVisitor, Syscall};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY,
};

use self::counters::Counters;
use self::limits::{QUEUE_SIZE, SECTOR, SEG_MAX, SIZE_MAX};
use self::worker::BlkWorker;
use crate::{Activation, DeviceInfo, DeviceType, LocalDevice, Worker};
pub use id::{DiskId, DiskIdError};
pub use ossature_block::{DiskError, NullDisk, OpenMode, RawFile};

const CONFIG_LEN: usize = 32;

/// The form in which a device is saved.
const KIND: &str = "ossature.virtio-blk";
const VERSION: u16 = 1;
const SECTORS: Field = Field::new(1, "sectors of the disk");
const ID: Field = Field::new(2, "id of the disk");

/// A block device on a [`Disk`], with one queue.
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

impl<D: Disk> Blk<D> {
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
fn config(disk: &impl Disk) -> [u8; CONFIG_LEN] {
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

impl<D: Disk + DiskIo + fmt::Debug> LocalDevice for Blk<D> {
    fn info(&self) -> DeviceInfo {
        let always = 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY;
        DeviceInfo::new(DeviceType::BLOCK, &[QUEUE_SIZE])
            .with_features(always | u128::from(self.disk.read_only()) << VIRTIO_BLK_F_RO)
            .with_config(CONFIG_LEN as u32)
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![0]]
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        crate::config::read(&self.config, offset, buf);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {
        // Only `writeback` could be written, and CONFIG_WCE is not offered.
    }

    fn worker(&mut self, _group: usize, activation: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        let (disk, counters) = (Arc::clone(&self.disk), Arc::clone(&self.counters));
        Ok(Box::new(BlkWorker::new(disk, self.id, counters, activation)))
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.disk.unlock()
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.disk.lock()
    }

    fn reset(&mut self) {
        // The disk keeps its sectors; nearly all else went with the worker.
        self.counters.host_errors.reset();
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u64(SECTORS, self.disk.capacity() / SECTOR).bytes(ID, self.id.bytes());
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, 1..=VERSION)?;
        let (sectors, id) = (fields.u64(SECTORS)?, fields.array(ID)?);
        fields.finish()?;
        // The guest would not notice that it has another disk.
        let reason = "this disk has another";
        if sectors != self.disk.capacity() / SECTOR {
            return Err(StateError::Inconsistent { field: "sectors of the disk", reason });
        }
        if &id != self.id.bytes() {
            return Err(StateError::Inconsistent { field: "id of the disk", reason });
        }
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.disk.syscalls()
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        self.counters.show(visitor);
    }
}

#[cfg(test)]
mod tests;
