//! The ioctls of a vhost device (`linux/vhost.h`), and what keeps mapped the memory that its kernel thread works with.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ossature_memory::Dma;
use ossature_memory::vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

use super::VhostError;
use crate::QueueState;

const VHOST: u32 = 0xaf;

/// `struct vhost_vring_state`.
#[repr(C)]
struct RingNumber {
    index: u32,
    number: u32,
}

/// `struct vhost_vring_file`.
#[repr(C)]
struct RingFile {
    index: u32,
    fd: i32,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
struct RingAddresses {
    index: u32,
    flags: u32,
    desc: u64,
    used: u64,
    avail: u64,
    log: u64,
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    guest_addr: u64,
    size: u64,
    host_addr: u64,
    flags: u64,
}

/// `struct vhost_memory` without its regions.
#[repr(C)]
struct Memory {
    regions: u32,
    padding: u32,
}

/// Room for regions in a [`Table`]; the kernel takes 64 unless it was told otherwise.
const REGIONS: usize = 512;

/// `struct vhost_memory`.
#[repr(C)]
struct Table {
    head: Memory,
    regions: [Region; REGIONS],
}

ioctl_ior_nr!(VHOST_GET_FEATURES, VHOST, 0x00, u64);
ioctl_iow_nr!(VHOST_SET_FEATURES, VHOST, 0x00, u64);
ioctl_io_nr!(VHOST_SET_OWNER, VHOST, 0x01);
ioctl_iow_nr!(VHOST_SET_MEM_TABLE, VHOST, 0x03, Memory);
ioctl_iow_nr!(VHOST_SET_VRING_NUM, VHOST, 0x10, RingNumber);
ioctl_iow_nr!(VHOST_SET_VRING_ADDR, VHOST, 0x11, RingAddresses);
ioctl_iow_nr!(VHOST_SET_VRING_BASE, VHOST, 0x12, RingNumber);
ioctl_iowr_nr!(VHOST_GET_VRING_BASE, VHOST, 0x12, RingNumber);
ioctl_iow_nr!(VHOST_SET_VRING_KICK, VHOST, 0x20, RingFile);
ioctl_iow_nr!(VHOST_SET_VRING_CALL, VHOST, 0x21, RingFile);
ioctl_iow_nr!(VHOST_SET_VRING_ERR, VHOST, 0x22, RingFile);
ioctl_iow_nr!(VHOST_NET_SET_BACKEND, VHOST, 0x30, RingFile);
ioctl_iow_nr!(VHOST_VSOCK_SET_GUEST_CID, VHOST, 0x60, u64);
ioctl_iow_nr!(VHOST_VSOCK_SET_RUNNING, VHOST, 0x61, i32);

/// An ioctl that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{request}: {source}")]
pub(crate) struct Refused {
    pub(crate) request: &'static str,
    pub(crate) source: io::Error,
}

fn check(request: &'static str, result: i32) -> Result<(), Refused> {
    if result < 0 { Err(Refused { request, source: io::Error::last_os_error() }) } else { Ok(()) }
}

/// The events of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingEvent {
    /// The driver has offered buffers.
    Kick,
    /// The kernel has used buffers.
    Call,
    /// The kernel cannot make sense of the ring.
    Error,
}

/// What a vhost device of the kernel does; tests have one without a kernel.
pub(crate) trait Backend: Send + Sync {
    fn features(&self) -> Result<u64, Refused>;
    fn set_owner(&self) -> Result<(), Refused>;
    fn set_features(&self, features: u64) -> Result<(), Refused>;
    /// The guest memory that rings and buffers are in.
    fn set_memory(&self, dma: &Dma) -> Result<(), Refused>;
    /// A ring that does not run, in that memory.
    fn set_ring(&self, ring: u32, state: &QueueState, dma: &Dma) -> Result<(), Refused>;
    /// Index of the next available entry of a ring that has stopped. Its memory is not used any more.
    fn stop_ring(&self, ring: u32) -> Result<u16, Refused>;
    fn set_event(&self, ring: u32, event: RingEvent, fd: Option<BorrowedFd<'_>>) -> Result<(), Refused>;
    /// Network: the ring runs on this tap, or stops.
    fn set_tap(&self, ring: u32, tap: Option<BorrowedFd<'_>>) -> Result<(), Refused>;
    /// Sockets: the guest's address.
    fn set_cid(&self, cid: u64) -> Result<(), Refused>;
    /// Sockets: both rings run, or stop.
    fn set_running(&self, running: bool) -> Result<(), Refused>;
}

/// The kernel's.
pub(crate) struct Kernel {
    // Closed before the memory may be unmapped.
    file: File,
    memory: Mutex<Shared>,
}

/// What the kernel has addresses of.
#[derive(Default)]
struct Shared {
    table: Option<Dma>,
    rings: BTreeMap<u32, Dma>,
}

impl Kernel {
    /// Opens `path`, which the kernel module `module` makes.
    pub(crate) fn open(path: &'static str, module: &'static str) -> Result<Self, VhostError> {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|source| {
            match (source.kind(), source.raw_os_error()) {
                // A node may be there for the module to be loaded by.
                (io::ErrorKind::NotFound, _) | (_, Some(libc::ENODEV | libc::ENXIO)) => {
                    VhostError::NoDriver { path, module }
                }
                (io::ErrorKind::PermissionDenied, _) => VhostError::Permission { path, source },
                _ => VhostError::Refused { request: "open", source },
            }
        })?;
        Ok(Self::from_fd(file.into()))
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self { file: fd.into(), memory: Mutex::default() }
    }

    fn memory(&self) -> MutexGuard<'_, Shared> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An ioctl that reads one `T`.
    fn set<T>(&self, request: &'static str, number: u64, value: &T) -> Result<(), Refused> {
        // SAFETY: each `number` in this file stands beside the type that the kernel reads then, and the value outlives
        // the call. What addresses in it point to is kept mapped by `self.memory`, see where they are made.
        check(request, unsafe { ioctl_with_ref(&self.file, number as _, value) })
    }

    /// An ioctl that reads one `T` and writes another over it, or only writes.
    fn get<T>(&self, request: &'static str, number: u64, mut value: T) -> Result<T, Refused> {
        // SAFETY: as in `set`, and any bytes are a `T`: they are plain numbers.
        check(request, unsafe { ioctl_with_mut_ref(&self.file, number as _, &mut value) }).map(|()| value)
    }
}

fn raw(fd: Option<BorrowedFd<'_>>) -> i32 {
    // None is -1 to the kernel.
    fd.map_or(-1, |fd| fd.as_raw_fd())
}

impl Backend for Kernel {
    fn features(&self) -> Result<u64, Refused> {
        self.get("VHOST_GET_FEATURES", VHOST_GET_FEATURES(), 0)
    }

    fn set_owner(&self) -> Result<(), Refused> {
        // SAFETY: it takes no argument.
        check("VHOST_SET_OWNER", unsafe { ioctl(&self.file, VHOST_SET_OWNER() as _) })
    }

    fn set_features(&self, features: u64) -> Result<(), Refused> {
        self.set("VHOST_SET_FEATURES", VHOST_SET_FEATURES(), &features)
    }

    fn set_memory(&self, dma: &Dma) -> Result<(), Refused> {
        const REQUEST: &str = "VHOST_SET_MEM_TABLE";
        let mem = dma.memory();
        let count = mem.num_regions();
        if count > REGIONS {
            return Err(Refused { request: REQUEST, source: io::Error::from_raw_os_error(libc::E2BIG) });
        }
        let region = |region: &GuestRegionMmap<_>| Region {
            guest_addr: region.start_addr().raw_value(),
            size: region.len(),
            host_addr: region.as_ptr() as u64,
            flags: 0,
        };
        let head = Memory { regions: count as u32, padding: 0 };
        let mut table = Box::new(Table { head, regions: [Region::default(); REGIONS] });
        for (to, from) in table.regions.iter_mut().zip(mem.iter()) {
            *to = region(from);
        }
        let mut memory = self.memory();
        // SAFETY: the kernel reads the head and as many regions as it says, which are there. They are mapped, and stay so:
        // `dma` is kept until there is another table or the file is closed, after which the kernel does not use them.
        check(REQUEST, unsafe { ioctl_with_ptr(&self.file, VHOST_SET_MEM_TABLE() as _, &raw const *table) })?;
        memory.table = Some(dma.clone());
        Ok(())
    }

    fn set_ring(&self, ring: u32, state: &QueueState, dma: &Dma) -> Result<(), Refused> {
        let QueueState { size, desc, avail, used, next_avail, .. } = *state;
        let at = |addr| match dma.memory().get_host_address(GuestAddress(addr)) {
            Ok(host) => Ok(host as u64),
            Err(_) => {
                let source = io::Error::from_raw_os_error(libc::EFAULT);
                Err(Refused { request: "VHOST_SET_VRING_ADDR", source })
            }
        };
        let addresses = RingAddresses {
            index: ring,
            flags: 0,
            desc: at(desc)?,
            used: at(used)?,
            avail: at(avail)?,
            log: 0,
        };
        // Addresses in it, which the kernel keeps, stay mapped until the ring has stopped.
        self.memory().rings.insert(ring, dma.clone());
        let number = |number: u16| RingNumber { index: ring, number: number.into() };
        self.set("VHOST_SET_VRING_NUM", VHOST_SET_VRING_NUM(), &number(size))?;
        self.set("VHOST_SET_VRING_BASE", VHOST_SET_VRING_BASE(), &number(next_avail))?;
        self.set("VHOST_SET_VRING_ADDR", VHOST_SET_VRING_ADDR(), &addresses)
    }

    fn stop_ring(&self, ring: u32) -> Result<u16, Refused> {
        let number = RingNumber { index: ring, number: 0 };
        let base = self.get("VHOST_GET_VRING_BASE", VHOST_GET_VRING_BASE(), number)?;
        self.memory().rings.remove(&ring);
        Ok(base.number as u16)
    }

    fn set_event(&self, ring: u32, event: RingEvent, fd: Option<BorrowedFd<'_>>) -> Result<(), Refused> {
        let file = RingFile { index: ring, fd: raw(fd) };
        match event {
            RingEvent::Kick => self.set("VHOST_SET_VRING_KICK", VHOST_SET_VRING_KICK(), &file),
            RingEvent::Call => self.set("VHOST_SET_VRING_CALL", VHOST_SET_VRING_CALL(), &file),
            RingEvent::Error => self.set("VHOST_SET_VRING_ERR", VHOST_SET_VRING_ERR(), &file),
        }
    }

    fn set_tap(&self, ring: u32, tap: Option<BorrowedFd<'_>>) -> Result<(), Refused> {
        let file = RingFile { index: ring, fd: raw(tap) };
        self.set("VHOST_NET_SET_BACKEND", VHOST_NET_SET_BACKEND(), &file)
    }

    fn set_cid(&self, cid: u64) -> Result<(), Refused> {
        self.set("VHOST_VSOCK_SET_GUEST_CID", VHOST_VSOCK_SET_GUEST_CID(), &cid)
    }

    fn set_running(&self, running: bool) -> Result<(), Refused> {
        self.set("VHOST_VSOCK_SET_RUNNING", VHOST_VSOCK_SET_RUNNING(), &i32::from(running))
    }
}
