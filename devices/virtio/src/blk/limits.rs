//! What a request can be at most: told to the driver in configuration space, and checked for each request.

/// Bytes in a sector: the unit of every position and length that the driver names.
pub(crate) const SECTOR: u64 = 512;
/// Entries of each queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Queues at most.
pub(super) const MAX_QUEUES: u16 = 256;
/// Data segments of a request: without indirect descriptors, the header and the status take two of the queue.
pub(super) const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of a data segment.
pub(super) const SIZE_MAX: u32 = 1 << 20;
/// The longest transfer that a driver can ask for within SEG_MAX and SIZE_MAX. A longer one is refused: it would
/// hold up every device on the same thread.
pub(super) const MAX_REQUEST: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// Sectors that a request discards: 2 GiB.
pub(super) const MAX_DISCARD: u32 = 1 << 22;
/// Sectors that a request makes zeros, which the host may have to write: 64 MiB.
pub(super) const MAX_WRITE_ZEROES: u32 = 1 << 17;
