//! Configuration space: `struct virtio_blk_config` (virtio 1.2, section 5.2.4) up to the last field of a feature that is
//! offered.

use super::limits::{MAX_DISCARD, MAX_WRITE_ZEROES, SECTOR, SEG_MAX, SIZE_MAX};

pub(super) const LEN: usize = 60;
/// Where `writeback` is, the only field that the driver may write.
pub(super) const WRITEBACK: u32 = 32;

/// What the fields depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Bytes.
    pub logical_block: u32,
    /// Bytes.
    pub physical_block: u32,
    pub writeback: bool,
    pub queues: u16,
}

impl Config {
    pub(super) fn bytes(self) -> [u8; LEN] {
        // A physical block is a power of two of logical ones.
        let exponent = (self.physical_block / self.logical_block.max(1)).max(1).ilog2();
        let mut config = [0; LEN];
        let fields: [(usize, &[u8]); 14] = [
            (0, &self.sectors.to_le_bytes()),
            (8, &SIZE_MAX.to_le_bytes()),
            (12, &SEG_MAX.to_le_bytes()),
            (20, &self.logical_block.to_le_bytes()),
            (24, &[exponent as u8]),
            // The least good size of a request, in logical blocks.
            (26, &(1u16 << exponent.min(15)).to_le_bytes()),
            (WRITEBACK as usize, &[self.writeback.into()]),
            (34, &self.queues.to_le_bytes()),
            (36, &MAX_DISCARD.to_le_bytes()),
            (40, &1u32.to_le_bytes()),
            (44, &(self.physical_block / SECTOR as u32).to_le_bytes()),
            (48, &MAX_WRITE_ZEROES.to_le_bytes()),
            (52, &1u32.to_le_bytes()),
            // `write_zeroes_may_unmap`
            (56, &[1]),
        ];
        for (offset, value) in fields {
            for (to, from) in config.iter_mut().skip(offset).zip(value) {
                *to = *from;
            }
        }
        config
    }
}
