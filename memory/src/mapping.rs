//! Host address space behind guest RAM: mapped once, unmapped when its last region is gone.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use crate::dirty::DirtyBitmap;

/// Size of the pages that transparent huge pages are made of. A mapping that begins on such a boundary, as
/// guest addresses do, lets host and guest agree on them.
const THP_SIZE: usize = 2 << 20;

const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// A failed system call.
pub(crate) type CallError = (&'static str, io::Error);

/// `len` bytes at `base`, ours from `start` on for `total` bytes. Reached through raw pointers only.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    total: usize,
    base: NonNull<u8>,
    len: usize,
    file: Option<Arc<File>>,
    huge: bool,
    dumped: bool,
    prefaulted: bool,
}

// SAFETY: the pointers name memory of the process, not of a thread, and the value has no other state.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

fn check(call: &'static str, result: i32) -> Result<(), CallError> {
    if result == 0 { Ok(()) } else { Err((call, io::Error::last_os_error())) }
}

/// A sealed memory file of `len` bytes that no peer can resize. `huge` is the logarithm of its page size.
pub(crate) fn memfd(len: u64, huge: Option<u32>) -> Result<File, CallError> {
    let huge = huge.map_or(0, |log| libc::MFD_HUGETLB | log << libc::MFD_HUGE_SHIFT);
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | huge;
    // SAFETY: the name is a C string, and the call touches no other memory.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) };
    if fd < 0 {
        return Err(("memfd_create", io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).map_err(|e| ("ftruncate", e))?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: this command of fcntl takes an integer.
    check("fcntl", unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) })?;
    Ok(file)
}

impl Mapping {
    /// `len` bytes of private memory, aligned for transparent huge pages. Reserves address space only.
    pub(crate) fn anonymous(len: usize) -> Result<Self, CallError> {
        let slack = if len >= THP_SIZE { THP_SIZE - crate::PAGE_SIZE } else { 0 };
        let total = len.saturating_add(slack);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let start = Self::mmap(total, flags, -1)?;
        let skip = if slack == 0 { 0 } else { start.as_ptr().align_offset(THP_SIZE) };
        // SAFETY: skip is at most the slack, so that base and the len bytes after it are in the mapping.
        let base = unsafe { start.add(skip.min(slack)) };
        Ok(Self { start, total, base, len, file: None, huge: false, dumped: true, prefaulted: false })
    }

    /// The first `len` bytes of `file`, shared. The kernel aligns them as the file's pages need it. Where the
    /// file consists of `huge` pages, they are reserved now; others are taken when they are touched.
    pub(crate) fn shared(file: File, len: usize, huge: bool) -> Result<Self, CallError> {
        let reserve = if huge { 0 } else { libc::MAP_NORESERVE };
        let start = Self::mmap(len, libc::MAP_SHARED | reserve, file.as_raw_fd())?;
        Ok(Self {
            start,
            total: len,
            base: start,
            len,
            file: Some(Arc::new(file)),
            huge,
            dumped: true,
            prefaulted: false,
        })
    }

    fn mmap(len: usize, flags: i32, fd: i32) -> Result<NonNull<u8>, CallError> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let start = unsafe { libc::mmap(null_mut(), len, PROT, flags, fd, 0) };
        match NonNull::new(start) {
            Some(new) if start != libc::MAP_FAILED => Ok(new.cast()),
            _ => Err(("mmap", io::Error::last_os_error())),
        }
    }

    /// What it is that forbids to [`replace`](Self::replace) a part of it.
    pub(crate) fn irreplaceable(&self) -> Option<&'static str> {
        match self {
            Self { huge: true, .. } => Some("made of huge pages"),
            Self { file: Some(_), .. } => Some("shared"),
            Self { prefaulted: true, .. } => Some("prefaulted"),
            _ => None,
        }
    }

    /// How far `place`, which is in here, is from the beginning.
    pub(crate) fn offset_of(&self, place: *const u8) -> usize {
        place.addr().wrapping_sub(self.base.addr().get())
    }

    /// Replaces the `len` bytes at `offset` by a private copy of the file's from `file_offset` on, all of them
    /// whole pages: a page becomes the process's own when it is first written. What a core dump contains of the
    /// mapping is to be [settled](Self::settle_dump) afterwards.
    pub(crate) fn replace(
        &self,
        offset: usize,
        len: usize,
        file: &File,
        file_offset: u64,
    ) -> Result<(), CallError> {
        let outside = offset.checked_add(len).is_none_or(|end| end > self.len);
        let Some(file_offset) = libc::off_t::try_from(file_offset).ok().filter(|_| !outside) else {
            return Err(("mmap", io::ErrorKind::InvalidInput.into()));
        };
        if self.irreplaceable().is_some() || !(offset | len).is_multiple_of(crate::PAGE_SIZE) {
            return Err(("mmap", io::ErrorKind::InvalidInput.into()));
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let place = self.base.as_ptr().wrapping_add(offset).cast();
        // SAFETY: the place was checked to be whole pages of this mapping, which is ours, and private, so that
        // nobody else expects to see what is written to it. It is reached through raw pointers only, which stay
        // valid; for them it is as if the guest had written.
        if unsafe { libc::mmap(place, len, PROT, flags, file.as_raw_fd(), file_offset) } != libc::MAP_FAILED {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        // The kernel may have given up the old pages before the file system refused.
        let flags = flags | libc::MAP_ANONYMOUS;
        // SAFETY: as above.
        if unsafe { libc::mmap(place, len, PROT, flags, -1, 0) } == libc::MAP_FAILED {
            // Whatever is mapped there next would be taken for guest memory. No error can make that sound.
            std::process::abort();
        }
        Err(("mmap", error))
    }

    /// Keeps all of it out of core dumps, from now on.
    pub(crate) fn leave_out_of_dumps(&mut self) -> Result<(), CallError> {
        self.dumped = false;
        self.advise(libc::MADV_DONTDUMP)
    }

    /// Gives to the `len` bytes at `offset`, some of which [`replace`](Self::replace) has put there, the place in
    /// core dumps, or none, that the rest has.
    pub(crate) fn settle_dump(&self, offset: usize, len: usize) -> Result<(), CallError> {
        if self.dumped { Ok(()) } else { self.advise_range(offset, len, libc::MADV_DONTDUMP) }
    }

    /// Takes all of it from the host now.
    pub(crate) fn prefault(&mut self) -> Result<(), CallError> {
        self.prefaulted = true;
        self.advise(libc::MADV_POPULATE_WRITE)
    }

    /// madvise(2) for all of it.
    pub(crate) fn advise(&self, advice: i32) -> Result<(), CallError> {
        self.advise_range(0, self.len, advice)
    }

    fn advise_range(&self, offset: usize, len: usize, advice: i32) -> Result<(), CallError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(("madvise", io::ErrorKind::InvalidInput.into()));
        }
        let start = self.base.as_ptr().wrapping_add(offset).cast();
        loop {
            // SAFETY: the range was checked to be ours. The callers' advice changes what the kernel does behind
            // the pages, or fills them; it never drops or replaces their contents.
            match check("madvise", unsafe { libc::madvise(start, len, advice) }) {
                Err((_, e)) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// The `len` bytes at `offset` as guest memory at `guest`; `None` where they are not all in here, or would
    /// end beyond the guest's address space.
    pub(crate) fn region(
        self: &Arc<Self>,
        offset: usize,
        len: usize,
        guest: u64,
    ) -> Option<GuestRegionMmap<DirtyBitmap>> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return None;
        }
        let shared =
            if self.file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
        let mut builder = MmapRegionBuilder::new_with_bitmap(len, DirtyBitmap::of(self.clone(), len))
            .with_mmap_prot(PROT)
            .with_mmap_flags(shared)
            .with_hugetlbfs(self.huge);
        if let Some(file) = &self.file {
            builder = builder.with_file_offset(FileOffset::from_arc(file.clone(), offset as u64));
        }
        // SAFETY: the range was checked to be in the mapping, and the mapping lives as long as the bitmap, which
        // the region owns.
        let builder = unsafe { builder.with_raw_mmap_pointer(self.base.as_ptr().add(offset)) };
        let region: MmapRegion<DirtyBitmap> = builder.build().ok()?;
        GuestRegionMmap::new(region, GuestAddress(guest))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every region in it holds a reference to this value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.total) };
    }
}
