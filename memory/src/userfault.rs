//! Page faults of guest memory that this process serves itself: userfaultfd(2).

use std::fs::File;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vm_memory::GuestAddress;

use crate::mapping::{Kind, Mapping};
use crate::{RamSlot, host_page_size};

/// Why this process cannot serve page faults of guest memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserfaultError {
    /// The process may not.
    #[error(
        "userfaultfd is not permitted: open access to /dev/userfaultfd for this user, set \
         vm.unprivileged_userfaultfd to 1, or give the process CAP_SYS_PTRACE: {source}"
    )]
    Forbidden {
        /// What the kernel says.
        source: io::Error,
    },
    /// The host's kernel has no userfaultfd, or a filter hides it.
    #[error("the host's kernel has no userfaultfd (CONFIG_USERFAULTFD): {source}")]
    Missing {
        /// What the kernel says.
        source: io::Error,
    },
    /// The host's kernel lacks what is needed.
    #[error("the host's kernel lacks {what} of userfaultfd")]
    Feature {
        /// What.
        what: &'static str,
    },
    /// Guest memory is of a kind whose faults cannot be served.
    #[error("page faults of guest memory that is {is} cannot be served")]
    Backing {
        /// What it is.
        is: &'static str,
    },
    /// The range is not whole pages of a slot.
    #[error("guest memory {addr:#x}+{len:#x} is not a range of whole pages of one slot")]
    Range {
        /// First byte.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The host's kernel refused.
    #[error("{call} failed: {source}")]
    Host {
        /// The call.
        call: &'static str,
        /// What it returned.
        source: io::Error,
    },
}

/// Which faults are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UserfaultMode {
    /// Accesses to pages that are not there: they are [copied](Userfault::copy) in when they are first touched.
    Missing,
    /// Writes to pages that are [protected](Userfault::protect).
    WriteProtected,
}

/// What happened to guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UserfaultEvent {
    /// A thread waits for the page at this address.
    Fault {
        /// The first byte of the page.
        addr: GuestAddress,
    },
    /// Pages are given back to the host: they are to be zero when they are next touched.
    Removed {
        /// The first byte.
        addr: GuestAddress,
        /// Length in bytes.
        len: u64,
    },
}

/// How far a call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Filled {
    /// All of it is there, and whoever waited for it goes on.
    All,
    /// So many bytes of it: call again for the others.
    Part(u64),
    /// Nothing: the first page was there already.
    Present,
    /// Nothing: mappings are about to change. Take the [events](Userfault::next_event) first, and call again.
    Changing,
    /// Something else is mapped there now, and its faults are not served.
    Gone,
}

/// Serves page faults of guest memory: of vCPUs, of devices' threads, and of the kernel on their behalf, each of which
/// waits until the page is filled. One thread takes the [events](Self::next_event) and answers them. It must not touch
/// that memory itself, nor take a lock that is held while memory is touched.
///
/// When this is dropped, faults are the kernel's again: what is not there reads as zero, and nothing is protected.
///
/// ```
/// use ossature_memory::vm_memory::GuestAddress;
/// use ossature_memory::{Ram, RamConfig, Userfault, UserfaultError, UserfaultEvent, UserfaultMode, host_page_size};
///
/// let ram = Ram::new(&RamConfig::new(1 << 20))?;
/// let mut faults = match Userfault::open(UserfaultMode::Missing) {
///     Err(UserfaultError::Forbidden { .. } | UserfaultError::Missing { .. }) => return Ok(()),
///     opened => opened?,
/// };
/// for slot in ram.slots() {
///     faults.register(&slot, 0, slot.size)?;
/// }
/// let dma = ram.dma();
/// let reader = std::thread::spawn(move || dma.read_obj::<u8>(GuestAddress(0x5123)));
/// // Whoever reads it waits.
/// let event = loop {
///     match faults.next_event()? {
///         Some(event) => break event,
///         None => faults.wait(None)?,
///     }
/// };
/// let UserfaultEvent::Fault { addr } = event else { panic!("{event:?}") };
/// faults.copy(addr, &vec![7; host_page_size()])?;
/// assert_eq!(reader.join().unwrap()?, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    mode: UserfaultMode,
    /// Pages that were never touched can be protected, too.
    unpopulated: bool,
    ranges: Vec<Range>,
}

/// What is registered. The slot keeps it mapped.
#[derive(Debug)]
struct Range {
    slot: RamSlot,
    offset: u64,
    len: u64,
}

const API: u64 = 0xaa;
const EVENT_REMOVE: u64 = 1 << 3;
const WP: u64 = 1 << 0;
const WP_SHMEM: u64 = 1 << 12;
const WP_UNPOPULATED: u64 = 1 << 13;

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVED: u8 = 0x15;

#[repr(C)]
#[derive(Default)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
#[derive(Default)]
struct UffdioZeropage {
    start: u64,
    len: u64,
    mode: u64,
    zeropage: i64,
}

#[repr(C)]
#[derive(Default)]
struct UffdioWriteprotect {
    start: u64,
    len: u64,
    mode: u64,
}

#[repr(C)]
#[derive(Default)]
struct UffdioRange {
    start: u64,
    len: u64,
}

/// A message: of a fault, `arg` is its flags and its address, of a removal its beginning and its end.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct UffdMsg {
    event: u8,
    reserved: [u8; 7],
    arg: [u64; 3],
}

const _: () = assert!(size_of::<UffdMsg>() == 32 && offset_of!(UffdMsg, arg) == 8);

const fn iowr<T>(nr: u64) -> u64 {
    3 << 30 | (size_of::<T>() as u64) << 16 | API << 8 | nr
}

const UFFDIO_API: u64 = iowr::<UffdioApi>(0x3f);
const UFFDIO_REGISTER: u64 = iowr::<UffdioRegister>(0x00);
const UFFDIO_WAKE: u64 = 2 << 30 | (size_of::<UffdioRange>() as u64) << 16 | API << 8 | 0x02;
const UFFDIO_COPY: u64 = iowr::<UffdioCopy>(0x03);
const UFFDIO_ZEROPAGE: u64 = iowr::<UffdioZeropage>(0x04);
const UFFDIO_WRITEPROTECT: u64 = iowr::<UffdioWriteprotect>(0x06);
const USERFAULTFD_IOC_NEW: u64 = API << 8;

/// Calls an ioctl of a userfaultfd.
///
/// # Safety
/// `arg` is the structure of `request`, and what it asks for touches nothing but guest memory.
unsafe fn ioctl<T>(fd: &OwnedFd, request: u64, arg: &mut T) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(arg)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn descriptor() -> Result<OwnedFd, UserfaultError> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let device = File::options().read(true).write(true).open("/dev/userfaultfd");
    let fd = match &device {
        // SAFETY: the request takes flags, and makes a descriptor.
        Ok(device) => unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW as _, flags) },
        // SAFETY: the call takes flags, and makes a descriptor.
        Err(_) => unsafe { libc::syscall(libc::SYS_userfaultfd, flags) as i32 },
    };
    if fd < 0 {
        let source = io::Error::last_os_error();
        return Err(match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => UserfaultError::Forbidden { source },
            Some(libc::ENOSYS) => UserfaultError::Missing { source },
            _ => UserfaultError::Host { call: "userfaultfd", source },
        });
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor with these features, and the features that there are; `None` if it lacks one.
fn with_features(features: u64) -> Result<Option<(OwnedFd, u64)>, UserfaultError> {
    let fd = descriptor()?;
    let mut api = UffdioApi { api: API, features, ioctls: 0 };
    // SAFETY: the structure is the one of the request.
    match unsafe { ioctl(&fd, UFFDIO_API, &mut api) } {
        Ok(()) => Ok(Some((fd, api.features))),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(source) => Err(UserfaultError::Host { call: "UFFDIO_API", source }),
    }
}

impl Userfault {
    /// Serves nothing yet.
    pub fn open(mode: UserfaultMode) -> Result<Self, UserfaultError> {
        let Some((_, known)) = with_features(0)? else {
            return Err(UserfaultError::Feature { what: "this version" });
        };
        let mut features = EVENT_REMOVE;
        if mode == UserfaultMode::WriteProtected {
            if known & WP == 0 {
                return Err(UserfaultError::Feature { what: "write protection" });
            }
            features = WP | known & (WP_SHMEM | WP_UNPOPULATED);
        }
        if features & EVENT_REMOVE & !known != 0 {
            return Err(UserfaultError::Feature { what: "events of removed pages" });
        }
        let opened = with_features(features)?;
        let (fd, has) = opened.ok_or(UserfaultError::Feature { what: "a combination of features" })?;
        let unpopulated = features & has & WP_UNPOPULATED != 0;
        Ok(Self { fd, mode, unpopulated, ranges: Vec::new() })
    }

    /// Serves the faults of `len` bytes at `offset` of a slot, whole pages of the host.
    pub fn register(&mut self, slot: &RamSlot, offset: u64, len: u64) -> Result<(), UserfaultError> {
        let page = host_page_size() as u64;
        let inside = offset.checked_add(len).is_some_and(|end| end <= slot.size);
        if !(inside && len > 0 && (offset | len).is_multiple_of(page)) {
            return Err(UserfaultError::Range { addr: slot.guest_addr.saturating_add(offset), len });
        }
        if let Some(is) = unserved(slot, self.mode) {
            return Err(UserfaultError::Backing { is });
        }
        let mode = if self.mode == UserfaultMode::Missing { 1 } else { 2 };
        let mut arg = UffdioRegister { start: slot.host_addr + offset, len, mode, ioctls: 0 };
        // SAFETY: the structure is the one of the request; the range is the slot's, which is kept.
        if let Err(source) = unsafe { ioctl(&self.fd, UFFDIO_REGISTER, &mut arg) } {
            return Err(match source.raw_os_error() {
                // Mapped over: of a private copy of a file, or not made for this.
                Some(libc::EINVAL) => UserfaultError::Backing { is: "partly a private copy of a file" },
                Some(libc::EBUSY) => UserfaultError::Backing { is: "served by another userfaultfd" },
                _ => UserfaultError::Host { call: "UFFDIO_REGISTER", source },
            });
        }
        if self.mode == UserfaultMode::WriteProtected && arg.ioctls & 1 << 6 == 0 {
            return Err(UserfaultError::Feature { what: "write protection of this memory" });
        }
        self.ranges.push(Range { slot: slot.clone(), offset, len });
        Ok(())
    }

    /// The next event, if there is one. It does not wait.
    pub fn next_event(&self) -> io::Result<Option<UserfaultEvent>> {
        loop {
            let mut message = UffdMsg::default();
            let len = size_of::<UffdMsg>();
            // SAFETY: the buffer is as long as is said, and any bytes are a value of it.
            let read =
                unsafe { libc::read(self.fd.as_raw_fd(), std::ptr::from_mut(&mut message).cast(), len) };
            if read < 0 {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted => continue,
                    _ => return Err(error),
                }
            }
            if read as usize != len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let [first, second, _] = message.arg;
            let page = host_page_size() as u64;
            match message.event {
                EVENT_PAGEFAULT => {
                    if let Some(addr) = self.guest(second & !(page - 1)) {
                        return Ok(Some(UserfaultEvent::Fault { addr: GuestAddress(addr) }));
                    }
                }
                EVENT_REMOVED => {
                    if let Some(addr) = self.guest(first) {
                        let len = second.saturating_sub(first);
                        return Ok(Some(UserfaultEvent::Removed { addr: GuestAddress(addr), len }));
                    }
                }
                _ => {}
            }
        }
    }

    /// Waits for an event, or until `other` can be read.
    pub fn wait(&self, other: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let watched = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // A negative descriptor is left out.
        let other = other.map_or(-1, |other| other.as_raw_fd());
        let mut fds = [watched(self.fd.as_raw_fd()), watched(other)];
        loop {
            // SAFETY: the array has as many elements as is said.
            if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) } >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Makes pages that are missing these bytes, whole pages, and wakes who waits for them.
    pub fn copy(&self, addr: GuestAddress, bytes: &[u8]) -> io::Result<Filled> {
        let (dst, src, len) =
            (self.host(addr, bytes.len() as u64)?, bytes.as_ptr() as u64, bytes.len() as u64);
        let mut arg = UffdioCopy { dst, src, len, mode: 0, copy: 0 };
        // SAFETY: the structure is the one of the request. It fills missing pages of guest memory, which is reached
        // through raw pointers only, as if the guest had written.
        let result = unsafe { ioctl(&self.fd, UFFDIO_COPY, &mut arg) };
        self.filled(result, addr, arg.copy)
    }

    /// Makes pages that are missing zeros, and wakes who waits for them.
    pub fn zero(&self, addr: GuestAddress, len: u64) -> io::Result<Filled> {
        let mut arg = UffdioZeropage { start: self.host(addr, len)?, len, mode: 0, zeropage: 0 };
        // SAFETY: as for `copy`.
        let result = unsafe { ioctl(&self.fd, UFFDIO_ZEROPAGE, &mut arg) };
        self.filled(result, addr, arg.zeropage)
    }

    fn filled(&self, result: io::Result<()>, addr: GuestAddress, done: i64) -> io::Result<Filled> {
        let Err(error) = result else { return Ok(Filled::All) };
        match (error.raw_os_error(), u64::try_from(done)) {
            (Some(libc::EAGAIN), Ok(done)) if done > 0 => Ok(Filled::Part(done)),
            (Some(libc::EAGAIN), _) => Ok(Filled::Changing),
            (Some(libc::EEXIST), _) => {
                // Another fault of the same page may have come before it was filled.
                self.wake(addr)?;
                Ok(Filled::Present)
            }
            (Some(libc::ENOENT | libc::EINVAL), _) => {
                // Whoever waits finds what is mapped there now. What is not served any more has nobody who waits.
                let _ = self.wake(addr);
                Ok(Filled::Gone)
            }
            _ => Err(error),
        }
    }

    /// Has those look again who wait for this page.
    fn wake(&self, addr: GuestAddress) -> io::Result<()> {
        let page = host_page_size() as u64;
        let mut arg = UffdioRange { start: self.host(addr, page)?, len: page };
        // SAFETY: the structure is the one of the request, which touches no memory.
        unsafe { ioctl(&self.fd, UFFDIO_WAKE, &mut arg) }
    }

    /// Has writes to `len` bytes wait, or lets those go on that wait.
    pub fn protect(&self, addr: GuestAddress, len: u64, protect: bool) -> io::Result<Filled> {
        let mut arg = UffdioWriteprotect { start: self.host(addr, len)?, len, mode: u64::from(protect) };
        // SAFETY: the structure is the one of the request. Pages change in who may write them, and in nothing else.
        match unsafe { ioctl(&self.fd, UFFDIO_WRITEPROTECT, &mut arg) } {
            Ok(()) => Ok(Filled::All),
            Err(e) => match e.raw_os_error() {
                Some(libc::EAGAIN) => Ok(Filled::Changing),
                Some(libc::ENOENT) => Ok(Filled::Gone),
                _ => Err(e),
            },
        }
    }

    /// Sees to it that all pages of the range can be protected: pages of private memory that were never touched are
    /// mapped to zeros first if the host's kernel needs it.
    pub fn populate(&self, addr: GuestAddress, len: u64) -> io::Result<()> {
        let host = self.host(addr, len)?;
        let slot = self.range(addr.0, len).map(|range| &range.slot);
        let shared = slot.is_some_and(|slot| slot.file().is_some());
        if self.unpopulated || shared {
            return Ok(());
        }
        // SAFETY: the range is the slot's, which is kept; pages that are not there become zeros, which they are.
        let result =
            unsafe { libc::madvise(host as *mut libc::c_void, len as usize, libc::MADV_POPULATE_READ) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn range(&self, addr: u64, len: u64) -> Option<&Range> {
        self.ranges.iter().find(|range| {
            let start = range.slot.guest_addr + range.offset;
            let inside = addr.checked_sub(start).and_then(|at| at.checked_add(len));
            inside.is_some_and(|end| end <= range.len)
        })
    }

    /// Where `len` bytes of what is registered are in this process.
    fn host(&self, addr: GuestAddress, len: u64) -> io::Result<u64> {
        let page = host_page_size() as u64;
        let range = self.range(addr.0, len).filter(|_| len > 0 && (addr.0 | len).is_multiple_of(page));
        let place = range.map(|range| range.slot.host_addr + (addr.0 - range.slot.guest_addr));
        place.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// The guest address of a place in what is registered.
    fn guest(&self, host: u64) -> Option<u64> {
        self.ranges.iter().find_map(|range| {
            let at = host.checked_sub(range.slot.host_addr)?;
            let inside = at.checked_sub(range.offset).is_some_and(|at| at < range.len);
            inside.then(|| range.slot.guest_addr + at)
        })
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Keeps pages from going away behind the back of whoever has [protected](Userfault::protect) them, until this is dropped:
/// what is cleared or mapped over in these slots is overwritten with zeros first, which waits as any write does, and what
/// is discarded is overwritten only. Drop the [`Userfault`] first, so that nobody waits any more.
#[derive(Debug)]
#[must_use = "the pages are not held any more when this is dropped"]
pub struct HeldPages(Vec<RamSlot>);

impl HeldPages {
    /// Holds the pages of these slots.
    pub fn of(slots: &[RamSlot]) -> Self {
        let held = Self(slots.to_vec());
        held.mappings(Mapping::hold);
        held
    }

    fn mappings(&self, f: impl Fn(&Mapping)) {
        self.0.iter().filter_map(|slot| slot.dirty().mapping()).for_each(|mapping| f(mapping));
    }
}

impl Drop for HeldPages {
    fn drop(&mut self) {
        self.mappings(Mapping::unhold);
    }
}

/// What it is of the slot that forbids to serve its faults.
fn unserved(slot: &RamSlot, mode: UserfaultMode) -> Option<&'static str> {
    let Some(mapping) = slot.dirty().mapping() else { return Some("not made by this crate") };
    match mapping.kind() {
        Kind::Anonymous if mode == UserfaultMode::Missing && mapping.is_prefaulted() => Some("prefaulted"),
        Kind::Anonymous => None,
        Kind::Private { .. } => Some("a private copy of a file"),
        Kind::Shared { huge: true, .. } => Some("made of huge pages"),
        // Others would see what is missing as zeros, and make it so.
        Kind::Shared { .. } if mode == UserfaultMode::Missing => Some("shared"),
        Kind::Shared { own: true, .. } => None,
        // What others write to it is not protected.
        Kind::Shared { .. } => Some("a file of somebody else's"),
        Kind::Foreign(_) => Some("another owner's"),
    }
}

#[cfg(test)]
mod tests;
