//! Space that the guest does not need: holes and zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use libc::{
    EINVAL, ENODEV, ENOSYS, EOPNOTSUPP, EPERM, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
};

use crate::sys;

pub(crate) const PUNCH_HOLE: libc::c_int = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
pub(crate) const ZERO_RANGE: libc::c_int = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

/// How many zeros are written with one call.
const PIECE: u64 = 1 << 16;

/// Gives the space of the range back to the host, if it takes it: the contents do not matter either way.
pub(crate) fn discard(file: &File, is_device: bool, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let done = if is_device {
        sys::discard_blocks(file, offset, len)
    } else {
        sys::fallocate(file, PUNCH_HOLE, offset, len)
    };
    match done {
        Err(e) if is_unsupported(&e) => Ok(()),
        done => done,
    }
}

/// Makes the range read as zeros. A block device takes the same calls as a file.
pub(crate) fn write_zeroes(file: &File, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let modes = if unmap { &[PUNCH_HOLE, ZERO_RANGE][..] } else { &[ZERO_RANGE][..] };
    for mode in modes {
        match sys::fallocate(file, *mode, offset, len) {
            Err(e) if is_unsupported(&e) => {}
            done => return done,
        }
    }
    write_zeros(file, offset, len)
}

/// Writes zeros.
pub(crate) fn write_zeros(file: &File, offset: u64, len: u64) -> io::Result<()> {
    // Not a static, which would be in the program's file.
    let zeros = vec![0; len.min(PIECE) as usize];
    let (mut at, end) = (offset, offset.saturating_add(len));
    while at < end {
        let most = (end - at).min(PIECE);
        file.write_all_at(zeros.get(..most as usize).unwrap_or_default(), at)?;
        at += most;
    }
    Ok(())
}

/// The file system, or the device, does not have it.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EOPNOTSUPP | ENOSYS | ENODEV | EINVAL | EPERM))
}
