//! RAM that the guest does not need, given back to the host.

use std::io;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::{DirtyBitmap, Dma, DmaError, host_page_size};

/// Why guest memory cannot be given back to the host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscardError {
    /// The guest's mistake: the range is not RAM.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// The range does not consist of whole pages of the host.
    #[error("guest memory {addr:#x}+{len:#x} is not a range of whole pages of {page_size} bytes")]
    Misaligned {
        /// First byte.
        addr: u64,
        /// Length in bytes.
        len: u64,
        /// Bytes in a page.
        page_size: u64,
    },
    /// Guest memory is not of the kind that can be given back.
    #[error("guest memory that is {is} cannot be given back to the host")]
    Backing {
        /// What it is.
        is: &'static str,
    },
    /// The host's kernel refused. Some of the range may have been given back.
    #[error("{call} failed: {source}")]
    Host {
        /// The system call.
        call: &'static str,
        /// What it returned.
        source: io::Error,
    },
}

impl Dma {
    /// Gives the memory behind `len` bytes from `addr` back to the host: it reads as zero from then on, and is taken from
    /// the host again where the guest or a device next writes. Both are multiples of [`host_page_size`]. For balloons,
    /// free page reporting and RAM that was unplugged.
    ///
    /// Private memory is dropped; so are pages that show a [file](crate::map_file) or a private copy of one. If that
    /// would cut a slot into very many mappings, what is left of the file is overwritten with zeros instead. In shared
    /// files, a hole is punched, also for everybody else who has the file mapped. Pages from a pool cannot be given
    /// back: they may be gone when the guest wants them again, which would end the process. To a
    /// [`DirtyLog`](crate::DirtyLog), it is a write of the range.
    ///
    /// ```
    /// use ossature_memory::{Ram, RamConfig, host_page_size, vm_memory::GuestAddress};
    ///
    /// let dma = Ram::new(&RamConfig::new(1 << 20))?.dma();
    /// dma.write(GuestAddress(0x1_0000), b"not needed")?;
    /// dma.discard(GuestAddress(0x1_0000), host_page_size() as u64)?;
    /// assert_eq!(dma.read_obj::<u8>(GuestAddress(0x1_0000))?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn discard(&self, addr: GuestAddress, len: u64) -> Result<(), DiscardError> {
        let page_size = host_page_size() as u64;
        if !(addr.0 | len).is_multiple_of(page_size) {
            return Err(DiscardError::Misaligned { addr: addr.0, len, page_size });
        }
        self.check(addr, len)?;
        // All of it is checked before anything is changed.
        for change in [false, true] {
            let (mut at, mut left) = (addr, len);
            while left != 0 {
                let not_ram = DmaError::NotRam { addr: at.0, len: left };
                let region = self.memory().find_region(at).ok_or(not_ram)?;
                let offset = at.0 - region.start_addr().0;
                let piece = left.min(region.len() - offset);
                discard_piece(region, offset as usize, piece as usize, change)?;
                left -= piece;
                at = GuestAddress(at.0.wrapping_add(piece));
            }
        }
        Ok(())
    }
}

/// Gives back `len` bytes at `offset` of the region, or says why that cannot be done.
fn discard_piece(
    region: &GuestRegionMmap<DirtyBitmap>,
    offset: usize,
    len: usize,
    change: bool,
) -> Result<(), DiscardError> {
    let bitmap = (**region).bitmap();
    let mapping = bitmap.mapping().ok_or(DiscardError::Backing { is: "not made by this crate" })?;
    if let Some(is) = mapping.undiscardable() {
        return Err(DiscardError::Backing { is });
    }
    if !change {
        return Ok(());
    }
    let start = mapping.offset_of(region.as_ptr()) + offset;
    let result = mapping.discard(start, len);
    // Also after an error, which may have come halfway.
    bitmap.mark_dirty(offset, len);
    result.map_err(|(call, source)| DiscardError::Host { call, source })
}

#[cfg(test)]
mod tests;
