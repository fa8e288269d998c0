//! Files mapped over guest RAM instead of being copied into it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::mapping::Mapping;
use crate::{GuestMmap, host_page_size};

/// Bytes of a file, and where in guest memory they are to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePiece {
    /// The first byte in guest memory, on a page boundary.
    pub addr: GuestAddress,
    /// The first byte in the file, on a page boundary.
    pub offset: u64,
    /// How many bytes. What is left of the last page shows what follows in the file, or zeros behind its end.
    pub len: u64,
}

/// Why a file cannot be mapped over guest memory. Nothing but the pieces before the failing one has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapFileError {
    /// A piece that does not begin with a page of both.
    #[error("byte {offset:#x} of the file cannot be mapped at {addr:#x}: both have to begin a page")]
    Misaligned {
        /// Guest-physical address.
        addr: u64,
        /// Byte of the file.
        offset: u64,
    },
    /// The place is not RAM in one piece.
    #[error("guest memory {addr:#x}+{len:#x} is not RAM in one piece")]
    NotRam {
        /// First byte.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Guest memory is not of the kind whose pages can be replaced.
    #[error("no file can be mapped over guest memory that is {is}: only over private memory of base pages")]
    Backing {
        /// What it is instead.
        is: &'static str,
    },
    /// The file ends inside a piece: reading there would end the process.
    #[error("the file has {has} bytes, {needs} are to be mapped")]
    Truncated {
        /// Where the last piece ends in the file.
        needs: u64,
        /// Its length in bytes.
        has: u64,
    },
    /// The host's kernel refused.
    #[error("{call} failed: {source}")]
    Host {
        /// The system call.
        call: &'static str,
        /// What it returned.
        source: io::Error,
    },
}

/// Maps pieces of a file over guest RAM that [`Ram`](crate::Ram) made, copy on write: no byte is copied before a
/// page of it is written, and what is only read is shared with the page cache and with all other guests.
///
/// The price is that the file has to stay as it is. The guest sees later changes to it in pages that nobody has
/// written yet, and a file that becomes shorter ends the *process* with `SIGBUS` when what is missing is touched.
/// A file that is replaced by another one of the same name (`rename`), as package managers do, is safe.
///
/// Only private memory of base pages can be replaced: not a memfd that other processes see, not huge pages, and
/// not what was prefaulted. Transparent huge pages are possible, but not within the pieces. To a
/// [`DirtyBitmap`](crate::DirtyBitmap) it is a write of whole pages. Moves the file's cursor.
///
/// ```
/// # use std::io::Write;
/// use ossature_memory::{FilePiece, Ram, RamConfig, map_file, vm_memory::GuestAddress};
///
/// let mut file = tempfile::tempfile()?;
/// file.write_all(&[7; 0x1800])?;
/// let ram = Ram::new(&RamConfig::new(1 << 20))?;
/// map_file(&ram.map(), &file, &[FilePiece { addr: GuestAddress(0x4000), offset: 0x1000, len: 0x800 }])?;
/// assert_eq!(ram.dma().read_obj::<[u8; 2]>(GuestAddress(0x47ff))?, [7, 0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn map_file(mem: &GuestMmap, mut file: &File, pieces: &[FilePiece]) -> Result<(), MapFileError> {
    let host = |(call, source)| MapFileError::Host { call, source };
    let page = host_page_size() as u64;
    // What was replaced of each mapping, from the first to the last byte.
    let mut replaced: Vec<(Arc<Mapping>, Range<usize>)> = Vec::new();
    for piece in pieces {
        let FilePiece { addr: GuestAddress(addr), offset, len } = *piece;
        if (addr | offset) % page != 0 {
            return Err(MapFileError::Misaligned { addr, offset });
        }
        let not_ram = || MapFileError::NotRam { addr, len };
        let region = mem.find_region(piece.addr).ok_or_else(not_ram)?;
        let at = addr - region.start_addr().0;
        let whole = len.checked_next_multiple_of(page).filter(|&whole| whole <= region.len() - at);
        let whole = whole.ok_or_else(not_ram)? as usize;
        let bitmap = (**region).bitmap();
        let Some(mapping) = bitmap.mapping() else {
            return Err(MapFileError::Backing { is: "not made by this crate" });
        };
        if let Some(is) = mapping.irreplaceable() {
            return Err(MapFileError::Backing { is });
        }
        if whole == 0 {
            continue;
        }
        let start = mapping.offset_of(region.as_ptr()) + at as usize;
        let place = start..start + whole;
        mapping.replace(start, whole, file, offset).map_err(host)?;
        bitmap.mark_dirty(at as usize, whole);
        match replaced.iter_mut().find(|(other, _)| Arc::ptr_eq(other, mapping)) {
            Some((_, all)) => *all = all.start.min(place.start)..all.end.max(place.end),
            None => replaced.push((mapping.clone(), place)),
        }
    }
    for (mapping, all) in replaced {
        mapping.settle(all.start, all.len()).map_err(host)?;
    }
    // Only now, so that nobody can shorten it in between.
    let has = file.seek(SeekFrom::End(0)).map_err(|source| host(("lseek", source)))?;
    let needs = pieces.iter().map(|piece| piece.offset.saturating_add(piece.len)).max().unwrap_or_default();
    if needs <= has { Ok(()) } else { Err(MapFileError::Truncated { needs, has }) }
}

#[cfg(test)]
mod tests;
