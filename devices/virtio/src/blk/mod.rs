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

mod config;
mod counters;
mod handle;
mod held;
mod id;
mod limits;
mod request;
mod shared;
mod worker;

use std::fmt;
use std::sync::Arc;

use ossature_block::{Disk, EngineSetup};
use ossature_bus::state::{Decoder, Encoder, Field, StateError};
use ossature_bus::{
    DeviceError, DeviceEvent, DeviceState, EventSink, Handover, Identity, MetricVisitor, RateLimiter, Syscall,
};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use self::config::Config;
use self::counters::Counters;
use self::held::Held;
use self::limits::{MAX_QUEUES, QUEUE_SIZE};
use self::request::Negotiated;
use self::shared::Shared;
use self::worker::{BlkWorker, Parts};
use crate::{Activation, DeviceInfo, DeviceType, LocalDevice, Worker};
pub use handle::BlkHandle;
pub use held::OnHostError;
pub use id::{DiskId, DiskIdError};
pub use ossature_block::{DiskError, NullDisk, OpenMode, RawFile};

/// The form in which a device is saved.
const KIND: &str = "ossature.virtio-blk";
const VERSION: u16 = 3;
const SECTORS: Field = Field::new(1, "sectors of the disk");
const ID: Field = Field::new(2, "id of the disk");
const WRITEBACK: Field = Field::new(3, "cache mode");
const HELD: Field = Field::new(4, "requests to try again");

/// When a write that a guest makes is on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// After a flush; until then it may be in the host's page cache.
    #[default]
    Writeback,
    /// When it is completed.
    Writethrough,
}

/// A block device on a [`Disk`], with one queue or several, each with a worker and an engine of its own.
///
/// It offers FLUSH (a driver that does not accept it gets a disk that writes through), CONFIG_WCE, RO where the disk is
/// read-only and DISCARD and WRITE_ZEROES where it is not, SIZE_MAX, SEG_MAX, BLK_SIZE, TOPOLOGY, and MQ if it has several
/// queues. Other requests than those are answered UNSUPP, as are unknown flags, and what the disk cannot do (writing to a
/// read-only disk, sectors beyond the end, lengths that are no multiple of 512 or exceed the limits that the driver was
/// told) IOERR.
///
/// A failure of the host is IOERR to the guest, and once an event to the VMM
/// ([`DeviceEvent::HostError`](ossature_bus::DeviceEvent)). Or the request is kept until the VMM has made room and the
/// device pauses and resumes: [`with_on_error`](Self::with_on_error).
///
/// A worker's turn serves a bounded number of requests and bytes, so that no disk starves the other devices of a
/// shared loop.
pub struct Blk<D> {
    shared: Arc<Shared<D>>,
    id: DiskId,
    cache: CacheMode,
    on_error: OnHostError,
    /// One for each queue.
    counters: Vec<Arc<Counters>>,
    limiter: Option<RateLimiter>,
}

impl<D: Disk> Blk<D> {
    /// A device on `disk` with one queue, which writes back and has no limits.
    pub fn new(disk: D, id: DiskId) -> Self {
        let counters = vec![Arc::default()];
        let (cache, on_error) = (CacheMode::default(), OnHostError::default());
        Self { shared: Arc::new(Shared::new(disk)), id, cache, on_error, counters, limiter: None }
    }

    /// The same with `queues` queues, from 1 to 256.
    #[must_use]
    pub fn with_queues(mut self, queues: u16) -> Self {
        self.counters = (0..queues.clamp(1, MAX_QUEUES)).map(|_| Arc::default()).collect();
        self
    }

    /// The same, which begins in this mode after each reset. A driver with CONFIG_WCE may change it.
    #[must_use]
    pub fn with_cache(mut self, cache: CacheMode) -> Self {
        self.cache = cache;
        self.shared.set_writeback(cache == CacheMode::Writeback);
        self
    }

    /// The same within these limits on data bytes and on requests, which all its queues share. Whoever keeps a clone
    /// changes them while the machine runs. The time in which all that share them pause does not count. They are not part of the saved state: a
    /// restored device begins with full buckets.
    ///
    /// ```
    /// use ossature_block::NullDisk;
    /// use ossature_bus::{RateLimit, RateLimiter, RateLimits};
    /// use ossature_virtio::Blk;
    ///
    /// let limits = RateLimits::new(Some(RateLimit::per_second(100 << 20)), Some(RateLimit::per_second(5000)));
    /// let limiter = RateLimiter::new(limits);
    /// let device = Blk::new(NullDisk::new(1 << 20), "root".parse()?).with_limiter(limiter.clone());
    /// # let _ = device;
    /// // While it runs:
    /// limiter.set(RateLimits::default());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_limiter(mut self, limiter: RateLimiter) -> Self {
        self.limiter = Some(limiter);
        self
    }

    /// The same with another answer to failures of the host. With [`OnHostError::Hold`], the VMM has to pause the machine
    /// and to resume it when it is told of [`DeviceEvent::Stalled`]: until then the device serves nothing more of that
    /// queue. What is kept is part of the saved state.
    ///
    /// ```
    /// use ossature_block::NullDisk;
    /// use ossature_virtio::Blk;
    /// use ossature_virtio::blk::OnHostError;
    ///
    /// let device = Blk::new(NullDisk::new(8), "root".parse()?).with_on_error(OnHostError::HoldIfFull);
    /// # let _ = device;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_on_error(mut self, on_error: OnHostError) -> Self {
        self.on_error = on_error;
        self
    }

    /// The disk.
    pub fn disk(&self) -> &D {
        &self.shared.disk
    }

    /// What resizes the disk once the machine has the device.
    ///
    /// ```
    /// use ossature_block::NullDisk;
    /// use ossature_virtio::Blk;
    ///
    /// let device = Blk::new(NullDisk::new(8), "root".parse()?);
    /// let handle = device.handle();
    /// handle.resize(1 << 20)?;
    /// assert_eq!(handle.capacity(), 1 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn handle(&self) -> BlkHandle {
        BlkHandle(self.shared.clone())
    }

    fn queues(&self) -> u16 {
        // At most 256.
        self.counters.len() as u16
    }
}

impl<D: fmt::Debug> fmt::Debug for Blk<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blk").field("disk", &self.shared.disk).field("id", &self.id).finish_non_exhaustive()
    }
}

impl<D: Disk> LocalDevice for Blk<D> {
    fn info(&self) -> DeviceInfo {
        let always = 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_CONFIG_WCE
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY;
        let by_mode = if self.shared.disk.read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        let queues = self.queues();
        DeviceInfo::new(DeviceType::BLOCK, &vec![QUEUE_SIZE; queues.into()])
            .with_features(always | by_mode | u128::from(queues > 1) << VIRTIO_BLK_F_MQ)
            .with_config(config::LEN as u32)
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        (0..self.queues()).map(|queue| vec![queue]).collect()
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        let config = Config {
            sectors: self.shared.sectors(),
            logical_block: self.shared.disk.logical_block(),
            physical_block: self.shared.disk.physical_block(),
            writeback: self.shared.writeback(),
            queues: self.queues(),
        };
        crate::config::read(&config.bytes(), offset, buf);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let at = config::WRITEBACK.checked_sub(offset).and_then(|at| data.get(at as usize));
        if let Some(mode @ (0 | 1)) = at {
            self.shared.set_writeback(*mode == 1);
        }
    }

    fn worker(&mut self, group: usize, activation: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        let counters = self.counters.get(group).ok_or_else(|| DeviceError::new("there is no such queue"))?;
        self.shared.set_config(Some(activation.config.clone()));
        let has = |feature: u32| activation.features & 1 << feature != 0;
        let negotiated = Negotiated {
            flush: has(VIRTIO_BLK_F_FLUSH),
            discard: has(VIRTIO_BLK_F_DISCARD),
            write_zeroes: has(VIRTIO_BLK_F_WRITE_ZEROES),
        };
        let timer = |e| DeviceError::new("timerfd failed").with_source(e);
        let throttle = self.limiter.as_ref().map(RateLimiter::throttle).transpose().map_err(timer)?;
        let setup = EngineSetup::new(QUEUE_SIZE, self.notices(&activation.events));
        let engine = self.shared.disk.engine(&setup)?;
        let parts = Parts {
            shared: Arc::clone(&self.shared),
            id: self.id,
            counters: Arc::clone(counters),
            events: activation.events.clone(),
            negotiated,
            on_error: self.on_error,
        };
        Ok(Box::new(BlkWorker::<D>::new(engine, throttle, parts, self.queues())))
    }

    fn forget_queue(&mut self, index: u16) {
        self.shared.held.take(index);
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        if let Some(limiter) = &self.limiter {
            limiter.pause();
        }
        match self.shared.disk.unlock() {
            // A disk that cannot write what it has left stays locked, or no pause could mend it. The VMM knows.
            Err(_) if self.shared.held.waits() => Ok(()),
            unlocked => unlocked,
        }
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.shared.disk.lock()?;
        self.shared.held.resume();
        if let Some(limiter) = &self.limiter {
            limiter.resume();
        }
        Ok(())
    }

    fn reset(&mut self) {
        // The disk keeps its sectors; nearly all else went with the workers.
        self.shared.set_writeback(self.cache == CacheMode::Writeback);
        self.shared.set_config(None);
        self.shared.host_errors.reset();
        self.shared.held.clear();
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u64(SECTORS, self.shared.sectors()).bytes(ID, self.id.bytes());
        fields.bool(WRITEBACK, self.shared.writeback());
        self.shared.held.save(&mut fields, HELD);
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, 1..=VERSION)?;
        let (sectors, id) = (fields.u64(SECTORS)?, fields.array(ID)?);
        let writeback = fields.since(2, WRITEBACK, true, Decoder::bool)?;
        let held =
            fields.since(3, HELD, Vec::new(), |fields, field| Held::read(fields, field, self.queues()))?;
        fields.finish()?;
        // The guest would not notice that it has another disk.
        let reason = "this disk has another";
        if sectors != self.shared.sectors() {
            return Err(StateError::Inconsistent { field: "sectors of the disk", reason });
        }
        if &id != self.id.bytes() {
            return Err(StateError::Inconsistent { field: "id of the disk", reason });
        }
        self.shared.set_writeback(writeback);
        self.shared.held.restore(held);
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.shared.disk.syscalls()
    }

    fn identities(&self) -> Vec<Identity> {
        self.shared.disk.identities()
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        counters::show(&self.counters, &self.shared.host_errors, visitor);
    }
}

impl<D: Disk> Blk<D> {
    /// What an engine tells the VMM: once, however many queues there are.
    fn notices(&self, events: &EventSink) -> EventSink {
        let (shared, events) = (Arc::clone(&self.shared), events.clone());
        EventSink::new(move |event| match event {
            DeviceEvent::HostError { reason } => shared.host_errors.tell(&events, reason),
            other => events.report(other),
        })
    }
}

#[cfg(test)]
mod tests;
