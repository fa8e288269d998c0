//! The few calls into the host kernel for which no safe crate stands: file flags, locks, holes and block sizes.

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

/// Makes reads and writes of an open file description wait.
pub(crate) fn set_blocking(file: impl AsFd) -> io::Result<()> {
    let flags = status_flags(&file)?;
    if flags & libc::O_NONBLOCK == 0 {
        return Ok(());
    }
    // SAFETY: F_SETFL takes its argument by value.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) })
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

const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKSSZGET: libc::c_ulong = 0x1268;
const BLKPBSZGET: libc::c_ulong = 0x127b;

/// Discards part of a block device (`BLKDISCARD`).
pub(crate) fn discard_blocks(device: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two u64, which outlive the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) }).map(drop)
}

/// The sizes in bytes of a block device's logical and physical blocks.
pub(crate) fn block_sizes(device: &File) -> io::Result<(u32, u32)> {
    let (mut logical, mut physical): (libc::c_int, libc::c_uint) = (0, 0);
    // SAFETY: BLKSSZGET writes one int, which outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKSSZGET as _, &raw mut logical) })?;
    // SAFETY: BLKPBSZGET writes one unsigned int, which outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKPBSZGET as _, &raw mut physical) })?;
    Ok((logical as u32, physical))
}

/// What the addresses in memory, and the places and lengths, of transfers past the page cache have to be multiples of.
pub(crate) fn direct_alignment(file: &File) -> io::Result<(u32, u32)> {
    /// More than any disk asks for, where the kernel does not tell (before Linux 6.1).
    const SAFE: u32 = 4096;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a string, and the kernel writes one `statx`; both outlive the call.
    check(unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            found.as_mut_ptr(),
        )
    })?;
    // SAFETY: zeros are a `statx`, and so is what the kernel has written.
    let found = unsafe { found.assume_init() };
    if found.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok((SAFE, SAFE));
    }
    match (found.stx_dio_mem_align, found.stx_dio_offset_align) {
        (memory, offset) if memory.is_power_of_two() && offset.is_power_of_two() => Ok((memory, offset)),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}
