//! The few calls into the host kernel for which no safe crate stands: tap ioctls, file locks.

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

/// Connects a descriptor of `/dev/net/tun` to the tap `name` (`TUNSETIFF`), frames with a virtio-net header.
/// `name` is shorter than `IFNAMSIZ`.
pub(crate) fn tap_attach(tun: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let mut request = interface_request(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
    if name.count_bytes() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
        *to = *from as libc::c_char;
    }
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) }).map(drop)
}

/// Returns true if a tap outlives its descriptors (`TUNGETIFF`).
pub(crate) fn tap_is_persistent(tap: BorrowedFd<'_>) -> io::Result<bool> {
    let mut request = interface_request(0);
    // SAFETY: TUNGETIFF writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) })?;
    // SAFETY: the kernel has set this member of the union, and any number is one.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags) & libc::IFF_PERSIST != 0)
}

fn interface_request(flags: libc::c_int) -> libc::ifreq {
    libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    }
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

/// Locks the whole file, shared or exclusive, without waiting (`F_OFD_SETLK`): the lock belongs to the open
/// file description. Fails with `WouldBlock` (`EAGAIN`) or `EACCES` where somebody else holds one.
pub(crate) fn lock_file(file: impl AsFd, exclusive: bool) -> io::Result<()> {
    set_lock(file, if exclusive { libc::F_WRLCK } else { libc::F_RDLCK })
}

/// Gives up the lock of [`lock_file`].
pub(crate) fn unlock_file(file: impl AsFd) -> io::Result<()> {
    set_lock(file, libc::F_UNLCK)
}

fn set_lock(file: impl AsFd, kind: libc::c_int) -> io::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads one `flock`, which outlives the call.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }).map(drop)
}
