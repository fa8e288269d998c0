//! What a request can be at most: told to the driver in configuration space, and checked for each request.

/// Bytes in a sector: the unit of every position and length that the driver names.
pub(crate) const SECTOR: u64 = 512;
/// Entries of the queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Data segments of a request: without indirect descriptors, the header and the status take two of the queue.
pub(super) const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of a data segment.
pub(super) const SIZE_MAX: u32 = 1 << 20;
