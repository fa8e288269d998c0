//! The few calls into the host kernel for which no safe crate stands: file flags, locks and holes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// How a file is open: its access mode and status flags (`F_GETFL`).
pub(crate) fn status_flags(file: impl AsFd) -> io::Result<libc::c_int> {
    // SAFETY: F_GETFL takes no argument.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETFL) })
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

/// Changes the space that part of a file takes (fallocate(2)). `mode` is one of `FALLOC_FL_*`.
pub(crate) fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let (Ok(offset), Ok(len)) = (libc::off64_t::try_from(offset), libc::off64_t::try_from(len)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    loop {
        // SAFETY: all arguments are numbers.
        match check(unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, len) }) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done.map(drop),
        }
    }
}
