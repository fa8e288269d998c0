//! The few calls into the host kernel for which no safe crate stands: tap ioctls, file flags and locks.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Returns true if there is a network interface `name` in this network namespace.
pub(crate) fn interface_exists(name: &CStr) -> bool {
    // SAFETY: the kernel reads a NUL-terminated string that outlives the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

/// Connects a descriptor of `/dev/net/tun` to the interface `name`, of the kind that `flags` (`IFF_*`) say (`TUNSETIFF`).
/// `name` is shorter than `IFNAMSIZ`.
pub(crate) fn tap_attach(tun: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> io::Result<()> {
    let mut request = interface_request(flags);
    if name.count_bytes() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
        *to = *from as libc::c_char;
    }
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) }).map(drop)
}

/// The name and the flags (`IFF_*`, 16 bits) of the interface that a descriptor is connected to (`TUNGETIFF`).
pub(crate) fn tap_interface(tap: BorrowedFd<'_>) -> io::Result<(String, libc::c_int)> {
    let mut request = interface_request(0);
    // SAFETY: TUNGETIFF writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) })?;
    // SAFETY: the kernel has set this member of the union, and any number is one.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let name = request.ifr_name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect::<Vec<_>>();
    Ok((String::from_utf8_lossy(&name).into_owned(), libc::c_int::from(flags as u16)))
}

fn interface_request(flags: libc::c_int) -> libc::ifreq {
    libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    }
}

/// Has the kernel give packets to the queue that a descriptor of a tap with several is, or none (`TUNSETQUEUE`).
pub(crate) fn tap_queue(tap: BorrowedFd<'_>, active: bool) -> io::Result<()> {
    let mut request = interface_request(if active { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE });
    // SAFETY: TUNSETQUEUE reads one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETQUEUE as _, &raw mut request) }).map(drop)
}

/// Sets the length in bytes of the header before each frame (`TUNSETVNETHDRSZ`).
pub(crate) fn tap_header_len(tap: BorrowedFd<'_>, len: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const len) }).map(drop)
}

/// Says which unfinished frames (`TUN_F_*`) the reader of the tap accepts (`TUNSETOFFLOAD`).
pub(crate) fn tap_offloads(tap: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) })
        .map(drop)
}

/// How a file is open: its access mode and status flags (`F_GETFL`).
pub(crate) fn status_flags(file: impl AsFd) -> io::Result<libc::c_int> {
    // SAFETY: F_GETFL takes no argument.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETFL) })
}

/// Makes reads and writes of an open file description return instead of waiting (`O_NONBLOCK`).
pub(crate) fn set_nonblocking(file: impl AsFd) -> io::Result<()> {
    let flags = status_flags(&file)? | libc::O_NONBLOCK;
    // SAFETY: F_SETFL takes its argument by value.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}
