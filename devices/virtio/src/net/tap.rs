//! A tap interface of the host's kernel.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::Syscall;
use ossature_memory::{Dma, DmaIoError, Segments};

use super::batch::{BATCH, Batch, SMALL_FRAME};
use super::header::HEADER_LEN;
use super::io::{NetIo, Offloads, Unsent};
use crate::sys;

const TUN: &str = "/dev/net/tun";
/// How a tap is used: Ethernet frames, each behind a virtio-net header and nothing else.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
/// More packets than wait in a tap's queue by default, which is 500 long.
const MOST_WAITING: usize = 8192;

/// A tap that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// No interface can have this name.
    #[error("{name:?} is no name of a network interface: 1 to {} bytes, no zero byte", libc::IFNAMSIZ - 1)]
    Name {
        /// The name.
        name: String,
    },
    /// There is no such interface.
    #[error("tap {name:?} does not exist; make it with: ip tuntap add mode tap name {name}")]
    Missing {
        /// The tap.
        name: String,
    },
    /// The host's kernel has no tap driver.
    #[error("tap {name:?}: {TUN} does not exist; load the kernel module tun")]
    NoDriver {
        /// The tap.
        name: String,
    },
    /// This user may not use it.
    #[error(
        "tap {name:?}: no permission; give it to this user with: ip tuntap add mode tap name {name} user NAME"
    )]
    Permission {
        /// The tap.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("tap {name:?} is in use by another process")]
    InUse {
        /// The tap.
        name: String,
    },
    /// An interface of this name exists, but is something else.
    #[error("network interface {name:?} is not a tap with a single queue")]
    NotATap {
        /// The interface.
        name: String,
    },
    /// An interface of this name exists, but is something else.
    #[error(
        "network interface {name:?} is not a tap with several queues; make one with: ip tuntap add mode tap multi_queue name {name}"
    )]
    NotMultiQueue {
        /// The interface.
        name: String,
    },
    /// An interface of this name exists, but is something else, or is not there.
    #[error(
        "there is no macvtap {name:?}; make it with: ip link add link DEVICE name {name} type macvtap mode bridge"
    )]
    NotAMacvtap {
        /// The interface.
        name: String,
    },
    /// A descriptor that is no connected one of `/dev/net/tun`.
    #[error("not the descriptor of a tap: open {TUN} and connect it to one (TUNSETIFF)")]
    NotConnected {
        /// The kernel's answer.
        source: io::Error,
    },
    /// A descriptor that was connected to its tap with other flags than a device needs.
    #[error("tap {name:?}: connect its descriptor with the flags IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Flags {
        /// The tap.
        name: String,
    },
    /// Anything else.
    #[error("tap {name:?}: cannot {action}: {source}")]
    Io {
        /// The tap.
        name: String,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// An existing tap interface, open until it is dropped, or one of its queues. Bringing it up and connecting it to a bridge
/// is up to the caller. Where the host allows io_uring, packets that come in bursts are moved up to 32 with one system call; the
/// others, and long ones, with one call each and without a copy of ours. While it is down, packets are lost as on a cable that is not plugged in.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// It has several queues, of which this is one.
    several: bool,
    /// The kernel gives packets to this queue.
    active: Arc<Mutex<bool>>,
    /// What the host's kernel has.
    offloads: Offloads,
    /// Packets that wait may be of this kind.
    set: Arc<Mutex<Offloads>>,
    /// Packets on their way, which one thread moves.
    batch: Mutex<Batch>,
    /// What was lost since the last flush.
    unsent: Mutex<Option<Unsent>>,
}

impl Tap {
    /// Connects to the tap `name`, which must exist: none is made.
    pub fn open(name: &str) -> Result<Self, TapError> {
        Self::open_with(name, FLAGS).map_err(|e| attach_error(name, e, false))?
    }

    /// Connects to so many queues of the tap `name`, which must exist and be one with several (`multi_queue`).
    pub fn open_queues(name: &str, queues: u16) -> Result<Vec<Self>, TapError> {
        let open = |_| Self::open_with(name, FLAGS | libc::IFF_MULTI_QUEUE);
        (0..queues).map(|i| open(i).map_err(|e| attach_error(name, e, true))?).collect()
    }

    /// Opens so many queues of the macvtap `name`, which must exist: `/dev/tapN`.
    pub fn open_macvtap(name: &str, queues: u16) -> Result<Vec<Self>, TapError> {
        let missing = || TapError::NotAMacvtap { name: name.to_owned() };
        let folder = Path::new("/sys/class/net").join(name);
        if !is_name(name) || !folder.join("macvtap").exists() {
            return Err(missing());
        }
        let index = fs::read_to_string(folder.join("ifindex")).map_err(|_| missing())?;
        let path = format!("/dev/tap{}", index.trim());
        let open = |_| {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path);
            let file = file.map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied => TapError::Permission { name: name.to_owned(), source },
                _ => io_error(name, "open its device in /dev")(source),
            })?;
            Self::from_fd(file)
        };
        (0..queues).map(open).collect()
    }

    /// Whether the kernel attaches the tap is what the outer result says.
    fn open_with(name: &str, flags: libc::c_int) -> io::Result<Result<Self, TapError>> {
        let owned = || name.to_owned();
        let c_name = match CString::new(name) {
            Ok(c_name) if is_name(name) => c_name,
            _ => return Ok(Err(TapError::Name { name: owned() })),
        };
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN);
        let file = match file {
            Ok(file) => file,
            Err(source) => {
                return Ok(Err(match source.kind() {
                    io::ErrorKind::NotFound => TapError::NoDriver { name: owned() },
                    io::ErrorKind::PermissionDenied => TapError::Permission { name: owned(), source },
                    _ => TapError::Io { name: owned(), action: "open /dev/net/tun", source },
                }));
            }
        };
        if let Err(e) = sys::tap_attach(file.as_fd(), &c_name, flags) {
            let exists = sys::interface_exists(&c_name);
            return if exists { Err(e) } else { Ok(Err(TapError::Missing { name: owned() })) };
        }
        // Who may do so makes a tap that does not exist. Such a one is not persistent, and goes with the descriptor.
        Ok(match sys::tap_interface(file.as_fd()) {
            Err(e) => Err(io_error(name, "ask for its flags")(e)),
            Ok((_, flags)) if flags & libc::IFF_PERSIST == 0 => Err(TapError::Missing { name: owned() }),
            Ok((_, flags)) => Self::connected(file, name, flags),
        })
    }

    /// Takes a descriptor of `/dev/net/tun` that is connected to a tap already, for processes that may not open files
    /// or have no say over network interfaces. It was connected (`TUNSETIFF`) with the flags `IFF_TAP`, `IFF_NO_PI` and
    /// `IFF_VNET_HDR`; the tap may be one that goes with the descriptor. It becomes non-blocking.
    pub fn from_fd(fd: impl Into<OwnedFd>) -> Result<Self, TapError> {
        let file = File::from(fd.into());
        let (name, flags) =
            sys::tap_interface(file.as_fd()).map_err(|source| TapError::NotConnected { source })?;
        if flags & FLAGS != FLAGS {
            return Err(TapError::Flags { name });
        }
        sys::set_nonblocking(&file).map_err(io_error(&name, "make it non-blocking"))?;
        Self::connected(file, &name, flags)
    }

    /// The same tap for a network card that takes the place of this one's, with a machine's `replace_device`. Opening it
    /// again fails while this is open, and [`from_fd`](Self::from_fd) changes which packets the kernel sends to a card that
    /// goes on. One of the two is used at a time.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            several: self.several,
            active: Arc::clone(&self.active),
            offloads: self.offloads,
            set: Arc::clone(&self.set),
            batch: Mutex::default(),
            unsent: Mutex::default(),
        })
    }

    fn connected(file: File, name: &str, flags: libc::c_int) -> Result<Self, TapError> {
        sys::tap_header_len(file.as_fd(), HEADER_LEN as libc::c_int)
            .map_err(io_error(name, "set its header length"))?;
        // Kernels before Linux 6.2 do not know segments of UDP.
        let knows_uso = sys::tap_offloads(file.as_fd(), tap_flags(Offloads::all())).is_ok();
        let offloads = Offloads { uso: knows_uso, ..Offloads::all() };
        let several = flags & libc::IFF_MULTI_QUEUE != 0;
        Ok(Self {
            file,
            several,
            active: Arc::new(Mutex::new(true)),
            offloads,
            // Whoever had it before may have set any.
            set: Arc::new(Mutex::new(Offloads::all())),
            batch: Mutex::default(),
            unsent: Mutex::default(),
        })
    }
}

impl Tap {
    fn batch(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsent(&self) -> MutexGuard<'_, Option<Unsent>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what waits, and notes what is lost.
    fn send_batch(&self, batch: &mut Batch) {
        if batch.waiting() > 0 {
            batch.send(self.file.as_fd(), |(len, result)| {
                if let Err(e) = result {
                    let mut unsent = self.unsent();
                    let (packets, bytes) = unsent.as_ref().map_or((0, 0), |u| (u.packets, u.bytes));
                    *unsent = Some(Unsent::new(packets + 1, bytes + (len - HEADER_LEN) as u64, e));
                }
            });
        }
    }

    /// Drops the packets that wait to be received: a driver might not take their kind.
    fn drop_waiting(&self) {
        let mut batch = self.batch();
        for _ in 0..MOST_WAITING {
            let read_ahead = batch.next(self.file.as_fd()).is_some();
            if !read_ahead && (&self.file).read(&mut [0]).is_err() {
                break;
            }
        }
        batch.is_dry();
    }

    fn active(&self) -> MutexGuard<'_, bool> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_name(name: &str) -> bool {
    (1..libc::IFNAMSIZ).contains(&name.len()) && !name.contains(['\0', '/']) && !matches!(name, "." | "..")
}

fn tap_flags(offloads: Offloads) -> libc::c_uint {
    let Offloads { checksum, tso4, tso6, ecn, uso } = offloads;
    let flags = [
        (checksum, libc::TUN_F_CSUM),
        (tso4, libc::TUN_F_TSO4),
        (tso6, libc::TUN_F_TSO6),
        (ecn, libc::TUN_F_TSO_ECN),
        (uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ];
    flags.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag)
}

fn io_error(name: &str, action: &'static str) -> impl FnOnce(io::Error) -> TapError {
    let name = name.to_owned();
    move |source| TapError::Io { name, action, source }
}

fn attach_error(name: &str, source: io::Error, several: bool) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Permission { name, source },
        Some(libc::EBUSY) => TapError::InUse { name },
        Some(libc::EINVAL) if several => TapError::NotMultiQueue { name },
        Some(libc::EINVAL) => TapError::NotATap { name },
        _ => TapError::Io { name, action: "attach to it", source },
    }
}

impl NetIo for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        // They are those of the whole tap, which a queue that is not in use cannot reach.
        if !*self.active() {
            return Ok(());
        }
        sys::tap_offloads(self.file.as_fd(), tap_flags(offloads))?;
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        if tap_flags(*set) & !tap_flags(offloads) != 0 {
            self.drop_waiting();
        }
        *set = offloads;
        Ok(())
    }

    fn set_active(&self, active: bool) -> io::Result<()> {
        let mut now = self.active();
        if self.several && *now != active {
            sys::tap_queue(self.file.as_fd(), active)?;
            *now = active;
        }
        Ok(())
    }

    fn is_connected(&self) -> bool {
        // That it is down, its user learns from the packets.
        true
    }

    fn receive(&self, mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError> {
        let mut batch = self.batch();
        if let Some(packet) = batch.next(self.file.as_fd()) {
            let packet = packet?;
            mem.scatter(to, packet)?;
            return Ok(packet.len());
        }
        // A packet that was cut looks like one that fits exactly, but for a byte behind it.
        let read = mem.readv_spilling(&self.file, to, &mut [0]);
        match &read {
            Ok(len) => batch.was_read(*len),
            Err(_) => batch.is_dry(),
        }
        read
    }

    fn send(&self, mem: &Dma, header: &[u8; HEADER_LEN], from: Segments<'_>) -> Result<(), DmaIoError> {
        let mut batch = self.batch();
        if from.len() > SMALL_FRAME {
            self.send_batch(&mut batch);
            return mem.writev_headed(&self.file, header, from).map(drop);
        }
        if batch.waiting() == BATCH {
            self.send_batch(&mut batch);
        }
        let len = HEADER_LEN + from.len() as usize;
        if let Some((to, frame)) = batch.place(len).split_first_chunk_mut() {
            *to = *header;
            mem.gather(from, frame)?;
        }
        batch.push(len);
        Ok(())
    }

    fn flush(&self) -> Result<(), Unsent> {
        let mut batch = self.batch();
        self.send_batch(&mut batch);
        self.unsent().take().map_or(Ok(()), Err)
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[
            Syscall("close"),
            Syscall("eventfd2"),
            Syscall("io_uring_enter"),
            Syscall("io_uring_setup"),
            Syscall("ioctl"),
            Syscall("mmap"),
            Syscall("munmap"),
            Syscall("read"),
            Syscall("readv"),
            Syscall("timerfd_create"),
            Syscall("timerfd_settime"),
            Syscall("write"),
            Syscall("writev"),
        ]
    }
}

#[cfg(test)]
mod tests;
