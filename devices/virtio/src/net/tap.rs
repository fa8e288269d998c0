//! A tap interface of the host's kernel.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use ossature_bus::Syscall;
use ossature_memory::{Dma, DmaIoError, Segments};

use super::header::HEADER_LEN;
use super::io::{NetIo, Offloads};
use crate::sys;

const TUN: &str = "/dev/net/tun";

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

/// An existing tap interface, open until it is dropped. Bringing it up and connecting it to a bridge is up to the
/// caller; while it is down, packets are lost as on a cable that is not plugged in.
#[derive(Debug)]
pub struct Tap {
    file: File,
}

impl Tap {
    /// Connects to the tap `name`, which must exist: none is made.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let owned = || name.to_owned();
        let c_name = CString::new(name)
            .ok()
            .filter(|c| (1..libc::IFNAMSIZ).contains(&c.count_bytes()))
            .ok_or_else(|| TapError::Name { name: owned() })?;
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN).map_err(
                |source| match source.kind() {
                    io::ErrorKind::NotFound => TapError::NoDriver { name: owned() },
                    io::ErrorKind::PermissionDenied => TapError::Permission { name: owned(), source },
                    _ => TapError::Io { name: owned(), action: "open /dev/net/tun", source },
                },
            )?;
        sys::tap_attach(file.as_fd(), &c_name).map_err(|e| match sys::interface_exists(&c_name) {
            true => attach_error(name, e),
            false => TapError::Missing { name: owned() },
        })?;
        // Who may do so makes a tap that does not exist. Such a one is not persistent, and goes with the descriptor.
        if !sys::tap_is_persistent(file.as_fd()).map_err(|source| TapError::Io {
            name: owned(),
            action: "ask for its flags",
            source,
        })? {
            return Err(TapError::Missing { name: owned() });
        }
        sys::tap_header_len(file.as_fd(), HEADER_LEN as libc::c_int).map_err(|source| TapError::Io {
            name: owned(),
            action: "set its header length",
            source,
        })?;
        let tap = Self { file };
        tap.set_offloads(Offloads::default()).map_err(|source| TapError::Io {
            name: owned(),
            action: "set its offloads",
            source,
        })?;
        Ok(tap)
    }
}

fn attach_error(name: &str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Permission { name, source },
        Some(libc::EBUSY) => TapError::InUse { name },
        Some(libc::EINVAL) => TapError::NotATap { name },
        _ => TapError::Io { name, action: "attach to it", source },
    }
}

impl NetIo for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let Offloads { checksum, tso4, tso6, ecn } = offloads;
        let flags = [
            (checksum, libc::TUN_F_CSUM),
            (tso4, libc::TUN_F_TSO4),
            (tso6, libc::TUN_F_TSO6),
            (ecn, libc::TUN_F_TSO_ECN),
        ];
        let set = flags.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag);
        sys::tap_offloads(self.file.as_fd(), set)
    }

    fn receive(&self, mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError> {
        // A packet that was cut looks like one that fits exactly, but for a byte behind it.
        mem.readv_spilling(&self.file, to, &mut [0])
    }

    fn send(&self, mem: &Dma, header: &[u8; HEADER_LEN], from: Segments<'_>) -> Result<(), DmaIoError> {
        mem.writev_headed(&self.file, header, from).map(drop)
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[Syscall("ioctl"), Syscall("readv"), Syscall("writev")]
    }
}

#[cfg(test)]
mod tests;
