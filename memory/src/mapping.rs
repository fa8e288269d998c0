//! Host address space behind guest RAM: mapped once, unmapped when its last region is gone.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use vm_memory::FileOffset;
use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::MmapRegion;

use crate::host_page_size;
use crate::ranges::Ranges;

/// Size of the pages that transparent huge pages are made of. A mapping that begins on such a boundary, as
/// guest addresses do, lets host and guest agree on them.
const THP_SIZE: usize = 2 << 20;

/// Into how many private pieces of files a mapping is cut before what is discarded within one is overwritten
/// instead: a guest chooses what is discarded, and the host's kernel limits the mappings of a process (65530).
const MAX_FILE_PIECES: usize = 1024;

pub(crate) const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_NORESERVE;

/// A failed system call.
pub(crate) type CallError = (&'static str, io::Error);

/// What the memory of a mapping is.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Private and zero.
    Anonymous,
    /// The process's own copy of a file's bytes.
    Private {
        /// The file.
        file: Arc<File>,
        /// Of the mapping's first byte in the file.
        offset: u64,
    },
    /// A file that others may see, too.
    Shared {
        /// The file.
        file: Arc<File>,
        /// Of the mapping's first byte in the file.
        offset: u64,
        /// Made of pages from a pool, which are reserved when they are mapped.
        huge: bool,
        /// Made for this mapping, and not the caller's.
        own: bool,
    },
    /// Somebody else's mapping.
    Foreign(Foreign),
}

/// What a mapping is of that somebody else has made.
pub(crate) struct Foreign {
    /// Keeps it mapped.
    owner: Arc<dyn Any + Send + Sync>,
    /// What the pages are, in the terms of mmap(2).
    pub(crate) flags: i32,
    /// The file that is shared, and the offset of the mapping's first byte in it.
    pub(crate) file: Option<FileOffset>,
    /// Made of pages from a pool.
    pub(crate) huge: bool,
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Foreign")
            .field("flags", &self.flags)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// What the host's kernel is asked to do with the pages of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Make transparent huge pages of them.
    pub(crate) thp: bool,
    /// Take all of them now.
    pub(crate) prefault: bool,
    /// Let core dumps contain them.
    pub(crate) dump: bool,
}

/// `len` bytes at `base`, ours from `start` on for `total` bytes. Reached through raw pointers only.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    total: usize,
    base: NonNull<u8>,
    len: usize,
    kind: Kind,
    options: Options,
    /// Where private copies of files are mapped. Held while these places change.
    file_pieces: Mutex<Ranges>,
    /// How many hold its pages. Held while pages are given back or mapped over.
    held: RwLock<usize>,
}

// SAFETY: the pointers name memory of the process, not of a thread, and the other state is Send.
unsafe impl Send for Mapping {}
// SAFETY: as above; what changes is behind a mutex.
unsafe impl Sync for Mapping {}

fn check(call: &'static str, result: i32) -> Result<(), CallError> {
    if result == 0 { Ok(()) } else { Err((call, io::Error::last_os_error())) }
}

/// Fails if this process may have no file of `len` bytes: the kernel would send SIGXFSZ, which ends a process that does
/// not expect it.
fn check_file_size(len: u64) -> Result<(), CallError> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is valid for the call, which fills it.
    check("getrlimit", unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) })?;
    if len > limit.rlim_cur {
        let what = format!("a file of this process has at most {} bytes (ulimit -f)", limit.rlim_cur);
        return Err(("ftruncate", io::Error::new(io::ErrorKind::FileTooLarge, what)));
    }
    Ok(())
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
    check_file_size(len)?;
    file.set_len(len).map_err(|e| ("ftruncate", e))?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: this command of fcntl takes an integer.
    check("fcntl", unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) })?;
    Ok(file)
}

impl Mapping {
    /// Maps `len` bytes. Anonymous memory is aligned for transparent huge pages; the kernel aligns a file as its
    /// pages need it. Takes no memory, unless it is to be prefaulted; pages from a pool are reserved.
    pub(crate) fn new(kind: Kind, len: usize, options: Options) -> Result<Self, CallError> {
        let slack = match kind {
            Kind::Anonymous if len >= THP_SIZE => THP_SIZE.saturating_sub(host_page_size()),
            _ => 0,
        };
        let total = len.saturating_add(slack);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let start = unsafe { mmap(null_mut(), total, kind.flags(), kind.file()) }?;
        let start = NonNull::new(start).ok_or_else(|| ("mmap", io::ErrorKind::OutOfMemory.into()))?;
        let skip = if slack == 0 { 0 } else { start.as_ptr().align_offset(THP_SIZE) };
        // SAFETY: skip is at most the slack, so that base and the len bytes after it are in the mapping.
        let base = unsafe { start.add(skip.min(slack)) };
        let mut file_pieces = Ranges::default();
        if let Kind::Private { .. } = kind {
            file_pieces.insert(0..len);
        }
        let mapping = Self {
            start,
            total,
            base,
            len,
            kind,
            options,
            file_pieces: Mutex::new(file_pieces),
            held: RwLock::default(),
        };
        if !options.dump {
            // With the slack, which the kernel would have to keep apart.
            // SAFETY: the whole of the new mapping; its contents stay as they are.
            check("madvise", unsafe { libc::madvise(start.as_ptr().cast(), total, libc::MADV_DONTDUMP) })?;
        }
        if options.thp {
            mapping.settle(0, len)?;
        }
        mapping.prefault(0, len)?;
        Ok(mapping)
    }

    /// The memory of a region that somebody else has mapped, which stays mapped as long as this lives.
    ///
    /// Whoever calls this has seen that it can be read and written.
    pub(crate) fn of_region<B: Bitmap + Send + Sync + 'static>(region: Arc<MmapRegion<B>>) -> Option<Self> {
        let (start, len) = (NonNull::new(region.as_ptr())?, region.size());
        let foreign = Foreign {
            flags: region.flags(),
            // Of a private copy, nobody else sees what is written.
            file: region.file_offset().filter(|_| region.flags() & libc::MAP_SHARED != 0).cloned(),
            huge: region.is_hugetlbfs().unwrap_or(false),
            owner: region,
        };
        let options = Options { thp: false, prefault: false, dump: true };
        let (kind, file_pieces) = (Kind::Foreign(foreign), Mutex::default());
        Some(Self {
            start,
            total: len,
            base: start,
            len,
            kind,
            options,
            file_pieces,
            held: RwLock::default(),
        })
    }

    /// What the memory is.
    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Returns true if all of its pages were taken at once.
    pub(crate) fn is_prefaulted(&self) -> bool {
        self.options.prefault
    }

    /// What it is that forbids to [`replace`](Self::replace) a part of it.
    pub(crate) fn irreplaceable(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Shared { huge: true, .. } => Some("made of huge pages"),
            Kind::Shared { .. } => Some("shared"),
            Kind::Foreign(_) => Some("another owner's"),
            _ if self.options.prefault => Some("prefaulted"),
            _ => None,
        }
    }

    /// What it is that forbids to [`discard`](Self::discard) a part of it.
    pub(crate) fn undiscardable(&self) -> Option<&'static str> {
        match self.kind {
            // Nobody promises that the pool still has pages when they are wanted again.
            Kind::Shared { huge: true, .. } => Some("made of huge pages"),
            Kind::Foreign(_) => Some("another owner's"),
            _ => None,
        }
    }

    /// Where the `len` bytes at `offset` are; `None` where they are not all in here.
    pub(crate) fn place(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: the offset was checked to be in the mapping.
        Some(unsafe { self.base.add(offset) })
    }

    /// How far `place`, which is in here, is from the beginning.
    pub(crate) fn offset_of(&self, place: *const u8) -> usize {
        place.addr().wrapping_sub(self.base.addr().get())
    }

    /// Replaces the `len` bytes at `offset` by a private copy of the file's from `file_offset` on, all of them
    /// whole pages: a page becomes the process's own when it is first written. What the kernel is asked to do with
    /// the mapping's pages is to be [settled](Self::settle) afterwards.
    pub(crate) fn replace(
        &self,
        offset: usize,
        len: usize,
        file: &File,
        file_offset: u64,
    ) -> Result<(), CallError> {
        if self.irreplaceable().is_some() {
            return Err(("mmap", io::ErrorKind::InvalidInput.into()));
        }
        let _held = self.let_go(offset, len)?;
        let mut pieces = self.file_pieces();
        self.map_over(offset, len, Some((file, file_offset)))?;
        pieces.insert(offset..offset + len);
        Ok(())
    }

    /// Gives the pages of the `len` bytes at `offset` back to the host: they read as zeros from then on.
    pub(crate) fn discard(&self, offset: usize, len: usize) -> Result<(), CallError> {
        if matches!(self.kind, Kind::Shared { huge: true, .. } | Kind::Foreign(_)) {
            return Err(("madvise", io::ErrorKind::InvalidInput.into()));
        }
        let held = self.let_go(offset, len)?;
        // Given back, they would lose their protection unseen. Zeros they are, and the host has to wait.
        if *held > 0 {
            return Ok(());
        }
        match self.kind {
            Kind::Shared { huge: true, .. } | Kind::Foreign(_) => Ok(()),
            Kind::Shared { .. } => self.advise(offset, len, libc::MADV_REMOVE),
            Kind::Anonymous | Kind::Private { .. } => {
                let end = offset.saturating_add(len).min(self.len);
                let mut pieces = self.file_pieces();
                for (range, of_file) in pieces.cut(offset..end) {
                    let (start, len) = (range.start, range.len());
                    if !of_file {
                        self.advise(start, len, libc::MADV_DONTNEED)?;
                    } else if pieces.count() < MAX_FILE_PIECES && self.map_over(start, len, None).is_ok() {
                        pieces.remove(range);
                        self.settle(start, len)?;
                    } else {
                        self.fill_with_zeros(start, len)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Makes the `len` bytes at `offset` what they were when they were mapped: zeros, or what the file says of which they
    /// are a private copy. Returns `false` where they are a file of somebody else's, which stays as it is.
    pub(crate) fn clear(&self, offset: usize, len: usize) -> Result<bool, CallError> {
        match &self.kind {
            Kind::Shared { own: false, .. } => return Ok(false),
            Kind::Foreign(Foreign { flags, .. }) if flags & libc::MAP_ANONYMOUS == 0 => return Ok(false),
            _ => {}
        }
        let _held = self.let_go(offset, len)?;
        match &self.kind {
            Kind::Foreign(_) => self.zero(offset, len)?,
            // Given back to the pool, they may be gone when they are next touched.
            Kind::Shared { huge: true, .. } => self.fill_with_zeros(offset, len)?,
            Kind::Shared { .. } => self.advise(offset, len, libc::MADV_REMOVE)?,
            Kind::Anonymous | Kind::Private { .. } => {
                let mut pieces = self.file_pieces();
                let file = self.kind.file().map(|(file, start)| (file, start.saturating_add(offset as u64)));
                self.map_over(offset, len, file)?;
                let range = offset..offset.saturating_add(len);
                if file.is_some() {
                    pieces.insert(range)
                } else {
                    pieces.remove(range)
                }
                self.settle(offset, len)?;
            }
        }
        self.prefault(offset, len).map(|()| true)
    }

    /// Makes the `len` bytes at `offset` zeros, whosever they are. The host has the pages back where it takes them.
    ///
    /// These are never held.
    pub(crate) fn zero(&self, offset: usize, len: usize) -> Result<(), CallError> {
        let private = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;
        let taken = match &self.kind {
            Kind::Foreign(Foreign { flags, huge: false, .. }) if flags & private == private => {
                self.advise(offset, len, libc::MADV_DONTNEED)
            }
            Kind::Shared { huge: false, .. } => self.advise(offset, len, libc::MADV_REMOVE),
            _ => return self.fill_with_zeros(offset, len),
        };
        // Locked pages, and file systems without holes.
        taken.or_else(|_| self.fill_with_zeros(offset, len))
    }

    /// Has pages written before they are given back or mapped over, as long as this is in force: whoever has protected
    /// them sees the write first.
    pub(crate) fn hold(&self) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    /// Ends one [`hold`](Self::hold).
    pub(crate) fn unhold(&self) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        *held = held.saturating_sub(1);
    }

    /// The pages are about to be given back or mapped over, and are written first if somebody holds them.
    fn let_go(&self, offset: usize, len: usize) -> Result<RwLockReadGuard<'_, usize>, CallError> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        if *held > 0 {
            self.fill_with_zeros(offset, len)?;
        }
        Ok(held)
    }

    /// Asks the kernel to treat the `len` bytes at `offset`, which were mapped anew, as the options say.
    pub(crate) fn settle(&self, offset: usize, len: usize) -> Result<(), CallError> {
        if !self.options.dump {
            self.advise(offset, len, libc::MADV_DONTDUMP)?;
        }
        if self.options.thp && !matches!(self.kind, Kind::Shared { huge: true, .. }) {
            self.advise(offset, len, libc::MADV_HUGEPAGE)?;
        }
        Ok(())
    }

    fn prefault(&self, offset: usize, len: usize) -> Result<(), CallError> {
        if self.options.prefault { self.advise(offset, len, libc::MADV_POPULATE_WRITE) } else { Ok(()) }
    }

    fn file_pieces(&self) -> MutexGuard<'_, Ranges> {
        self.file_pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the `len` bytes at `offset`, whole pages of memory that is not shared, by a private copy of the
    /// file's from there on, or by zeros. After an error, they are what they were, or zeros.
    fn map_over(&self, offset: usize, len: usize, file: Option<(&File, u64)>) -> Result<(), CallError> {
        let whole = (offset | len).is_multiple_of(host_page_size());
        let private = matches!(self.kind, Kind::Anonymous | Kind::Private { .. });
        let Some(place) = self.place(offset, len).filter(|_| whole && private).map(NonNull::as_ptr) else {
            return Err(("mmap", io::ErrorKind::InvalidInput.into()));
        };
        let anonymous = PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let flags = if file.is_some() { PRIVATE | libc::MAP_FIXED } else { anonymous };
        // SAFETY: the place was checked to be whole pages of this mapping, which is ours, and private, so that
        // nobody else expects to see what is written to it. It is reached through raw pointers only, which stay
        // valid; for them it is as if the guest had written.
        let Err(error) = (unsafe { mmap(place, len, flags, file) }) else { return Ok(()) };
        // Most errors, such as of a process that has too many mappings, come before anything has changed. msync(2)
        // does nothing to private memory, and fails where none is mapped.
        // SAFETY: the kernel only looks at what is mapped.
        if unsafe { libc::msync(place.cast(), len, libc::MS_ASYNC) } == 0 {
            return Err(error);
        }
        // The kernel gave up the old pages before the file system refused.
        // SAFETY: as above.
        if unsafe { mmap(place, len, anonymous, None) }.is_err() {
            // Whatever is mapped there next would be taken for guest memory. No error can make that sound.
            std::process::abort();
        }
        Err(error)
    }

    fn fill_with_zeros(&self, offset: usize, len: usize) -> Result<(), CallError> {
        let place = self.place(offset, len).ok_or_else(|| ("memset", io::ErrorKind::InvalidInput.into()))?;
        // SAFETY: the range was checked to be ours, and no Rust reference can point into guest memory.
        unsafe { place.write_bytes(0, len) };
        Ok(())
    }

    /// madvise(2) for the `len` bytes at `offset`.
    fn advise(&self, offset: usize, len: usize, advice: i32) -> Result<(), CallError> {
        let place = self.place(offset, len).ok_or_else(|| ("madvise", io::ErrorKind::InvalidInput.into()))?;
        loop {
            // SAFETY: the range was checked to be ours. Advice changes what the kernel does behind the pages, or
            // their contents, as if the guest had written.
            match check("madvise", unsafe { libc::madvise(place.as_ptr().cast(), len, advice) }) {
                Err((_, e)) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl Kind {
    fn flags(&self) -> i32 {
        match self {
            Self::Anonymous => PRIVATE | libc::MAP_ANONYMOUS,
            Self::Private { .. } => PRIVATE,
            // Without a reservation, an empty pool would end the process when a page is touched.
            Self::Shared { huge: true, .. } => libc::MAP_SHARED,
            Self::Shared { .. } => libc::MAP_SHARED | libc::MAP_NORESERVE,
            Self::Foreign(foreign) => foreign.flags,
        }
    }

    fn file(&self) -> Option<(&File, u64)> {
        match self {
            Self::Anonymous | Self::Foreign(_) => None,
            Self::Private { file, offset } | Self::Shared { file, offset, .. } => Some((file, *offset)),
        }
    }
}

/// Maps `len` bytes, from the offset in the file on if there is one.
///
/// # Safety
/// With `MAP_FIXED`, what is at `place` is lost: it must be in one [`Mapping`], and private.
unsafe fn mmap(
    place: *mut u8,
    len: usize,
    flags: i32,
    file: Option<(&File, u64)>,
) -> Result<*mut u8, CallError> {
    let (fd, offset) = file.map_or((-1, 0), |(file, offset)| (file.as_raw_fd(), offset));
    let Ok(offset) = libc::off_t::try_from(offset) else {
        return Err(("mmap", io::ErrorKind::InvalidInput.into()));
    };
    // SAFETY: without MAP_FIXED, the kernel chooses a place where nothing is; with it, the caller's promise.
    let start = unsafe { libc::mmap(place.cast(), len, PROT, flags, fd, offset) };
    if start == libc::MAP_FAILED { Err(("mmap", io::Error::last_os_error())) } else { Ok(start.cast()) }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Kind::Foreign(Foreign { owner, .. }) = &self.kind {
            // It unmaps what it has mapped when the last of those who have it lets go.
            let _: &Arc<_> = owner;
            return;
        }
        // SAFETY: the mapping is ours, and every region in it holds a reference to this value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.total) };
    }
}
