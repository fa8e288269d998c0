//! A page of device registers that the guest reads without an exit: the machine maps it read-only.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::host_page_size;

/// Bytes of registers that a [`RegisterPage`] has room for, on every host.
pub const REGISTER_PAGE_SIZE: usize = 4096;

/// One [page of host memory](host_page_size) that stands behind a device's registers. The device stores what a read of each
/// register answers; a machine that can maps the page read-only into the guest, so that reads cost no exit
/// while writes still reach the device. Stores are atomic, 32 bits wide, and visible to the guest at once.
///
/// The device has its registers in the first [`REGISTER_PAGE_SIZE`] bytes, so that what a guest sees of it is the same
/// on every host. What follows on hosts with larger pages reads as zero in the guest.
#[derive(Debug)]
pub struct RegisterPage {
    base: NonNull<AtomicU32>,
    /// Keeps it mapped.
    _mapping: Arc<Mapping>,
}

// SAFETY: the page is only reached through atomics, and its mapping lives as long as the value.
unsafe impl Send for RegisterPage {}
// SAFETY: as above.
unsafe impl Sync for RegisterPage {}

/// So many pages of zeros at first, one behind the other.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: it is only mapped and unmapped.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping touches no memory that exists.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, rights, kind, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast())
            .map(|base| Self { base, len })
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no page that lies in it is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl RegisterPage {
    /// A page of zeros.
    pub fn new() -> io::Result<Self> {
        Self::several(1)?.pop().ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// `count` pages of zeros in one mapping, which lasts as long as any of them.
    pub fn several(count: usize) -> io::Result<Vec<Self>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let page = host_page_size();
        let len = count.checked_mul(page).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Arc::new(Mapping::new(len)?);
        let page_at = |index: usize| {
            // SAFETY: the page lies in the mapping.
            let base = unsafe { mapping.base.add(index * page) };
            Self { base: base.cast(), _mapping: Arc::clone(&mapping) }
        };
        Ok((0..count).map(page_at).collect())
    }

    fn word(&self, offset: usize) -> Option<&AtomicU32> {
        if !offset.is_multiple_of(4) || offset >= REGISTER_PAGE_SIZE {
            return None;
        }
        // SAFETY: the word lies in the page, which is mapped, aligned and zero-initialized.
        Some(unsafe { self.base.add(offset / 4).as_ref() })
    }

    /// Stores the 32-bit register at `offset` bytes; an offset that is not a multiple of 4 or outside the page stores nothing.
    pub fn store(&self, offset: usize, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::Release);
        }
    }

    /// What the guest reads at `offset` bytes; all ones for an offset that is not a multiple of 4 or outside the page.
    pub fn load(&self, offset: usize) -> u32 {
        self.word(offset).map_or(u32::MAX, |word| word.load(Ordering::Acquire))
    }

    /// Sets `bits` of the 32-bit register at `offset` bytes in one step, and returns what it was; all ones, and nothing
    /// changes, for an offset that is not a multiple of 4 or outside the page.
    pub fn fetch_or(&self, offset: usize, bits: u32) -> u32 {
        self.word(offset).map_or(u32::MAX, |word| word.fetch_or(bits, Ordering::AcqRel))
    }

    /// Clears all but `bits` of the 32-bit register at `offset` bytes in one step, and returns what it was; all ones,
    /// and nothing changes, for an offset that is not a multiple of 4 or outside the page.
    pub fn fetch_and(&self, offset: usize, bits: u32) -> u32 {
        self.word(offset).map_or(u32::MAX, |word| word.fetch_and(bits, Ordering::AcqRel))
    }

    /// Where the page is in this process, for the machine to map it.
    pub fn host_address(&self) -> u64 {
        self.base.as_ptr() as u64
    }
}

#[cfg(test)]
mod tests;
